"""What every test may ask for: the emulator, and a cache folder of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from edgekit.errors import TargetMissing
from edgekit.transports import qemu


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps finished stages of one test run from another, and the user's cache out of both."""
    path = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("EDGEKIT_CACHE", str(path))
    return path


@pytest.fixture(scope="session")
def emulator() -> str:
    """The path of qemu-aarch64. Without it a test is skipped on a person's machine and fails in CI."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if path := shutil.which(name):
            return path
    return _missing("qemu-aarch64 is not installed: apt install qemu-user-static")


@pytest.fixture(scope="session")
def arm64_root(emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Python and packages for 64-bit Arm; in CI they are fetched, elsewhere a test is skipped without them."""
    script = Path(__file__).parents[1] / "devices" / "setup" / "arm64_root.py"
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("CI"):
            patch.setenv("EDGEKIT_ARM64_ROOT", str(tmp_path_factory.mktemp("arm64") / "root"))
            done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        try:
            yield qemu.arm64_root()
        except TargetMissing as error:
            _missing(error.message)


def _missing(message: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
