import pytest

from edgekit.units import Bytes, Seconds, rounded


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 29, "1.50 GiB")],
)
def test_bytes_are_written_with_binary_prefixes(count: int, text: str) -> None:
    assert str(Bytes(count)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(125, "2 min 5 s"), (1.5, "1.5 s"), (0.0123, "12.3 ms"), (4.5e-5, "45 us"), (2e-9, "2 ns")],
)
def test_seconds_are_written_with_the_prefix_that_fits(seconds: float, text: str) -> None:
    assert str(Seconds(seconds)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3714.2, "3714"), (90703.1, "90700"), (0.0134123, "0.01341"), (0.0, "0"), (41.0, "41")]
)
def test_rounded_numbers_have_no_exponent(value: float, text: str) -> None:
    assert rounded(value) == text
