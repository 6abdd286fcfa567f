"""A CPU that this machine does not have, emulated instruction by instruction: right results, meaningless time."""

import importlib.resources
import os
import re
import shutil
from pathlib import Path
from typing import Final

from edgekit.errors import TargetMissing, UsageError
from edgekit.transports.local import Local

# Files of the emulated machine are below this folder of the device, and seen there instead of this machine's.
_SYSTEM: Final = "system"
CPUINFO: Final = f"{_SYSTEM}/proc/cpuinfo"

_PROGRAMS: Final = ("qemu-aarch64-static", "qemu-aarch64")
_PACKAGES: Final = "packages"


class Qemu(Local):
    """User-mode emulation: each program runs under qemu, files are this machine's."""

    emulated = True

    def __init__(self, program: str, cpu: str) -> None:
        super().__init__(machine="aarch64")
        self._prefix = (program, "-cpu", cpu, "-L", str(self._path(_SYSTEM)))

    def put_python(self, remote: str) -> None:
        root = arm64_root()
        for name in ("lib", "usr"):
            self.put(root / name, f"{_SYSTEM}/{name}")
        package = Path(str(importlib.resources.files("edgekit")))
        # In a source tree the targets lie beside the package.
        for folder in filter(Path.is_dir, (package, package.parent / "targets")):
            self.put(folder, f"{_PACKAGES}/{folder.name}")
        self.put(root / "usr/bin/python3", remote)
        nothing_of_this_machine = dict.fromkeys(("PYTHONHOME", "LD_PRELOAD", "LD_LIBRARY_PATH"), "")
        paths = {"PYTHONPATH": str(self._path(_PACKAGES)), "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
        self._environment |= nothing_of_this_machine | paths

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
    return Qemu(find_emulator(), address)


def arm64_root() -> Path:
    """What devices/setup/arm64_root.py makes: in $EDGEKIT_ARM64_ROOT, else where the person's data is.

    Raises:
        TargetMissing: there is none.
    """
    data = os.environ.get("XDG_DATA_HOME") or f"{os.environ.get('HOME', '')}/.local/share"
    root = Path(os.environ.get("EDGEKIT_ARM64_ROOT") or f"{data}/edgekit/arm64")
    if not (root / "usr/bin/python3").is_file():
        raise TargetMissing(
            f"only a native bundle runs on an emulated board without Python for 64-bit Arm, and none is in {root}",
            hint="in the source of edgekit: python devices/setup/arm64_root.py; EDGEKIT_ARM64_ROOT names another place",
        )
    return root


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
