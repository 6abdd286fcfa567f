"""Time edgekit against llama.cpp on the same shapes, alternating, and print the ratios with their spread.

Weights are random: speed does not depend on their values. llama.cpp is built natively from its Python source package.

    python kernels/bench/peers.py --work /tmp/peers

needs cmake, ninja, a C++ compiler, and the packages edgekit and gguf.
"""

import json
import platform
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import gguf
import numpy as np

from edgekit.testing import make_checkpoint

LLAMA_CPP = "llama-cpp-python==0.3.36"
CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a Llama-architecture decoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


SHAPES = {
    "1.1b": Shape(22, 2048, 5632, 32, 4, 32000, tied=False),
    "135m": Shape(30, 576, 1536, 9, 3, 49152, tied=True),
}

Rows = dict[str, float]  # test name (pp256, tg64) -> tokens per second


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """A GGUF block of quantized weights: random bytes but for the scales, which would overflow."""

    weights: int
    data_bytes: int
    scale_at: tuple[int, ...]  # byte offsets of the float16 scales in the block


BLOCKS = {
    "Q4_0": BlockFormat(32, 18, (0,)),
    "Q2_K": BlockFormat(256, 84, (80, 82)),
    "Q3_K": BlockFormat(256, 110, (108,)),
    "TQ2_0": BlockFormat(256, 66, (64,)),
}


def random_blocks(rng: np.random.Generator, block: BlockFormat, n: int, k: int) -> np.ndarray:
    """Random quantized weights of an (n, k) matrix, as bytes [n][k / block.weights * block.data_bytes]."""
    blocks = k // block.weights
    data = rng.integers(0, 256, (n, blocks, block.data_bytes), np.uint8)
    for at in block.scale_at:
        data[:, :, at : at + 2] = np.frombuffer(np.float16(0.003).tobytes(), np.uint8)
    return data.reshape(n, blocks * block.data_bytes)


def write_gguf(path: Path, shape: Shape, format_name: str) -> None:
    """Write a GGUF file of `shape` with random weights, every matrix in one format (Q4_0 where k does not divide)."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}".encode() for i in range(shape.vocab)])
    writer.add_token_scores([0.0] * shape.vocab)
    writer.add_token_types([1] * shape.vocab)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def matrix(name: str, n: int, k: int) -> None:
        used = format_name if k % BLOCKS[format_name].weights == 0 else "Q4_0"
        writer.add_tensor(name, random_blocks(rng, BLOCKS[used], n, k), raw_dtype=gguf.GGMLQuantizationType[used])

    kv = shape.kv_heads * shape.head_dim
    matrix("token_embd.weight", shape.vocab, shape.hidden)
    if not shape.tied:
        matrix("output.weight", shape.vocab, shape.hidden)
    writer.add_tensor("output_norm.weight", np.ones(shape.hidden, np.float32))
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{norm}.weight", np.ones(shape.hidden, np.float32))
        matrix(block + "attn_q.weight", shape.hidden, shape.hidden)
        matrix(block + "attn_k.weight", kv, shape.hidden)
        matrix(block + "attn_v.weight", kv, shape.hidden)
        matrix(block + "attn_output.weight", shape.hidden, shape.hidden)
        matrix(block + "ffn_gate.weight", shape.intermediate, shape.hidden)
        matrix(block + "ffn_up.weight", shape.intermediate, shape.hidden)
        matrix(block + "ffn_down.weight", shape.hidden, shape.intermediate)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build_llama_bench(work: Path) -> Path:
    """The path of llama-bench, built for this CPU under `work` unless it is there already."""
    binary = work / "llama-build" / "bin" / "llama-bench"
    if binary.exists():
        return binary
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", str(work), LLAMA_CPP]
    subprocess.run(pip, check=True)
    archive = next(work.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    source = work / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF"]
    options += ["-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF"]
    build = work / "llama-build"
    subprocess.run(["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), *options], check=True)
    subprocess.run(["cmake", "--build", str(build), "--target", "llama-bench"], check=True)
    return binary


def build_bundle(work: Path, name: str, recipe: str) -> Path:
    """The bundle of a random checkpoint of the shape, compiled for this host under `work` unless it is there."""
    shape = SHAPES[name]
    checkpoint = work / f"{name}-checkpoint"
    if not checkpoint.exists():
        make_checkpoint(
            checkpoint,
            layers=shape.layers,
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            vocab=shape.vocab,
            tied=shape.tied,
            context=CONTEXT,
        )
    bundle = work / f"{name}-{recipe.replace(',', '+').replace('=', '-')}"
    if not bundle.exists():
        compile_ = ["compile", str(checkpoint), "--target", "host", "--recipe", recipe, "-o", str(bundle)]
        subprocess.run(["edgekit", *compile_], check=True)
    return bundle


def run_llama(binary: Path, model: Path, tests: list[str], threads: int) -> Rows:
    command = [str(binary), "-m", str(model), *tests, "-r", "1", "-t", str(threads), "-o", "json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = json.loads(output)
    return {f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}": float(r["avg_ts"]) for r in rows}


def run_edgekit(bundle: Path, tests: list[str], threads: int) -> Rows:
    command = ["edgekit", "bench", str(bundle), *tests, "-r", "1", "-t", str(threads), "-o", "json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {row["test"]: float(row["tokens_per_second"]) for row in json.loads(output)}


def alternate(ours: Callable[[], Rows], theirs: Callable[[], Rows], rounds: int) -> tuple[list[Rows], list[Rows]]:
    """`rounds` results of each, taken in turn, after one of each that is not counted."""
    ours(), theirs()
    results = [(ours(), theirs()) for _ in range(rounds)]
    return [a for a, _ in results], [b for _, b in results]


def spread(samples: list[float]) -> str:
    return f"{statistics.median(samples):.4g} ({min(samples):.4g} to {max(samples):.4g})"


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for builds and models; kept.")
@click.option("--shape", "names", multiple=True, type=click.Choice(list(SHAPES)), default=tuple(SHAPES))
@click.option("--recipe", default="q4g128", show_default=True, help="Scheme of edgekit's bundle.")
@click.option("--against", type=click.Choice(list(BLOCKS)), default="Q4_0", show_default=True, help="llama.cpp's type.")
@click.option("-p", "prompt", default=256, show_default=True, help="Tokens of prefill.")
@click.option("-n", "generate", default=64, show_default=True, help="Tokens of decode.")
@click.option("-t", "threads", default=2, show_default=True)
@click.option("-r", "rounds", default=5, show_default=True, help="Pairs of runs.")
def main(
    work: Path, names: tuple[str, ...], recipe: str, against: str, prompt: int, generate: int, threads: int, rounds: int
) -> None:
    """Time edgekit against llama.cpp on the same shapes, in turn."""
    work.mkdir(parents=True, exist_ok=True)
    llama = build_llama_bench(work)
    tests = ["-p", str(prompt), "-n", str(generate)]
    print(f"{platform.machine()}, {threads} threads, {rounds} alternating pairs: median (lowest to highest)")
    print("| shape | test | edgekit " + recipe + " tok/s | llama.cpp " + against + " tok/s | ratio |")
    print("|---|---|---|---|---|")
    for name in names:
        model = work / f"{name}-{against}.gguf"
        if not model.exists():
            write_gguf(model, SHAPES[name], against)
        bundle = build_bundle(work, name, recipe)
        ours, theirs = alternate(
            lambda bundle=bundle: run_edgekit(bundle, tests, threads),
            lambda model=model: run_llama(llama, model, tests, threads),
            rounds,
        )
        for test in (f"pp{prompt}", f"tg{generate}"):
            a = [rows[test] for rows in ours]
            b = [rows[test] for rows in theirs]
            ratios = [x / y for x, y in zip(a, b, strict=True)]
            print(f"| {name} | {test} | {spread(a)} | {spread(b)} | {spread(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
