"""The tensors of a lowered graph: the checkpoint tensors each is made of, how they are joined, and the scheme."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.archs import Decoder
from edgekit.scheme import Scheme, parse_scheme

DOMAIN = "edgekit"
VERSION = 1
TILE = 16  # outputs in a tile of the packed layout (kernels/include/edgekit/gemm.h)

_F32 = Scheme("f32", 0)


@dataclass(frozen=True, slots=True)
class Packed:
    """How a tensor is made: `sources` joined by "rows" (one below the other) or by "tiles", stored as `scheme`.

    "tiles": 16 rows of each source in turn, each source padded to a multiple of 16 with zero rows (gate and up).
    A tensor without sources, `inv_freq`, has its data in the graph.
    """

    sources: tuple[str, ...]
    join: str
    scheme: Scheme
    shape: tuple[int, ...]


def packed(value: ir.Value) -> Packed:
    """How the initializer `value` of a lowered graph is made."""
    properties = value.metadata_props
    return Packed(
        tuple(json.loads(properties["edgekit.sources"])),
        properties["edgekit.join"],
        parse_scheme(properties["edgekit.scheme"]),
        sizes(value),
    )


def sizes(value: ir.Value) -> tuple[int, ...]:
    """The shape of `value`, which is known."""
    assert value.shape is not None
    return tuple(size for size in value.shape if isinstance(size, int))


class Weights:
    """Makes the initializers of a lowered graph; equal requests give the same value."""

    def __init__(self, decoder: Decoder, schemes: Mapping[str, Scheme]) -> None:
        self.decoder = decoder
        self.schemes = schemes
        self._shapes = decoder.tensor_shapes()
        self._values: dict[str, ir.Value] = {}

    def made(self, value: ir.Value) -> bool:
        """Whether `value` is one of the initializers made here."""
        return value.name is not None and self._values.get(value.name) is value

    def is_known(self, name: str) -> bool:
        """Whether `name` is a tensor of the checkpoint."""
        return name in self._shapes

    def make(self, sources: Sequence[str], join: str = "rows") -> ir.Value:
        """The tensor that `sources`, of equal k and scheme, make when joined."""
        n = sum(_padded(self._shapes[name][0]) if join == "tiles" else self._shapes[name][0] for name in sources)
        schemes = {self.schemes.get(name, _F32) for name in sources}
        assert len(schemes) == 1, f"{sources} have several schemes"
        return self._value("|".join(sources), sources, join, schemes.pop(), (n, *self._shapes[sources[0]][1:]))

    def inv_freq(self) -> ir.Value:
        """The inverse frequencies of the rotary embedding.

        They are the decoder's: the graph holds cosines and sines, which do not give them back exactly.
        """
        value = self._value("inv_freq", (), "rows", _F32, (len(self.decoder.inv_freq),))
        value.const_value = ir.Tensor(np.array(self.decoder.inv_freq, np.float32), name=value.name)
        return value

    def _value(self, name: str, sources: Sequence[str], join: str, scheme: Scheme, shape: tuple[int, ...]) -> ir.Value:
        if name not in self._values:
            value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
            value.const_value = ir.LazyTensor(_no_data, ir.DataType.FLOAT, ir.Shape(shape), name=name)
            value.metadata_props["edgekit.sources"] = json.dumps(list(sources))
            value.metadata_props["edgekit.join"] = join
            value.metadata_props["edgekit.scheme"] = str(scheme)
            self._values[name] = value
        return self._values[name]


def _no_data() -> ir.TensorProtocol:
    raise AssertionError("a lowered graph is symbolic: its weights are in the QuantGraph")


def _padded(rows: int) -> int:
    return -(-rows // TILE) * TILE
