"""rtn against a search that is plainly right: every scale worth trying, one group at a time."""

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.errors import Unsupported
from edgekit.methods import find_method, known_methods
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


@pytest.mark.parametrize("format", ["q4", "q2"])
def test_important_columns_lose_less(format: str, gaussian: Float32) -> None:
    scheme = parse_scheme(f"{format}g64")
    importance = np.where(np.arange(320) % 8 == 0, 50.0, 1.0).astype(np.float32)
    plain, weighted = (
        (importance * np.square(values(*quantize_matrix(gaussian, scheme, importance=use), scheme) - gaussian)).sum()
        for use in (None, importance)
    )
    assert weighted < plain


def test_rows_are_independent(gaussian: Float32) -> None:
    scheme = parse_scheme("q3g64")
    codes, scales = quantize_matrix(gaussian, scheme)
    some_codes, some_scales = quantize_matrix(gaussian[2:3], scheme)
    np.testing.assert_array_equal(codes[2:3], some_codes)
    np.testing.assert_array_equal(scales[2:3], some_scales)


def test_methods_are_found_by_name() -> None:
    assert "rtn" in known_methods()
    assert find_method("rtn") is quantize_matrix


def test_an_unknown_method_is_refused_with_those_that_exist() -> None:
    with pytest.raises(Unsupported, match="unknown quantization method 'magic'") as refusal:
        find_method("magic")
    assert "rtn" in refusal.value.hint
