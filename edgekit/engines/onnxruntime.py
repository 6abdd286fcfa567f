"""Write a quantized graph for stock ONNX Runtime, and open what was written, which is distrusted until checked.

A folder with model.onnx, model.onnx.data (the larger tensors) and probe; the tokenizer.json of the bundle lies beside
them. Special ids are in the model's metadata.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx_ir as ir

from edgekit.disk import writing
from edgekit.errors import Damaged, UsageError
from edgekit.graph import RUNTIME_ERRORS, Session
from edgekit.onnx_files import Progress, load_model
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph
from edgekit.units import Bytes

MODEL: Final = "model.onnx"
DATA: Final = "model.onnx.data"
PROBE: Final = "probe"
TOKENIZER: Final = "tokenizer.json"

_MOST_PROBE_BYTES: Final = 256 << 20
_PACKED_TYPES: Final = (ir.DataType.INT4, ir.DataType.INT8, ir.DataType.FLOAT16)


@dataclass(frozen=True, slots=True)
class Written:
    """A model that `write_model` wrote, checked.

    `packs`: it has weights for which prepacking pays. `bytes_per_token`: what a token reads of them, all but the rows
    that are looked up.
    """

    file: Path
    bos: int | None
    eos: tuple[int, ...]
    packs: bool
    weights_bytes: Bytes
    bytes_per_token: Bytes
    kv_bytes: Bytes

    @property
    def probe(self) -> bytes:
        """The probe's bytes; empty if there is none."""
        file = self.file.with_name(PROBE)
        if not file.exists():
            return b""
        with file.open("rb") as stream:
            data = stream.read(_MOST_PROBE_BYTES + 1)
        if len(data) > _MOST_PROBE_BYTES:
            raise Damaged(f"{file} takes more than {Bytes(_MOST_PROBE_BYTES)}", hint="compile again")
        return data


def write_model(
    quant: QuantGraph,
    folder: Path,
    *,
    probe: bytes,
    bos: int | None,
    eos: tuple[int, ...],
    progress: Progress | None = None,
) -> None:
    """Writes the model to `folder`, one tensor in memory at a time. Equal codes give equal bytes."""
    with writing(folder / PROBE):
        (folder / PROBE).write_bytes(probe)
    metadata = {"edgekit.bos": json.dumps(bos), "edgekit.eos": json.dumps(eos), "edgekit.made_from": quant.made_from}
    portable_onnx(quant, folder / MODEL, metadata=metadata, progress=progress)


def read_model(file: Path) -> Written:
    """What is known of the model in `file` without running it. Links to the model are followed, links in it are not.

    Raises:
        UsageError: there is no such file.
        Damaged: not a model that `write_model` wrote, or one that refers to anything but its own data.
    """
    if not file.is_file():
        raise UsageError(f"there is no file {file}", hint=f"give the {MODEL} of a bundle that edgekit compile wrote")
    file = file.resolve()
    model = load_model(file)
    try:
        bos, eos = (json.loads(model.metadata_props[f"edgekit.{key}"]) for key in ("bos", "eos"))
        known = all(type(token) is int and token >= 0 for token in [*eos, *([] if bos is None else [bos])])
    except (KeyError, ValueError, TypeError) as error:
        raise Damaged(f"{file} is not a model that edgekit wrote", hint="compile again") from error
    if not known:
        raise Damaged(f"{file} has special tokens that are none", hint="compile again")
    weights = {value: value.const_value for value in model.graph.initializers.values() if value.const_value is not None}
    read = [tensor for value, tensor in weights.items() if any(node.op_type != "Gather" for node, _ in value.uses())]
    caches = [value for value in model.graph.inputs if str(value.name).startswith("past_")]
    shapes = [value.shape.numpy() for value in caches if value.shape is not None and value.shape.is_static()]
    if not caches or len(shapes) != len(caches) or not model.graph.outputs[0].shape:
        raise Damaged(f"{file} has no cache of a fixed size", hint="compile again")
    kv_values = sum(shape[0] * shape[1] * shape[2] * shape[3] for shape in shapes if len(shape) == 4)
    return Written(
        file=file,
        bos=bos,
        eos=tuple(eos),
        packs=any(tensor.dtype in _PACKED_TYPES for tensor in weights.values()),
        weights_bytes=_bytes(weights.values()),
        bytes_per_token=_bytes(read),
        kv_bytes=Bytes(4 * kv_values),
    )


def open_model(written: Written, *, threads: int) -> Session:
    """A session that runs the model on `threads` threads.

    Raises:
        Damaged: ONNX Runtime does not take it.
    """
    try:
        return Session(written.file, threads=threads, prepack=written.packs)
    except RUNTIME_ERRORS as error:
        reason = str(error).strip().splitlines()[0]
        raise Damaged(f"ONNX Runtime refuses {written.file}: {reason:.200}", hint="compile again") from error


def _bytes(tensors: Iterable[ir.TensorProtocol]) -> Bytes:
    """Bytes of the tensors; those that lie at one place count once."""
    return Bytes(sum({_place(tensor): tensor.nbytes for tensor in tensors}.values()))


def _place(tensor: ir.TensorProtocol) -> object:
    return ("outside", tensor.offset) if isinstance(tensor, ir.ExternalTensor) else id(tensor)
