"""Coherence: metrics worked by hand, and the bytes of the probe."""

import math
import struct

import numpy as np
import pytest

from edgekit.coherence import (
    VERDICTS,
    Coherence,
    Tally,
    check_gate,
    log_softmax,
    make_probe,
    metrics,
    nearest_rank,
    rep4,
    windows,
)
from edgekit.errors import GateFailed


def logits_of(*probabilities):
    """Rows of logits whose softmax is the given probabilities."""
    return np.log(np.array(probabilities)).astype(np.float32)


def coherence_with(**changes):
    figures = {
        "tokens": 100,
        "perplexity": 11.0,
        "reference_perplexity": 10.0,
        "kld_mean": 0.05,
        "kld_p99": 0.5,
        "same_top": 0.9,
        "rep4": 0.1,
        "reference_rep4": 0.1,
    }
    return Coherence(**{**figures, **changes})


def test_log_softmax_is_the_logarithm_of_the_probabilities_even_for_huge_logits():
    found = log_softmax(np.array([[1e4, 1e4]], np.float32))
    assert found == pytest.approx(np.log([[0.5, 0.5]]))


def test_divergence_is_that_of_two_distributions_worked_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)
    found = metrics(logits_of((0.5, 0.5)), logits_of((0.75, 0.25)), np.array([0], np.uint32))
    assert found.kld_mean == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert found.kld_p99 == found.kld_mean


def test_perplexity_is_the_inverse_geometric_mean_of_the_true_tokens_probabilities():
    reference = logits_of((0.5, 0.5), (0.5, 0.5))
    found = metrics(reference, logits_of((0.25, 0.75), (0.25, 0.75)), np.array([0, 1], np.uint32))
    assert found.perplexity == pytest.approx(1 / math.sqrt(0.25 * 0.75), rel=1e-6)
    assert found.reference_perplexity == pytest.approx(2.0, rel=1e-6)


def test_same_top_counts_positions_with_the_same_argmax():
    reference = logits_of((0.6, 0.4), (0.6, 0.4), (0.6, 0.4), (0.6, 0.4))
    found = metrics(reference, logits_of((0.9, 0.1), (0.4, 0.6), (0.7, 0.3), (0.6, 0.4)), np.zeros(4, np.uint32))
    assert found.same_top == 0.75


def test_a_tally_of_windows_equals_one_pass_over_all_rows():
    random = np.random.default_rng(0)
    reference, logits = random.normal(size=(2, 100, 50)).astype(np.float32)
    targets = random.integers(0, 50, 100).astype(np.uint32)
    tally = Tally()
    for start, stop in ((0, 33), (33, 34), (34, 100)):
        tally.add(reference[start:stop], logits[start:stop], targets[start:stop])
    whole = metrics(reference, logits, targets)
    parts = tally.coherence(rep4=0.0, reference_rep4=0.0)
    assert parts.tokens == whole.tokens == 100
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-12)
    assert parts.kld_p99 == pytest.approx(whole.kld_p99, rel=1e-12)


def test_the_99th_percentile_of_a_hundred_values_is_the_99th():
    assert nearest_rank(np.arange(1.0, 101.0), 0.99) == 99.0
    assert nearest_rank(np.arange(1.0, 102.0), 0.99) == 100.0
    assert nearest_rank(np.array([7.0]), 0.99) == 7.0


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ([1, 2, 3, 4, 5], 0.0),
        ([1, 1, 1, 1, 1, 1], 1 - 1 / 3),  # three 4-grams, one of them unique
        ([1, 2, 1, 2, 1, 2, 1], 1 - 2 / 4),
        ([1, 2, 3], 0.0),
    ],
)
def test_rep4_is_the_share_of_repeated_four_grams(tokens, share):
    assert rep4([tokens]) == pytest.approx(share)


def test_rep4_is_the_mean_over_continuations():
    assert rep4([[1, 2, 3, 4, 5], [1] * 6]) == pytest.approx((0 + 2 / 3) / 2)
    assert rep4([]) == 0.0


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "coherent"),
        ({"kld_mean": 0.5}, "degraded"),
        ({"same_top": 0.699}, "degraded"),
        ({"same_top": 0.70}, "coherent"),
        ({"rep4": 0.1501}, "degraded"),
        ({"rep4": 0.15}, "coherent"),
        ({"perplexity": 20.0}, "degraded"),
        ({"kld_mean": 2.0, "same_top": 0.40}, "degraded"),
        ({"kld_mean": 2.001}, "collapsed"),
        ({"same_top": 0.399}, "collapsed"),
        ({"perplexity": math.nan}, "collapsed"),
        ({"kld_mean": math.inf}, "collapsed"),
    ],
)
def test_the_verdict_follows_the_bounds_of_the_design(changes, verdict):
    assert coherence_with(**changes).verdict == verdict


def test_windows_are_consecutive_and_the_last_predicts_something():
    assert [list(window) for window in windows(np.arange(8, dtype=np.uint32), 3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [len(window) for window in windows(np.arange(7, dtype=np.uint32), 3)] == [3, 3]


class Successor:
    """A model of 200 words that gives the successor of the last token the logit 1 and every other word 0."""

    def reset(self):
        self.last = None

    def prefill(self, ids):
        self.last = int(ids[-1])
        logits = np.zeros((len(ids), 200), np.float32)
        logits[np.arange(len(ids)), (np.asarray(ids) + 1) % 200] = 1
        return logits

    def decode(self, token):
        return self.prefill(np.array([token], np.uint32))[0]


def test_the_probe_holds_header_sequences_and_continuations_as_the_format_says():
    ids = np.arange(10, 50, dtype=np.uint32)
    probe = make_probe(Successor(), ids, context=32, begin=5)
    version, sequences, top, continuations, tokens, repeated, nll, scored = struct.unpack_from("<5IfdQ", probe)
    # Windows of 31 and 9, each behind the token 5; 40 tokens hold two prompts of 16. 32 - 16 - 1 tokens follow one.
    assert (version, sequences, top, continuations, tokens) == (1, 2, 128, 2, 15)
    assert scored == 31 + 9
    assert repeated == 0.0
    at = 64
    count, first = struct.unpack_from("<2I", probe, at)
    assert (count, first) == (32, 1)
    assert list(struct.unpack_from("<3I", probe, at + 8)) == [5, 10, 11]
    row = at + 8 + 4 * count
    likely, other = 1 - math.log(math.e + 199), -math.log(math.e + 199)
    assert struct.unpack_from("<f", probe, row)[0] == pytest.approx(other)  # 10 does not follow 5
    assert struct.unpack_from("<3I", probe, row + 4) == (6, 0, 1)
    assert struct.unpack_from("<2f", probe, row + 4 + 4 * 128) == pytest.approx((likely, other))
    assert struct.unpack_from("<f", probe, row + 4 + 8 * 128)[0] == pytest.approx(likely)  # 11 follows 10
    # Each sequence begins with a token that is not the successor of its begin token.
    assert nll == pytest.approx(-(38 * likely + 2 * other))
    sequence_bytes = [8 + 4 * n + (n - 1) * (4 + 8 * 128) for n in (32, 10)]
    prompt = 64 + sum(sequence_bytes)
    assert struct.unpack_from("<4I", probe, prompt) == (17, 5, 10, 11)
    assert struct.unpack_from("<4I", probe, prompt + 4 + 4 * 17) == (17, 5, 30, 31)
    assert len(probe) == prompt + 2 * (4 + 4 * 17)


def test_a_vocabulary_smaller_than_the_top_is_kept_whole():
    class Tiny(Successor):
        def prefill(self, ids):
            return super().prefill(ids)[:, :7]

    probe = make_probe(Tiny(), np.arange(6, dtype=np.uint32), context=32)
    assert struct.unpack_from("<3I", probe)[2] == 7


def test_progress_of_the_probe_ends_at_its_total():
    seen = []
    make_probe(
        Successor(),
        np.arange(40, dtype=np.uint32),
        context=64,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1] == 40 + 12 * 2 * 48
    assert seen == sorted(seen)


def test_the_probe_takes_the_first_1024_tokens_of_a_long_text():
    probe = make_probe(Successor(), np.arange(5000, dtype=np.uint32) % 200, context=256)
    assert struct.unpack_from("<2I", probe)[1] == 4
    assert struct.unpack_from("<Q", probe, 32)[0] == 1024 - 4


def test_prompts_come_from_places_equally_far_apart():
    probe = make_probe(Successor(), np.arange(160, dtype=np.uint32), context=64, continuations=4)
    tail = np.frombuffer(probe[-4 * 17 * 4 :], np.uint32).reshape(4, 17)
    assert tail[:, 0].tolist() == [16] * 4
    assert tail[:, 1].tolist() == [0, 40, 80, 120]


def test_a_context_too_short_for_a_continuation_has_none():
    probe = make_probe(Successor(), np.arange(160, dtype=np.uint32), context=20)
    assert struct.unpack_from("<5I", probe)[3] == 0


@pytest.mark.parametrize("gate", [*VERDICTS[:-1], None])
@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_gate_lets_its_verdict_and_better_ones_pass(verdict, gate):
    figures = {"tokens": 9, "kld_mean": 0.51234, "same_top": 0.25, "verdict": verdict}
    if gate is None or VERDICTS.index(verdict) <= VERDICTS.index(gate):
        check_gate(figures, gate)
        return
    with pytest.raises(GateFailed, match=f"the model is {verdict} and --gate asks for {gate}") as caught:
        check_gate(figures, gate)
    missed = {"coherent": ": kld_mean 0.5123 >= 0.5, same_top 0.25 < 0.7", "degraded": ": same_top 0.25 < 0.4"}
    assert caught.value.message.endswith(missed[gate])


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"same_top": 0.69}, "same_top 0.69 < 0.7"),
        ({"kld_mean": 0.5}, "kld_mean 0.5 >= 0.5"),
        ({"rep4": 0.31}, "rep4 0.31 > 1.5 x reference_rep4 0.2"),
        ({"perplexity": 20}, "perplexity 20 >= 2 x reference_perplexity 10"),
        ({"perplexity": None}, "perplexity is not a finite number"),
        ({"rep4": 0.3, "kld_mean": 2.5, "same_top": 0.3}, "kld_mean 2.5 >= 0.5, same_top 0.3 < 0.7"),
    ],
)
def test_a_failed_gate_names_the_bounds_that_were_missed_and_no_others(changed, missed):
    kept = {"perplexity": 12.0, "reference_perplexity": 10.0, "kld_mean": 0.1, "same_top": 0.9}
    figures = {**kept, "rep4": 0.2, "reference_rep4": 0.2, **changed, "verdict": "collapsed"}
    with pytest.raises(GateFailed) as caught:
        check_gate(figures, "coherent")
    assert caught.value.message == f"the model is collapsed and --gate asks for coherent: {missed}"


@pytest.mark.parametrize("figures", [{}, {"verdict": "splendid"}])
def test_no_verdict_or_an_unknown_one_passes_no_gate(figures):
    with pytest.raises(GateFailed):
        check_gate(figures, "degraded")
