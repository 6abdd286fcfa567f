"""`edgekit compile`: from a checkpoint to a bundle for a target, tried before it appears."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from edgekit.cache import user_cache
from edgekit.cli import _options
from edgekit.cli._console import Stages, parse_bytes, read_text, say, show, show_json, show_pairs, show_table, warn
from edgekit.cli.estimate import explained_json, rate, show_choices
from edgekit.engines import ENGINES, Outside
from edgekit.engines.litert import RUNTIMES
from edgekit.errors import UsageError
from edgekit.forecast import Forecast
from edgekit.methods import known_methods
from edgekit.pipeline import Order, Outcome, build
from edgekit.reference import embedded_model
from edgekit.scheme import DEFAULT_RECIPE, find_recipe, parse_recipe
from edgekit.target import HOST, load_target
from edgekit.units import Bytes, counted, rounded

# What of edgekit's runs on the board, and how it can be tried where this machine cannot.
_ON_THE_BOARD = "run the bundle on the board, or emulated as README.md says under Targets and devices"
_NOT_RUN = {
    "native": ("program", "apt install qemu-user-static and compile again, or run the bundle on the board"),
    "onnxruntime": ("library", _ON_THE_BOARD),
    "executorch": ("delegate", _ON_THE_BOARD),
}


@click.command
@_options.model
@_options.target
@_options.recipe
@click.option(
    "--method",
    type=click.Choice(known_methods()),
    help="How codes and scales are found. Default: the recipe's. Without --recipe it is for q4g128.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="UTF-8 text for gptq and rtn_bias, like those that the model will read; 128 sequences of 256 tokens are used.",
)
@click.option("--engine", type=click.Choice(ENGINES), default="native", show_default=True, help="What runs the model.")
@click.option("--portable", is_flag=True, help="Leave edgekit's kernels out: the engine as it is runs the model.")
@click.option(
    "--litert-runtime",
    type=click.Choice(RUNTIMES),
    default=RUNTIMES[0],
    show_default=True,
    help="What the .tflite must run on: LiteRT 2, or tflite-runtime 2.14, which has no 4 bits: 8 are written.",
)
@click.option(
    "-o",
    "output",
    type=click.Path(path_type=Path),
    help="Folder to write. Default: MODEL-TARGET, and -ENGINE unless it is native.",
)
@_options.context
@_options.planned_kv
@click.option("--probe-text", type=click.Path(path_type=Path), help="Held-out text of the probe; 1024 tokens are used.")
@click.option("--force", is_flag=True, help="Replace an older bundle.")
@click.option("--max-ram", metavar="SIZE", help="Refuse to start if compiling takes more memory, such as 8G.")
@_options.gate
@click.option(
    "--explain",
    "explained",
    is_flag=True,
    help="Show the kernel of every product, and those that lost and why; of an engine with kernels of its own, what"
    " it runs outside the fast ones.",
)
@_options.as_json
def command(
    *,
    model: Path | None,
    target: str,
    recipe: str | None,
    method: str | None,
    calibration: Path | None,
    engine: str,
    portable: bool,
    litert_runtime: str,
    output: Path | None,
    context: int | None,
    kv: str,
    probe_text: Path | None,
    force: bool,
    max_ram: str | None,
    gate: str | None,
    explained: bool,
    as_json: bool,
) -> None:
    """Compile MODEL, a checkpoint folder or a GGUF file, for a target.

    Without MODEL it is the checkpoint that comes with edgekit. The result is one folder, which appears only after it
    was loaded and run, and with --gate only if it is coherent enough. Finished stages are kept in ~/.cache/edgekit
    (EDGEKIT_CACHE), which may be deleted.
    """
    if litert_runtime != RUNTIMES[0] and engine != "litert":
        raise UsageError("--litert-runtime is for --engine litert")
    source, chosen = model or embedded_model(), None if recipe is None else find_recipe(recipe)
    if method is not None:
        chosen = replace(chosen or parse_recipe(DEFAULT_RECIPE), method=method)
    order = Order(
        model=source,
        target=target,
        recipe=chosen,
        output=output or Path("-".join([_name(source), target, *([engine] if engine != "native" else [])])),
        engine=engine,
        portable=portable,
        litert_runtime=litert_runtime,
        context=context,
        kv=kv,
        probe_text=None if probe_text is None else read_text(probe_text),
        calibration_text=None if calibration is None else read_text(calibration),
        force=force,
        most_memory=None if max_ram is None else parse_bytes(max_ram),
        gate=gate,
    )
    with Stages() as stages:
        outcome = build(order, user_cache(), stages, _announce)
    if as_json:
        show_json(_as_json(outcome) | (_explained_json(outcome) if explained else {}))
    else:
        show_pairs(_pairs(outcome))
        if explained and outcome.explained:
            show_choices(outcome.explained)
        elif explained:
            _show_outside(outcome.bundle.engine, outcome.outside)
    is_ours, is_foreign = outcome.bundle.kernels == "edgekit", load_target(target).triple != load_target(HOST).triple
    if is_ours and is_foreign and outcome.agreement.ran_on == "local":
        what, hint = _NOT_RUN[engine]
        warn(f"the {what} for {target} was not run: its model was, by this machine's {what} ({hint})")
    for note in outcome.notes:
        warn(note)
    if (verdict := outcome.measurement.coherence.get("verdict")) != "coherent":
        warn(f"the model is {verdict}: a recipe with more bits keeps more of it")


def _name(source: Path) -> str:
    """What the model is called."""
    return source.stem if source.suffix == ".gguf" else source.resolve().name


def _announce(found: Forecast) -> None:
    say(
        f"compiling {found.checkpoint.path.name} ({counted(found.checkpoint.parameters)} parameters) for"
        f" {found.target.name} takes about {found.compile_bytes} of memory and {found.disk_bytes} of disk"
    )
    for note in (*found.quant.notes, *found.predicted.notes):
        warn(note)


def _total(outcome: Outcome) -> Bytes:
    return Bytes(sum(file.bytes for file in outcome.bundle.files.values()))


def _as_json(outcome: Outcome) -> dict[str, object]:
    bundle, agreement = outcome.bundle, outcome.agreement
    return {
        "bundle": str(bundle.path),
        "target": bundle.target,
        "recipe": bundle.recipe,
        "engine": bundle.engine,
        "engine_version": bundle.engine_version,
        "kernels": bundle.kernels,
        "context": bundle.context,
        "kv": bundle.kv,
        "bytes": _total(outcome),
        "predicted": dict(outcome.predicted),
        "self_test": {
            "ran_on": agreement.ran_on,
            "tokens": agreement.tokens,
            "relative_error": agreement.relative_error,
            "tolerance": agreement.tolerance,
        },
        "coherence": dict(outcome.measurement.coherence),
    }


def _explained_json(outcome: Outcome) -> dict[str, object]:
    return explained_json(outcome.explained) | {"outside": [asdict(row) for row in outcome.outside]}


def _show_outside(engine: str, outside: Sequence[Outside]) -> None:
    """Operators, each with the matrices in codes that it multiplies by; those of the layers in one."""
    rows = [(row.operator, row.count, ", ".join(_of_all_layers(row.matrices))) for row in outside]
    show("")
    show(f"Outside the fast kernels of {engine} a token takes:")
    show("")
    show_table(("operator", "nodes", "matrices in codes"), rows)


def _of_all_layers(matrices: Sequence[str]) -> list[str]:
    counts = Counter(re.sub(r"\.\d+\.", ".*.", matrix).removesuffix(".weight") for matrix in matrices)
    return [f"{count} x {name}" if "*" in name else name for name, count in counts.items()]


def _pairs(outcome: Outcome) -> list[tuple[str, object]]:
    agreement, coherence, predicted = outcome.agreement, outcome.measurement.coherence, outcome.predicted
    apart = f"logits {agreement.relative_error:.2%} from the quantized graph's"
    return [
        ("bundle", f"{outcome.bundle.path}, {_total(outcome)}"),
        ("recipe", outcome.bundle.recipe),
        ("decode", rate(predicted.get("decode_tokens_per_second"))),
        ("prefill", rate(predicted.get("prefill_tokens_per_second"))),
        ("self-test", f"passed on {agreement.ran_on}: {apart}"),
        ("perplexity", f"{rounded(coherence['perplexity'])}, reference {rounded(coherence['reference_perplexity'])}"),
        ("KLD", f"{rounded(coherence['kld_mean'])} nats on average, 99 % below {rounded(coherence['kld_p99'])}"),
        ("same top", f"{coherence['same_top']:.1%} of {coherence['tokens']} tokens"),
        ("verdict", coherence["verdict"]),
    ]
