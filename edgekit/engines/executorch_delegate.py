"""Build libedgekit_executorch.so against the installed ExecuTorch, once, and load it: it registers EdgekitBackend.

The delegate speaks C++ with ExecuTorch's wheel, so it has to be built with the headers and the library of that very
version and with the system's compiler. What it is built from lies in the package's folder `sdk`: the adapter's source,
edgekit's C headers and the kernels as a static library for this machine.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.resources
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from edgekit.cache import Cache, user_cache
from edgekit.disk import writing
from edgekit.errors import TargetMissing
from edgekit.target import is_emulated
from edgekit.transports import printable

BACKEND: Final = "EdgekitBackend"
LIBRARY: Final = "libedgekit_executorch.so"
# Methods of a .pte; the second only with edgekit's kernels, where the first gives the last token's logits alone.
FORWARD: Final = "forward"
ALL_LOGITS: Final = "all_logits"

_STAGE: Final = "executorch"
_RUNTIME: Final = Path("extension", "pybindings")
_FLAGS: Final = (
    "-std=c++20", "-O2", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden",
    "-DC10_USING_CUSTOM_GENERATED_MACROS", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections",
)  # fmt: skip
_MOST_REASON: Final = 200  # characters


def version() -> str:
    """The runtime and its version, such as "executorch 1.4.1".

    Raises:
        TargetMissing: it is not installed.
    """
    try:
        return f"executorch {importlib.metadata.version('executorch')}"
    except importlib.metadata.PackageNotFoundError:
        raise _missing() from None


def load_runtime() -> Any:
    """ExecuTorch's module of programs and methods, in which EdgekitBackend is registered.

    Raises:
        TargetMissing: ExecuTorch is not installed, or what the delegate is built with.
    """
    runtime = import_runtime()
    if BACKEND not in runtime._get_registered_backend_names():
        _delegate()
    if BACKEND not in runtime._get_registered_backend_names():
        raise TargetMissing(
            f"{version()} does not see the {BACKEND} that was loaded",
            hint="load it before executorch.extension.llm.runner is imported",
        )
    return runtime


def import_runtime() -> Any:
    """The same without edgekit's delegate, for programs that need none."""
    version()
    try:
        with quiet():
            import torch  # noqa: F401  # the next one is linked to its libraries
        from executorch.extension.pybindings import _portable_lib
    except ImportError as error:
        raise TargetMissing(f"{version()} cannot be imported: {printable(str(error))}", hint=_missing().hint) from error
    return _portable_lib


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch and executorch tell their own developers: missing GPU libraries, deprecations among them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def take_refusal() -> str:
    """Why the delegate last refused a program or a call; empty if that was taken before, or someone else loaded it."""
    if not _delegate.cache_info().currsize:
        return ""
    return printable(_delegate().edgekit_executorch_take_refusal().decode("utf-8", "replace"))


@functools.cache
def _delegate() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build_delegate(user_cache())))
    library.edgekit_executorch_take_refusal.restype = ctypes.c_char_p
    return library


def build_delegate(cache: Cache, on_build: Callable[[], None] = lambda: None) -> Path:
    """The shared library, which stays in the cache: built again for another ExecuTorch, compiler or edgekit.

    `on_build` is told before it is built, which takes some seconds.

    Raises:
        TargetMissing: there is no ExecuTorch, no C++ compiler that can build it, or no `sdk` for this machine.
    """
    executorch, compiler = _executorch_folder(), _compiler()
    if is_emulated() and not {"CXX", "EDGEKIT_SDK"} <= os.environ.keys():
        raise TargetMissing(
            f"for an emulated board {BACKEND} has to be built by a cross compiler",
            hint="compile with --portable; or give CXX and EDGEKIT_SDK as README.md says under ExecuTorch",
        )
    runtime = executorch / _RUNTIME
    library = next(iter(sorted(runtime.glob("_portable_lib.*.so"))), None)
    if library is None:
        raise TargetMissing(f"{version()} has no library in {runtime}", hint="install it for this machine")
    sources = _sources()
    key = {
        "runtime": f"{version()} {library.name}",
        "compiler": _output([*compiler, "--version"]).partition("\n")[0],
        "flags": shlex.join([*compiler[1:], *_FLAGS]),
        "sources": _digest(sources),
    }
    found = cache.find(_STAGE, key)
    if found is None:
        on_build()
        include = executorch / "include"
        folders = (include, include / "executorch" / "runtime" / "core" / "portable_type" / "c10")
        with cache.fill(_STAGE, key) as folder, writing(folder / LIBRARY):
            command = [*compiler, *_FLAGS, f"-I{_sdk() / 'include'}"]
            for system in folders:
                command += ["-isystem", str(system)]
            given = [str(path) for path in (*sources, library) if path.suffix in (".cc", ".a", ".so")]
            _output([*command, *given, "-o", str(folder / LIBRARY)])
        found = cache.find(_STAGE, key)
        assert found is not None
    return found / LIBRARY


def _executorch_folder() -> Path:
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise _missing()
    # A namespace package: any folder of that name on sys.path, such as a bundle, is one of its locations.
    folders = [Path(location) for location in spec.submodule_search_locations]
    return next((folder for folder in folders if (folder / _RUNTIME).is_dir()), folders[0])


def _missing() -> TargetMissing:
    if is_emulated():
        return TargetMissing(
            "the root file system of the emulated board has no ExecuTorch",
            hint="in the source of edgekit: python devices/setup/arm64_root.py --executorch",
        )
    return TargetMissing("ExecuTorch is not installed", hint="pip install 'edgekit[executorch]'")


def _compiler() -> list[str]:
    """The C++ compiler: CXX, or what the system calls c++."""
    words = shlex.split(os.environ.get("CXX", ""))
    names = [words[0]] if words else ["c++", "g++", "clang++"]
    for name in names:
        if shutil.which(name) is not None:
            return [name, *words[1:]]
    raise TargetMissing(
        f"there is no C++ compiler ({' or '.join(names)}) to build {BACKEND} with",
        hint="Debian: apt install g++; the environment variable CXX names another",
    )


def _sdk() -> Path:
    chosen = os.environ.get("EDGEKIT_SDK")
    return Path(chosen) if chosen else Path(str(importlib.resources.files("edgekit"))) / "sdk"


def _sources() -> list[Path]:
    """Everything that the library is built from, in order."""
    sdk = _sdk()
    kernels = sdk / "lib" / "libedgekit_kernels.a"
    paths = [sdk / "executorch" / "backend.cc", kernels, *sorted((sdk / "include").rglob("*.h"))]
    for path in paths[:2]:
        if not path.is_file():
            raise TargetMissing(f"there is no {path}", hint="install edgekit again, or set EDGEKIT_SDK")
    return paths


def _digest(paths: list[Path]) -> str:
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def _output(command: list[str]) -> str:
    """What the compiler prints.

    Raises:
        TargetMissing: it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
        raise TargetMissing(
            f"{command[0]} cannot build {BACKEND}: {printable(lines[0])[:_MOST_REASON]}",
            hint="it takes a compiler for C++20, such as g++ 12; the environment variable CXX names another",
        )
    return done.stdout
