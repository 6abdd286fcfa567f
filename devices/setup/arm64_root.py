#!/usr/bin/env python3
"""Make a folder with Python for 64-bit Arm and the packages that edgekit's engines need there, for `--device qemu:...`.

Python and the C library come as this machine's own Debian release has them for arm64, by apt with a state of its own;
the packages, as pyproject.toml asks for them, by pip. Both check what they fetch. No root rights are needed, nothing
is installed on this machine, and no program for arm64 runs but one that tries the result. Interrupted, it goes on
with what was fetched.
"""

import argparse
import importlib.util
import os
import platform
import re
import shutil
import string
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_PYPROJECT: Final = Path(__file__).resolve().parents[2] / "pyproject.toml"
_LITERT: Final = "ai-edge-litert"
_TORCH: Final = "torch"
_EXECUTORCH: Final = "executorch"
_DEBIAN: Final = ("libstdc++6",)  # beside Python
_LEAST_GLIBC: Final = 17  # 2.17, the first of any wheel for aarch64
_REQUIREMENTS: Final = "requirements.txt"
_MISSING: Final = 4  # the exit code of edgekit where a tool is not installed

# Neither hooks nor anything else of this machine's packages is touched.
_APT: Final = string.Template("""\
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Dir::State "$work/state";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
""")


class Refused(Exception):
    """What is missing, and in `hint` what to do about it."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def main() -> None:
    """Makes the folder, unless it is there."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    place = os.environ.get("EDGEKIT_ARM64_ROOT") or f"{data}/edgekit/arm64"
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="Needs Debian on x86-64 or arm64, pip, and qemu-user-static. Takes 0.5 GB and about a minute.",
    )
    parser.add_argument(
        "--executorch",
        action="store_true",
        help="with ExecuTorch and torch: 6 GB more, because PyPI's torch for arm64 takes CUDA with it",
    )
    parser.add_argument("folder", nargs="?", default=place, help=f"where, by default {place} ($EDGEKIT_ARM64_ROOT)")
    options = parser.parse_args()
    folder = Path(options.folder).expanduser().absolute()
    wanted = _requirements(_LITERT, *([_TORCH] if options.executorch else []))
    # It also asks for what only writing a model takes, such as coremltools, which has no wheel for 64-bit Arm.
    alone = _requirements(_EXECUTORCH, base=False) if options.executorch else []
    if _is_made(folder, [*wanted, *alone]):
        print(f"{folder} is complete")
        return
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _REQUIREMENTS).is_file():
        raise Refused(f"{folder} exists and was not made by this script", hint="name another folder")
    emulator = _find("qemu-aarch64-static", "qemu-aarch64", package="qemu-user-static")
    _find("apt-get", package="apt")
    _find("dpkg-deb", package="dpkg")
    if importlib.util.find_spec("pip") is None:
        raise Refused(f"{sys.executable} has no pip", hint="call this with the Python of edgekit's environment")
    work = folder.with_name(f".{folder.name}-unfinished")
    root = work / "root"
    version = _add_debian(root, work)
    _add_packages(root, version, wanted, alone)
    _say("trying it")
    _try(root, emulator)
    (root / _REQUIREMENTS).write_text("".join(f"{line}\n" for line in (*wanted, *alone)), "utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    root.rename(folder)
    shutil.rmtree(work)
    print(f"{folder} is complete")


def _requirements(*optional: str, base: bool = True) -> list[str]:
    """What edgekit asks for at its base, and the versions that its extras give to `optional` packages."""
    project = tomllib.loads(_PYPROJECT.read_text("utf-8"))["project"]
    extras = {line for lines in project["optional-dependencies"].values() for line in lines}
    found = sorted(line for line in extras if re.split(r"[<>=!~ ]", line, maxsplit=1)[0] in optional)
    return [*(project["dependencies"] if base else []), *found]


def _is_made(folder: Path, wanted: Sequence[str]) -> bool:
    made = folder / _REQUIREMENTS
    return made.is_file() and {*wanted} <= {*made.read_text("utf-8").splitlines()}


def _add_debian(root: Path, work: Path) -> str:
    """Unpacks Python and the libraries that it needs, and gives its version, such as "3.11"."""
    for folder in (root, work / "state/lists/partial", work / "cache/archives/partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (work / "status").write_bytes(b"")
    (work / "apt.conf").write_text(_APT.substitute(work=work), "utf-8")
    configured = ("-c", str(work / "apt.conf"), "-q")
    _say("reading Debian's list of packages for arm64")
    _run(["apt-get", *configured, "update"], "apt-get update fails", hint="look at the sources in /etc/apt")
    shown = _run(["apt-cache", *configured, "show", "python3"], "Debian's sources have no python3 for arm64", hint="")
    found = re.search(r"^Version: (\d+\.\d+)\.", shown, re.MULTILINE)
    if found is None:
        raise Refused("Debian's sources have no python3 for arm64", hint="look at the sources in /etc/apt")
    version = found[1]
    _say(f"fetching Python {version} for arm64")
    names = (f"python{version}", *_DEBIAN)
    _run(
        ["apt-get", *configured, "install", "--yes", "--download-only", *names],
        f"apt-get cannot fetch {' and '.join(names)} for arm64",
        hint="call this again: what was fetched is kept",
    )
    for package in sorted((work / "cache/archives").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(root)], f"{package.name} cannot be unpacked", hint="")
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    python = root / "usr/bin/python3"
    python.unlink(missing_ok=True)
    python.symlink_to(f"python{version}")
    return version


def _add_packages(root: Path, version: str, wanted: Sequence[str], alone: Sequence[str]) -> None:
    """Puts the wheels where Debian's Python looks for packages; `alone` without what they ask for."""
    place = root / "usr/lib/python3/dist-packages"
    shutil.rmtree(place, ignore_errors=True)  # pip replaces nothing there
    library = next(iter(root.glob("**/libc.so.6")))
    found = re.search(rb"GNU C Library[^\n]* release version 2\.(\d+)", library.read_bytes())
    newest = int(found[1]) if found else _LEAST_GLIBC
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(newest, _LEAST_GLIBC - 1, -1)]
    platforms.append("manylinux2014_aarch64")
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--ignore-installed"),
        *("--target", str(place), "--only-binary", ":all:", "--implementation", "cp", "--python-version", version),
        *(word for name in platforms for word in ("--platform", name)),
    ]
    for packages in filter(None, (wanted, ["--no-deps", *alone] if alone else [])):
        _say("fetching packages for aarch64")
        _run(
            [*command, *packages],
            "pip cannot fetch the packages for aarch64",
            hint="call this again: what was fetched is in pip's cache",
        )


def _try(root: Path, emulator: str) -> None:
    """Imports compiled packages, but neither ONNX Runtime nor torch, which have to see a board's processor."""
    modules = ("numpy", "onnx", "tokenizers", "ai_edge_litert.compiled_model")
    python = [str(root / "usr/bin/python3"), "-I", "-c", f"import {', '.join(modules)}"]
    if platform.machine() != "aarch64":
        python = [emulator, "-L", str(root), *python]
    _run(python, "the packages do not run", hint="please report it")


def _find(*names: str, package: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    raise Refused(f"{' or '.join(names)} is not on the path", hint=f"Debian: apt install {package}")


def _run(command: Sequence[str], failure: str, *, hint: str) -> str:
    """What the command prints; what it said is shown where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise Refused(failure, hint=hint)
    return done.stdout


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        print(f"arm64_root: {refused}", *([f"hint: {refused.hint}"] if refused.hint else []), sep="\n", file=sys.stderr)
        sys.exit(_MISSING)
    except KeyboardInterrupt:
        sys.exit("arm64_root: interrupted")
