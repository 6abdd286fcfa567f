"""`edgekit run`: a bundle continues a text on a device."""

from pathlib import Path

import click

from edgekit.bundle import open_bundle
from edgekit.cli import _options
from edgekit.cli._console import say, show, show_json, warn
from edgekit.device import open_device
from edgekit.errors import UsageError
from edgekit.measure import Generation, Resources, Sampling, is_about_time, open_runner
from edgekit.tokenizer import render_chat
from edgekit.units import Seconds


@click.command
@_options.bundle
@_options.device
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="Text to continue.")
@click.option("-n", "--tokens", type=click.IntRange(1), default=128, show_default=True, help="Most tokens to add.")
@click.option("--temperature", type=_options.FiniteRange(0), default=0.8, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(0), default=40, show_default=True, help="Likeliest tokens kept; 0: all.")
@click.option(
    "--top-p", type=_options.FiniteRange(0, 1, min_open=True), default=0.95, show_default=True, help="Probability kept."
)
@click.option(
    "--repetition-penalty",
    type=_options.FiniteRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Divides the logits of tokens seen before; 1: off.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Of the random choice.")
@click.option("--threads", type=click.IntRange(1, _options.MOST_THREADS), help=_options.DEFAULT_THREADS)
@click.option(
    "--context", type=click.IntRange(1), metavar="TOKENS", help="Positions of KV cache. Default: the bundle's."
)
@_options.kv
@click.option("--chat", is_flag=True, help="TEXT is a message to the model, put into its chat template.")
@click.option("--stats", is_flag=True, help="Show how fast it was on stderr, and what is doubtful about that.")
@_options.timeout
@_options.as_json
def command(
    *,
    bundle: Path,
    device: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float,
    seed: int,
    threads: int | None,
    context: int | None,
    kv: str | None,
    chat: bool,
    stats: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Continue a text with BUNDLE, and show it as it comes."""
    opened = open_bundle(bundle)
    if chat:
        if opened.chat_template is None:
            raise UsageError("the model of this bundle has no chat template", hint="leave --chat out")
        message = {"role": "user", "content": prompt}
        prompt = render_chat(opened.chat_template, [message], bos=opened.bos, eos=opened.eos)
    with open_device(device) as machine:
        found = open_runner(opened, machine, timeout=Seconds(timeout), kv=kv).generate(
            prompt,
            tokens=tokens,
            sampling=Sampling(temperature, top_k, top_p, repetition_penalty, seed),
            resources=Resources(threads or 0, threads or 0, context or 0),
            raw=chat,
            on_text=None if as_json else _stream,
        )
    if as_json:
        show_json(_as_json(found))
    else:
        click.echo()
        say(_summary(found, stats=stats))
    for text in found.measurement.warnings:
        if stats or as_json or not is_about_time(text):
            warn(text)


def _stream(piece: str) -> None:
    show(piece, newline=False)


def _as_json(found: Generation) -> dict[str, object]:
    return {
        "text": found.text,
        "tokens": list(found.tokens),
        "prompt_tokens": list(found.prompt_tokens),
        "stop": found.stop,
        **found.measurement.as_json(),
    }


def _summary(found: Generation, *, stats: bool) -> str:
    latency = found.measurement.latency if stats else {}
    parts = [f"{len(found.prompt_tokens)} + {len(found.tokens)} tokens, stopped by {found.stop}"]
    for key, title in (("prefill_tokens_per_second", "prefill"), ("decode_tokens_per_second", "decode")):
        if isinstance(rate := latency.get(key), int | float):
            parts.append(f"{title} {rate:.1f} tokens/s")
    return "; ".join(parts)
