"""Put a quantized graph's codes into a .tflite file that was converted with its values in float32.

    f32                 float32
    f16                 FLOAT16, widened by DEQUANTIZE
    8 bits              INT8, one scale a row
    4 bits              INT4, one scale a block

The codes are those of xnnpack.py, exactly; XNNPACK multiplies them by activations that it rounds to int8, with one
scale a token. The kernels of tflite-runtime 2.14 take scales neither by rows nor by blocks, and give nonsense for the
former: for it (`restricted`) INT8 is widened by DEQUANTIZE, small in the file, float32 in memory and arithmetic.

Layout: schema.fbs of LiteRT, version 3. A code of INT4 is a nibble, the first in the low half of its byte.
"""

import hashlib
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.quantize import QuantGraph, QuantTensor, widen_bf16
from edgekit.units import Bytes
from edgekit.xnnpack import row_scales

Array = npt.NDArray[Any]
_Key = tuple[int, int, str]  # of a matrix: n, k and a digest of its values

_TABLE: Final = "model.embed_tokens.weight"
_ALIGNMENT: Final = 64
_IDENTIFIER: Final = b"TFL3"
# The first versions of the operators that take such weights: an older runtime refuses the file instead of guessing.
_DEQUANTIZE: Final = 5  # also of INT8 by rows, and of FLOAT16
_VERSIONS: Final[Mapping[str, Mapping[str, int]]] = {
    "INT8": {"FULLY_CONNECTED": 12, "EMBEDDING_LOOKUP": 3},
    "INT4": {"FULLY_CONNECTED": 13, "EMBEDDING_LOOKUP": 4},
}
# Of every operator that is written, also for short contexts: inputs that a node has, but for a bias. Kernels read them
# unchecked, and each has one output.
_INPUTS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("CONCATENATION", "DEQUANTIZE", "EXP", "LOGISTIC", "PACK", "RSQRT", "SOFTMAX"), 1),
    **dict.fromkeys(("ADD", "DIV", "GREATER", "LESS", "LESS_EQUAL", "LOGICAL_AND", "MAXIMUM", "MUL", "SUB"), 2),
    **dict.fromkeys(("BATCH_MATMUL", "BROADCAST_TO", "EMBEDDING_LOOKUP", "FULLY_CONNECTED", "GATHER_ND"), 2),
    **dict.fromkeys(("MEAN", "REDUCE_MAX", "RESHAPE", "TRANSPOSE"), 2),
    **dict.fromkeys(("DYNAMIC_UPDATE_SLICE", "SELECT", "SELECT_V2", "SLICE"), 3),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """The file, the bytes of weights in it, and those that a token reads in memory, but for rows that are looked up."""

    model: bytes | bytearray
    weights_bytes: Bytes
    bytes_per_token: Bytes


@dataclass(frozen=True, slots=True)
class _Codes:
    """A matrix as the file holds it: `kind` of its elements, their bytes, and its scales by rows or blocks."""

    kind: str
    data: Array
    scales: Array
    block: int = 0  # 0: one scale a row
    widened: bool = False  # by DEQUANTIZE before it is used

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes


def store_weights(converted: bytes, quant: QuantGraph, *, restricted: bool = False) -> Stored:
    """The converted model with the codes of every matrix that is not f32; `quant` is as suit_xnnpack gives it."""
    file = _File(converted, quant, restricted=restricted)
    for graph in file.model.subgraphs:
        for index in file.constants(graph):
            file.store(graph, index)
    missing = set(file.names.values()) - file.found
    assert not missing, f"the converter changed {', '.join(sorted(missing))}"
    return Stored(file.packed(), file.weights_bytes(), file.bytes_per_token())


def check_file(file: Path) -> None:
    """Nothing, if every offset and index of a .tflite file leads into it, and no operator lacks what it reads.

    LiteRT follows them unchecked.

    Raises:
        ValueError: one does not, or there is an operator that edgekit does not write.
    """
    from ai_edge_litert import schema_py_generated as schema

    with file.open("rb") as stream:
        # Not closed but dropped: what is read of it are views.
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    if data[4:8] != _IDENTIFIER:
        raise ValueError("it is not a .tflite file")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
        _check_indices(model)
        _check_operators(model, {getattr(schema.BuiltinOperator, name): name for name in _INPUTS})
    except (struct.error, IndexError, TypeError, AttributeError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _check_indices(model: Any) -> None:
    """
    Raises:
        IndexError: an index of a tensor, buffer or operator that is not there.
    """
    for graph in model.subgraphs:
        _check_within([tensor.buffer for tensor in graph.tensors], 0, len(model.buffers))
        _check_within([node.opcodeIndex for node in graph.operators], 0, len(model.operatorCodes))
        for tensors in (graph.inputs, graph.outputs, *(node.outputs for node in graph.operators)):
            _check_within(tensors, 0, len(graph.tensors))
        for node in graph.operators:
            _check_within(node.inputs, -1, len(graph.tensors))  # -1 is an input that is left out
    for signature in model.signatureDefs:
        _check_within([signature.subgraphIndex], 0, len(model.subgraphs))
        tensors = [entry.tensorIndex for entry in (*signature.inputs, *signature.outputs)]
        _check_within(tensors, 0, len(model.subgraphs[signature.subgraphIndex].tensors))


def _check_operators(model: Any, names: Mapping[int, str]) -> None:
    """
    Raises:
        IndexError: an operator that is not written, or without an input or its output.
    """
    for graph in model.subgraphs:
        for node in graph.operators:
            code = model.operatorCodes[node.opcodeIndex]
            builtin = max(code.builtinCode, code.deprecatedBuiltinCode)  # as LiteRT reads it
            if builtin not in names:
                raise IndexError(f"the operator {builtin} is none that edgekit writes")
            name = names[builtin]
            given = [index for index in node.inputs[: _INPUTS[name]] if index >= 0]
            if len(given) < _INPUTS[name] or len(node.outputs) != 1:
                raise IndexError(f"{name} has {len(given)} inputs and {len(node.outputs)} outputs")


def _check_within(indices: Sequence[int], low: int, high: int) -> None:
    for index in indices:
        if not low <= index < high:
            raise IndexError(f"{index} is not below {high}")


@dataclass
class _File:
    """A .tflite file as objects, and what of it has been replaced."""

    converted: bytes
    quant: QuantGraph
    restricted: bool
    found: set[str] = field(default_factory=set)
    codes: dict[str, _Codes] = field(default_factory=dict)
    buffers: dict[str, tuple[int, int]] = field(default_factory=dict)  # of a matrix: those of codes and of scales

    def __post_init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(self.converted, 0))
        # Found by shape and values, for the converter has names of its own. Of equal matrices one stands for all.
        self.names: dict[_Key, str] = {}
        self.stands_for = {
            name: self.names.setdefault(_key(tensor.shape, tensor.values()), name)
            for name, tensor in self.quant.tensors.items()
        }

    def constants(self, graph: Any) -> list[int]:
        """The float32 matrices of a subgraph."""
        float32 = self.schema.TensorType.FLOAT32
        return [
            index
            for index, tensor in enumerate(graph.tensors)
            if tensor.type == float32
            and tensor.shape is not None
            and len(tensor.shape) == 2
            and self.model.buffers[tensor.buffer].data is not None
        ]

    def store(self, graph: Any, index: int) -> None:
        """Replaces the values of a constant, if they are a matrix's, by its codes."""
        tensor = graph.tensors[index]
        name = self.names.get(_key(tensor.shape, self.model.buffers[tensor.buffer].data))
        if name is None:
            return
        self.found.add(name)
        if self.quant.tensors[name].scheme.format == "f32":
            return
        codes = self.codes_of(name)
        if codes.widened:
            index = self.widen(graph, index)
            tensor = graph.tensors[index]
        tensor.name = name.encode()  # the converter has others, and one for several
        tensor.type = getattr(self.schema.TensorType, codes.kind)
        tensor.buffer = self.buffers[name][0]
        if codes.scales.size:
            tensor.quantization = self.quantization(graph, tensor, name)
        if not codes.widened:
            self.raise_versions(graph, index, codes.kind)

    def codes_of(self, name: str) -> _Codes:
        """The codes of a matrix, with buffers of their own from the first use on."""
        if name not in self.codes:
            codes = _codes(self.quant.tensors[name], restricted=self.restricted)
            self.codes[name] = codes
            first = len(self.model.buffers)
            self.buffers[name] = (first, first + 1)
            self.model.buffers.append(self.buffer(codes.data))
            if codes.block:
                self.model.buffers.append(self.buffer(codes.scales))
        return self.codes[name]

    def quantization(self, graph: Any, tensor: Any, name: str) -> Any:
        """How a tensor of codes is to be read; scales of blocks are a tensor of their own."""
        codes = self.codes[name]
        made = self.schema.QuantizationParametersT()
        made.quantizedDimension = 0
        if not codes.block:
            made.scale = codes.scales
            made.zeroPoint = np.zeros(len(codes.scales), np.int64)
            return made
        scales = self.schema.TensorT()
        scales.name = tensor.name + b".scales"
        scales.shape = np.array(codes.scales.shape, np.int32)
        scales.type = self.schema.TensorType.FLOAT16
        scales.buffer = self.buffers[name][1]
        graph.tensors.append(scales)
        details = self.schema.BlockwiseQuantizationT()
        details.scales, details.zeroPoints, details.blockSize = len(graph.tensors) - 1, -1, codes.block
        made.detailsType = self.schema.QuantizationDetails.BlockwiseQuantization
        made.details = details
        return made

    def widen(self, graph: Any, index: int) -> int:
        """The index of a new tensor for codes, of which a first DEQUANTIZE makes the tensor `index`."""
        wide = graph.tensors[index]
        narrow = self.schema.TensorT()
        narrow.shape = wide.shape
        graph.tensors.append(narrow)
        wide.buffer = 0
        node = self.schema.OperatorT()
        node.opcodeIndex = self.operator_code("DEQUANTIZE", _DEQUANTIZE)
        node.inputs = np.array([len(graph.tensors) - 1], np.int32)
        node.outputs = np.array([index], np.int32)
        graph.operators.insert(0, node)
        return len(graph.tensors) - 1

    def operator_code(self, name: str, version: int) -> int:
        """The index of an operator of the file, added to it on first use."""
        builtin = getattr(self.schema.BuiltinOperator, name)
        for index, code in enumerate(self.model.operatorCodes):
            if (code.builtinCode, code.version) == (builtin, version):
                return index
        code = self.schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def raise_versions(self, graph: Any, index: int, kind: str) -> None:
        """Makes the nodes that read the tensor ones that take such weights."""
        for node in graph.operators:
            if index not in node.inputs:
                continue
            builtin = self.model.operatorCodes[node.opcodeIndex].builtinCode
            for name, version in _VERSIONS[kind].items():
                if builtin == getattr(self.schema.BuiltinOperator, name):
                    node.opcodeIndex = self.operator_code(name, version)

    def buffer(self, data: Array) -> Any:
        made = self.schema.BufferT()
        made.data = data.reshape(-1).view(np.uint8)
        return made

    def packed(self) -> bytes | bytearray:
        """The file's bytes: what no tensor refers to any more is dropped."""
        import flatbuffers

        model = self.model
        used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
        used |= {entry.buffer for entry in model.metadata or []}
        for index, buffer in enumerate(model.buffers):
            if index not in used:
                buffer.data = None
        size = sum(len(buffer.data) + _ALIGNMENT for buffer in model.buffers if buffer.data is not None)
        builder = flatbuffers.Builder(size + (1 << 20))
        model.buffers = [_Aligned(buffer, self.schema) for buffer in model.buffers]
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        made: bytearray = builder.Output()
        return made

    def weights_bytes(self) -> Bytes:
        """Those in the file, where equal matrices are one."""
        held = (self.codes[name].nbytes if name in self.codes else self.float_bytes(name) for name in self.found)
        return Bytes(self.vector_bytes() + sum(held))

    def bytes_per_token(self) -> Bytes:
        """Those in memory: of every matrix that is multiplied by, in float32 where it is widened."""
        multiplied = set(self.quant.tensors) - (set() if self.quant.graph.decoder.tied else {_TABLE})
        read = 0
        for name in multiplied:
            codes = self.codes.get(self.stands_for[name])
            read += self.float_bytes(name) if codes is None or codes.widened else codes.nbytes
        return Bytes(self.vector_bytes() + read)

    def float_bytes(self, name: str) -> int:
        return 4 * int(np.prod(self.quant.tensors[name].shape))

    def vector_bytes(self) -> int:
        return sum(vector.nbytes for vector in self.quant.vectors.values())


class _Aligned:
    """A buffer whose data begin at a multiple of 64 bytes of the file, as kernels like it and FLOAT32 must."""

    def __init__(self, buffer: Any, schema: Any) -> None:
        self.buffer = buffer
        self.schema = schema

    def Pack(self, builder: Any) -> int:  # noqa: N802
        buffer = self.buffer
        if buffer.data is not None:
            builder.StartVector(1, len(buffer.data), _ALIGNMENT)
            head = builder.head - len(buffer.data)
            builder.head = head
            builder.Bytes[head : head + len(buffer.data)] = np.ascontiguousarray(buffer.data).data
            builder.vectorNumElems = len(buffer.data)
            data = builder.EndVector()
        self.schema.BufferStart(builder)
        if buffer.data is not None:
            self.schema.BufferAddData(builder, data)
        made: int = self.schema.BufferEnd(builder)
        return made


def _codes(tensor: QuantTensor, *, restricted: bool) -> _Codes:
    """The matrix in the format of its scheme."""
    codes = np.ascontiguousarray(tensor.codes)
    if tensor.scheme.format == "f16":
        return _Codes("FLOAT16", codes, np.empty(0, np.float32), widened=True)
    if tensor.scheme.format == "q8":
        return _Codes("INT8", codes, row_scales(tensor), widened=restricted)
    nibbles = codes.view(np.uint8) & np.uint8(15)
    packed = nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)
    return _Codes("INT4", packed, widen_bf16(tensor.scales).astype(np.float16), block=tensor.scheme.group)


def _key(shape: Sequence[int], values: Array) -> _Key:
    n, k = map(int, shape)
    return n, k, hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data).hexdigest()
