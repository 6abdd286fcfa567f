"""A decoder's dimensions from a checkpoint's config; one architecture a file, found by `model_type`.

`archs/<model_type>.py` defines `decoder(config) -> Decoder`: what differs between architectures is which config key
means what, and which variants are refused. The graph itself is the same for all of them (graph.py).
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.archs.config import (
    MOST_CONTEXT,
    MOST_LAYERS,
    MOST_TRAINED,
    MOST_VOCAB,
    MOST_WIDTH,
    Config,
    head_counts,
    head_size,
    inverse_frequencies,
)
from edgekit.errors import Damaged, Unsupported, one_of


@dataclass(frozen=True, slots=True)
class Decoder:
    """The dimensions of a pre-norm decoder with rotary embedding, grouped-query attention and SwiGLU."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int  # positions the model was trained for, or as many as a program may have
    norm_eps: float
    inv_freq: tuple[float, ...]  # head_dim / 2 float32 values, rope scaling applied
    rope_scale: float  # factor on cos and sin
    tied: bool  # the head is the embedding
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # RMSNorm over each head of q and k, before the rotation
    window: int  # positions a token attends to, itself included; 0: all before it

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor the decoder needs, by its checkpoint name. Matrices are (n, k): outputs, inputs."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
            matrices = {
                f"{attention}.q_proj": (queries, self.hidden, self.qkv_bias),
                f"{attention}.k_proj": (keys, self.hidden, self.qkv_bias),
                f"{attention}.v_proj": (keys, self.hidden, self.qkv_bias),
                f"{attention}.o_proj": (self.hidden, queries, self.o_bias),
                f"{mlp}.gate_proj": (self.intermediate, self.hidden, self.mlp_bias),
                f"{mlp}.up_proj": (self.intermediate, self.hidden, self.mlp_bias),
                f"{mlp}.down_proj": (self.hidden, self.intermediate, self.mlp_bias),
            }
            shapes[f"model.layers.{layer}.input_layernorm.weight"] = (self.hidden,)
            for name, (n, k, has_bias) in matrices.items():
                shapes[f"{name}.weight"] = (n, k)
                if has_bias:
                    shapes[f"{name}.bias"] = (n,)
            if self.qk_norm:
                shapes[f"{attention}.q_norm.weight"] = (self.head_dim,)
                shapes[f"{attention}.k_norm.weight"] = (self.head_dim,)
            shapes[f"model.layers.{layer}.post_attention_layernorm.weight"] = (self.hidden,)
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes


def read_decoder(
    config: Config,
    model_type: str,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    window: int = 0,
    head_dim: int = 0,
) -> Decoder:
    """The decoder with the sizes under their usual keys. `head_dim` is what an absent key means; 0: hidden / heads."""
    hidden = config.integer("hidden_size", high=MOST_WIDTH)
    heads, kv_heads = head_counts(config)
    size = head_size(config, hidden=hidden, heads=heads, default=head_dim)
    return Decoder(
        model_type=model_type,
        layers=config.integer("num_hidden_layers", high=MOST_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size,
        intermediate=config.integer("intermediate_size", high=MOST_WIDTH),
        vocab=config.integer("vocab_size", high=MOST_VOCAB),
        context=min(config.integer("max_position_embeddings", high=MOST_TRAINED), MOST_CONTEXT),
        norm_eps=config.number("rms_norm_eps", low=0, high=1, default=1e-6),
        inv_freq=inverse_frequencies(config, size),
        rope_scale=1.0,
        tied=config.boolean("tie_word_embeddings", default=False),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        window=window,
    )


def supported_model_types() -> tuple[str, ...]:
    """Every `model_type` with a file in this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "config"))


def find_decoder(config: Mapping[str, object]) -> Decoder:
    """The decoder that a Hugging Face config.json describes.

    Raises:
        Unsupported: an architecture or a variant of one that edgekit does not handle, or one that is too large.
        Damaged: a value that is missing, of the wrong type or out of any sensible range.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise Damaged("config.json gives no model_type", hint=one_of(supported_model_types()))
    if model_type not in supported_model_types():
        raise Unsupported(f"model_type '{model_type}' is not supported", hint=one_of(supported_model_types()))
    reader = Config(config)
    _refuse_other_heads(reader)
    reader.refuse_unless("hidden_act", ("silu", "swish"), default="silu")
    architecture = importlib.import_module(f"edgekit.archs.{model_type}")
    decoder = architecture.decoder(reader)
    assert isinstance(decoder, Decoder)
    return decoder


def _refuse_other_heads(config: Config) -> None:
    architectures = config.strings("architectures")
    if architectures and not any(name.endswith("ForCausalLM") for name in architectures):
        raise Unsupported(
            f"the checkpoint is a {', '.join(architectures)}, which does not generate text",
            hint="its architectures must name a ...ForCausalLM",
        )
