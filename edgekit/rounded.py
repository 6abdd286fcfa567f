"""A quantized graph that rounds where the native engine does, so that the two can be compared closely.

Weights are what they are in the quantized graph. Activations that meet quantized weights are rounded to int8, a scale
for each token and group of k, and keys and values to f16 before they enter the cache: in standard ONNX, node by node.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgekit.quantize import QuantGraph
from edgekit.scheme import Scheme

_HEAD, _EMBEDDING = "lm_head", "model.embed_tokens.weight"
# Stands for the largest activation of a group of zeros, which stay zeros.
_LEAST = np.float32(1e-30)


def rounded_as_native(quant: QuantGraph) -> QuantGraph:
    """The same codes and scales in a graph with the native engine's roundings."""
    model = quant.graph.model.clone()
    for node in list(model.graph):
        if node.op_type == "TensorScatter":
            _round_to_f16(model.graph, node)
        elif node.op_type == "MatMul" and not (scheme := _scheme_of(node, quant)).is_float:
            _round_to_int8(model.graph, node, scheme.group)
    return replace(quant, graph=replace(quant.graph, model=model))


def _scheme_of(node: ir.Node, quant: QuantGraph) -> Scheme:
    """The scheme of the matrix that the node, which bears its name, multiplies by; a tied head is the embedding."""
    name = f"{node.name}.weight"
    return quant.schemes[_EMBEDDING if node.name == _HEAD and name not in quant.schemes else name]


def _round_to_f16(graph: ir.Graph, node: ir.Node) -> None:
    narrow = _node(graph, node, "Cast", [node.inputs[1]], "f16", to=ir.DataType.FLOAT16)
    node.replace_input_with(1, _node(graph, node, "Cast", [narrow], "f32", to=ir.DataType.FLOAT))


def _round_to_int8(graph: ir.Graph, node: ir.Node, group: int) -> None:
    """code = x * (127 / max|x|), to nearest, ties to even; what is multiplied is code * (max|x| / 127)."""
    x = node.inputs[0]
    assert x is not None and x.shape is not None
    k = int(x.shape[-1])  # type: ignore[arg-type]
    groups = -(-k // group)
    if k % group:
        ends = np.array([0, 0, 0, 0, 0, groups * group - k], np.int64)
        x = _node(graph, node, "Pad", [x, _constant(graph, node, "padding", ends)], "padded")
    shape = _constant(graph, node, "groups", np.array([1, -1, groups, group], np.int64))
    x = _node(graph, node, "Reshape", [x, shape], "grouped")
    size = _node(graph, node, "Abs", [x], "size")
    axis = _constant(graph, node, "axis", np.array([3], np.int64))
    largest = _node(graph, node, "ReduceMax", [size, axis], "largest", keepdims=1)
    largest = _node(graph, node, "Max", [largest, _constant(graph, node, "least", _LEAST)], "largest_but_0")
    steps = _constant(graph, node, "steps", np.float32(127))
    inverse = _node(graph, node, "Div", [steps, largest], "inverse")
    code = _node(graph, node, "Round", [_node(graph, node, "Mul", [x, inverse], "scaled")], "code")
    scale = _node(graph, node, "Div", [largest, steps], "scale")
    x = _node(graph, node, "Mul", [code, scale], "rounded")
    shape = _constant(graph, node, "row", np.array([1, -1, groups * group], np.int64))
    x = _node(graph, node, "Reshape", [x, shape], "rows")
    if k % group:
        ends_at = [_constant(graph, node, f"end{end}", np.array([end], np.int64)) for end in (0, k, 2)]
        x = _node(graph, node, "Slice", [x, *ends_at], "cut")
    node.replace_input_with(0, x)


def _node(
    graph: ir.Graph, before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], suffix: str, **attributes: int
) -> ir.Value:
    """The output of a new node, placed before `before` and named after it."""
    node = ir.node(op_type, inputs, attributes, name=f"{before.name}.{suffix}")
    node.outputs[0].name = node.name
    graph.insert_before(before, node)
    return node.outputs[0]


def _constant(graph: ir.Graph, node: ir.Node, suffix: str, value: np.generic | np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.asarray(value), name=f"{node.name}.{suffix}")
    shape = ir.Shape(tensor.shape.numpy())
    constant = ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(constant)
    return constant
