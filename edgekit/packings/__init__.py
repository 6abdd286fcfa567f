"""How quantized Hugging Face checkpoints pack their matrices; one layout a file, found by `quant_method`.

`packings/<quant_method>.py` defines `check(config)`, which refuses variants, and
`packed(config, name, shape, parts) -> Packed`: the matrix `name` from its tensors, by the last part of their names.
Sizes are checked against the matrix that config.json calls for, before anything is read.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.archs.config import MOST_WIDTH, Config
from edgekit.errors import Damaged, Unsupported
from edgekit.packed import Packed
from edgekit.safetensors import TensorInfo
from edgekit.tensor_files import FLOATS, read_array, read_floats

UInt32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]

_PARTS: Final = ("qweight", "qzeros", "scales", "g_idx")


def known_packings() -> tuple[str, ...]:
    """Every `quant_method` with a file in this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def with_packed(
    config: Config | None, tensors: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, TensorInfo | Packed]:
    """The tensors, each packed matrix of `shapes` in place of the tensors it lies in.

    `config` is how the checkpoint says it was quantized, None if it does not.

    Raises:
        Unsupported: another layout or variant.
        Damaged: tensors that contradict it.
    """
    found: dict[str, TensorInfo | Packed] = dict(tensors)
    if config is None:
        if any(name.endswith(".qweight") for name in tensors):
            raise Damaged(
                "the weights are quantized, and config.json has no quantization_config",
                hint="download config.json and quantize_config.json again",
            )
        return found
    method = config.refuse_unless("quant_method", known_packings(), default="gptq")
    packing = importlib.import_module(f"edgekit.packings.{method}")
    packing.check(config)
    for name, shape in shapes.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.qweight" not in tensors:
            continue
        if name in tensors or len(shape) != 2:
            raise Damaged(f"the weights hold both '{name}' and '{stem}.qweight'", hint="download the checkpoint again")
        parts = {part: found.pop(f"{stem}.{part}") for part in _PARTS if f"{stem}.{part}" in tensors}
        found[name] = packing.packed(config, name, (shape[0], shape[1]), parts)
        _drop_bias_of_zeros(f"{stem}.bias", tensors, shapes, found)
    if found.keys() == tensors.keys():
        raise Damaged(
            f"{config.name} says {method}, and the weights hold no packed matrix",
            hint="config.json and the weights belong to different models",
        )
    return found


def group_size(config: Config, k: int) -> int:
    """Columns that share a scale; -1 in the config is a whole row."""
    size = config.integer("group_size", low=-1, high=MOST_WIDTH)
    if size == 0:
        raise Damaged(f"group_size in {config.name} is 0", hint="-1, or how many columns share a scale")
    return k if size == -1 else size


def part(parts: Mapping[str, TensorInfo], name: str, which: str, shape: tuple[int, ...], kinds: Any) -> TensorInfo:
    """The tensor `which` of the packed matrix `name`, checked to have that shape and one of the dtypes `kinds`."""
    info = parts.get(which)
    what = f"'{name.removesuffix('.weight')}.{which}'"
    if info is None:
        raise Damaged(f"the weights hold no tensor {what}", hint="download the checkpoint again")
    if info.shape != shape:
        raise Damaged(
            f"the tensor {what} has the shape {list(info.shape)}, and the config makes it {list(shape)}",
            hint="bits or group_size of the config are not those of the weights",
        )
    if info.dtype not in kinds:
        raise Unsupported(f"the tensor {what} has the dtype {info.dtype}", hint=f"it should be {' or '.join(kinds)}")
    return info


def words(name: str, sizes: tuple[int, int], bits: int) -> tuple[int, int]:
    """The two sizes of a matrix of codes once its second one is packed into words of 32 bits."""
    if sizes[1] * bits % 32:
        raise Unsupported(
            f"{name} has {sizes[1]} codes of {bits} bits in a row, which fill no whole words", hint="a multiple of 32"
        )
    return sizes[0], sizes[1] * bits // 32


def read_words(info: TensorInfo) -> UInt32:
    """A tensor of dtype I32, its bits."""
    return read_array(info.file, info.offset, info.shape, "<u4")


def read_scales(info: TensorInfo) -> Float32:
    """A tensor of floats, in its shape."""
    return read_floats(info, info.offset, info.bytes).reshape(info.shape)


def unpack(packed: UInt32, bits: int) -> npt.NDArray[np.uint8]:
    """Codes [rows, columns * 32 / bits] of words [rows, columns]: one run of bits a row, lowest bits first."""
    period = next(count for count in (1, 3) if 32 * count % bits == 0)  # words after which codes and words align
    count = 32 * period // bits
    codes = np.empty((packed.shape[0], packed.shape[1] * 32 // bits), np.uint8)
    for index in range(count):
        word, shift = divmod(index * bits, 32)
        code = packed[:, word::period] >> np.uint32(shift)
        if shift + bits > 32:
            code |= packed[:, word + 1 :: period] << np.uint32(32 - shift)
        codes[:, index::count] = code & np.uint32((1 << bits) - 1)
    return codes


def _drop_bias_of_zeros(
    name: str,
    tensors: Mapping[str, TensorInfo],
    shapes: Mapping[str, tuple[int, ...]],
    found: dict[str, TensorInfo | Packed],
) -> None:
    """Old GPTQ writers give every layer a bias, of zeros where the model has none."""
    info = tensors.get(name)
    if info is not None and name not in shapes and info.dtype in FLOATS and not read_scales(info).any():
        del found[name]
