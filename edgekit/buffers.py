"""Lay out the activations of a program in one arena, so that values that are never alive together share memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.units import Bytes

ALIGN_BYTES = 64
# Widths are whole tiles of 16 floats, so that every row starts on a boundary of 64 bytes.
WIDTH_UNIT = 16
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Life:
    """A value of `width` floats a row, written by step `first` and read for the last time by step `last`."""

    width: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Buffer:
    """A place in the arena: `width` floats a row, from `offset` bytes on."""

    width: int
    offset: int


def place(lives: Sequence[Life], rows: int) -> tuple[tuple[Buffer, ...], Bytes]:
    """A buffer for each value, and the bytes of the arena for `rows` rows.

    Largest first, each at the lowest offset that is free during its whole life. A value read by a step and one written
    by it are alive together.
    """
    placed: dict[int, Buffer] = {}
    sizes = {index: _bytes(life.width, rows) for index, life in enumerate(lives)}
    for index in sorted(sizes, key=lambda index: (-sizes[index], index)):
        offset = _lowest_free(index, lives, placed, sizes)
        placed[index] = Buffer(-(-lives[index].width // WIDTH_UNIT) * WIDTH_UNIT, offset)
    arena = max((buffer.offset + sizes[index] for index, buffer in placed.items()), default=0)
    return tuple(placed[index] for index in range(len(lives))), Bytes(arena)


def _lowest_free(index: int, lives: Sequence[Life], placed: Mapping[int, Buffer], sizes: Mapping[int, int]) -> int:
    offset = 0
    for other, buffer in sorted(placed.items(), key=lambda item: item[1].offset):
        together = lives[other].first <= lives[index].last and lives[index].first <= lives[other].last
        if together and buffer.offset < offset + sizes[index] and offset < buffer.offset + sizes[other]:
            offset = buffer.offset + sizes[other]
    return offset


def _bytes(width: int, rows: int) -> int:
    return -(-width // WIDTH_UNIT) * WIDTH_UNIT * rows * _FLOAT_BYTES
