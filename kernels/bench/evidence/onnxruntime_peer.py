"""ONNX Runtime: single products by com.microsoft.MatMulNBits, and whole bundles, with edgekit's kernels and without."""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from evidence import products
from evidence.native import Programs, Timed
from evidence.progress import say
from evidence.samples import Bar, Comparison, alternate
from evidence.shapes import PRODUCTS, Product

BITS: Final = (4, 2)
BLOCKS: Final = (32, 128)
MODEL: Final = ("135m", "q4g128")
_CONTEXT: Final = 1024


def weight_bytes(product: Product, *, bits: int, block: int) -> int:
    """Bytes of the codes and the float32 scales that MatMulNBits reads."""
    return product.n * product.k * bits // 8 + 4 * product.n * product.k // block


def matmul_model(product: Product, *, bits: int, block: int, copies: int) -> bytes:
    """A model of `copies` products of one input with different random weights, each an output of its own."""
    rng = np.random.default_rng(0)
    blocks = product.k // block
    nodes, weights, outputs = [], [], []
    for i in range(copies):
        codes = rng.integers(0, 256, (product.n, blocks, block * bits // 8), np.uint8)
        scales = np.full(product.n * blocks, 0.01, np.float32)
        weights += [onnx.numpy_helper.from_array(codes, f"b{i}"), onnx.numpy_helper.from_array(scales, f"s{i}")]
        settings: dict[str, Any] = {
            "K": product.k,
            "N": product.n,
            "bits": bits,
            "block_size": block,
            "accuracy_level": 4,
        }
        nodes.append(
            helper.make_node("MatMulNBits", ["a", f"b{i}", f"s{i}"], [f"c{i}"], domain="com.microsoft", **settings)
        )
        outputs.append(helper.make_tensor_value_info(f"c{i}", TensorProto.FLOAT, [product.m, product.n]))
    inputs = [helper.make_tensor_value_info("a", TensorProto.FLOAT, [product.m, product.k])]
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    model: Any = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return bytes(model.SerializeToString())


def open_products(product: Product, *, bits: int, block: int, threads: int) -> Callable[[], Timed]:
    """A function that times the product: the median over passes through all copies of the weights."""
    held = weight_bytes(product, bits=bits, block=block)
    copies = products.copies_of(product, held)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = matmul_model(product, bits=bits, block=block, copies=copies)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    rng = np.random.default_rng(1)
    binding.bind_cpu_input("a", rng.standard_normal((product.m, product.k), np.float32))
    results = [
        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((product.m, product.n), np.float32)) for _ in range(copies)
    ]
    for i, result in enumerate(results):
        binding.bind_ortvalue_output(f"c{i}", result)

    def timed() -> Timed:
        passes: list[float] = []
        session.run_with_iobinding(binding)
        start = time.perf_counter()
        while len(passes) < 3 or time.perf_counter() - start < products.SECONDS:
            begin = time.perf_counter()
            session.run_with_iobinding(binding)
            passes.append((time.perf_counter() - begin) / copies)
        return Timed(statistics.median(passes), held)

    return timed


def compare(programs: Programs, threads: int, rounds: int) -> Iterator[Comparison]:
    """Every product at every width, then a whole model."""
    for product in PRODUCTS:
        for bits in BITS:
            for block in BLOCKS:
                yield products.compare(
                    "onnxruntime",
                    programs,
                    product,
                    weights=f"q{bits}",
                    group=block,
                    theirs_name=f"MatMulNBits {bits} bits, block {block}",
                    theirs=open_products(product, bits=bits, block=block, threads=threads),
                    threads=threads,
                    rounds=rounds,
                )
    yield from whole_model(programs, threads, rounds)


def whole_model(programs: Programs, threads: int, rounds: int) -> list[Comparison]:
    """The same codes run by edgekit's kernels in ONNX Runtime, beside its own kernels and edgekit's own program."""
    shape, recipe = MODEL
    say(f"{shape}: {recipe} in ONNX Runtime")
    context = ["--context", str(_CONTEXT)]
    native = programs.bundle(shape, recipe, *context)
    inside = programs.bundle(shape, recipe, *context, "--engine", "onnxruntime")
    portable = programs.bundle(shape, recipe, *context, "--engine", "onnxruntime", "--portable")

    def rates(bundle: Path) -> dict[str, float]:
        words = ["-p", "256", "-n", "64", "-r", "1", "-t", str(threads), "-o", "json"]
        rows = json.loads(programs.edgekit("bench", str(bundle), *words))
        return {row["test"]: float(row["tokens_per_second"]) for row in rows}

    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    ours, stock, ours_inside = f"{recipe}, native", f"{recipe}, {runtime}", f"{recipe}, edgekit in {runtime}"
    found = []
    for (one, one_name), (other, other_name), bar in (
        ((native, ours), (portable, stock), None),
        ((inside, ours_inside), (portable, stock), Bar("ratio", 1.3)),
        ((inside, ours_inside), (native, ours), Bar("ratio", 0.85)),
    ):
        pairs = list(alternate(partial(rates, one), partial(rates, other), rounds))
        found += [
            Comparison(
                part="onnxruntime",
                shape=shape,
                test=test,
                ours_name=one_name,
                theirs_name=other_name,
                unit="tokens/s",
                ours=tuple(a[test] for a, _ in pairs),
                theirs=tuple(b[test] for _, b in pairs),
                bars=(bar,) if bar is not None and test.startswith("tg") else (),
            )
            for test in ("pp256", "tg64")
        ]
    return found
