"""Values survive the change to positive scales wherever the codes allow it, and the share of the others is told."""

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import Unsupported
from edgekit.int4 import int4_blocks
from edgekit.quantize import QuantTensor
from edgekit.scheme import parse_scheme


def quant_tensor(scheme: str, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> QuantTensor:
    n, k = codes.shape
    bits = (scales.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return QuantTensor("model.x.weight", parse_scheme(scheme), (n, k), codes, bits)


def random_tensor(scheme: str, n: int, k: int) -> QuantTensor:
    """Codes over the whole range, scales of both signs in bf16."""
    generator = np.random.default_rng(0)
    low, high = parse_scheme(scheme).code_range
    codes = generator.integers(low, high + 1, (n, k)).astype(np.int8)
    return quant_tensor(scheme, codes, generator.standard_normal((n, parse_scheme(scheme).groups(k))))


def values(made_codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    return made_codes.astype(np.float32) * np.repeat(scales, block, axis=1)


@pytest.mark.parametrize("scheme", ["q3g64", "q2g64", "t2g64"])
@pytest.mark.parametrize("k", [64, 96, 160, 192])
def test_fewer_bits_than_four_are_held_exactly(scheme: str, k: int) -> None:
    tensor = random_tensor(scheme, 5, k)
    made = int4_blocks(tensor)
    np.testing.assert_array_equal(values(made.codes, made.scales, made.block), tensor.values())
    assert made.rounded == 0
    assert (made.scales > 0).all()
    assert made.codes.min() >= -8 and made.codes.max() <= 7


@pytest.mark.parametrize(("group", "k", "block"), [(128, 256, 128), (128, 192, 64), (128, 96, 32), (32, 128, 32)])
def test_a_block_is_the_largest_that_divides_group_and_row(group: int, k: int, block: int) -> None:
    assert int4_blocks(random_tensor(f"q3g{group}", 2, k)).block == block


def test_a_negative_scale_without_the_lowest_code_changes_signs() -> None:
    codes = np.full((1, 32), -7, np.int8)
    made = int4_blocks(quant_tensor("q4g32", codes, np.array([[-0.5]], np.float32)))
    assert (made.codes == 7).all() and made.scales.item() == 0.5 and made.rounded == 0


def test_the_lowest_code_under_a_negative_scale_is_rounded_again_by_the_better_scale() -> None:
    # Alone it is cut from 8 to 7 steps by the old scale, and is exact with a scale of 8/7.
    lonely = np.zeros((1, 32), np.int8)
    lonely[0, 3] = -8
    # With 31 codes of 1 beside it a scale of 8/7 would lose 31 * (1/7)^2 = 0.63, cutting loses 1.
    among_ones = np.ones((1, 32), np.int8)
    among_ones[0, 3] = -8
    # With 31 codes of 3 (2.625 steps of 8/7) it would lose 31 * (3/7)^2 = 5.7, so it is cut.
    among_threes = np.full((1, 32), 3, np.int8)
    among_threes[0, 3] = -8
    codes = np.concatenate([lonely, among_ones, among_threes])
    made = int4_blocks(quant_tensor("q4g32", codes, np.full((3, 1), -1, np.float32)))
    assert made.codes[:, 3].tolist() == [7, 7, 7]
    assert made.scales[:, 0] == pytest.approx([8 / 7, 8 / 7, 1], rel=2**-8)
    assert made.rounded == 1


def test_a_scale_below_the_smallest_normal_half_is_raised_to_it() -> None:
    codes = np.full((1, 32), 6, np.int8)
    made = int4_blocks(quant_tensor("q3g32", np.full((1, 32), 3, np.int8), np.array([[2.0**-15]], np.float32)))
    assert made.scales.item() == 2.0**-14
    assert set(made.codes[0].tolist()) == {2}  # 1.5 steps, the tie to even
    assert made.rounded == 1
    assert int4_blocks(quant_tensor("q4g32", codes, np.array([[2.0**-14]], np.float32))).rounded == 0


def test_a_group_of_zeros_gets_a_scale_that_runtimes_take() -> None:
    made = int4_blocks(quant_tensor("q4g32", np.full((1, 32), -8, np.int8), np.zeros((1, 1), np.float32)))
    assert (made.codes == 0).all() and made.scales.item() == 1 and made.rounded == 0


def test_scales_are_exact_in_float16() -> None:
    scales = int4_blocks(random_tensor("q4g32", 64, 64)).scales
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(Unsupported, match=r"model\.x\.weight has rows of 40 weights") as refusal:
        int4_blocks(random_tensor("q4g32", 2, 40))
    assert "model.x=q8g32" in refusal.value.hint


def test_eight_bits_are_refused() -> None:
    with pytest.raises(Unsupported, match="q8g32, which INT4 does not hold"):
        int4_blocks(random_tensor("q8g32", 2, 32))
