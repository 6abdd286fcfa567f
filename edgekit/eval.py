"""Coherence of a bundle on a device over any text, against the float reference executed here.

The text is tokenized whole and cut into windows (`coherence.windows`); in each, both models are teacher-forced from an
empty cache and every token but the first is scored, so perplexity = exp of the mean of -ln p over those tokens.
"""

from collections.abc import Callable

from edgekit.coherence import Coherence, ReferenceModel, Tally, Tokens, windows
from edgekit.errors import UsageError
from edgekit.measure import Runner

Progress = Callable[[int, int], None]


def evaluate(
    runner: Runner,
    reference: ReferenceModel,
    ids: Tokens,
    *,
    window: int,
    vocab: int,
    on_progress: Progress = lambda done, total: None,
) -> Coherence:
    """Agreement over `ids` with the full divergence; repetition comes from the bundle's probe.

    Raises:
        UsageError: fewer than two tokens, so nothing is predicted.
    """
    cut = windows(ids, window)
    if not cut:
        raise UsageError(f"the text has {len(ids)} tokens, too few to predict one", hint="give a longer text")
    repeated = runner.probe().coherence
    tally = Tally()
    done = 0
    for part in cut:
        reference.reset()
        expected = reference.prefill(part.tolist())
        found = runner.logits(part, vocab=vocab)
        tally.add(expected[:-1], found[:-1], part[1:])
        done += len(part)
        on_progress(done, len(ids))
    return tally.coherence(rep4=_number(repeated.get("rep4")), reference_rep4=_number(repeated.get("reference_rep4")))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
