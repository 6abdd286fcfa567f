import pytest

from edgekit.units import Bytes, Seconds, counted, rounded


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 29, "1.50 GiB")],
)
def test_bytes_are_written_with_binary_prefixes(count: int, text: str) -> None:
    assert str(Bytes(count)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7200, "2 h 0 min"), (125, "2 min 5 s"), (1.5, "1.5 s"), (0.0123, "12.3 ms"), (4.5e-5, "45 us"), (2e-9, "2 ns")],
)
def test_seconds_are_written_with_the_prefix_that_fits(seconds: float, text: str) -> None:
    assert str(Seconds(seconds)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(3714.2, "3714"), (90703.1, "90700"), (0.0134123, "0.01341"), (0.0, "0"), (41.0, "41")]
)
def test_rounded_numbers_have_no_exponent(value: float, text: str) -> None:
    assert rounded(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (65824, "65,824"), (999_999, "999,999"), (5_475_584, "5.48 million"), (1_100_048_384, "1.1 billion")],
)
def test_large_counts_are_written_in_words(count: int, text: str) -> None:
    assert counted(count) == text
