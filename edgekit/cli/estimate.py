"""`edgekit estimate`: what a model would take on a target and how fast it would run, without reading its weights."""

from collections.abc import Sequence
from pathlib import Path

import click

from edgekit.cli import _options
from edgekit.cli._console import show, show_json, show_pairs, show_table, warn
from edgekit.explain import Explained, explain
from edgekit.forecast import Forecast, does_not_fit, forecast
from edgekit.reference import embedded_model
from edgekit.scheme import find_recipe
from edgekit.units import Bytes, Seconds, counted, rounded


@click.command
@_options.model
@_options.target
@_options.recipe
@_options.context
@_options.planned_kv
@_options.explain
@_options.as_json
def command(
    *, model: Path | None, target: str, recipe: str | None, context: int | None, kv: str, explained: bool, as_json: bool
) -> None:
    """Predict memory and speed of MODEL on a target.

    MODEL is a checkpoint folder or a GGUF file, by default the checkpoint that comes with edgekit. Speeds are
    predictions, not measurements.
    """
    wanted = None if recipe is None else find_recipe(recipe)
    found = forecast(model or embedded_model(), target, wanted, context=context, kv=kv)
    for note in (*found.quant.notes, *found.predicted.notes):
        warn(note)
    choices = explain(found.predicted)
    if as_json:
        show_json(_as_json(found) | (explained_json(choices) if explained else {}))
    else:
        show_pairs(_pairs(found))
        if explained:
            show_choices(choices)
    if not found.fits:
        raise does_not_fit(found)


def _as_json(found: Forecast) -> dict[str, object]:
    plan = found.plan
    return {
        "model": found.checkpoint.path.name,
        "parameters": found.checkpoint.parameters,
        "target": plan.target,
        "recipe": str(found.quant.recipe),
        "context": plan.context,
        "weights_bytes": plan.weights_bytes,
        "kv": plan.kv,
        "kv_bytes": plan.kv_bytes,
        "arena_bytes": plan.arena_bytes,
        "overhead_bytes": plan.overhead_bytes,
        "total_bytes": found.device_bytes,
        "memory_bytes": found.target.memory,
        "fits": found.fits,
        "bytes_per_token": plan.bytes_per_token,
        "predicted": {
            "decode_tokens_per_second": found.predicted.decode_tokens_per_second,
            "deep_decode_tokens_per_second": found.predicted.deep_decode_tokens_per_second,
            "prefill_tokens_per_second": found.predicted.prefill_tokens_per_second,
        },
        "isa": plan.isa,
        "kernels": list(plan.kernels),
        "notes": [*found.quant.notes, *found.predicted.notes],
    }


def _pairs(found: Forecast) -> list[tuple[str, object]]:
    plan = found.plan
    return [
        ("model", f"{found.checkpoint.path.name}, {counted(found.checkpoint.parameters)} parameters"),
        ("target", f"{plan.target}, {found.target.title}"),
        ("recipe", found.quant.recipe),
        ("weights", plan.weights_bytes),
        ("KV cache", f"{plan.kv_bytes} for {plan.context} tokens in {plan.kv}"),
        ("activations", plan.arena_bytes),
        ("runner", plan.overhead_bytes),
        ("in all", f"{found.device_bytes} of {found.target.memory}: {'fits' if found.fits else 'does not fit'}"),
        ("read a token", Bytes(plan.bytes_per_token)),
        ("decode", rate(found.predicted.decode_tokens_per_second)),
        (f"at {plan.context} tokens", rate(found.predicted.deep_decode_tokens_per_second)),
        ("prefill", rate(found.predicted.prefill_tokens_per_second)),
        ("kernels", ", ".join(plan.kernels)),
    ]


def rate(tokens_per_second: float | None) -> str:
    """A predicted rate, labelled as one."""
    return "not predicted" if tokens_per_second is None else f"{rounded(tokens_per_second, 3)} tokens/s (predicted)"


def explained_json(products: Sequence[Explained]) -> dict[str, object]:
    """What --explain adds to JSON."""
    return {"explain": [product.as_json() for product in products]}


def show_choices(products: Sequence[Explained]) -> None:
    """What --explain adds to figures on stdout: a table of the kernels chosen, each above those that lost."""
    rows: list[tuple[object, ...]] = []
    for product in products:
        choice = product.choice
        what = f"{product.times} x {product.operator} {product.n} x {product.k} {product.scheme}"
        seconds, bound = choice.cost.seconds or "-", f"bound by {choice.cost.bound}"
        rows.append((product.phase, what, choice.kernel.name, seconds, bound))
        rows += [("", "", f"not {loser.kernel}", _computing(loser.computing), loser.reason) for loser in choice.losers]
    show("")
    show_table(("phase", "product", "kernel", "predicted, each", "because"), rows)
    show("")
    show(
        "Predicted speeds count what has no row, too: attention, and the norms, rounding and waiting of each operator."
    )
    show("A row of prefill is of all tokens that are taken at once.")


def _computing(seconds: Seconds | None) -> str:
    return "-" if seconds is None else f"{seconds} of arithmetic"
