"""A quantized graph as standard ONNX, which any ONNX runtime can execute and stock ONNX Runtime executes fast.

A matrix is DequantizeLinear, blocked along k, before its MatMul: ONNX Runtime fuses the two to MatMulNBits. Codes lie
as (k, n) in INT4, or in INT8 if they need it or n is odd. The half steps of q2 are the odd values -3, -1, 1, 3 with
half the scale, which is exact. Scales are bf16, widened by a Cast that is folded when the model is loaded.

INT2 would halve q2 and t2, but needs opset 25, of which ONNX Runtime 1.32 has no kernel for Attention and Swish: decode
takes twice as long (135 M parameters: 12 ms a token instead of 6), and rows of INT2 that do not fill whole bytes give
wrong products there.

The embedding dequantizes the rows it looks up and no others: it gathers bytes of codes, takes its code out of each by
shifting, and multiplies by the gathered scales. A tied head and the embedding are the same bytes in the file, once as
INT4 for DequantizeLinear and once as UINT8 for Gather.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common

from edgekit.onnx_files import Progress, save_model
from edgekit.quantize import QuantGraph, QuantTensor
from edgekit.scheme import Scheme

UInt8 = npt.NDArray[np.uint8]
Tensor = npt.NDArray[Any]

_ROWS_AT_ONCE: Final = 256  # of codes packed; a multiple of the codes in a byte


@dataclass(frozen=True, slots=True)
class _Stored:
    """A matrix in the file, in signed codes of `bits` bits. `halves`: codes are doubled plus one, scales halved."""

    tensor: QuantTensor
    bits: int

    @property
    def per_byte(self) -> int:
        return 8 // self.bits

    @property
    def dtype(self) -> ir.DataType:
        return ir.DataType.INT4 if self.bits == 4 else ir.DataType.INT8

    @property
    def halves(self) -> bool:
        return self.tensor.scheme.offset != 0

    def codes(self) -> UInt8:
        """Codes (k, n), two's complement, the first in the lowest bits of a byte: uint8 [k, n / codes in a byte]."""
        n, k = self.tensor.shape
        packed = np.zeros((k, n // self.per_byte), np.uint8)
        for start in range(0, n, _ROWS_AT_ONCE):
            rows = np.asarray(self.tensor.codes[start : start + _ROWS_AT_ONCE])
            if self.halves:
                rows = 2 * rows + np.int8(1)
            fields = (rows.view(np.uint8) & np.uint8(2**self.bits - 1)).T.reshape(k, -1, self.per_byte)
            block = packed[:, start // self.per_byte :][:, : fields.shape[1]]
            for at in range(self.per_byte):
                block |= fields[:, :, at] << np.uint8(self.bits * at)
        return packed

    def scales(self) -> Tensor:
        """Scales (groups, n) in bf16."""
        scales = np.asarray(self.tensor.scales).view(ml_dtypes.bfloat16)
        if self.halves:
            scales = scales * ml_dtypes.bfloat16(0.5)
        return np.ascontiguousarray(scales.T)


def portable_onnx(
    quant: QuantGraph, path: Path, *, metadata: Mapping[str, str] | None = None, progress: Progress | None = None
) -> None:
    """Writes the quantized graph to `path` and its larger tensors to `<path>.data`, one tensor in memory at a time."""
    portable = _Portable(quant)
    portable.model.metadata_props.update(metadata or {})
    save_model(portable.model, path, shared=portable.shared, progress=progress)


def stored_bytes(scheme: Scheme, n: int, k: int) -> int:
    """Bytes of a matrix (n, k) in the file: its codes and their scales, or its floats."""
    if scheme.is_float:
        return n * k * scheme.bits // 8
    return n * k * _stored_bits(scheme, n) // 8 + 2 * n * scheme.groups(k)


def _stored_bits(scheme: Scheme, n: int) -> int:
    return 8 if scheme.bits == 8 or n % 2 else 4


class _Portable:
    """Rewrites a copy of a graph, matrix by matrix. `shared` names initializers that are the bytes of another."""

    def __init__(self, quant: QuantGraph) -> None:
        self.model = quant.graph.model.clone()
        self.graph = self.model.graph
        self.shared: dict[str, str] = {}
        for name, tensor in quant.tensors.items():
            value = self.graph.initializers[name]
            if tensor.scheme.format == "f16":
                self.store_halves(value, tensor)
            elif not tensor.scheme.is_float:
                self.store_codes(value, tensor)
        for name, vector in quant.vectors.items():
            self.graph.initializers[name].const_value = ir.tensor(vector, name=name)
        onnx_ir.passes.common.RemoveUnusedNodesPass()(self.model)

    def store_halves(self, value: ir.Value, tensor: QuantTensor) -> None:
        """Float16 values, widened where they are read."""
        is_table = any(node.op_type == "Gather" for node, _ in value.uses())
        shape = tensor.shape if is_table else tensor.shape[::-1]

        def make() -> Tensor:
            return np.ascontiguousarray(tensor.codes if is_table else np.asarray(tensor.codes).T)

        halves = self.initializer(f"{value.name}.f16", shape, ir.DataType.FLOAT16, make)
        for node, index in list(value.uses()):
            if node.op_type == "Gather":
                rows = self.node(node, "Gather", [halves, node.inputs[1]], "rows", axis=0)
                self.replace(node, self.node(node, "Cast", [rows], "widened", to=ir.DataType.FLOAT))
            else:
                node.replace_input_with(index, self.node(node, "Cast", [halves], "widened", to=ir.DataType.FLOAT))

    def store_codes(self, value: ir.Value, tensor: QuantTensor) -> None:
        """Codes and scales, dequantized where they are read."""
        n, k = tensor.shape
        stored = _Stored(tensor, _stored_bits(tensor.scheme, n))
        size = (tensor.scheme.groups(k), n)
        scales = self.initializer(f"{value.name}.scales", size, ir.DataType.BFLOAT16, stored.scales)
        for node, index in list(value.uses()):
            if node.op_type == "Gather":
                self.replace(node, self.look_up(node, stored, scales))
            elif node.op_type == "Transpose":
                self.replace(node, self.dequantize(node, stored, scales))
            else:
                node.replace_input_with(index, self.dequantize(node, stored, scales))

    def dequantize(self, node: ir.Node, stored: _Stored, scales: ir.Value) -> ir.Value:
        """The matrix (k, n) in float32, made before `node`."""
        n, k = stored.tensor.shape
        codes = self.initializer(f"{stored.tensor.name}.codes", (k, n), stored.dtype, stored.codes)
        wide = self.node(node, "Cast", [scales], "scales", to=ir.DataType.FLOAT)
        group = stored.tensor.scheme.group
        return self.node(node, "DequantizeLinear", [codes, wide], "dequantized", axis=0, block_size=group)

    def look_up(self, node: ir.Node, stored: _Stored, scales: ir.Value) -> ir.Value:
        """The rows of the matrix at the ids that `node` gathers: [1, s, k]."""
        scheme, k, ids = stored.tensor.scheme, stored.tensor.shape[1], node.inputs[1]
        groups = scheme.groups(k)
        codes = self.unpack(node, stored)  # [k, 1, s]
        if k % scheme.group:
            missing = [0, 0, 0, groups * scheme.group - k, 0, 0]
            codes = self.node(node, "Pad", [codes, self.constant(missing)], "padded", mode="constant")
        grouped = self.node(node, "Reshape", [codes, self.constant([groups, scheme.group, 1, -1])], "grouped")
        gathered = self.node(node, "Gather", [scales, ids], "row_scales.bf16", axis=1)  # [groups, 1, s]
        wide = self.node(node, "Cast", [gathered], "row_scales", to=ir.DataType.FLOAT)
        column = self.node(node, "Unsqueeze", [wide, self.constant([1])], "row_scales.column")
        scaled = self.node(node, "Mul", [grouped, column], "scaled")
        flat = self.node(node, "Reshape", [scaled, self.constant([groups * scheme.group, 1, -1])], "flat")
        if k % scheme.group:
            ends = [self.constant([end]) for end in (0, k, 0)]
            flat = self.node(node, "Slice", [flat, *ends], "sliced")
        return self.node(node, "Transpose", [flat], "rows", perm=[1, 2, 0])

    def unpack(self, node: ir.Node, stored: _Stored) -> ir.Value:
        """The codes in the columns that `node` gathers, in float32: [k, 1, s]."""
        (n, k), ids, bits = stored.tensor.shape, node.inputs[1], stored.bits
        name = f"{stored.tensor.name}.bytes"
        self.shared[name] = f"{stored.tensor.name}.codes"
        if bits == 8:
            table = self.initializer(name, (k, n), ir.DataType.INT8, stored.codes)
            columns = self.node(node, "Gather", [table, ids], "columns", axis=1)
            return self.node(node, "Cast", [columns], "codes", to=ir.DataType.FLOAT)
        table = self.initializer(name, (k, n // stored.per_byte), ir.DataType.UINT8, stored.codes)
        per_byte = self.constant(stored.per_byte)
        at = self.node(node, "Div", [ids, per_byte], "byte")
        field = self.node(node, "Mod", [ids, per_byte], "field")
        shift = self.node(node, "Mul", [field, self.constant(bits)], "shift.int64")
        shift = self.node(node, "Cast", [shift], "shift", to=ir.DataType.UINT8)
        columns = self.node(node, "Gather", [table, at], "columns", axis=1)
        low = self.node(node, "BitShift", [columns, shift], "shifted", direction="RIGHT")
        low = self.node(node, "BitwiseAnd", [low, self.constant(np.uint8(2**bits - 1))], "unsigned")
        # Two's complement: with the sign flipped it counts from the lowest code.
        biased = self.node(node, "BitwiseXor", [low, self.constant(np.uint8(2 ** (bits - 1)))], "biased")
        wide = self.node(node, "Cast", [biased], "biased.float", to=ir.DataType.FLOAT)
        return self.node(node, "Sub", [wide, self.constant(np.float32(2 ** (bits - 1)))], "codes")

    def initializer(
        self, name: str, shape: tuple[int, ...], dtype: ir.DataType, make: Callable[[], Tensor]
    ) -> ir.Value:
        """The initializer `name`, registered on its first use; `make` gives its bytes whenever they are needed."""
        if name not in self.graph.initializers:

            def evaluate() -> ir.TensorProtocol:
                if dtype.bitwidth < 8:
                    return ir.PackedTensor(make(), dtype, shape=shape, name=name)
                return ir.Tensor(make().view(dtype.numpy()), dtype=dtype, name=name)

            value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
            value.const_value = ir.LazyTensor(evaluate, dtype, ir.Shape(shape), name=name)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def constant(self, value: int | list[int] | np.generic) -> ir.Value:
        array = np.array(value, None if isinstance(value, np.generic) else np.int64)
        name = f"constant.{array.dtype}.{'_'.join(map(str, array.reshape(-1)))}{'' if array.ndim else '.scalar'}"
        return self.initializer(name, array.shape, ir.DataType.from_numpy(array.dtype), lambda: array)

    def node(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        suffix: str,
        **attributes: int | str | list[int],
    ) -> ir.Value:
        """The output of a new node, placed and named after the node it comes before."""
        node = ir.node(op_type, inputs, attributes, name=f"{before.name}.{suffix}")
        node.outputs[0].name = node.name
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def replace(self, node: ir.Node, by: ir.Value) -> None:
        """Reads of `node`'s result become reads of `by`, which takes its shape."""
        by.shape, by.type = node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_all_uses_with(node.outputs[0], by, replace_graph_outputs=True)
