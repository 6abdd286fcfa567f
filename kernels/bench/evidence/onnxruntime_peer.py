"""ONNX Runtime: single products by com.microsoft.MatMulNBits."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from evidence import products
from evidence.native import Programs, Timed
from evidence.samples import Comparison
from evidence.shapes import PRODUCTS, Product

BITS: Final = (4, 2)
BLOCKS: Final = (32, 128)


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
    """Every product at every width."""
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
