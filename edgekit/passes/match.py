"""What patterns are made of: a linear layer, a norm, a producer of a given kind, and the reason where there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import onnx_ir as ir

from edgekit.passes.weights import DOMAIN, sizes


class NoMatchError(Exception):
    """A pattern does not fit; the message says why."""


@dataclass(frozen=True, slots=True)
class Linear:
    """x times a weight matrix, both named as in the checkpoint, plus a bias if `bias` is not None."""

    x: ir.Value
    weight: str
    bias: str | None


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNormalization of x over its last axis."""

    x: ir.Value
    weight: str
    eps: float


def no_match(reason: str) -> NoReturn:
    raise NoMatchError(reason)


def producer(value: ir.Value | None, op_type: str) -> ir.Node:
    """The standard node that makes `value`."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != op_type or node.domain != "":
        found = "nothing" if node is None else f"{node.op_type} '{node.name}'"
        no_match(f"'{value.name if value is not None else ''}' comes from {found}, not {op_type}")
    return node


def given(value: ir.Value | None) -> ir.Value:
    """An input that must be there."""
    return value if value is not None else no_match("an input is missing")


def integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def number(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def constant(value: ir.Value | None) -> list[int]:
    """The values of a small integer initializer, flat."""
    if value is None or value.const_value is None or not value.is_initializer():
        no_match(f"'{value.name if value is not None else ''}' is not constant")
    return [int(item) for item in value.const_value.numpy().reshape(-1)]


def only_user(value: ir.Value, op_type: str, **ints: tuple[int, ...]) -> ir.Value:
    """The result of the one node that reads `value`, an `op_type` with these lists of integers as attributes."""
    users = [use.node for use in value.uses()]
    if len(users) != 1 or users[0].op_type != op_type:
        no_match(f"'{value.name}' is not read by one {op_type} alone")
    for name, wanted in ints.items():
        if tuple(users[0].attributes[name].as_ints()) != wanted:
            no_match(f"'{users[0].name}' has another {name} than {wanted}")
    return users[0].outputs[0]


def match_linear(value: ir.Value | None) -> Linear:
    """The linear layer that makes `value`: MatMul with an initializer (k, n) or a transposed one (n, k), then Add."""
    node = value.producer() if value is not None else None
    bias = None
    if node is not None and node.op_type == "Add" and node.domain == "":
        value, added = map(given, node.inputs)
        if not added.is_initializer() or len(sizes(added)) != 1:
            no_match(f"'{node.name}' adds more than a bias")
        bias = str(added.name)
    x, weight = map(given, producer(value, "MatMul").inputs)
    if not weight.is_initializer():
        transpose = producer(weight, "Transpose")
        weight = given(transpose.inputs[0])
        if tuple(transpose.attributes["perm"].as_ints()) != (1, 0) or not weight.is_initializer():
            no_match(f"'{transpose.name}' does not transpose a weight")
    return Linear(x, str(weight.name), bias)


def match_norm(value: ir.Value | None) -> Norm:
    """The RMSNormalization over the last axis that makes `value`."""
    node = producer(value, "RMSNormalization")
    x, weight = map(given, node.inputs)
    if integer(node, "axis", -1) != -1 or not weight.is_initializer():
        no_match(f"'{node.name}' does not norm the last axis by a weight")
    return Norm(x, str(weight.name), number(node, "epsilon", 1e-5))


def replace(
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    outputs: Sequence[ir.Value] | None = None,
    **attributes: int | float,
) -> None:
    """Puts a node of the domain `edgekit` at the place of `anchor`, to make `outputs`, or else what `anchor` makes."""
    old = anchor.outputs if outputs is None else outputs
    new = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in old]
    node = ir.node(op_type, inputs, attributes, domain=DOMAIN, outputs=new, name=anchor.name)
    assert anchor.graph is not None
    anchor.graph.insert_after(anchor, node)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
