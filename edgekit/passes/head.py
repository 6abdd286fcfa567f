"""The norm and the projection that make the logits become Head."""

import onnx_ir as ir

from edgekit.passes.match import match_linear, match_norm, no_match, replace
from edgekit.passes.weights import Weights

ANCHOR = "MatMul"


def rewrite(node: ir.Node, weights: Weights) -> None:
    if not node.outputs[0].is_graph_output():
        no_match("its result is not an output of the graph")
    linear = match_linear(node.outputs[0])
    norm = match_norm(linear.x)
    replace(node, "Head", [norm.x, weights.make([norm.weight]), weights.make([linear.weight]), None], eps=norm.eps)
