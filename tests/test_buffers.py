import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgekit.buffers import Life, place

LIVES = st.lists(
    st.builds(
        lambda width, first, length: Life(width, first, first + length),
        st.integers(1, 200),
        st.integers(0, 12),
        st.integers(0, 12),
    ),
    max_size=12,
)


def test_values_that_never_live_together_share_memory() -> None:
    # Residual for all of it; q|k|v, then the gated values, which do not meet; attention's result beside the first.
    lives = [Life(64, 0, 5), Life(128, 1, 2), Life(64, 2, 3), Life(192, 4, 5)]
    buffers, arena = place(lives, rows=2)
    assert [buffer.width for buffer in buffers] == [64, 128, 64, 192]
    # The residual beside the widest pair: 64 + 192 floats, twice.
    assert arena == (64 + 192) * 2 * 4
    assert buffers[1].offset == buffers[3].offset == 0


def test_a_width_is_padded_to_whole_tiles() -> None:
    buffers, arena = place([Life(17, 0, 1)], rows=3)
    assert buffers[0].width == 32
    assert arena == 32 * 3 * 4


def test_no_value_takes_no_memory() -> None:
    assert place([], rows=4) == ((), 0)


@given(LIVES, st.integers(1, 5))
def test_values_that_live_together_never_overlap(lives: list[Life], rows: int) -> None:
    buffers, arena = place(lives, rows)
    places = [(buffer.offset, buffer.offset + buffer.width * rows * 4) for buffer in buffers]
    for (a, (a_start, a_end)), (b, (b_start, b_end)) in itertools.combinations(zip(lives, places, strict=True), 2):
        if a.first <= b.last and b.first <= a.last:
            assert a_end <= b_start or b_end <= a_start
    assert all(start % 64 == 0 and end <= arena for start, end in places)


@given(LIVES, st.integers(1, 5))
def test_the_arena_is_never_larger_than_all_values_and_never_smaller_than_those_of_one_moment(
    lives: list[Life], rows: int
) -> None:
    sizes = [-(-life.width // 16) * 64 * rows for life in lives]
    moments = [
        sum(size for life, size in zip(lives, sizes, strict=True) if life.first <= step <= life.last)
        for step in range(26)
    ]
    assert max(moments) <= place(lives, rows)[1] <= sum(sizes)
