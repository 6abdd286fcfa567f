"""How files and commands reach a device: one transport a file, found by its name.

A module `transports/<name>.py` defines `connect(address: str) -> Transport`. What a device writes is not trusted:
it is bounded in size here, and whoever prints it takes the control characters out.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, Self

from edgekit.errors import UsageError, one_of
from edgekit.units import Bytes, Seconds

# More than any measurement or generated text takes; a device that writes more than this is broken or hostile.
OUTPUT_LIMIT = Bytes(16 << 20)


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended by itself. A negative `returncode` is the signal that ended it."""

    returncode: int
    stdout: bytes
    stderr: bytes
    seconds: Seconds


class Transport(Protocol):
    """The way to one device. Remote paths are relative to a folder that lasts as long as the connection."""

    @property
    def machine(self) -> str:
        """Machine word of the programs it runs, as `uname -m` writes it."""
        ...

    @property
    def emulated(self) -> bool:
        """True if time on it means nothing."""
        ...

    def put(self, local: Path, remote: str) -> None:
        """Makes the file or folder `local` readable on the device as `remote`."""
        ...

    def write(self, content: bytes, remote: str, *, executable: bool = False) -> None:
        """Makes the device's file `remote`, which holds `content`."""
        ...

    def put_python(self, remote: str) -> None:
        """Makes the device's program `remote` a Python that imports edgekit, and nothing from the folder it runs in.

        Raises:
            TargetMissing: the device has no Python, or none with edgekit's packages.
        """
        ...

    def get(self, remote: str, local: Path, *, limit: Bytes) -> None:
        """Copies the device's file `remote` to `local`, at most `limit` bytes of it: a longer one is refused."""
        ...

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: Seconds,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Runs a program, argv[0] a remote path, and hands over what it writes as it comes.

        Raises:
            TimedOut: it was still running after `timeout`, and was ended.
            DeviceUnavailable: it cannot be started, or writes more than OUTPUT_LIMIT.
        """
        ...

    def sensors(self) -> dict[str, float]:
        """Clocks in hertz and temperatures in degrees Celsius, as many as the device tells."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def transport_names() -> list[str]:
    """Every transport there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def connect(name: str, address: str) -> Transport:
    """A connection by the transport `name` to `address`, whose form the transport defines.

    Raises:
        UsageError: no such transport.
    """
    if name not in transport_names():
        raise UsageError(
            f"unknown kind of device '{name}'",
            hint=f"{one_of(transport_names())}; local is this machine, qemu:rpi5 an emulated one",
        )
    transport: Transport = importlib.import_module(f"{__name__}.{name}").connect(address)
    return transport


def checked_remote(remote: str) -> PurePosixPath:
    """`remote` as a path that stays inside the device's folder.

    Raises:
        UsageError: it is absolute, climbs out, looks like an option, or holds control characters.
    """
    path = PurePosixPath(remote)
    if path.is_absolute() or ".." in path.parts or not path.parts or remote.startswith("-") or not remote.isprintable():
        raise UsageError(f"{remote!r} is not a path inside the device's folder", hint="a relative path, without '..'")
    return path


# C0 and C1 controls but for tab and line feed, surrogates, and the marks that turn the direction of writing.
_COMMANDING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` without the characters that would command a terminal; line breaks and tabs stay."""
    return _COMMANDING.sub("", text)
