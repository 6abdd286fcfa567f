"""Mistral 7B and its relatives: Llama with a sliding window, which later versions set to null."""

from edgekit.archs import Decoder, read_decoder
from edgekit.archs.config import MOST_TRAINED, Config


def decoder(config: Config) -> Decoder:
    """The decoder of a Mistral config. A window that is not mentioned is 4096, as in the first Mistral 7B."""
    window = 0
    if config.has("sliding_window") or "sliding_window" not in config.values:
        window = config.integer("sliding_window", high=MOST_TRAINED, default=4096)
    return read_decoder(config, "mistral", window=window)
