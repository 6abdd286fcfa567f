"""What every test may ask for: the emulator, and a cache folder of its own."""

import os
import shutil
from pathlib import Path

import pytest


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
    message = "qemu-aarch64 is not installed: apt install qemu-user-static"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
