"""`edgekit eval`: how coherent a bundle still is on a device."""

import hashlib
from pathlib import Path
from typing import Any

import click

from edgekit.bundle import Bundle, open_bundle
from edgekit.cache import user_cache
from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.cli import _options
from edgekit.cli._console import Stages, read_text, show_json, show_pairs, warn
from edgekit.coherence import check_gate
from edgekit.device import open_device
from edgekit.engines.written import TOKENIZER
from edgekit.errors import UsageError
from edgekit.eval import evaluate
from edgekit.measure import Runner, is_about_time, open_runner
from edgekit.pipeline import is_made_from
from edgekit.reference import embedded_model, open_reference, probe_text, tokenizer_file, tokens_of
from edgekit.tokenizer_json import bundled_tokenizer
from edgekit.units import Seconds

_WINDOW = 256


@click.command
@_options.bundle
@click.option("--reference", type=click.Path(path_type=Path), help="Checkpoint folder the bundle was compiled from.")
@click.option("--text", type=click.Path(path_type=Path), help="UTF-8 text to compare on, instead of the probe.")
@click.option(
    "--context", type=click.IntRange(2), metavar="TOKENS", help="Window of the text. Default: 256, or the bundle's."
)
@_options.kv
@_options.device
@_options.gate
@_options.timeout
@_options.as_json
def command(
    *,
    bundle: Path,
    reference: Path | None,
    text: Path | None,
    context: int | None,
    kv: str | None,
    device: str,
    gate: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Compare BUNDLE with the float32 model that it was made from.

    Without --reference and --text it is compared on the probe that it carries, recorded when it was compiled. With
    either, both models read the text in windows of --context tokens, each from an empty cache; every token but the
    first of a window is scored, and perplexity is exp of the mean of -ln p over those.
    """
    opened = open_bundle(bundle)
    with open_device(device) as machine, Stages() as stages:
        runner = open_runner(opened, machine, timeout=Seconds(timeout), kv=kv)
        if reference is None and text is None:
            if context is not None:
                raise UsageError(
                    "--context needs --text or --reference", hint="the bundle's probe was cut when it was compiled"
                )
            stages(f"probe: {opened.name} on {machine.name}", 0, 0)
            measurement = runner.probe()
            # No time is shown, so doubts about it say nothing.
            found = dict(measurement.coherence)
            warnings = tuple(text for text in measurement.warnings if not is_about_time(text))
            for doubt in warnings:
                warn(doubt)
        else:
            checkpoint, warnings = _reference(opened, reference)
            for doubt in warnings:
                warn(doubt)
            held_out = probe_text() if text is None else read_text(text)
            found = _on_text(runner, checkpoint, held_out, window=_window(opened, context), stages=stages)
    if as_json:
        used = {"bundle": opened.name, "device": device, "kv": kv or opened.kv}
        show_json({**found, **used, "warnings": list(warnings)})
    else:
        show_pairs([(name.replace("_", " "), _figure(value)) for name, value in found.items()])
    check_gate(found, gate)


def _window(bundle: Bundle, asked: int | None) -> int:
    window = min(_WINDOW, bundle.context) if asked is None else asked
    if window > bundle.context:
        raise UsageError(
            f"--context {window} is longer than the bundle's context of {bundle.context} tokens",
            hint=f"--context is at most {bundle.context}, or compile with a longer one",
        )
    return window


def _on_text(runner: Runner, checkpoint: Checkpoint, text: str, *, window: int, stages: Stages) -> dict[str, Any]:
    ids = tokens_of(checkpoint, text, special=True)
    cache = user_cache()
    with cache.in_use(), open_reference(checkpoint, context=window, cache=cache, progress=stages) as reference:
        stage = f"eval: on {runner.device.name}"
        stages(stage, 0, 0)
        found = evaluate(
            runner,
            reference,
            ids,
            window=window,
            vocab=checkpoint.decoder.vocab,
            on_progress=lambda done, total: stages(stage, done, total),
        )
    return found.as_json()


def _reference(bundle: Bundle, given: Path | None) -> tuple[Checkpoint, tuple[str, ...]]:
    """The checkpoint to compare with, and a doubt if it is not the one that the bundle was made from.

    Raises:
        UsageError: none is given, and the bundle was not made from edgekit's own; or the one given has other tokens.
    """
    checkpoint = open_checkpoint(given or embedded_model())
    if is_made_from(checkpoint, bundle):
        return checkpoint, ()
    if given is None:
        raise UsageError(
            f"{bundle.name} was not made from the checkpoint that comes with edgekit",
            hint="--reference DIR names the checkpoint it was compiled from",
        )
    if not _has_tokenizer_of(bundle, checkpoint):
        raise UsageError(
            f"{bundle.name} was not made from {given}, and their tokens differ, so nothing can be compared",
            hint="--reference DIR names the checkpoint it was compiled from",
        )
    return checkpoint, (f"{bundle.name} was not made from {given}: what follows compares two different models",)


def _has_tokenizer_of(bundle: Bundle, checkpoint: Checkpoint) -> bool:
    own = bundle.files.get(TOKENIZER)
    found = hashlib.sha256(bundled_tokenizer(tokenizer_file(checkpoint))).hexdigest()
    return own is not None and own.sha256 == found


def _figure(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
