"""Llama: TinyLlama, SmolLM2, Llama 2 and 3.x."""

from edgekit.archs import Decoder, read_decoder
from edgekit.archs.config import Config


def decoder(config: Config) -> Decoder:
    """The decoder of a Llama config. `attention_bias` is on q, k, v and o alike."""
    bias = config.boolean("attention_bias", default=False)
    return read_decoder(config, "llama", qkv_bias=bias, o_bias=bias, mlp_bias=config.boolean("mlp_bias", default=False))
