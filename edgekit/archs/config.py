"""Checked reading of config.json: every value has the right type and a sensible range, or a sentence says why not.

config.json comes from strangers; sizes are bounded here so that nothing after it can be asked for absurd amounts.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import Damaged, Unsupported, one_of

Float32 = npt.NDArray[np.float32]

# What a program may have (kernels/program/open.cc, under the same names), far above any model for a small machine.
MOST_LAYERS: Final = 1024
MOST_HEADS: Final = 1024
MOST_HEAD_DIM: Final = 1024
MOST_WIDTH: Final = 1 << 20  # hidden, intermediate
MOST_VOCAB: Final = 1 << 22
MOST_CONTEXT: Final = 1 << 20
# What a model may say it was trained for. A text is shorter, so this need not fit a program.
MOST_TRAINED: Final = 1 << 28

_REQUIRED: Final = object()


@dataclass(frozen=True, slots=True)
class Config:
    """A config.json, or a table within it called `name`."""

    values: Mapping[str, object]
    name: str = "config.json"

    def integer(self, key: str, *, high: int, low: int = 1, default: int | object = _REQUIRED) -> int:
        """The integer at `key`, in [low, high]. An absent key or null gives `default`, if there is one.

        Raises:
            Damaged: no integer, or below `low`.
            Unsupported: above `high`.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "an integer")
        if value < low:
            raise self._wrong(key, value, f"between {low} and {high}")
        if value > high:
            raise Unsupported(f"{key} in {self.name} is {_shown(value)}", hint=f"edgekit handles at most {high}")
        return value

    def number(self, key: str, *, low: float, high: float, default: float | object = _REQUIRED) -> float:
        """The number at `key`, in the open interval (low, high)."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        if not low < value < high:  # also false for NaN and infinity
            raise self._wrong(key, value, f"above {low:g} and below {high:g}")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, *, default: str) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """The list of strings at `key`; empty if absent."""
        value = self._value(key, ())
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of strings")
        return tuple(value)

    def table(self, key: str) -> "Config":
        """The table at `key`; empty if absent."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "a table")
        return Config(value, f"{key} of {self.name}")

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self.values.get(key) is not None

    def refuse_unless(self, key: str, allowed: Iterable[str], *, default: str) -> str:
        """The string at `key`, which must be one of `allowed`.

        Raises:
            Unsupported: any other string.
        """
        value, allowed = self.text(key, default=default), tuple(allowed)
        if value not in allowed:
            raise Unsupported(f"{key} '{value}' in {self.name} is not supported", hint=one_of(allowed))
        return value

    def _value(self, key: str, default: object) -> object:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise Damaged(f"{self.name} gives no {key}", hint="compare it with the published one")
        return default

    def _wrong(self, key: str, value: object, expected: str) -> Damaged:
        return Damaged(f"{key} in {self.name} is {_shown(value)}", hint=f"it must be {expected}")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def head_counts(config: Config) -> tuple[int, int]:
    """(heads, kv_heads): every key head serves the same number of query heads, one if the config does not say."""
    heads = config.integer("num_attention_heads", high=MOST_HEADS)
    shared = config.integer("num_key_value_heads", high=MOST_HEADS, default=heads)
    if heads % shared:
        raise Damaged(
            f"num_attention_heads {heads} in config.json is not a multiple of num_key_value_heads {shared}",
            hint="every key head serves the same number of query heads",
        )
    return heads, shared


def head_size(config: Config, *, hidden: int, heads: int, default: int = 0) -> int:
    """The size of a head: head_dim, else `default`, else hidden / heads. Even, because the rotation works on pairs."""
    if not config.has("head_dim") and not default and hidden % heads:
        raise Damaged(
            f"hidden_size {hidden} in config.json is not a multiple of num_attention_heads {heads}",
            hint="give head_dim, or correct one of them",
        )
    size = config.integer("head_dim", high=MOST_HEAD_DIM, default=default or hidden // heads)
    if size % 2:
        raise Unsupported(
            f"heads of {size} values are not supported", hint="the rotary embedding needs an even head size"
        )
    return size


def inverse_frequencies(config: Config, head_dim: int) -> tuple[float, ...]:
    """The rotary embedding's inverse frequencies, head_dim / 2 float32 values, scaled as config.json says.

    Computed in float32 in the order of operations of Hugging Face transformers, so that angles agree to the last bit
    or nearly so. Since transformers 5 the keys are in `rope_parameters`; before, in `rope_scaling` and `rope_theta`.
    """
    rope = config.table("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    scaling = rope.refuse_unless(
        "rope_type" if rope.has("rope_type") else "type", ("default", "linear", "llama3"), default="default"
    )
    for table in (rope, config):
        if table.number("partial_rotary_factor", low=0, high=1e3, default=1.0) != 1:
            raise Unsupported(
                f"partial_rotary_factor in {table.name} is not supported", hint="only 1: all of a head is rotated"
            )
    theta = (rope if rope.has("rope_theta") else config).number("rope_theta", low=0.5, high=1e15, default=10_000.0)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.float32(theta) ** exponents
    if scaling == "linear":
        frequencies /= np.float32(rope.number("factor", low=1e-3, high=1e6))
    elif scaling == "llama3":
        frequencies = _llama3(config, rope, frequencies)
    return tuple(float(frequency) for frequency in frequencies)


def _llama3(config: Config, rope: Config, frequencies: Float32) -> Float32:
    """Llama 3.1's scaling: long waves are stretched by `factor`, short ones stay, those between are interpolated."""
    factor = rope.number("factor", low=1e-3, high=1e6)
    low, high = (rope.number(f"{end}_freq_factor", low=1e-3, high=1e6) for end in ("low", "high"))
    if low >= high:
        raise Damaged(f"low_freq_factor in {rope.name} is not below high_freq_factor", hint="Llama 3.1 has 1 and 4")
    default = config.integer("max_position_embeddings", high=MOST_TRAINED)
    trained = rope.integer("original_max_position_embeddings", high=MOST_TRAINED, default=default)
    waves = np.float32(2 * math.pi) / frequencies
    stretched = np.where(waves > trained / low, frequencies / np.float32(factor), frequencies)
    share = (np.float32(trained) / waves - np.float32(low)) / np.float32(high - low)
    between = (np.float32(1) - share) * stretched / np.float32(factor) + share * stretched
    is_between = (waves >= trained / high) & (waves <= trained / low)
    return np.where(is_between, between, stretched).astype(np.float32)


def window_of_all_layers(config: Config) -> int:
    """Positions seen by every layer of a Qwen decoder, 0 for all.

    Raises:
        Unsupported: some layers with a window and some without.
    """
    if not config.boolean("use_sliding_window", default=False):
        return 0
    window = config.integer("sliding_window", high=MOST_TRAINED, default=4096)
    kinds = config.strings("layer_types")
    if not kinds:
        layers = config.integer("num_hidden_layers", high=MOST_LAYERS)
        first = config.integer("max_window_layers", low=0, high=MOST_LAYERS, default=28)
        kinds = ("full_attention",) * min(first, layers) + ("sliding_attention",) * max(layers - first, 0)
    if set(kinds) == {"full_attention"}:
        return 0
    if set(kinds) == {"sliding_attention"}:
        return window
    raise Unsupported(
        "layers with and without a sliding window in one model are not supported",
        hint="a window for every layer, or for none",
    )
