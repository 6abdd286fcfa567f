"""The script that makes a root file system for 64-bit Arm: what it refuses, and that it leaves what is there alone."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "devices" / "setup" / "arm64_root.py"


def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_its_help_says_what_it_takes_and_where_it_puts_it(tmp_path: Path) -> None:
    done = call("--help", EDGEKIT_ARM64_ROOT="", XDG_DATA_HOME=str(tmp_path))
    text = "".join(done.stdout.split())
    assert done.returncode == 0
    assert f"{tmp_path}/edgekit/arm64" in text
    assert "qemu-user-static" in text


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = call(tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"arm64_root: {tmp_path} exists and was not made by this script\nhint: ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.emulator
def test_what_is_made_already_is_not_made_again(arm64_root: Path) -> None:
    done = call(arm64_root, PATH="/nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{arm64_root} is complete\n"


@pytest.mark.emulator
def test_it_has_every_package_that_edgekit_needs(arm64_root: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (arm64_root / "requirements.txt").read_text().splitlines()
    assert set(project["dependencies"]) < set(lines)
    assert any(line.startswith("ai-edge-litert") for line in lines)


def test_without_an_emulator_nothing_is_fetched(tmp_path: Path) -> None:
    done = call(tmp_path / "root", PATH="/nowhere")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        "arm64_root: qemu-aarch64-static or qemu-aarch64 is not on the path\n"
        "hint: Debian: apt install qemu-user-static\n"
    )
    assert list(tmp_path.iterdir()) == []
