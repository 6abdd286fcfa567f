"""Write a quantized graph for stock ONNX Runtime, and open what was written for it, which is distrusted until checked.

With edgekit's kernels inside (onnxruntime_node.py) a model is something else; here is what any ONNX Runtime runs: a
folder with model.onnx and model.onnx.data (the larger tensors), beside them what every engine writes (written.py) and
what onnxruntime-genai needs (genai.py).
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import onnx_ir as ir

from edgekit.engines import Outside, by_operator
from edgekit.engines.genai import add_genai
from edgekit.engines.onnxruntime_node import NodeSession, version
from edgekit.engines.written import Written, describe, refused
from edgekit.errors import Damaged
from edgekit.graph import RUNTIME_ERRORS, Session
from edgekit.onnx_files import Progress, load_model
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph
from edgekit.units import Bytes

MODEL: Final = "model.onnx"
DATA: Final = "model.onnx.data"

_FAST: Final = "MatMulNBits"

_PACKED_TYPES: Final = (ir.DataType.INT4, ir.DataType.INT8, ir.DataType.FLOAT16)


def write_model(
    quant: QuantGraph,
    folder: Path,
    *,
    probe: bytes,
    bos: int | None,
    eos: tuple[int, ...],
    progress: Progress | None = None,
) -> Written:
    """Writes the model to `folder`, one tensor in memory at a time. Equal codes give equal bytes."""
    file = folder / MODEL
    portable_onnx(quant, file, progress=progress)
    add_genai(file, quant.graph.decoder, context=quant.graph.context, bos=bos, eos=eos)
    model = load_model(file)
    weights = _weights(model)
    read = [tensor for value, tensor in weights.items() if any(node.op_type != "Gather" for node, _ in value.uses())]
    written = Written(
        file=file,
        engine="onnxruntime",
        engine_version=version(),
        kernels="runtime",
        made_from=quant.made_from,
        bos=bos,
        eos=eos,
        vocab=quant.graph.decoder.vocab,
        context=quant.graph.context,
        kv_format="f32",
        kv_bytes=_cache_bytes(model, file),
        weights_bytes=_bytes(weights.values()),
        bytes_per_token=_bytes(read),
    )
    describe(written, probe=probe)
    return written


def open_model(written: Written, *, threads: int) -> Session | NodeSession:
    """A session that runs the model on `threads` threads.

    Raises:
        Damaged: it refers to anything but its own data, or ONNX Runtime does not take it.
        TargetMissing: this version of ONNX Runtime does not take it, or there are no operators for this machine.
    """
    if written.kernels == "edgekit":
        return NodeSession(written, threads=threads)
    session, _ = _open(written, threads=threads)
    if (session.vocab, session.context) != (written.vocab, written.context):
        session.close()
        raise Damaged(f"{written.file} is not the model that is described beside it", hint="compile again")
    return session


def nodes_outside(written: Written) -> tuple[Outside, ...]:
    """What decodes a token beside MatMulNBits, which multiplies by codes, as ONNX Runtime optimises and runs it here.

    Raises:
        Damaged, TargetMissing: as `open_model`.
    """
    if written.kernels == "edgekit":
        return ()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        session, model = _open(written, threads=1, profile=Path(folder) / "decode")
        with session:
            session.decode(0)
            executed = [(name, operator) for name, operator in session.executed() if operator != _FAST]
    matrices = _multipliers(model)
    return by_operator([(operator, matrices.get(name)) for name, operator in executed])


def _open(written: Written, *, threads: int, profile: Path | None = None) -> tuple[Session, ir.Model]:
    """A session, and the model in it; see `open_model`."""
    model = load_model(written.file)
    _cache_bytes(model, written.file)
    # Prepacking pays for weights that the kernels unpack as they read.
    packs = any(tensor.dtype in _PACKED_TYPES for tensor in _weights(model).values())
    try:
        return Session(written.file, threads=threads, prepack=packs, profile=profile), model
    except (Damaged, *RUNTIME_ERRORS) as error:
        raise refused(written, version(), str(error)) from error


def _multipliers(model: ir.Model) -> dict[str, str]:
    """The matrix in codes that a product multiplies by, by the name of its node."""
    widened = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    return {
        str(product.name): str(node.inputs[0].name).removesuffix(".codes")
        for node in widened
        if node.inputs[0] is not None
        for product, _ in node.outputs[0].uses()
    }


def _weights(model: ir.Model) -> dict[ir.Value, ir.TensorProtocol]:
    return {value: value.const_value for value in model.graph.initializers.values() if value.const_value is not None}


def _cache_bytes(model: ir.Model, file: Path) -> Bytes:
    """Bytes of all keys and values, float32.

    Raises:
        Damaged: there is no cache, or one without a size.
    """
    caches = [value for value in model.graph.inputs if str(value.name).startswith("past_")]
    shapes = [value.shape.numpy() for value in caches if value.shape is not None and value.shape.is_static()]
    if not caches or len(shapes) != len(caches) or not model.graph.outputs[0].shape:
        raise Damaged(f"{file} has no cache of a fixed size", hint="compile again")
    return Bytes(4 * sum(shape[0] * shape[1] * shape[2] * shape[3] for shape in shapes if len(shape) == 4))


def _bytes(tensors: Iterable[ir.TensorProtocol]) -> Bytes:
    """Bytes of the tensors; those that lie at one place count once."""
    return Bytes(sum({_place(tensor): tensor.nbytes for tensor in tensors}.values()))


def _place(tensor: ir.TensorProtocol) -> object:
    return ("outside", tensor.offset) if isinstance(tensor, ir.ExternalTensor) else id(tensor)
