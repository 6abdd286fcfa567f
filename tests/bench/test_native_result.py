import pytest
from evidence.native import read_result


def test_a_measurement_of_the_runner_gives_rates_bytes_and_the_share_of_the_ceiling():
    table = {
        "bandwidth": {"bytes_per_token": 500, "read_ceiling_bytes_per_second": {"1": 5000.0, "2": 10000.0}},
        "rows": [{"test": "tg64", "depth": 0, "tokens_per_second": 16.0}],
    }
    result = read_result(table, 2)
    assert result.rates == {("tg64", 0): 16.0}
    assert result.share(16.0) == (pytest.approx(0.8),)
    assert read_result(table, 4).share(16.0) == ()
