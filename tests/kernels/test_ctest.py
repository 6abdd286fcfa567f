"""Builds the C++ tests and runs each: optimised, under sanitizers, and for ARM on emulated CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.cc"))

# What the board has decides which kernels run: ARMv8.0, with dot products, and everything QEMU knows.
ARM_CPUS = ("cortex-a53", "cortex-a72", "cortex-a76", "max")

# Built once and kept beside the checkout, so that a second run of the suite only compiles what changed.
BUILDS = ROOT / "build" / "tests"


def build(name: str, *options: str) -> Path:
    """The folder of test programs built with the CMake `options`."""
    folder = BUILDS / name
    commands = (
        ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), "-DEDGEKIT_TESTS=ON", *options],
        ["cmake", "--build", str(folder), "--parallel", "2"],
    )
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return folder / "tests" / "kernels"


@pytest.fixture(scope="session")
def optimised() -> Path:
    return build("optimised")


@pytest.fixture(scope="session")
def sanitized() -> Path:
    # With more optimisation the compiler takes twice as long.
    options = ("-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1")
    return build("sanitized", "-DEDGEKIT_SANITIZE=ON", *options)


@pytest.fixture(scope="session")
def arm(emulator: str) -> Path:
    toolchain = ROOT / "kernels" / "cmake" / "zig.cmake"
    return build(
        "aarch64",
        f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",
        "-DEDGEKIT_TRIPLE=aarch64-linux-musl",
        f"-DEDGEKIT_PYTHON_EXE={sys.executable}",
    )


def check(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-6000:]}{done.stderr[-6000:]}"


@pytest.mark.parametrize("name", SOURCES)
def test_the_optimised_build_passes(optimised: Path, name: str) -> None:
    check(str(optimised / name))


@pytest.mark.parametrize("name", SOURCES)
def test_the_sanitizers_find_nothing(sanitized: Path, name: str) -> None:
    check(str(sanitized / name))


def test_the_thread_sanitizer_finds_no_race(tmp_path: Path) -> None:
    """The team alone: all that threads of a session share goes through it."""
    sources = [ROOT / "tests" / "kernels" / "test_program_threads.cc", ROOT / "kernels" / "program" / "threads.cc"]
    folders = [f"-I{ROOT / folder}" for folder in ("kernels", "kernels/include", "tests/kernels")]
    program = tmp_path / "test_program_threads"
    options = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", *folders]
    check(os.environ.get("CXX", "c++"), *options, *map(str, sources), "-o", str(program))
    check(str(program))


@pytest.mark.emulator
@pytest.mark.parametrize("cpu", ARM_CPUS)
@pytest.mark.parametrize("name", SOURCES)
def test_the_arm_build_passes_on(cpu: str, name: str, arm: Path, emulator: str) -> None:
    check(emulator, "-cpu", cpu, str(arm / name))
