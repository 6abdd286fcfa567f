"""A projection added to the residual stream becomes LinearAdd."""

import onnx_ir as ir

from edgekit.passes.match import given, match_linear, no_match, replace
from edgekit.passes.weights import Weights

ANCHOR = "Add"


def rewrite(node: ir.Node, weights: Weights) -> None:
    residual, y = map(given, node.inputs)
    if y.is_initializer():
        no_match("it adds a weight: the bias of a linear layer")
    linear = match_linear(y)
    if residual.shape != y.shape:
        no_match(f"it adds {residual.shape} to {y.shape}")
    bias = weights.make([linear.bias]) if linear.bias is not None else None
    replace(node, "LinearAdd", [linear.x, weights.make([linear.weight]), bias, residual])
