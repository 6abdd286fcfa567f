"""norm -> gate and up projections -> Swish(gate) * up becomes NormGatedLinear, gate and up in one matrix."""

import onnx_ir as ir

from edgekit.passes.match import Linear, NoMatchError, match_linear, match_norm, no_match, number, producer, replace
from edgekit.passes.weights import Weights

ANCHOR = "Mul"


def rewrite(node: ir.Node, weights: Weights) -> None:
    gate, up = _match(node)
    norm = match_norm(gate.x)
    if weights.schemes[gate.weight] != weights.schemes[up.weight]:
        no_match(f"the gate is {weights.schemes[gate.weight]} and up is {weights.schemes[up.weight]}")
    if (gate.bias is None) != (up.bias is None):
        no_match("one of gate and up has a bias and the other has none")
    bias = weights.make([gate.bias, up.bias], "tiles") if gate.bias is not None and up.bias is not None else None
    weight = weights.make([gate.weight, up.weight], "tiles")
    replace(node, "NormGatedLinear", [norm.x, weights.make([norm.weight]), weight, bias], eps=norm.eps)


def gated_pairs(graph: ir.Graph) -> list[tuple[str, str]]:
    """The weights of gate and up of every gated pair in the graph."""
    pairs = []
    for node in graph:
        if node.op_type == ANCHOR:
            try:
                gate, up = _match(node)
            except NoMatchError:
                continue
            pairs.append((gate.weight, up.weight))
    return pairs


def _match(node: ir.Node) -> tuple[Linear, Linear]:
    swish = producer(node.inputs[0], "Swish")
    if number(swish, "alpha", 1.0) != 1.0:
        no_match(f"'{swish.name}' has an alpha that is not 1")
    gate, up = match_linear(swish.inputs[0]), match_linear(node.inputs[1])
    if gate.x is not up.x:
        no_match("gate and up have different inputs")
    return gate, up
