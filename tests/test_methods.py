"""rtn against a search that is plainly right; gptq against the loop it is derived from, one column at a time."""

import numpy as np
import numpy.typing as npt
import pytest

from edgekit import kernels
from edgekit.errors import Unsupported
from edgekit.methods import Inputs, find_method, gptq, known_methods
from edgekit.methods.rtn import quantize_matrix
from edgekit.scheme import Scheme, parse_scheme

Float32 = npt.NDArray[np.float32]
FORMATS = ("q8", "q4", "q3", "q2", "t2")


def bf16(values: Float32) -> Float32:
    """Rounded to bf16, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def levels(scheme: Scheme) -> Float32:
    lowest, highest = scheme.code_range
    return np.arange(lowest, highest + 1, dtype=np.float32) + np.float32(scheme.offset)


def errors(weights: Float32, scheme: Scheme, scale: float) -> Float32:
    """Squared error of each weight at its nearest level."""
    return np.square(np.abs(weights[:, None] - scale * levels(scheme)[None, :])).min(axis=1)


def best_error(group: Float32, scheme: Scheme) -> float:
    """The least squared error over a fine grid of bf16 scales, of both signs where the levels are lopsided."""
    reach = float(np.abs(group).max()) / float(np.abs(levels(scheme)).max())
    # With 8 bits a step that is too wide is the better one by luck alone, of a loss of 1e-5; it is not looked for.
    low, high = (0.85, 1.0) if scheme.format == "q8" else (0.2, 1.4)
    scales = np.unique(bf16(np.linspace(low, high, 400, dtype=np.float32) * np.float32(reach)))
    signs = (1, -1) if scheme.format in ("q4", "q3") else (1,)
    return min(float(errors(group, scheme, sign * scale).sum()) for scale in scales for sign in signs)


def values(codes: npt.NDArray[np.int8], scales: npt.NDArray[np.uint16], scheme: Scheme) -> Float32:
    wide = (scales.astype(np.uint32) << 16).view(np.float32)
    return (codes + np.float32(scheme.offset)) * np.repeat(wide, scheme.group, axis=1)[:, : codes.shape[1]]


@pytest.fixture
def gaussian() -> Float32:
    return np.random.default_rng(1).standard_normal((4, 320)).astype(np.float32)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("format", FORMATS)
def test_the_error_is_within_a_hundredth_of_the_best_there_is(format: str, group: int, gaussian: Float32) -> None:
    scheme = parse_scheme(f"{format}g{group}")
    codes, scales = quantize_matrix(gaussian, scheme)
    found = float(np.square(values(codes, scales, scheme) - gaussian).sum())
    best = sum(best_error(row[start : start + group], scheme) for row in gaussian for start in range(0, 320, group))
    assert found <= 1.01 * best


@pytest.mark.parametrize("format", FORMATS)
def test_every_weight_gets_its_nearest_level(format: str, gaussian: Float32) -> None:
    scheme = parse_scheme(f"{format}g64")
    codes, scales = quantize_matrix(gaussian, scheme)
    lowest, highest = scheme.code_range
    assert codes.dtype == np.int8 and scales.dtype == np.uint16
    assert codes.min() >= lowest and codes.max() <= highest
    wide = (scales.astype(np.uint32) << 16).view(np.float32)
    for row in range(4):
        for group in range(5):
            part = slice(64 * group, 64 * group + 64)
            found = np.square(values(codes, scales, scheme)[row, part] - gaussian[row, part])
            nearest = errors(gaussian[row, part], scheme, float(wide[row, group]))
            # Both sides round a product and a difference: a few units in the last place of the largest weight squared.
            np.testing.assert_allclose(found, nearest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_weights_that_are_levels_come_back_exactly(format: str) -> None:
    scheme = parse_scheme(f"{format}g32")
    choice = np.random.default_rng(2).choice(levels(scheme), (8, 96)).astype(np.float32)
    choice[:, ::32], choice[:, 1::32] = levels(scheme)[0], levels(scheme)[-1]
    weights = choice * np.float32(0.03125)
    codes, scales = quantize_matrix(weights, scheme)
    np.testing.assert_array_equal(values(codes, scales, scheme), weights)


@pytest.mark.parametrize("k", [1, 31, 32, 33, 63, 65, 100, 127, 129])
@pytest.mark.parametrize("format", FORMATS)
def test_a_partial_group_is_quantized_as_if_alone(format: str, k: int) -> None:
    scheme = parse_scheme(f"{format}g64")
    weights = np.random.default_rng(k).standard_normal((3, k)).astype(np.float32)
    codes, scales = quantize_matrix(weights, scheme)
    assert codes.shape == (3, k) and scales.shape == (3, -(-k // 64))
    tail = k - k % 64 if k % 64 else k - 64
    alone_codes, alone_scales = quantize_matrix(np.ascontiguousarray(weights[:, tail:]), scheme)
    np.testing.assert_array_equal(codes[:, tail:], alone_codes)
    np.testing.assert_array_equal(scales[:, -1:], alone_scales)


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_stay_zeros(format: str) -> None:
    scheme = parse_scheme(f"{format}g32")
    codes, scales = quantize_matrix(np.zeros((2, 40), np.float32), scheme)
    assert not values(codes, scales, scheme).any()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("magnitude", [1e-15, 1e-8, 1e4, 1e15])
def test_tiny_and_huge_weights_keep_their_relative_error(format: str, magnitude: float, gaussian: Float32) -> None:
    scheme = parse_scheme(f"{format}g64")
    plain = values(*quantize_matrix(gaussian, scheme), scheme)
    scaled = values(*quantize_matrix(gaussian * np.float32(magnitude), scheme), scheme) / np.float32(magnitude)
    expected = np.square(plain - gaussian).sum()
    # Which scales bf16 has is not the same at another magnitude.
    assert np.square(scaled - gaussian).sum() == pytest.approx(expected, rel=0.02)


def test_rows_are_independent(gaussian: Float32) -> None:
    scheme = parse_scheme("q3g64")
    codes, scales = quantize_matrix(gaussian, scheme)
    some_codes, some_scales = quantize_matrix(gaussian[2:3], scheme)
    np.testing.assert_array_equal(codes[2:3], some_codes)
    np.testing.assert_array_equal(scales[2:3], some_scales)


def test_methods_are_found_by_name() -> None:
    assert known_methods() == ("gptq", "kept", "rtn", "rtn_bias")
    assert find_method("rtn").quantize_matrix is quantize_matrix
    needs = {name: (find_method(name).needs_inputs, find_method(name).corrects_biases) for name in known_methods()}
    assert needs == {"gptq": (True, False), "kept": (False, False), "rtn": (False, False), "rtn_bias": (True, True)}


def test_an_unknown_method_is_refused_with_those_that_exist() -> None:
    with pytest.raises(Unsupported, match="unknown quantization method 'magic'") as refusal:
        find_method("magic")
    assert "rtn" in refusal.value.hint


def correlated(k: int, tokens: int = 400) -> Inputs:
    """Inputs with an outlier channel, a mean, and columns that go together."""
    generator = np.random.default_rng(3)
    x = generator.standard_normal((tokens, 8)) @ generator.standard_normal((8, k)) + 0.5
    x += 0.3 * generator.standard_normal((tokens, k))
    x[:, k // 2] *= 10
    return Inputs((x.T @ x / tokens).astype(np.float32), x.mean(0).astype(np.float32), tokens)


def loss(found: Float32, weights: Float32, inputs: Inputs) -> float:
    """Mean squared change of the results: tr(D H D^T)."""
    lost = (found - weights).astype(np.float64)
    return float(np.trace(lost @ inputs.second.astype(np.float64) @ lost.T))


def one_column_at_a_time(weights: Float32, scheme: Scheme, inputs: Inputs) -> Float32:
    """Values by optimal brain surgery in fixed order: the inverse of H is kept for the columns that are left."""
    k = weights.shape[1]
    left = weights.astype(np.float64)
    h = inputs.second.astype(np.float64)
    inverse = np.linalg.inv(h + 0.01 * np.mean(np.diag(h)) * np.eye(k))
    found = np.empty_like(left)
    for column in range(k):
        if column % scheme.group == 0:
            block = slice(column, min(column + scheme.group, k))
            # What an error at each column costs once those after it have made up for it.
            after = inverse[column:, column:].copy()
            cost = []
            for _ in range(column, block.stop):
                cost.append(1 / after[0, 0])
                after = after[1:, 1:] - np.outer(after[1:, 0], after[0, 1:]) / after[0, 0]
            _, bits = kernels.quantize_weights(
                scheme, left[:, block].astype(np.float32), importance=np.array(cost, np.float32), steps=32
            )
            scale = (bits[:, :1].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        steps = scale * levels(scheme).astype(np.float64)
        found[:, column] = np.take_along_axis(steps, np.abs(left[:, column, None] - steps).argmin(1)[:, None], axis=1)[
            :, 0
        ]
        error = (left[:, column] - found[:, column]) / inverse[column, column]
        left[:, column:] -= np.outer(error, inverse[column, column:])
        inverse[column:, column:] -= (
            np.outer(inverse[column:, column], inverse[column, column:]) / inverse[column, column]
        )
        inverse[column, column] = 1
    return found.astype(np.float32)


@pytest.mark.parametrize("k", [70, 128])  # with a last group that is partial and without
@pytest.mark.parametrize("format", FORMATS)
def test_gptq_finds_the_values_of_the_loop_it_is_derived_from(format: str, k: int) -> None:
    scheme, inputs = parse_scheme(f"{format}g32"), correlated(k)
    weights = np.random.default_rng(4).standard_normal((6, k)).astype(np.float32)
    found = values(*gptq.quantize_matrix(weights, scheme, inputs), scheme)
    expected = one_column_at_a_time(weights, scheme, inputs)
    # Float32 may tip a weight that lies half way between two levels, and then what follows in its row.
    same = np.isclose(found, expected, rtol=1e-6, atol=0).mean()
    assert same > (0.6 if format == "q8" else 0.9)
    assert loss(found, weights, inputs) == pytest.approx(loss(expected, weights, inputs), rel=0.02)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("format", FORMATS)
def test_gptq_changes_the_results_less_than_rounding_to_nearest(format: str, group: int, gaussian: Float32) -> None:
    scheme, inputs = parse_scheme(f"{format}g{group}"), correlated(320)
    codes, scales = gptq.quantize_matrix(gaussian, scheme, inputs)
    lowest, highest = scheme.code_range
    assert (codes.shape, codes.dtype, scales.shape, scales.dtype) == (
        (4, 320), np.int8, (4, -(-320 // group)), np.uint16,
    )  # fmt: skip
    assert codes.min() >= lowest and codes.max() <= highest
    nearest = values(*quantize_matrix(gaussian, scheme), scheme)
    assert loss(values(codes, scales, scheme), gaussian, inputs) < 0.7 * loss(nearest, gaussian, inputs)


def test_gptq_of_inputs_that_are_unrelated_and_equal_is_rounding_to_nearest(gaussian: Float32) -> None:
    scheme = parse_scheme("q3g64")
    found = gptq.quantize_matrix(gaussian, scheme, Inputs(np.eye(320, dtype=np.float32), np.zeros(320, np.float32), 1))
    np.testing.assert_array_equal(values(*found, scheme), values(*quantize_matrix(gaussian, scheme), scheme))


def test_gptq_without_inputs_is_rounding_to_nearest(gaussian: Float32) -> None:
    scheme = parse_scheme("q3g64")
    for found, expected in zip(
        gptq.quantize_matrix(gaussian, scheme, None), quantize_matrix(gaussian, scheme), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dead", [slice(0, 40), slice(100, 101), slice(0, 320)])
def test_gptq_rounds_columns_that_no_input_reaches_to_nearest(dead: slice, gaussian: Float32) -> None:
    scheme, inputs = parse_scheme("q8g32"), correlated(320)
    inputs.second[dead], inputs.second[:, dead] = 0, 0
    codes, scales = gptq.quantize_matrix(gaussian, scheme, inputs)
    wide = np.repeat((scales.astype(np.uint32) << 16).view(np.float32), 32, axis=1)
    away = np.abs(values(codes, scales, scheme) - gaussian)[:, dead]
    # Half a step, and what float32 adds; a scale chosen for other columns of the group may clip.
    assert (away <= 0.501 * np.abs(wide[:, dead])).mean() > 0.95


def test_gptq_takes_fewer_tokens_than_columns(gaussian: Float32) -> None:
    scheme, inputs = parse_scheme("q2g128"), correlated(320, tokens=3)
    found = values(*gptq.quantize_matrix(gaussian, scheme, inputs), scheme)
    nearest = values(*quantize_matrix(gaussian, scheme), scheme)
    assert loss(found, gaussian, inputs) < 0.1 * loss(nearest, gaussian, inputs)


def test_gptq_keeps_zeros_and_rows_apart(gaussian: Float32) -> None:
    scheme, inputs = parse_scheme("q4g64"), correlated(320)
    weights = gaussian.copy()
    weights[1] = 0
    codes, scales = gptq.quantize_matrix(weights, scheme, inputs)
    assert not values(codes, scales, scheme)[1].any()
    some_codes, some_scales = gptq.quantize_matrix(weights[2:3], scheme, inputs)
    # Products of other shapes may be summed in another order.
    assert (codes[2:3] == some_codes).mean() > 0.98 and (scales[2:3] == some_scales).mean() > 0.8
