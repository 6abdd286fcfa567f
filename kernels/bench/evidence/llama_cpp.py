"""llama.cpp: built from its Python source package, run through llama-bench."""

import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from evidence.gguf_models import write_gguf
from evidence.progress import ToolFailed, run, say
from evidence.shapes import SHAPES

PACKAGE: Final = "llama-cpp-python==0.3.36"
Key = tuple[str, int]  # test name (pp256, tg64), depth


def find_source(work: Path) -> Path:
    """The source of llama.cpp under `work`, fetched unless it is there."""
    for folder in work.glob("llama_cpp_python-*/vendor/llama.cpp"):
        return folder
    say(f"fetching {PACKAGE} ...")
    run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", work, PACKAGE])
    archive = next(work.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    return work / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"


def build(work: Path) -> Path:
    """The path of llama-bench, built for this CPU under `work` unless it is there."""
    folder = work / "llama-build"
    binary = folder / "bin" / "llama-bench"
    if not binary.exists():
        source = find_source(work)
        say("building llama.cpp for this CPU ...")
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF"]
        options += ["-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF"]
        run(["cmake", "-G", "Ninja", "-S", source, "-B", folder, *options])
        run(["cmake", "--build", folder, "--target", "llama-bench", "-j2"])
    return binary


def model(work: Path, shape: str, format_name: str) -> Path:
    """The GGUF file of random weights, written under `work` unless it is there."""
    path = work / f"{shape}-{format_name}.gguf"
    if not path.exists():
        say(f"writing {path.name} ...")
        write_gguf(path, SHAPES[shape], format_name)
    return path


def read_rows(text: str) -> dict[Key, float]:
    """Tokens per second of what llama-bench printed with -o json, the best over the settings of a test."""
    best: dict[Key, float] = {}
    for row in json.loads(text):
        test = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
        key = test, int(row.get("n_depth", 0))
        best[key] = max(best.get(key, 0.0), float(row["avg_ts"]))
    return best


def bench(
    binary: Path,
    file: Path,
    *,
    wanted: str,
    prompt: int,
    generated: int,
    threads: int,
    depths: Sequence[int] = (0,),
    flash: str = "0",
) -> dict[Key, float]:
    """Tokens per second of a model whose blocks are `wanted`; with `flash` "0,1" the better of both attentions."""
    command: list[str | Path] = [binary, "-m", file, "-p", str(prompt), "-n", str(generated), "-r", "1"]
    command += ["-t", str(threads), "-d", ",".join(map(str, depths)), "-fa", flash, "-o", "json"]
    text = run(command)
    check_type(text, file.name, wanted)
    return read_rows(text)


def check_type(text: str, name: str, wanted: str) -> None:
    """llama-bench guesses a model's type from its tensors: it must have read the blocks that most of them are made of.

    Raises:
        ToolFailed: it read another.
    """
    kinds = {str(row["model_type"]) for row in json.loads(text)}
    if not all(wanted in kind for kind in kinds):
        raise ToolFailed(f"{name} was read as {', '.join(sorted(kinds))}, not as {wanted}")
