import math

import pytest
import torch

from edgekit.train import VARIANTS, DispersionLoss

HALF = math.exp(-0.5)


def states(*vectors: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model of one block returns: the embedding's output, which must not count, and the block's."""
    block = torch.tensor([list(vectors)])
    return torch.full_like(block, 7.0), block


@pytest.mark.parametrize(
    ("variant", "vectors", "expected"),
    [
        # Two vectors at a right angle: D = 1/2 for both ordered pairs.
        ("angular", [[1.0, 0.0], [0.0, 2.0]], -0.5),
        # Three at right angles, then one pair at cosine 1, which the clamp 0.1 makes arccos(0.9) / pi.
        ("angular", [[1.0, 0.0], [3.0, 0.0]], -math.acos(0.9) / math.pi),
        # Angles of 0.5, 0.5 and arccos(0.9)/pi, each twice.
        (
            "angular",
            [[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]],
            math.log((2 * HALF + math.exp(-math.acos(0.9) / math.pi)) / 3),
        ),
        # max(0, 1/2 - D)^2 is nothing at a right angle and beyond.
        ("orthogonal", [[1.0, 0.0], [0.0, 2.0]], 0.0),
        ("orthogonal", [[1.0, 0.0], [-1.0, 0.0]], 0.0),
        ("orthogonal", [[1.0, 0.0], [1.0, 0.0]], (0.5 - math.acos(0.9) / math.pi) ** 2),
        # Standardized: (1, -1) and (-1, 1), correlation -1; (1, 1, -2) and (1, -1, 0) have correlation 0.
        ("decorrelation", [[3.0, 1.0], [0.0, 5.0]], 1.0),
        ("decorrelation", [[1.0, 1.0, -2.0], [1.0, -1.0, 0.0]], 0.0),
        # |z_i - z_j|^2 = 2; mean of the squares is 1/2.
        ("repel", [[1.0, 0.0], [0.0, 1.0]], -2.0 + 0.1 * 0.5),
    ],
)
def test_each_variant_is_what_its_formula_gives_by_hand(variant, vectors, expected):
    assert DispersionLoss(variant)(states(*vectors)).item() == pytest.approx(expected, abs=1e-5)


def test_the_temperature_divides_the_angle():
    assert DispersionLoss(temperature=0.25)(states([1.0, 0.0], [0.0, 1.0])).item() == pytest.approx(-2.0, abs=1e-5)


def test_layers_are_averaged_and_the_embedding_is_left_out():
    same, apart = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    clamped = -math.acos(0.9) / math.pi
    assert DispersionLoss()((apart, same, apart)).item() == pytest.approx((clamped - 0.5) / 2, abs=1e-5)
    assert DispersionLoss(layers=[-1])((apart, same, apart)).item() == pytest.approx(-0.5, abs=1e-5)
    assert DispersionLoss(layers=[0])((apart, same, apart)).item() == pytest.approx(clamped, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_does_not_count(variant):
    block = torch.tensor([[[1.0, 0.2], [0.4, 1.0], [9.0, 0.0], [1.0, -7.0]]], requires_grad=True)
    loss, mask = DispersionLoss(variant), torch.tensor([[1, 1, 0, 0]])
    found = loss((block, block), mask)
    found.backward()
    assert found.item() == pytest.approx(loss((block[:, :2], block[:, :2])).item(), abs=1e-6)
    assert not block.grad[0, 2:].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_under_autocast_the_term_is_computed_in_float32(variant):
    block = torch.randn(2, 40, 24, generator=torch.Generator().manual_seed(0)) + 1
    loss = DispersionLoss(variant)
    expected = loss((block, block))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss((block, block))
    # The positions are drawn anew, so sums are taken in another order; one step of bf16 is 4e-3 of a value.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sequence_of_one_token_has_no_pair_no_loss_and_a_finite_gradient(variant):
    block = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], requires_grad=True)
    loss = DispersionLoss(variant)((block, block), torch.tensor([[1, 0]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(block.grad).all()


def test_the_gradient_of_equal_vectors_is_finite_and_parallel_ones_are_driven_apart():
    block = torch.tensor([[[1.0, 0.01], [1.0, -0.01]]], requires_grad=True)
    DispersionLoss()((block, block)).backward()
    first, second = block.grad[0]
    assert first[1] < 0 < second[1]  # a step against the gradient moves them up and down
    equal = torch.ones(1, 3, 4, requires_grad=True)
    DispersionLoss()((equal, equal)).backward()
    assert torch.isfinite(equal.grad).all()


def test_random_vectors_in_many_dimensions_give_minus_a_half():
    block = torch.randn(2, 300, 512, generator=torch.Generator().manual_seed(0))
    assert DispersionLoss()((block, block)).item() == pytest.approx(-0.5, abs=0.01)


def test_no_more_positions_than_asked_for_are_drawn():
    # Of 64 equal vectors and one other, two drawn at random are nearly always equal.
    block = torch.ones(64, 65, 8)
    loss = DispersionLoss(tokens=2)((block, block))
    assert loss.item() == pytest.approx(-math.acos(0.9) / math.pi, abs=1e-5)


@pytest.mark.parametrize(
    "arguments", [{"variant": "other"}, {"clamp": 0.0}, {"clamp": 1.0}, {"temperature": 0.0}, {"tokens": 1}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r"unknown variant|must be"):
        DispersionLoss(**arguments)
