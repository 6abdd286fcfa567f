"""Device: one machine that can be handed files and told to run them, and how its name is written.

`local` is this machine; `qemu:rpi5` emulates the CPU of the target rpi5 here.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edgekit.errors import TargetMissing, one_of
from edgekit.target import load_target, target_names
from edgekit.transports import Transport, connect


@dataclass(frozen=True, slots=True)
class Device:
    """One machine and the way to it. What the machine can do is its target's matter."""

    name: str
    transport: Transport

    def __enter__(self) -> Self:
        self.transport.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.transport.__exit__(kind, error, trace)


def open_device(name: str) -> Device:
    """The device called `name`, to be used in a `with` statement.

    Raises:
        UsageError: no such device.
        TargetMissing: the emulator is not there, or has no CPU for the target.
    """
    kind, _, address = name.partition(":")
    if kind == "qemu":
        address = _emulated_cpu(address)
    return Device(name, connect(kind, address))


def _emulated_cpu(target: str) -> str:
    """qemu's name of the target's CPU."""
    emulated = {name: cpu for name in target_names() if (cpu := load_target(name).qemu_cpu)}
    if target not in emulated:
        raise TargetMissing(
            f"qemu emulates no target '{target}'", hint=one_of(f"qemu:{name}" for name in sorted(emulated))
        )
    return emulated[target]
