"""The delegate is built once for each ExecuTorch, compiler and edgekit; what is missing for it is said."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.cache import user_cache
from edgekit.engines import executorch_delegate
from edgekit.engines.executorch_delegate import BACKEND, LIBRARY, build_delegate, load_runtime, version
from edgekit.errors import TargetMissing

pytest.importorskip("executorch")

ADAPTER = Path(__file__).parents[1] / "kernels" / "adapters" / "executorch"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the delegate is built from."""
    try:
        executorch_delegate._sources()
    except TargetMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(error.message)
    folder = tmp_path / "sdk"
    shutil.copytree(executorch_delegate._sdk(), folder)
    monkeypatch.setenv("EDGEKIT_SDK", str(folder))
    return folder


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each library that is built."""
    calls, compiler = tmp_path / "calls", tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *backend.cc*) echo x >> "{calls}";; esac\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return calls


def test_the_library_is_built_once(sdk: Path, calls: Path) -> None:
    told: list[str] = []
    library = build_delegate(user_cache(), lambda: told.append("builds"))
    assert library.read_bytes()[:4] == b"\x7fELF"
    assert build_delegate(user_cache(), lambda: told.append("builds")) == library
    assert calls.read_text() == "x\n" and told == ["builds"]


def test_a_folder_that_is_called_executorch_too_is_no_runtime(
    sdk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bundle may be, in the current directory, where python -m looks first."""
    (tmp_path / "executorch").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "executorch", raising=False)
    spec = importlib.util.find_spec("executorch")
    assert spec is not None and spec.submodule_search_locations is not None
    assert next(iter(spec.submodule_search_locations)) == str(tmp_path / "executorch")
    assert build_delegate(user_cache()).is_file()


def test_another_source_is_another_library(sdk: Path, calls: Path) -> None:
    library = build_delegate(user_cache())
    source = sdk / "executorch" / "backend.cc"
    source.write_text(source.read_text() + "// more\n")
    assert build_delegate(user_cache()) != library
    assert calls.read_text() == "x\nx\n"


def test_no_compiler_is_said_with_what_to_do(sdk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(TargetMissing, match=r"no C\+\+ compiler \(no-such-compiler\)") as caught:
        build_delegate(user_cache())
    assert "apt install g++" in caught.value.hint and caught.value.exit_code == 4
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(sdk))
    with pytest.raises(TargetMissing, match=r"no C\+\+ compiler \(c\+\+ or g\+\+ or clang\+\+\)"):
        build_delegate(user_cache())


def test_an_emulated_board_needs_a_cross_compiler_and_kernels_made_by_it(
    sdk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executorch_delegate, "is_emulated", lambda: True)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(TargetMissing, match="EdgekitBackend has to be built by a cross compiler") as caught:
        build_delegate(user_cache())
    assert caught.value.hint.startswith("compile with --portable; or give CXX and EDGEKIT_SDK")
    monkeypatch.setenv("CXX", "c++")
    assert build_delegate(user_cache()).is_file()


def test_an_emulated_board_without_executorch_names_the_script_that_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    monkeypatch.setattr(executorch_delegate, "is_emulated", lambda: True)
    with pytest.raises(TargetMissing, match="the emulated board has no ExecuTorch") as caught:
        version()
    assert caught.value.hint.endswith("devices/setup/arm64_root.py --executorch")


def test_a_compiler_that_fails_leaves_nothing_and_is_quoted(sdk: Path, tmp_path: Path) -> None:
    (sdk / "executorch" / "backend.cc").write_text("#error too old\n")
    with pytest.raises(TargetMissing, match=r"cannot build EdgekitBackend: .*too old"):
        build_delegate(user_cache())
    assert not list((tmp_path / "cache").glob("*executorch*"))
    assert not list((tmp_path / "cache").glob(".unfinished-*"))


def test_an_app_builds_it_with_cmake(sdk: Path, tmp_path: Path) -> None:
    """With the kernels that are there, which the project would build otherwise."""
    (tmp_path / "CMakeLists.txt").write_text(f"""
cmake_minimum_required(VERSION 3.24)
project(app LANGUAGES CXX)
add_library(edgekit_kernels STATIC IMPORTED)
set_target_properties(edgekit_kernels PROPERTIES
  IMPORTED_LOCATION {sdk}/lib/libedgekit_kernels.a INTERFACE_INCLUDE_DIRECTORIES {sdk}/include)
add_subdirectory({ADAPTER} adapter)
""")
    package = executorch_delegate._executorch_folder() / "share" / "cmake"
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in (
        ["cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={package}"],
        ["cmake", "--build", tmp_path / "build"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | path)
        assert done.returncode == 0, done.stdout + done.stderr
    library = str(tmp_path / "build" / "adapter" / LIBRARY)
    script = "import ctypes, sys, torch; from executorch.extension.pybindings import _portable_lib as runtime; "
    script += "ctypes.CDLL(sys.argv[1]); print(runtime._get_registered_backend_names())"
    done = subprocess.run([sys.executable, "-c", script, library], capture_output=True, text=True, check=True)
    assert BACKEND in done.stdout


@pytest.mark.parametrize("name", ["executorch/backend.cc", "lib/libedgekit_kernels.a"])
def test_a_missing_part_is_named(sdk: Path, name: str) -> None:
    (sdk / name).unlink()
    with pytest.raises(TargetMissing, match=f"there is no .*{name}"):
        build_delegate(user_cache())


def test_without_executorch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    for needs in (version, load_runtime):
        with pytest.raises(TargetMissing, match="ExecuTorch is not installed") as caught:
            needs()
        assert caught.value.hint == "pip install 'edgekit[executorch]'"
