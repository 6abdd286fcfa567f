"""This machine as a device: programs run in a temporary folder, files are linked instead of copied."""

import os
import platform
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgekit.errors import DeviceUnavailable, TimedOut, UsageError
from edgekit.transports import OUTPUT_LIMIT, Completed, checked_remote
from edgekit.units import Bytes, Seconds

_READ_BYTES = 65536
_MACHINE_WORDS = {"amd64": "x86_64", "arm64": "aarch64"}


class Local:
    """Runs programs as child processes, each the leader of its own group so that all of it can be ended."""

    emulated = False

    def __init__(self, *, machine: str = "", prefix: Sequence[str] = ()) -> None:
        """`prefix` is put before every argv: an emulator and its options."""
        self.machine = machine or host_machine()
        self._prefix = tuple(prefix)
        self._environment: dict[str, str] = {}  # added to this process's
        self._folder = tempfile.TemporaryDirectory(prefix="edgekit-device-")

    def put(self, local: Path, remote: str) -> None:
        self._free(remote).symlink_to(local.resolve(strict=True))

    def write(self, content: bytes, remote: str, *, executable: bool = False) -> None:
        place = self._free(remote)
        place.write_bytes(content)
        place.chmod(0o755 if executable else 0o644)

    def put_python(self, remote: str) -> None:
        self.write(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P "$@"\n'.encode(), remote, executable=True)

    def get(self, remote: str, local: Path, *, limit: Bytes) -> None:
        place = self._path(remote)
        if not place.is_file():
            raise DeviceUnavailable(f"the device has no file {remote}")
        size = Bytes(place.stat().st_size)
        if size > limit:
            raise DeviceUnavailable(f"{remote} on the device takes {size}, at most {limit} were expected")
        shutil.copyfile(place, local)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: Seconds,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
    ) -> Completed:
        program = str(self._path(argv[0]))
        began = time.monotonic()
        with tempfile.TemporaryFile() as source:
            source.write(stdin)
            source.seek(0)
            try:
                process = subprocess.Popen(
                    [*self._prefix, program, *argv[1:]],
                    stdin=source,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=self._folder.name,
                    env={**os.environ, **self._environment},
                    start_new_session=True,
                )
            except OSError as error:
                raise DeviceUnavailable(f"cannot start {argv[0]}: {error.strerror}", hint=_hint(program)) from error
        with process:
            try:
                stdout, stderr = _collect(process, argv[0], began + timeout, timeout, on_stdout)
            except BaseException:
                _end(process)
                raise
            returncode = process.wait()
        return Completed(returncode, stdout, stderr, Seconds(time.monotonic() - began))

    def sensors(self) -> dict[str, float]:
        return _sensors(Path("/sys"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def _free(self, remote: str) -> Path:
        """The place of `remote`, where nothing is and something may be put."""
        place = self._path(remote)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        return place

    def _path(self, remote: str) -> Path:
        return Path(self._folder.name) / checked_remote(remote)


def _hint(program: str) -> str:
    """What makes `program` one that may be run, if its mode is what keeps it from that."""
    file = Path(program).resolve()
    return f"chmod +x {shlex.quote(str(file))}" if file.is_file() and not file.stat().st_mode & 0o111 else ""


def connect(address: str) -> Local:
    """This machine; it has no address.

    Raises:
        UsageError: an address was given.
    """
    if address:
        raise UsageError(f"the device 'local' takes no address, but got '{address}'", hint="--device local")
    return Local()


def host_machine() -> str:
    """The machine word of this computer, one spelling for each architecture."""
    word = platform.machine().lower()
    return _MACHINE_WORDS.get(word, word)


def _collect(
    process: subprocess.Popen[bytes],
    name: str,
    deadline: float,
    timeout: Seconds,
    on_stdout: Callable[[bytes], None] | None,
) -> tuple[bytes, bytes]:
    """Everything the process writes until it closes both streams."""
    assert process.stdout is not None and process.stderr is not None
    stdout, stderr = bytearray(), bytearray()
    late = TimedOut(f"{name} was still running after {timeout} and was ended", hint="raise --timeout")
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, stdout)
        selector.register(process.stderr, selectors.EVENT_READ, stderr)
        while selector.get_map():
            left = deadline - time.monotonic()
            ready = selector.select(max(0.0, left))
            if not ready and left <= 0:
                raise late
            for key, _ in ready:
                chunk = os.read(key.fd, _READ_BYTES)
                if not chunk:
                    selector.unregister(key.fd)
                    continue
                if len(stdout) + len(stderr) + len(chunk) > OUTPUT_LIMIT:
                    raise DeviceUnavailable(f"{name} wrote more than {OUTPUT_LIMIT} and was ended")
                key.data.extend(chunk)
                if key.data is stdout and on_stdout is not None:
                    on_stdout(chunk)
    try:
        # Both streams are closed, so the program is about to end; one that lingers is held to the same deadline.
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise late from None
    return bytes(stdout), bytes(stderr)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _sensors(root: Path) -> dict[str, float]:
    """Readings below `root` as the Linux kernel lays them out; a file that cannot be read is left out."""
    readings = {}
    for zone in sorted(root.glob("class/thermal/thermal_zone*")):
        if (value := _number(zone / "temp")) is not None:
            readings[f"{zone.name}_celsius"] = value / 1000
    for cpu in sorted(root.glob("devices/system/cpu/cpu[0-9]*")):
        if (value := _number(cpu / "cpufreq" / "scaling_cur_freq")) is not None:
            readings[f"{cpu.name}_hertz"] = value * 1000
    return readings


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
