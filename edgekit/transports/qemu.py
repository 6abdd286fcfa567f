"""A CPU that this machine does not have, emulated instruction by instruction: right results, meaningless time."""

import re
import shutil

from edgekit.errors import TargetMissing, UsageError
from edgekit.transports.local import Local

_PROGRAMS = ("qemu-aarch64-static", "qemu-aarch64")


class Qemu(Local):
    """User-mode emulation: each program runs under qemu, files are this machine's."""

    emulated = True

    def sensors(self) -> dict[str, float]:
        """Nothing: the host's clocks and temperatures say nothing about the emulated CPU."""
        return {}


def connect(address: str) -> Qemu:
    """An emulated 64-bit Arm machine; `address` is qemu's name of the CPU, such as cortex-a76.

    Raises:
        TargetMissing: qemu is not installed.
        UsageError: not the name of a CPU.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", address):
        raise UsageError(f"'{address}' is not the name of a CPU", hint="for example cortex-a76")
    program = find_emulator()
    return Qemu(machine="aarch64", prefix=(program, "-cpu", address))


def find_emulator() -> str:
    """The path of qemu's user-mode emulator.

    Raises:
        TargetMissing: it is not installed.
    """
    for name in _PROGRAMS:
        if path := shutil.which(name):
            return path
    raise TargetMissing(
        f"{' or '.join(_PROGRAMS)} is not on the path", hint="apt install qemu-user-static, or qemu-user"
    )
