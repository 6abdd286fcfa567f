"""A norm and the projections that read it side by side become NormLinear.

Neighbours of equal scheme are stored as one matrix, so that q, k and v are one product where their schemes agree.
"""

import itertools

import onnx_ir as ir

from edgekit.passes.match import Linear, integer, match_linear, match_norm, no_match, replace
from edgekit.passes.weights import Weights

ANCHOR = "Concat"


def rewrite(node: ir.Node, weights: Weights) -> None:
    if integer(node, "axis", 0) != -1:
        no_match("it does not join the last axis")
    linears = [match_linear(value) for value in node.inputs]
    if any(linear.x is not linears[0].x for linear in linears):
        no_match("the projections have different inputs")
    norm = match_norm(linears[0].x)
    inputs: list[ir.Value | None] = [norm.x, weights.make([norm.weight])]
    for _, neighbours in itertools.groupby(linears, key=lambda linear: _storage(linear, weights)):
        joined = list(neighbours)
        biases = [linear.bias for linear in joined if linear.bias is not None]
        inputs += [weights.make([linear.weight for linear in joined]), weights.make(biases) if biases else None]
    replace(node, "NormLinear", inputs, eps=norm.eps)


def _storage(linear: Linear, weights: Weights) -> tuple[object, ...]:
    """What must be equal for two projections to share a matrix."""
    return weights.schemes[linear.weight], linear.bias is None
