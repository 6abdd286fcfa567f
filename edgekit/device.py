"""Device: one machine that can be handed files and told to run them, and how its name is written.

`local` is this machine; `qemu:rpi5` emulates the CPU of the target rpi5 here.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from edgekit.errors import TargetMissing, one_of
from edgekit.target import cpuinfo_of, load_target, target_names
from edgekit.transports import Transport, connect
from edgekit.transports.qemu import CPUINFO


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
    if kind != "qemu":
        return Device(name, connect(kind, address))
    emulated = {target.name: target for target in map(load_target, target_names()) if target.qemu_cpu}
    if address not in emulated:
        raise TargetMissing(
            f"qemu emulates no target '{address}'", hint=one_of(f"qemu:{name}" for name in sorted(emulated))
        )
    target = emulated[address]
    transport = connect(kind, str(target.qemu_cpu))
    transport.write(cpuinfo_of(target).encode(), CPUINFO)
    return Device(name, transport)
