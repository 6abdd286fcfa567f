"""The lowered graph computes what the standard one computes; where a pass does not fit, it says why."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import Unsupported
from edgekit.graph import Graph, Session, build_graph
from edgekit.passes import DOMAIN, Packed, gated_pairs, lower, packed, run_passes
from edgekit.passes.weights import Weights
from edgekit.quantize import QuantGraph, assign
from edgekit.scheme import parse_recipe, parse_scheme
from edgekit.testing import make_checkpoint

Float32 = npt.NDArray[np.float32]

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, untied, odd sizes": {
        "tied": False,
        "hidden": 51,
        "heads": 3,
        "kv_heads": 1,
        "head_dim": 6,
        "intermediate": 77,
    },
    "llama, biases": {"config": {"attention_bias": True, "mlp_bias": True}},
    "mistral, window of 7": {"model_type": "mistral", "config": {"sliding_window": 7}},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 24, "tied": False},
}
CONTEXT = 32
IDS = np.array([5, 3, 300, 7, 7, 1, 250, 12, 90, 41, 8])


def checkpoint_of(folder: Path, **variant: Any) -> Checkpoint:
    return open_checkpoint(make_checkpoint(folder, **variant))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint_of(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def graph(checkpoint: Checkpoint) -> Graph:
    return build_graph(checkpoint, context=CONTEXT)


def assigned(graph: Graph, recipe: str = "q4g32") -> QuantGraph:
    return assign(graph, parse_recipe(recipe))


class Interpreter:
    """Runs a lowered graph in float32 numpy, node by node, the plain way; the cache is filled call by call."""

    def __init__(self, model: ir.Model, checkpoint: Checkpoint) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.position = 0
        self.caches: dict[str, Float32] = {}

    def run(self, ids: npt.NDArray[np.int64]) -> Float32:
        values: dict[ir.Value | None, Any] = {None: None}
        for value in self.model.graph.inputs:
            known = {"input_ids": ids, "position": self.position}
            values[value] = known.get(str(value.name), self.caches.get(str(value.name)))
        for value in self.model.graph.initializers.values():
            values[value] = self.tensor(value)
        for node in self.model.graph:
            assert node.domain == DOMAIN
            inputs = [values[value] for value in node.inputs]
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            made = getattr(self, node.op_type)(*inputs, **attributes)
            values.update(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True))
        for value in self.model.graph.outputs:
            if value.name != "logits":
                self.caches[str(value.name).replace("present", "past")] = values[value]
        self.position += len(ids)
        return np.asarray(values[self.model.graph.outputs[0]], np.float32)

    def tensor(self, value: ir.Value) -> Float32:
        made = packed(value)
        if not made.sources:
            assert value.const_value is not None
            return value.const_value.numpy()
        parts = [self.checkpoint.read(name) for name in made.sources]
        if made.join == "tiles":
            padded = [np.pad(part, [(0, -len(part) % 16), *[(0, 0)] * (part.ndim - 1)]) for part in parts]
            tiles = [part.reshape(-1, 16, *part.shape[1:]) for part in padded]
            joined = np.stack(tiles, axis=1).reshape(made.shape)
        else:
            joined = np.concatenate(parts)
        assert joined.shape == made.shape
        return joined

    @staticmethod
    def norm(x: Float32, weight: Float32, eps: float) -> Float32:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight

    @staticmethod
    def linear(x: Float32, weight: Float32, bias: Float32 | None) -> Float32:
        return x @ weight.T + (0 if bias is None else bias)

    def Embed(self, ids: npt.NDArray[np.int64], table: Float32) -> Float32:  # noqa: N802
        return table[ids]

    def NormLinear(self, x: Float32, norm: Float32, *pairs: Float32 | None, eps: float) -> Float32:  # noqa: N802
        padded = [*pairs, None] if len(pairs) % 2 else [*pairs]
        x = self.norm(x, norm, eps)
        return np.concatenate([self.linear(x, *padded[at : at + 2]) for at in range(0, len(padded), 2)], axis=-1)

    def Head(self, x: Float32, norm: Float32, weight: Float32, *, eps: float) -> Float32:  # noqa: N802
        return self.linear(self.norm(x, norm, eps), weight, None)

    def LinearAdd(self, x: Float32, weight: Float32, bias: Float32 | None, residual: Float32) -> Float32:  # noqa: N802
        return residual + self.linear(x, weight, bias)

    def NormGatedLinear(  # noqa: N802
        self, x: Float32, norm: Float32, weight: Float32, bias: Float32 | None = None, *, eps: float
    ) -> Float32:
        y = self.linear(self.norm(x, norm, eps), weight, bias).reshape(len(x), -1, 2, 16)
        gate, up = y[:, :, 0].reshape(len(x), -1), y[:, :, 1].reshape(len(x), -1)
        wide = gate / (1 + np.exp(-gate)) * up
        return wide[:, : self.checkpoint.decoder.intermediate]

    def Attention(  # noqa: N802
        self,
        qkv: Float32,
        position: int,
        past_key: Float32 | None,
        past_value: Float32 | None,
        inv_freq: Float32,
        q_norm: Float32 | None = None,
        k_norm: Float32 | None = None,
        *,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int,
        scale: float,
        rope_scale: float,
        eps: float,
    ) -> tuple[Float32, Float32, Float32]:
        assert (past_key is None) == (position == 0)
        split = np.split(qkv, [heads * head_dim, (heads + kv_heads) * head_dim], axis=-1)
        q, k, v = (part.reshape(len(qkv), -1, head_dim) for part in split)
        if q_norm is not None and k_norm is not None:
            q, k = self.norm(q, q_norm, eps), self.norm(k, k_norm, eps)
        angles = np.arange(position, position + len(qkv))[:, None, None] * inv_freq
        cos, sin = np.cos(angles) * rope_scale, np.sin(angles) * rope_scale

        def rotated(x: Float32) -> Float32:
            low, high = x[..., : head_dim // 2], x[..., head_dim // 2 :]
            return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

        q, k = rotated(q), rotated(k)
        if past_key is not None and past_value is not None:
            k, v = np.concatenate([past_key, k]), np.concatenate([past_value, v])
        result = np.empty_like(q)
        for row, head in np.ndindex(len(q), heads):
            last = position + row
            first = max(0, last - window + 1) if window else 0
            shared = head // (heads // kv_heads)
            scores = k[first : last + 1, shared] @ q[row, head] * scale
            weights = np.exp(scores - scores.max())
            result[row, head] = weights @ v[first : last + 1, shared] / weights.sum()
        return result.reshape(len(qkv), -1), k, v


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_lowered_graph_computes_what_the_standard_one_does(tmp_path: Path, variant: dict[str, Any]) -> None:
    checkpoint = checkpoint_of(tmp_path, **variant)
    graph = build_graph(checkpoint, context=CONTEXT)
    lowered = lower(assigned(graph))
    interpreter = Interpreter(lowered, checkpoint)
    found = np.concatenate([interpreter.run(IDS[:8]), interpreter.run(IDS[8:9]), interpreter.run(IDS[9:])])
    with Session(graph) as session:
        expected = session.logits(IDS)
    # Float32 sums of at most 96 terms of about one in two layers, added in another order.
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_layer_is_five_operators(graph: Graph) -> None:
    nodes = [node.op_type for node in lower(assigned(graph)).graph]
    layer = ["NormLinear", "Attention", "LinearAdd", "NormGatedLinear", "LinearAdd"]
    assert nodes == ["Embed", *layer, *layer, "Head"]


def test_a_lowered_graph_names_its_weights_in_order_of_use_and_reads_none(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.checkpoint.read_floats", lambda *_: pytest.fail("weights were read"))
    lowered = lower(assigned(graph, "q2g64"))
    made = [packed(value) for value in lowered.graph.initializers.values()]
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    f32, q2, q4 = map(parse_scheme, ("f32", "q2g64", "q4g64"))
    assert made[:8] == [
        Packed(("model.embed_tokens.weight",), "rows", q4, (320, 64)),
        Packed(("model.layers.0.input_layernorm.weight",), "rows", f32, (64,)),
        Packed(tuple(f"{attention}.{part}_proj.weight" for part in "qkv"), "rows", q2, (128, 64)),
        Packed((), "rows", f32, (8,)),
        Packed((f"{attention}.o_proj.weight",), "rows", q2, (64, 64)),
        Packed(("model.layers.0.post_attention_layernorm.weight",), "rows", f32, (64,)),
        Packed((f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"), "tiles", q2, (192, 64)),
        Packed((f"{mlp}.down_proj.weight",), "rows", q2, (64, 96)),
    ]
    assert len(made) == 1 + 2 * 6 + 1 + 1  # embedding, layers, inv_freq once, last norm; the head is the embedding


def test_gate_and_up_are_padded_to_tiles_of_16(tmp_path: Path) -> None:
    graph = build_graph(checkpoint_of(tmp_path, intermediate=77), context=CONTEXT)
    shapes = [packed(value).shape for value in lower(assigned(graph)).graph.initializers.values()]
    assert (2 * 80, 64) in shapes


def test_a_tied_head_and_the_embedding_are_one_tensor(graph: Graph) -> None:
    nodes = list(lower(assigned(graph)).graph)
    assert nodes[0].inputs[1] is nodes[-1].inputs[2]


def test_an_untied_head_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    graph = build_graph(checkpoint_of(tmp_path, tied=False), context=CONTEXT)
    nodes = list(lower(assigned(graph)).graph)
    assert packed(nodes[-1].inputs[2]).sources == ("lm_head.weight",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("recipe", "joined"),
    [
        ("q4g32", [("q", "k", "v")]),
        ("q4g32,*.v_proj=q8g32", [("q", "k"), ("v",)]),
        ("q4g32,*.k_proj=q8g32", [("q",), ("k",), ("v",)]),
        ("q4g32,*.q_proj=q4g64", [("q",), ("k", "v")]),
    ],
)
def test_neighbours_of_q_k_v_with_one_scheme_share_a_matrix(
    graph: Graph, recipe: str, joined: list[tuple[str, ...]]
) -> None:
    node = list(lower(assigned(graph, recipe)).graph)[1]
    weights = [value for value in node.inputs[2::2] if value is not None]
    name = "model.layers.0.self_attn.{}_proj.weight"
    assert [packed(value).sources for value in weights] == [tuple(map(name.format, part)) for part in joined]


def test_attention_says_all_that_an_engine_needs(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, model_type="qwen3", head_dim=24, config={"rms_norm_eps": 1e-6})
    node = list(lower(assigned(build_graph(checkpoint, context=CONTEXT))).graph)[7]
    assert [value.name for value in node.inputs if value is not None] == [
        "model.layers.1.self_attn.qkv",
        "position",
        "past_key_1",
        "past_value_1",
        "inv_freq",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.1.self_attn.k_norm.weight",
    ]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    expected = {"layer": 1, "heads": 4, "kv_heads": 2, "head_dim": 24, "window": 0, "rope_scale": 1.0}
    assert attributes == expected | {"scale": pytest.approx(24**-0.5), "eps": pytest.approx(1e-6)}
    assert [value.name for value in node.outputs][1:] == ["present_key_1", "present_value_1"]


def test_lowering_leaves_the_graph_as_it_was(graph: Graph) -> None:
    quant = assigned(graph)
    before = [(node.op_type, node.name, [value and value.name for value in node.inputs]) for node in graph.model.graph]
    lower(quant)
    after = [(node.op_type, node.name, [value and value.name for value in node.inputs]) for node in graph.model.graph]
    assert after == before


def test_gated_pairs_are_gate_and_up_of_every_layer(graph: Graph) -> None:
    layers = [f"model.layers.{layer}.mlp" for layer in range(2)]
    assert gated_pairs(graph.model.graph) == [(f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight") for mlp in layers]


def node_called(graph: ir.Graph, name: str) -> ir.Node:
    return next(node for node in graph if node.name == name)


def set_attribute(node: str, name: str, value: float | int | list[int]) -> Callable[[ir.Graph], None]:
    def change(graph: ir.Graph) -> None:
        found = node_called(graph, node)
        found.attributes[name] = ir.convenience.convert_attribute(name, value)

    return change


def rewire(node: str, index: int, source: str, output: int = 0) -> Callable[[ir.Graph], None]:
    def change(graph: ir.Graph) -> None:
        inputs = {str(value.name): value for value in [*graph.inputs, *graph.initializers.values()]}
        made = inputs[source] if source in inputs else node_called(graph, source).outputs[output]
        node_called(graph, node).replace_input_with(index, made)

    return change


LAYER = "model.layers.1"
# What is changed in a graph: the pass that must not take the node, the node, and the reason it gives.
MISFITS = {
    "swish with alpha": (
        set_attribute(f"{LAYER}.mlp.swish", "alpha", 2.0),
        ("gated", f"{LAYER}.mlp.gated", f"'{LAYER}.mlp.swish' has an alpha that is not 1"),
    ),
    "gate and up of different inputs": (
        rewire(f"{LAYER}.mlp.gate_proj", 0, f"{LAYER}.mlp.residual".replace("1", "0")),
        ("gated", f"{LAYER}.mlp.gated", "gate and up have different inputs"),
    ),
    "a norm over another axis": (
        set_attribute("model.norm", "axis", 1),
        ("head", "lm_head", "'model.norm' does not norm the last axis by a weight"),
    ),
    "a head without a norm": (
        rewire("lm_head", 0, f"{LAYER}.mlp.residual"),
        (
            "head",
            "lm_head",
            f"'{LAYER}.mlp.residual' comes from LinearAdd '{LAYER}.mlp.residual', not RMSNormalization",
        ),
    ),
    "attention that sees the future": (
        set_attribute(f"{LAYER}.self_attn", "is_causal", 0),
        ("attention", f"{LAYER}.self_attn", "it is not causal"),
    ),
    "attention with a soft cap": (
        set_attribute(f"{LAYER}.self_attn", "softcap", 30.0),
        ("attention", f"{LAYER}.self_attn", "it has the attribute softcap"),
    ),
    "rotated values": (
        rewire("present_value_1", 1, f"{LAYER}.self_attn.k.rotary"),
        ("attention", f"{LAYER}.self_attn", "it is not queries and keys, and only those, that are rotated"),
    ),
    "a mask that is no window": (
        rewire(f"{LAYER}.self_attn", 3, "position"),
        ("attention", f"{LAYER}.self_attn", "'position' comes from nothing, not Greater"),
    ),
    "keys that are not rotated": (
        rewire("present_key_1", 1, f"{LAYER}.self_attn.k.transpose"),
        ("attention", f"{LAYER}.self_attn", "it is not queries and keys, and only those, that are rotated"),
    ),
    "interleaved rotation": (
        set_attribute(f"{LAYER}.self_attn.q.rotary", "interleaved", 1),
        ("attention", f"{LAYER}.self_attn", f"'{LAYER}.self_attn.q.rotary' has the attribute interleaved"),
    ),
    "a cache extended along another axis": (
        set_attribute("present_key_1", "axis", 1),
        ("attention", f"{LAYER}.self_attn", "'present_key_1' does not extend the cache along its positions"),
    ),
    "a cache of the length of the position": (
        rewire(f"{LAYER}.self_attn", 6, "position"),
        ("attention", f"{LAYER}.self_attn", "'position' comes from nothing, not Add"),
    ),
    "q, k and v of different inputs": (
        rewire(f"{LAYER}.self_attn.v_proj", 0, f"{LAYER}.post_attention_layernorm".replace("1", "0")),
        ("norm_linear", f"{LAYER}.self_attn.qkv", "the projections have different inputs"),
    ),
    "an embedding along another axis": (
        set_attribute("model.embed_tokens", "axis", 1),
        ("embed", "model.embed_tokens", "it does not look up rows of a weight"),
    ),
}


@pytest.mark.parametrize(("change", "expected"), MISFITS.values(), ids=MISFITS.keys())
def test_a_pass_that_does_not_fit_says_why(
    graph: Graph, change: Callable[[ir.Graph], None], expected: tuple[str, str, str]
) -> None:
    quant = assigned(graph)
    change(graph.model.graph)
    skipped = run_passes(graph.model.clone(), Weights(graph.decoder, quant.schemes))
    rewrite, node, reason = expected
    found = [skip.reason for skip in skipped if (skip.rewrite, skip.node) == (rewrite, node)]
    assert len(found) == 1 and reason in found[0]
    with pytest.raises(Unsupported, match="no operator of edgekit does what these nodes do") as refusal:
        lower(quant)
    assert refusal.value.exit_code == 3 and refusal.value.hint


def test_gate_and_up_of_different_schemes_are_not_joined(graph: Graph) -> None:
    quant = assigned(graph)
    schemes = dict(quant.schemes) | {f"{LAYER}.mlp.up_proj.weight": parse_scheme("q8g32")}
    skipped = run_passes(graph.model.clone(), Weights(graph.decoder, schemes))
    assert [str(skip) for skip in skipped if skip.rewrite == "gated"] == [
        f"gated left {LAYER}.mlp.gated: the gate is q4g32 and up is q8g32"
    ]
    with pytest.raises(Unsupported, match=rf"Swish '{LAYER}.mlp.swish'"):
        lower(dataclasses.replace(quant, schemes=schemes))


def test_a_node_that_no_pass_knows_is_named(graph: Graph) -> None:
    end = graph.model.graph.outputs[0].producer()
    assert end is not None
    extra = ir.node("Tanh", [end.outputs[0]], name="surprise")
    extra.outputs[0].name = "capped"
    graph.model.graph.append(extra)
    graph.model.graph.outputs[0] = extra.outputs[0]
    with pytest.raises(Unsupported, match="Tanh 'surprise'") as refusal:
        lower(assigned(graph))
    assert "head left lm_head: its result is not an output of the graph" in refusal.value.hint
