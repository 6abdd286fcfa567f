"""A Gather of the embedding's rows at the token ids becomes Embed."""

import onnx_ir as ir

from edgekit.passes.match import given, integer, no_match, replace
from edgekit.passes.weights import Weights

ANCHOR = "Gather"


def rewrite(node: ir.Node, weights: Weights) -> None:
    table, ids = map(given, node.inputs)
    if integer(node, "axis", 0) != 0 or not table.is_initializer() or not weights.is_known(str(table.name)):
        no_match("it does not look up rows of a weight")
    if not ids.is_graph_input():
        no_match("the ids are not an input of the graph")
    replace(node, "Embed", [ids, weights.make([str(table.name)])])
