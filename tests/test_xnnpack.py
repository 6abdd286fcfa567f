"""Values survive the change to positive scales wherever the codes allow it, and what does not is told."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Unsupported
from edgekit.graph import build_graph
from edgekit.quantize import QuantTensor, assign, quantize, widen_bf16
from edgekit.scheme import parse_recipe, parse_scheme
from edgekit.testing import make_checkpoint
from edgekit.xnnpack import check_rows, in_blocks, in_rows, row_scales, suit_xnnpack


def quant_tensor(scheme: str, codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float64]) -> QuantTensor:
    bits = (scales.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return QuantTensor("model.x.weight", parse_scheme(scheme), (codes.shape[0], codes.shape[1]), codes, bits)


def random_tensor(scheme: str, n: int, k: int) -> QuantTensor:
    """Codes over the whole range, scales of both signs in bf16."""
    generator = np.random.default_rng(0)
    low, high = parse_scheme(scheme).code_range
    codes = generator.integers(low, high + 1, (n, k)).astype(np.int8)
    return quant_tensor(scheme, codes, generator.standard_normal((n, parse_scheme(scheme).groups(k))))


@pytest.mark.parametrize("scheme", ["q3g64", "q2g64", "t2g64"])
@pytest.mark.parametrize("k", [64, 96, 160, 192])
def test_fewer_bits_than_four_are_held_exactly(scheme: str, k: int) -> None:
    tensor = random_tensor(scheme, 5, k)
    made, rounded = in_blocks(tensor)
    np.testing.assert_array_equal(made.values(), tensor.values())
    assert rounded == 0
    assert (widen_bf16(made.scales) > 0).all()


@pytest.mark.parametrize(("group", "k", "block"), [(128, 256, 128), (128, 192, 64), (128, 96, 32), (32, 128, 32)])
def test_a_block_is_the_largest_that_divides_group_and_row(group: int, k: int, block: int) -> None:
    made, _ = in_blocks(random_tensor(f"q3g{group}", 2, k))
    assert str(made.scheme) == f"q4g{block}" and made.scales.shape == (2, k // block)


def test_a_negative_scale_without_the_lowest_code_changes_signs() -> None:
    made, rounded = in_blocks(quant_tensor("q4g32", np.full((1, 32), -7, np.int8), np.array([[-0.5]])))
    assert (made.codes == 7).all() and widen_bf16(made.scales).item() == 0.5 and rounded == 0


def test_the_lowest_code_under_a_negative_scale_is_rounded_again_by_the_better_scale() -> None:
    # Alone it loses nothing by a scale of 8/7; the old one would cut it from 8 steps to 7.
    lonely = np.zeros((1, 32), np.int8)
    lonely[0, 3] = -8
    # By a scale of 8/7 31 codes of 1 beside it lose 31 * (1/7)^2 = 0.63, by the old one it loses 1.
    among_ones = np.ones((1, 32), np.int8)
    among_ones[0, 3] = -8
    # Codes of 3 are 2.625 of the new steps and lose 31 * (3/7)^2 = 5.7.
    among_threes = np.full((1, 32), 3, np.int8)
    among_threes[0, 3] = -8
    codes = np.concatenate([lonely, among_ones, among_threes])
    made, rounded = in_blocks(quant_tensor("q4g32", codes, np.full((3, 1), -1)))
    assert np.asarray(made.codes)[:, 3].tolist() == [7, 7, 7]
    assert widen_bf16(made.scales)[:, 0] == pytest.approx([8 / 7, 8 / 7, 1], rel=2**-7)
    assert rounded == 3


def test_a_scale_below_the_smallest_normal_half_is_raised_to_it() -> None:
    made, rounded = in_blocks(quant_tensor("q3g32", np.full((1, 32), 3, np.int8), np.array([[2.0**-15]])))
    assert widen_bf16(made.scales).item() == 2.0**-14
    assert set(made.codes[0].tolist()) == {2}  # 1.5 steps, the tie to even
    assert rounded == 1
    assert in_blocks(quant_tensor("q4g32", np.full((1, 32), 6, np.int8), np.array([[2.0**-14]])))[1] == 0


def test_a_group_of_zeros_gets_a_scale_that_runtimes_take() -> None:
    made, rounded = in_blocks(quant_tensor("q4g32", np.full((1, 32), -8, np.int8), np.zeros((1, 1))))
    assert (made.codes == 0).all() and widen_bf16(made.scales).item() == 1 and rounded == 0
    made, is_exact = in_rows(quant_tensor("q8g32", np.full((1, 32), 5, np.int8), np.zeros((1, 1))))
    assert (made.codes == 0).all() and row_scales(made).item() == 1 and is_exact


def test_scales_are_exact_in_float16() -> None:
    scales = widen_bf16(in_blocks(random_tensor("q4g32", 64, 64))[0].scales)
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)


@pytest.mark.parametrize(
    ("recipe", "which"),
    [
        ("q4g32,*.down_proj=q8g32", r"model\.embed_tokens\.weight and 6 others have"),
        ("q3g64,head=f16,*.down_proj=q2g64,*_proj=q8g32", r"model\.layers\.0\.mlp\.down_proj\.weight has"),
    ],
)
def test_rows_that_are_no_whole_blocks_are_refused_by_schemes_and_shapes(
    recipe: str, which: str, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, layers=1, hidden=48, intermediate=80))
    graph = build_graph(checkpoint, context=8)
    with pytest.raises(Unsupported, match=f"^{which} rows that are no multiple of 32, and") as refusal:
        check_rows(assign(graph, parse_recipe(recipe)))
    assert refusal.value.hint == "give them 8 bits, for example --recipe q8g32"
    check_rows(assign(graph, parse_recipe("q8g32")))
    suit_xnnpack(quantize(graph, checkpoint, parse_recipe(recipe)), four_bits=False)


@pytest.mark.parametrize("scheme", ["q8g32", "q4g32", "q3g64", "t2g32"])
def test_a_row_of_one_scale_keeps_its_values_in_eight_bits(scheme: str) -> None:
    tensor = random_tensor(scheme, 5, 32)
    made, is_exact = in_rows(tensor)
    assert is_exact and (row_scales(made) > 0).all()
    np.testing.assert_array_equal(made.values(), tensor.values())


def test_a_row_of_several_scales_is_rounded_to_half_a_step() -> None:
    tensor = random_tensor("q8g32", 9, 100)
    made, is_exact = in_rows(tensor)
    assert not is_exact
    assert made.scales.shape == (9, 1) and np.abs(made.codes).max() <= 127
    wrong = np.abs(made.values() - tensor.values())
    assert (wrong <= row_scales(made)[:, None] * 0.501).all()
    # One bf16 step above what makes the largest weight 127.
    assert (row_scales(made) <= np.abs(tensor.values()).max(1) / 127 * (1 + 2**-7)).all()


def test_a_graph_says_what_was_rounded_again_and_keeps_its_recipe(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path))
    quant = quantize(build_graph(checkpoint, context=8), checkpoint, parse_recipe("q4g32,head=q8g32,*.up_proj=f16"))
    suited = suit_xnnpack(quant)
    assert suited.quant.made_from == quant.made_from
    schemes = {str(tensor.scheme) for tensor in suited.quant.tensors.values()}
    assert schemes == {"q4g32", "q8g128", "f16"}
    assert suited.notes[0].startswith("1 matrices are rounded again to 8 bits")
    assert "% of the 4-bit blocks are rounded again" in suited.notes[1]
    assert {str(tensor.scheme) for tensor in suit_xnnpack(quant, four_bits=False).quant.tensors.values()} == {
        "q8g128", "f16",
    }  # fmt: skip


def test_what_is_exact_is_not_remarked_on(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path))
    quant = quantize(build_graph(checkpoint, context=8), checkpoint, parse_recipe("q3g32,head=f32"))
    assert suit_xnnpack(quant).notes == ()
