from evidence.samples import Bar, Comparison, alternate, spread


def row(ours, theirs, **more):
    return Comparison("speed", "1.1b", "tg64", "q4g128", "Q4_0", "tokens/s", ours, theirs, **more)


def test_a_ratio_is_of_the_two_runs_of_a_pair():
    assert row((4.0, 9.0), (2.0, 3.0)).ratios == (2.0, 3.0)
    assert row((4.0, 9.0), (2.0, 3.0), higher_is_better=False).ratios == (0.5, 1 / 3)


def test_a_bar_is_judged_on_the_median_and_not_on_the_best():
    bars = (Bar("ratio", 2.0), Bar("share", 0.9), Bar("ours", 4.0))
    judged = row((4.0, 9.0, 2.0), (2.0, 9.0, 2.0), bars=bars).verdicts()
    assert [verdict for _, verdict in judged] == ["NOT met by the median", "not measured", "met by the median"]


def test_a_bar_that_every_pair_is_above_or_below_is_met_or_not_without_doubt():
    assert Bar("ratio", 2.0).judge([2.0, 3.0]) == "met"
    assert Bar("ratio", 2.0).judge([1.0, 1.9]) == "NOT met"


def test_runs_alternate_after_one_of_each_that_does_not_count():
    calls = []
    pairs = list(alternate(lambda: calls.append("a"), lambda: calls.append("b"), 2))
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert len(pairs) == 2
    calls.clear()
    list(alternate(lambda: calls.append("a"), lambda: calls.append("b"), 1, warm=False))
    assert calls == ["a", "b"]


def test_the_spread_is_the_median_with_both_ends():
    assert spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
    assert spread([1234.5]) == "1234"
    assert spread([]) == "-"
