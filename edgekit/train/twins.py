"""Twins: runs that are the same but for their losses, each with several seeds, and what is left of them at few bits.

The arms of a recipe share text, order of the text and initial weights: a seed decides both. Every run is an ordinary
training (run.py) in a folder of its own, `<arm>-<seed>`, so an interrupted experiment goes on where it stopped. Beside
them appear `twins.json` with every figure, `twins.md` with a table, and two plots.
"""

import json
import multiprocessing
import os
import queue
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
import torch
from matplotlib.figure import Figure

from edgekit.disk import writing
from edgekit.errors import UsageError
from edgekit.train.recipe import TrainingRecipe
from edgekit.train.run import train

Record = dict[str, Any]
Progress = Callable[[str, int, int], None]  # run and stage, steps done, steps in all
Tell = Callable[[str, str, int, int], None]  # run, stage, steps done, steps in all
Events = Any  # a queue of the same, between processes

SCHEMA = 1
_FIGURES = ("kld_mean", "same_top", "perplexity", "rep4")
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one seed, in the folder `<arm>-<seed>`."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


def twins(recipe: TrainingRecipe, output: Path, *, work: Path, jobs: int, progress: Progress) -> Record:
    """Trains every arm with every seed, `jobs` at a time, and returns what twins.json holds.

    Raises:
        UsageError: the recipe has no arms, or `output` holds runs of another recipe.
    """
    if not recipe.arms:
        raise UsageError("the recipe has no arms to compare", hint="give it two tables [arms.NAME] or more")
    runs = [Run(arm, seed) for seed in recipe.seeds for arm in recipe.arms]
    output.mkdir(parents=True, exist_ok=True)
    records = _train_all(recipe, runs, output, work, jobs, progress)
    found = compare(recipe, records)
    _write(output / "twins.json", json.dumps(found, indent=1))
    _write(output / "twins.md", table(found))
    plot_coherence(found, output / "coherence.svg")
    plot_condensation(found, output / "condensation.svg")
    return found


def _train_all(
    recipe: TrainingRecipe, runs: Sequence[Run], output: Path, work: Path, jobs: int, progress: Progress
) -> dict[Run, Record]:
    def tell(run: str, stage: str, done: int, total: int) -> None:
        progress(f"{run}: {stage}", done, total)

    # The first run makes the tokens and the tokenizer that all others read.
    alone = runs if jobs == 1 else runs[:1]
    records = {run: _train_one(recipe, run, output, work, tell) for run in alone}
    if jobs == 1:
        return records
    context = multiprocessing.get_context("spawn")
    events: Events = context.Queue()
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(threads, events)) as pool:
        futures = {run: pool.submit(_train_in_process, recipe, run, output, work) for run in runs[1:]}
        try:
            _follow(futures.values(), events, tell)
            return records | {run: future.result() for run, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # which saves the step at work
            raise


def _train_one(recipe: TrainingRecipe, run: Run, output: Path, work: Path, tell: Tell) -> Record:
    def report(stage: str, done: int, total: int) -> None:
        tell(run.name, stage, done, total)

    return train(recipe.for_arm(run.arm, seed=run.seed), output / run.name, work=work, progress=report)


class _Process:
    """What a process that runs trainings has for all of them: where it tells how they go on."""

    events: ClassVar[Events]


def _begin(threads: int, events: Events) -> None:
    """Begins a process that runs trainings. Ctrl-C goes to the first process alone, which tells the others."""
    _Process.events = events
    os.setpgrp()
    torch.set_num_threads(threads)


def _train_in_process(recipe: TrainingRecipe, run: Run, output: Path, work: Path) -> Record:
    parent = os.getppid()

    def tell(*event: object) -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt  # the first process was killed
        _Process.events.put(event)

    return _train_one(recipe, run, output, work, tell)


def _follow(futures: Iterable[Future[Record]], events: Events, tell: Tell) -> None:
    """Tells what the runs report until all are done, or one has failed."""
    waiting = set(futures)
    while waiting:
        try:
            tell(*events.get(timeout=_POLL_SECONDS))
        except queue.Empty:
            ended = {future for future in waiting if future.done()}
            for future in ended:
                future.result()
            waiting -= ended


def compare(recipe: TrainingRecipe, records: Mapping[Run, Record]) -> Record:
    """The figures of all runs, and of every arm their median, least and most over the seeds.

    `ratio` is the divergence beside the first arm's with the same seed, recipe and method.
    """
    first, *_ = recipe.arms
    arms: dict[str, Record] = {}
    for arm in recipe.arms:
        mine = {run.seed: record for run, record in records.items() if run.arm == arm}
        base = {run.seed: record for run, record in records.items() if run.arm == first}
        rows = []
        for at, row in enumerate(next(iter(mine.values()))["sweep"]):
            same = {seed: record["sweep"][at] for seed, record in mine.items()}
            rows.append(
                {name: row[name] for name in ("recipe", "method", "bits_per_weight")}
                | {name: spread(found[name] for found in same.values()) for name in _FIGURES}
                | {"ratio": spread(_ratio(found, base[seed]["sweep"][at]) for seed, found in same.items())}
                | {"verdicts": [found["verdict"] for found in same.values()]}
            )
        arms[arm] = {
            "held_out_loss": spread(record["held_out_loss"] for record in mine.values()),
            "cosine": _by_layer(mine.values(), "cosine"),
            "seconds": spread(record["seconds"] for record in mine.values()),
            "sweep": rows,
        }
    runs = [{"arm": run.arm, "seed": run.seed, **record} for run, record in records.items()]
    return {"schema": SCHEMA, "recipe": recipe.as_json(), "first": first, "arms": arms, "runs": runs}


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and most."""
    found = list(values)
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def _ratio(found: Record, base: Record) -> float:
    return float(found["kld_mean"] / base["kld_mean"]) if base["kld_mean"] else 1.0


def _by_layer(records: Iterable[Record], figure: str) -> list[dict[str, float]]:
    columns = zip(*([layer[figure] for layer in record["condensation"]] for record in records), strict=True)
    return [spread(column) for column in columns]


def table(found: Record) -> str:
    """Markdown: a row for each arm, method and recipe. Figures are medians over the seeds (least to most)."""
    seeds = len(found["recipe"]["seeds"])
    lines = [
        f"{seeds} seeds; median (least to most). KLD in nats a token; ratio: to {found['first']}'s, seed by seed.",
        "",
        "| arm | held-out loss | recipe | KLD | ratio | same top | perplexity | rep4 | verdicts |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, figures in found["arms"].items():
        for row in figures["sweep"]:
            cells = [
                arm,
                _cell(figures["held_out_loss"]),
                row["recipe"],
                *(_cell(row[name]) for name in ("kld_mean", "ratio", "same_top", "perplexity", "rep4")),
                ", ".join(row["verdicts"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Mapping[str, float]) -> str:
    return f"{value['median']:.3g} ({value['least']:.3g} to {value['most']:.3g})"


def plot_coherence(found: Record, file: Path) -> None:
    """Divergence against bits a weight, a panel for each method and a line for each arm; bars from least to most."""
    methods = sorted({row["method"] for figures in found["arms"].values() for row in figures["sweep"]})
    figure = Figure(figsize=(4 * len(methods), 3.5), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for panel, method in zip(panels, methods, strict=True):
        for arm, figures in found["arms"].items():
            rows = [row for row in figures["sweep"] if row["method"] == method]
            _line(panel, [row["bits_per_weight"] for row in rows], [row["kld_mean"] for row in rows], arm)
        panel.axhline(0.5, color="gray", linestyle=":", linewidth=1)
        panel.set(title=method, xlabel="bits a weight, with scales", yscale="log")
    panels[0].set_ylabel("KLD, nats a token (dotted: coherent below)")
    panels[0].legend()
    _save(figure, file)


def plot_condensation(found: Record, file: Path) -> None:
    """Mean cosine of the token vectors by layer, a line for each arm."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    panel = figure.subplots()
    for arm, figures in found["arms"].items():
        _line(panel, range(len(figures["cosine"])), figures["cosine"], arm)
    panel.set(xlabel="layer (0: embedding)", ylabel="mean cosine of two tokens of a sequence")
    panel.legend()
    _save(figure, file)


def _line(panel: Any, x: Sequence[float], values: Sequence[Mapping[str, float]], label: str) -> None:
    middle = [value["median"] for value in values]
    down = [value["median"] - value["least"] for value in values]
    up = [value["most"] - value["median"] for value in values]
    panel.errorbar(x, middle, yerr=(down, up), label=label, marker="o", markersize=3, linewidth=1, capsize=2)


def _save(figure: Figure, file: Path) -> None:
    # Without a date and with fixed names the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "edgekit", "svg.fonttype": "none"}), writing(file):
        figure.savefig(file, metadata={"Date": None})


def _write(file: Path, text: str) -> None:
    temporary = file.with_suffix(".part")
    with writing(file):
        temporary.write_text(text, "utf-8")
        temporary.replace(file)
