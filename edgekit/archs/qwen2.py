"""Qwen 2 and 2.5: Llama with a bias on q, k and v."""

from edgekit.archs import Decoder, read_decoder
from edgekit.archs.config import Config, window_of_all_layers


def decoder(config: Config) -> Decoder:
    """The decoder of a Qwen 2 config."""
    return read_decoder(config, "qwen2", qkv_bias=True, window=window_of_all_layers(config))
