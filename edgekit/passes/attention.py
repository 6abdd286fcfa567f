"""Heads, q/k norm, rotation, cache update and attention become Attention, over q, k and v side by side.

Leaves a Concat of the three projections, which norm_linear takes.
"""

import re
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.passes.match import (
    Norm,
    constant,
    given,
    integer,
    match_norm,
    no_match,
    number,
    only_user,
    producer,
    replace,
)
from edgekit.passes.weights import Weights, sizes

ANCHOR = "Attention"
_SWAP = (0, 2, 1, 3)  # [1, s, heads, head_dim] <-> [1, heads, s, head_dim]


@dataclass(frozen=True, slots=True)
class _Heads:
    """A projection [1, s, heads * head_dim] as heads: normed if `norm`, rotated at `positions` if that is given."""

    projection: ir.Value
    heads: int
    head_dim: int
    norm: Norm | None
    positions: ir.Value | None


@dataclass(frozen=True, slots=True)
class _Cache:
    """New keys or values written to `past` at `position`, along the positions."""

    past: ir.Value
    new: _Heads
    position: ir.Value
    present: ir.Value


def rewrite(node: ir.Node, weights: Weights) -> None:
    query, present_key, present_value, mask, past_key, past_value, length = _seven_inputs(node)
    unknown = sorted(node.attributes.keys() - {"is_causal", "scale"})
    if unknown or integer(node, "is_causal", 0) != 1:
        no_match(f"it has the attribute {unknown[0]}" if unknown else "it is not causal")
    if past_key is not None or past_value is not None or length is None:
        no_match("it does not read a cache of fixed size")
    q, keys, values = _match_heads(query), _match_cache(present_key), _match_cache(present_value)
    k, v = keys.new, values.new
    if keys.position is not values.position:
        no_match("keys and values are stored at different positions")
    if v.positions is not None or v.norm is not None or q.positions is None or q.positions is not k.positions:
        no_match("it is not queries and keys, and only those, that are rotated")
    _check_positions(q.positions, keys.position, length)
    if (k.heads, k.head_dim) != (v.heads, v.head_dim) or q.head_dim != k.head_dim or q.heads % k.heads:
        no_match("queries, keys and values have heads that do not go together")
    if (q.norm and q.norm.eps) != (k.norm and k.norm.eps):
        no_match("queries and keys are normed differently")
    joined = only_user(only_user(node.outputs[0], "Transpose", perm=_SWAP), "Reshape")

    eps = q.norm.eps if q.norm is not None else 0.0
    norms = [None if norm is None else weights.make([norm.weight]) for norm in (q.norm, k.norm)]
    qkv = _side_by_side(node, [q, k, v])
    replace(
        node,
        "Attention",
        [qkv, keys.position, keys.past, values.past, weights.inv_freq(), *norms],
        outputs=[joined, keys.present, values.present],
        layer=_layer(keys.past),
        heads=q.heads,
        kv_heads=k.heads,
        head_dim=q.head_dim,
        window=0 if mask is None else _window(mask, q.positions),
        scale=number(node, "scale", q.head_dim**-0.5),
        rope_scale=weights.decoder.rope_scale,
        eps=eps,
    )


def _seven_inputs(node: ir.Node) -> list[ir.Value | None]:
    return [*node.inputs, *[None] * (7 - len(node.inputs))]


def _match_cache(value: ir.Value | None) -> _Cache:
    scatter = producer(value, "TensorScatter")
    past, new, position = map(given, scatter.inputs)
    if integer(scatter, "axis", -2) not in (2, -2) or "mode" in scatter.attributes:
        no_match(f"'{scatter.name}' does not extend the cache along its positions")
    if not (past.is_graph_input() and position.is_graph_input()):
        no_match(f"'{scatter.name}' does not write a cache that is an input, at a position that is one")
    return _Cache(past, _match_heads(new), position, scatter.outputs[0])


def _match_heads(value: ir.Value | None) -> _Heads:
    positions, norm = None, None
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "RotaryEmbedding":
        value, _, _, positions = node.inputs
        if node.attributes:
            no_match(f"'{node.name}' has the attribute {next(iter(node.attributes))}")
    transpose = producer(value, "Transpose")
    if tuple(transpose.attributes["perm"].as_ints()) != _SWAP:
        no_match(f"'{transpose.name}' does not bring the heads to the front")
    split = given(transpose.inputs[0])
    maker = split.producer()
    if maker is not None and maker.op_type == "RMSNormalization":
        norm = match_norm(split)
        split = norm.x
    heads, head_dim = constant(producer(split, "Reshape").inputs[1])[-2:]
    return _Heads(given(producer(split, "Reshape").inputs[0]), heads, head_dim, norm, positions)


def _check_positions(positions: ir.Value, position: ir.Value, length: ir.Value) -> None:
    """The new tokens stand at position, position + 1, ... and `length` is where they end."""
    end = producer(length, "Add")
    if end.inputs[0] is not position or not given(producer(end.inputs[1], "Shape").inputs[0]).is_graph_input():
        no_match("the length of the cache is not the position plus the new tokens")
    start, stop, step = producer(producer(positions, "Unsqueeze").inputs[0], "Range").inputs
    ends = [producer(value, "Squeeze").inputs[0] for value in (start, stop)]
    if ends[0] is not position or ends[1] is not length or constant(step) != [1]:
        no_match("the new tokens are not rotated at the positions that follow the cache")


def _window(mask: ir.Value, positions: ir.Value) -> int:
    """Positions that a mask `cached > position - window` lets a token see."""
    cached, first = producer(mask, "Greater").inputs
    row, window = producer(first, "Sub").inputs
    is_row = producer(row, "Unsqueeze").inputs[0] is producer(positions, "Unsqueeze").inputs[0]
    if not is_row or constant(cached) != list(range(sizes(given(cached))[-1])):
        no_match("its mask is not a window of positions")
    return constant(window)[0]


def _side_by_side(anchor: ir.Node, parts: list[_Heads]) -> ir.Value:
    width = sum(part.heads * part.head_dim for part in parts)
    values = [part.projection for part in parts]
    output = ir.Value(name=f"{anchor.name}.qkv", shape=ir.Shape([1, "s", width]), type=values[0].type)
    node = ir.node("Concat", values, {"axis": -1}, outputs=[output], name=output.name)
    assert anchor.graph is not None
    anchor.graph.insert_before(anchor, node)
    return output


def _layer(past: ir.Value) -> int:
    match = re.fullmatch(r"past_key_(\d+)", past.name or "")
    if match is None:
        no_match(f"the cache '{past.name}' is not called past_key_<layer>")
    return int(match[1])
