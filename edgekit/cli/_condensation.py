"""What `edgekit inspect --condensation` measures and shows."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit.checkpoint import Checkpoint
from edgekit.cli._console import Stages, say, show, show_table
from edgekit.coherence import Tokens, windows
from edgekit.condensation import measure_condensation, weight_kurtosis
from edgekit.errors import UsageError
from edgekit.reference import part_of, tokens_of
from edgekit.scheme import Scheme
from edgekit.sensitivity import HURTS, hurting, measure_sensitivity, sensitivity_work

MOST_TOKENS: Final = 4096
_TOKENS: Final = 512  # by default, fewer if they take more than _MOST_WORK, but never fewer than _FEWEST
_FEWEST: Final = 128
_MOST_WORK: Final = 10e12  # multiply-adds: two minutes at 80e9 a second
_WINDOW: Final = 256
_NAMED: Final = 4  # parts that a judgement names


def measure(
    checkpoint: Checkpoint, text: str, schemes: Sequence[Scheme], *, tokens: int | None, stages: Stages
) -> dict[str, Any]:
    """The figures of every part: embedding, blocks, and head if it is not the embedding.

    Raises:
        Unsupported: the checkpoint has no tokenizer.
        UsageError: the text is too short.
        Damaged: weights that are not finite.
    """
    work = sensitivity_work(checkpoint.decoder, schemes)
    wanted = tokens or int(max(_FEWEST, min(_TOKENS, _MOST_WORK / work)))
    sequences = _sequences(checkpoint, tokens_of(checkpoint, text)[:wanted])
    scored = sum(len(sequence) - 1 for sequence in sequences)
    say(f"condensation rests on {scored} tokens; about {work * scored:.2g} multiply-adds")
    kurtoses = weight_kurtosis(checkpoint, progress=part_of(stages, "kurtosis of the weights"))
    figures = measure_condensation(checkpoint, sequences, progress=part_of(stages, "condensation"))
    names = ", ".join(map(str, schemes))
    divergences = measure_sensitivity(
        checkpoint, sequences, schemes, progress=part_of(stages, f"KLD of each layer alone at {names}")
    )
    by_part = dict(zip(divergences, figures, strict=False))  # the head, the last part of some, has none
    layers = [
        {
            "layer": part,
            **(dataclasses.asdict(by_part[part]) if part in by_part else {}),
            "weight_kurtosis": dict(_kurtoses_of(part, kurtoses)),
            "kld": {str(scheme): value for scheme, value in divergences[part].items()},
        }
        for part in divergences
    ]
    return {
        "kind": "condensation",
        "model_type": checkpoint.decoder.model_type,
        "tokens": scored,
        "sequences": len(sequences),
        "method": "rtn",
        "layers": layers,
        "hurts_above": HURTS,
        "hurting": {str(scheme): [part for part, _ in hurting(divergences, scheme)] for scheme in schemes},
    }


def show_measured(found: Mapping[str, Any]) -> None:
    """What `measure` found as a table, with a line that judges it."""
    schemes = list(found["hurting"])
    headings = ["layer", "cosine", "effective rank", "mean share", "weight kurtosis", *(f"KLD {s}" for s in schemes)]
    show_table(headings, [_row(layer, schemes) for layer in found["layers"]])
    show("")
    divergences = {layer["layer"]: layer["kld"] for layer in found["layers"]}
    judged = (f"at {scheme} {_named(parts, divergences, scheme)}" for scheme, parts in found["hurting"].items())
    show(f"Hurt when rounded alone (KLD above {found['hurts_above']} nats): {'; '.join(judged)}.")
    show(f"KLD in nats a token over {found['tokens']} tokens, rounded to nearest; weight kurtosis of the worst matrix.")


def _sequences(checkpoint: Checkpoint, ids: Tokens) -> list[Tokens]:
    """The text in windows, each after the token that begins a text, if there is one."""
    lead = np.array([] if checkpoint.bos_id is None else [checkpoint.bos_id], np.uint32)
    length = min(_WINDOW, checkpoint.decoder.context) - len(lead)
    found = [np.concatenate([lead, window]) for window in (windows(ids, length) if length > 0 else [])]
    if not found:
        raise UsageError(
            f"{len(ids)} tokens, in windows of {length}, are too few to predict one", hint="give a longer text"
        )
    return found


def _kurtoses_of(part: str, kurtoses: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    prefix = {"embedding": "model.embed_tokens.", "head": "lm_head."}.get(part, f"model.layers.{part}.")
    for name, value in kurtoses.items():
        if name.startswith(prefix):
            yield name.removesuffix(".weight"), value


def _row(layer: Mapping[str, Any], schemes: Sequence[str]) -> list[str]:
    has_states = "cosine" in layer
    return [
        layer["layer"],
        f"{layer['cosine']:6.3f}" if has_states else "",
        f"{layer['effective_rank']:14.1f}" if has_states else "",
        f"{layer['mean_share']:10.3f}" if has_states else "",
        f"{max(layer['weight_kurtosis'].values()):15.1f}",
        *(f"{layer['kld'][scheme]:9.4f}" for scheme in schemes),
    ]


def _named(parts: Sequence[str], divergences: Mapping[str, Mapping[str, float]], scheme: str) -> str:
    """embedding (0.31), 3 (0.12) and 5 more."""
    named = ", ".join(f"{part} ({divergences[part][scheme]:.2g})" for part in parts[:_NAMED])
    more = len(parts) - _NAMED
    return (named + (f" and {more} more" if more > 0 else "")) or "none"
