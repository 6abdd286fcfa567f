"""Writes checkpoints as AutoGPTQ and AutoAWQ do, from the definition of their formats, one code at a time."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from edgekit.testing import make_checkpoint

Array = npt.NDArray[Any]

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's order_map: the column whose code goes to each nibble


@dataclass(frozen=True)
class Matrix:
    """Codes [n, k] from 0, zero points and f16 scales [groups, n], and the group of every column."""

    codes: Array
    zeros: Array
    scales: Array
    g_idx: Array

    @property
    def signed(self) -> Array:
        return np.asarray(self.codes - self.zeros[self.g_idx].T)

    @property
    def values(self) -> Array:
        return np.asarray(self.signed.astype(np.float64) * self.scales[self.g_idx].T.astype(np.float64), np.float32)


def random_matrix(
    seed: int, n: int, k: int, *, bits: int = 4, group: int = 32, symmetric: bool = True, mixed: bool = False
) -> Matrix:
    generator = np.random.default_rng(seed)
    groups = -(-k // group)
    middle = 1 << (bits - 1)
    zeros = np.full((groups, n), middle) if symmetric else generator.integers(middle - 2, middle + 3, (groups, n))
    scales = (generator.uniform(0.5, 1.5, (groups, n)) * k**-0.5 / middle).astype(np.float16)
    g_idx = np.arange(k) // group
    if mixed:
        generator.shuffle(g_idx)
    return Matrix(generator.integers(0, 1 << bits, (n, k)), zeros, scales, g_idx)


def bit_run(rows: Array, bits: int) -> Array:
    """Rows of codes as int32 words: the codes of a row one after the other, lowest bit first."""
    packed = []
    for row in rows:
        run = sum(int(code) << (bits * index) for index, code in enumerate(row))
        packed.append(np.frombuffer(run.to_bytes(len(row) * bits // 8, "little"), "<i4"))
    return np.stack(packed)


def gptq(matrix: Matrix, *, bits: int = 4, less: int = 1) -> dict[str, Array]:
    return {
        "qweight": np.ascontiguousarray(bit_run(matrix.codes, bits).T),
        "qzeros": bit_run(matrix.zeros - less, bits),
        "scales": matrix.scales,
        "g_idx": matrix.g_idx.astype(np.int32),
    }


def awq(matrix: Matrix) -> dict[str, Array]:
    def packed(rows: Array) -> Array:
        words = np.zeros((rows.shape[0], rows.shape[1] // 8), np.uint32)
        for column in range(words.shape[1]):
            for nibble, offset in enumerate(AWQ_ORDER):
                words[:, column] |= rows[:, 8 * column + offset].astype(np.uint32) << np.uint32(4 * nibble)
        return words.view(np.int32)

    return {"qweight": packed(matrix.codes.T), "qzeros": packed(matrix.zeros), "scales": matrix.scales}


def make_packed(
    directory: Path,
    quantization: dict[str, object],
    pack: Callable[[Matrix], dict[str, Array]],
    *,
    beside: bool = False,
    model: dict[str, Any] | None = None,
    **kind: Any,
) -> dict[str, Matrix]:
    """A checkpoint whose linear layers are packed, and its matrices; `beside`: the config in quantize_config.json."""
    make_checkpoint(directory, dtype="F16", context=64, **(model or {}))
    tensors = load_file(directory / "model.safetensors")
    matrices = {}
    for seed, name in enumerate([name for name in tensors if name.endswith("_proj.weight")]):
        n, k = tensors.pop(name).shape
        matrices[name] = random_matrix(seed, n, k, **kind)
        parts = pack(matrices[name])
        tensors |= {f"{name.removesuffix('.weight')}.{part}": values for part, values in parts.items()}
    save_file(tensors, directory / "model.safetensors")
    if beside:
        (directory / "quantize_config.json").write_text(json.dumps(quantization))
    else:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return matrices
