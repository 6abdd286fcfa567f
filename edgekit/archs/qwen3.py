"""Qwen 3, dense: Llama with a norm on each head of q and k, and heads of a size of their own."""

from edgekit.archs import Decoder, read_decoder
from edgekit.archs.config import Config, window_of_all_layers


def decoder(config: Config) -> Decoder:
    """The decoder of a Qwen 3 config."""
    bias = config.boolean("attention_bias", default=False)
    return read_decoder(
        config,
        "qwen3",
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        window=window_of_all_layers(config),
        head_dim=128,
    )
