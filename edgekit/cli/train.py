"""`edgekit train`: a text and a recipe to a model, with losses that keep it whole at few bits."""

import contextlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from edgekit.cache import user_cache
from edgekit.cli import _options
from edgekit.cli._console import Stages, say, show, show_json, show_pairs, show_table
from edgekit.errors import TargetMissing, UsageError
from edgekit.units import Seconds, counted, rounded

if TYPE_CHECKING:
    from edgekit.train.run import Record

_NEEDED: Final = ("torch", "transformers", "accelerate")


@click.command
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write. Default: the recipe's name.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="Folder that keeps tokenizers and tokens. Default: in the cache."
)
@click.option("--text", type=click.Path(path_type=Path), help="Folder of RECIPE's texts. Default: the recipe's.")
@click.option("--twins", "are_twins", is_flag=True, help="Train every arm of RECIPE with every seed, and compare them.")
@click.option("--jobs", type=click.IntRange(1), help="With --twins: trainings at a time. Default: one a core.")
@_options.as_json
def command(
    *,
    recipe: Path,
    output: Path | None,
    work: Path | None,
    text: Path | None,
    are_twins: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Train a model as RECIPE, a TOML file, says.

    RECIPE names texts, and a new model or a checkpoint to train further. The result is a Hugging Face folder, which
    `edgekit compile` takes; training.json in it holds the figures. Interrupted, the run saves its last step, and the
    same command goes on there. Needs torch: pip install '.[train]'. On several processes:
    torchrun --nproc-per-node N -m edgekit train RECIPE.

    With --twins the folder gets a training for each arm and seed, the table twins.md, every figure in twins.json, and
    plots of the divergence at each number of bits and of the cosines in each layer. A run whose loss is no longer a
    number is shown as failed; any other error ends the rest, which the same command takes up again.
    """
    if jobs is not None and not are_twins:
        raise UsageError("--jobs needs --twins", hint="the cores of one training: OMP_NUM_THREADS")
    if are_twins and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--twins starts its own processes", hint="run it without torchrun; --jobs says how many")
    needed = (*_NEEDED, "matplotlib") if are_twins else _NEEDED
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise TargetMissing(f"training needs {' and '.join(missing)}", hint="pip install 'edgekit[train]'")
    from edgekit.train.recipe import read_recipe
    from edgekit.train.run import train

    is_first = os.environ.get("RANK", "0") == "0"
    read = read_recipe(recipe, texts=text)
    folder = output or Path(recipe.resolve().stem)
    cache = user_cache()
    kept = work or cache.root / "train"
    try:
        with (
            contextlib.nullcontext() if work else cache.in_use(),
            Stages() if is_first else contextlib.nullcontext(_silent) as stages,
        ):
            tell = say if is_first else lambda sentence: None
            if are_twins:
                from edgekit.train.twins import table, twins

                cores = len(os.sched_getaffinity(0))
                record = twins(read, folder, work=kept, jobs=jobs or cores, progress=stages, tell=tell)
            else:
                record = train(read, folder, work=kept, progress=stages, tell=tell)
    except KeyboardInterrupt:
        say("the same command goes on where this one stopped")
        raise
    if not is_first:
        return
    if as_json:
        show_json(record)
    elif are_twins:
        show(table(record), newline=False)
    else:
        show_pairs(_pairs(folder, record))
        show("")
        _show_sweep(record)


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _show_sweep(record: "Record") -> None:
    first = record["sweep"][0]  # each has the float model's figures over the same tokens
    rows = [
        ("float", "0", "100.0%", rounded(first["reference_perplexity"]), "coherent"),
        *(_row(row) for row in record["sweep"]),
    ]
    show_table(["recipe", "KLD", "same top", "perplexity", "verdict"], rows)


def _row(row: "Record") -> tuple[str, ...]:
    return (
        row["recipe"],
        rounded(row["kld_mean"]),
        f"{row['same_top']:.1%}",
        rounded(row["perplexity"]),
        row["verdict"],
    )


def _pairs(folder: Path, record: "Record") -> list[tuple[str, object]]:
    return [
        ("model", f"{folder}, {counted(record['parameters'])} parameters"),
        ("trained on", f"{counted(record['tokens'])} tokens in {Seconds(record['seconds'])}"),
        ("held-out loss", f"{rounded(record['held_out_loss'])} nats a token"),
        ("perplexity", rounded(record["held_out_perplexity"])),
    ]
