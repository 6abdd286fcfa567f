"""Twins: runs that are the same but for their losses, each with several seeds, and what is left of them at few bits.

The arms of a recipe share text, order of the text and initial weights: a seed decides both. Every run is an ordinary
training (run.py) in a process and a folder of its own, `<arm>-<seed>`, so an interrupted experiment goes on where it
stopped. A run that diverges is a result too; any other error ends the experiment. Beside the folders appear
`twins.json` with every figure, `twins.md` with a table, and two plots.
"""

import io
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edgekit.disk import make_folder, write_whole
from edgekit.errors import INTERRUPTED, Diverged, EdgekitError, UsageError
from edgekit.train.recipe import TrainingRecipe
from edgekit.train.run import train
from edgekit.train.start import make_start

Record = dict[str, Any]
Progress = Callable[[str, int, int], None]  # stage, steps of all runs done, steps in all
Tell = Callable[[str], None]  # a sentence for the person
Spread = dict[str, float | None]
Working = dict[Connection, tuple["Run", BaseProcess]]

SCHEMA = 1
_FIGURES = ("kld_mean", "same_top", "perplexity", "rep4")
_CONTEXT: Any = multiprocessing.get_context("spawn")
_LONGEST_SAVE_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one seed, in the folder `<arm>-<seed>`."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


def twins(
    recipe: TrainingRecipe,
    output: Path,
    *,
    work: Path,
    jobs: int,
    progress: Progress,
    tell: Tell = lambda sentence: None,
) -> Record:
    """Trains every arm with every seed, `jobs` at a time, and returns what twins.json holds.

    Raises:
        UsageError: the recipe has no arms, or `output` holds runs of another recipe.
        Diverged: no run came to its end.
        EdgekitError: the process of a run has died.
    """
    if not recipe.arms:
        raise UsageError("the recipe has no arms to compare", hint="give it two tables [arms.NAME] or more")
    runs = [Run(arm, seed) for seed in recipe.seeds for arm in recipe.arms]
    finished = [run for run in runs if (output / run.name / "training.json").exists()]
    records = {}
    for run in finished:
        train(recipe.for_arm(run.arm, seed=run.seed), output / run.name, work=work, progress=progress, tell=tell)
        records[run] = _read(run, output)
    if len(finished) < len(runs):
        # The tokens that all runs read are made once, and a mistake in an arm is told before hours of training.
        make_folder(work)
        for arm in recipe.arms:
            make_start(recipe.for_arm(arm, seed=recipe.seeds[0]), work, processes=1, progress=progress)
        records |= _train_all(
            recipe, [run for run in runs if run not in records], output, work, min(jobs, len(runs)), progress, tell
        )
        records = {run: records[run] for run in runs}
    if all("failed" in record for record in records.values()):
        raise Diverged("every run has diverged", hint="lower training.learning_rate")
    found = compare(recipe, records)
    write_whole(output / "twins.json", json.dumps(found, indent=1, allow_nan=False))
    write_whole(output / "twins.md", table(found))
    plot_coherence(found, output / "coherence.svg")
    plot_condensation(found, output / "condensation.svg")
    return found


def _train_all(
    recipe: TrainingRecipe, runs: Sequence[Run], output: Path, work: Path, jobs: int, progress: Progress, tell: Tell
) -> dict[Run, Record]:
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    waiting, working = list(runs), Working()
    records: dict[Run, Record] = {}
    done = dict.fromkeys(runs, 0)
    steps = 0  # of each run
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                run = waiting.pop(0)
                _start(run, working, recipe.for_arm(run.arm, seed=run.seed), output / run.name, work, threads)
                tell(f"{run.name}: begins")
            for end in wait([*working]):
                assert isinstance(end, Connection)
                run, process = working[end]
                event = _receive(end)
                if isinstance(event, str):
                    tell(f"{run.name}: {event}")
                elif isinstance(event, tuple):
                    done[run], steps = event
                elif isinstance(event, Diverged):
                    records[run] = {"failed": event.message}
                elif event is not None:
                    tell(f"{run.name}: failed")
                    raise event
                else:
                    process.join()
                    del working[end]
                    if run not in records:
                        records[run] = _ended(run, process, output)
                    steps = max(steps, records[run].get("steps", 0))
                    done[run] = steps
                    tell(f"{run.name}: {_result(records[run])}; {len(records)} of {len(runs)} runs have ended")
                progress(f"train {len(runs)} runs", sum(done.values()), steps * len(runs))
    finally:
        _stop(working, tell)
    return records


def _start(run: Run, working: Working, *task: object) -> None:
    """Starts the process that does `task`. It leaves Ctrl-C to this one, which asks it to stop."""
    end, other = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(other, *task), name=run.name, daemon=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
        working[end] = run, process
    finally:
        other.close()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _work(other: Connection, recipe: TrainingRecipe, folder: Path, work: Path, threads: int) -> None:
    """What a process does: trains, and sends steps, sentences, and the error if there is one."""
    os.setpgrp()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def report(stage: str, done: int, total: int) -> None:
        if stage == "train":
            other.send((done, total))

    try:
        train(recipe, folder, work=work, progress=report, tell=other.send)
    except (EdgekitError, OSError) as error:
        other.send(error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(INTERRUPTED)


def _receive(end: Connection) -> Any:
    """What a process has sent; None when it has ended."""
    try:
        return end.recv()
    except (EOFError, OSError):  # the latter in the midst of a message
        return None


def _ended(run: Run, process: BaseProcess, output: Path) -> Record:
    """The record of a run whose process has ended."""
    if process.exitcode:
        raise EdgekitError(
            f"the process of {run.name} has ended with code {process.exitcode}",
            hint="-9: it was killed, most often for too little memory, then lower --jobs; the same command goes on",
        )
    return _read(run, output)


def _read(run: Run, output: Path) -> Record:
    record: Record = json.loads((output / run.name / "training.json").read_text("utf-8"))
    return record


def _result(record: Record) -> str:
    return str(record["failed"]) if "failed" in record else f"held-out loss {_number(record['held_out_loss'])}"


def _stop(working: Working, tell: Tell) -> None:
    """Asks processes to save the step at work and end, and kills those that do not, or all on another Ctrl-C."""
    processes = [process for _, process in working.values()]
    for process in processes:
        process.terminate()
    latest = time.monotonic() + _LONGEST_SAVE_SECONDS
    try:
        while working and time.monotonic() < latest:
            for end in wait([*working], latest - time.monotonic()):
                assert isinstance(end, Connection)
                event = _receive(end)
                if event is None:
                    del working[end]
                elif isinstance(event, str):
                    tell(f"{working[end][0].name}: {event}")
    finally:
        for process in processes:
            process.kill()
            process.join()


def compare(recipe: TrainingRecipe, records: Mapping[Run, Record]) -> Record:
    """The figures of all runs, and of every arm their median, least and most over the seeds whose runs ended.

    `ratio` is the divergence beside the first arm's with the same seed, recipe and method.
    """
    first, *_ = recipe.arms
    arms: dict[str, Record] = {}
    ended = {run: record for run, record in records.items() if "failed" not in record}
    base = {run.seed: record["sweep"] for run, record in ended.items() if run.arm == first}
    for arm in recipe.arms:
        mine = {run.seed: record for run, record in ended.items() if run.arm == arm}
        rows = []
        for at, row in enumerate(next((record["sweep"] for record in mine.values()), ())):
            same = {seed: record["sweep"][at] for seed, record in mine.items()}
            ratios = (_ratio(found, base[seed][at]) for seed, found in same.items() if seed in base)
            rows.append(
                {name: row[name] for name in ("recipe", "method", "bits_per_weight")}
                | {name: spread(found[name] for found in same.values()) for name in _FIGURES}
                | {"ratio": spread(ratios)}
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


def spread(values: Iterable[float | None]) -> Spread:
    """Median, least and most. None stands for what is not finite, which is more than every number, or not there."""
    found = [math.inf if value is None else value for value in values] or [math.inf]
    figures = {"median": statistics.median(found), "least": min(found), "most": max(found)}
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _ratio(found: Record, base: Record) -> float | None:
    if found["kld_mean"] is None or base["kld_mean"] is None:
        return None
    return float(found["kld_mean"] / base["kld_mean"]) if base["kld_mean"] else 1.0


def _by_layer(records: Iterable[Record], figure: str) -> list[Spread]:
    columns = zip(*([layer[figure] for layer in record["condensation"]] for record in records), strict=True)
    return [spread(column) for column in columns]


def table(found: Record) -> str:
    """Markdown: a row for each arm, method and recipe. Figures are medians over the seeds (least to most)."""
    seeds = len(found["recipe"]["seeds"])
    spread_over = f"{seeds} seeds; median (least to most)" if seeds > 1 else "One seed"
    lines = [
        f"{spread_over}. KLD in nats a token; ratio: to {found['first']}'s, seed by seed.",
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
    lines += [
        f"| {run['arm']} | failed | seed {run['seed']}: {run['failed']} |{' |' * 6}"
        for run in found["runs"]
        if "failed" in run
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Spread) -> str:
    if value["least"] == value["most"]:
        return _number(value["median"])
    return f"{_number(value['median'])} ({_number(value['least'])} to {_number(value['most'])})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def plot_coherence(found: Record, file: Path) -> None:
    """Divergence against bits a weight, a panel for each method and a line for each arm; bars from least to most."""
    methods = sorted({row["method"] for figures in found["arms"].values() for row in figures["sweep"]})
    figure = Figure(figsize=(4 * len(methods), 4), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for panel, method in zip(panels, methods, strict=True):
        for arm, figures in found["arms"].items():
            rows = [row for row in figures["sweep"] if row["method"] == method]
            _line(panel, [row["bits_per_weight"] for row in rows], [row["kld_mean"] for row in rows], arm)
        panel.axhline(0.5, color="gray", linestyle=":", linewidth=1)
        panel.set(title=method, xlabel="bits a weight, with scales", yscale="log")
    panels[0].set_ylabel("KLD, nats a token (dotted: the most of a coherent model)")
    panels[0].legend()
    _save(figure, file)


def plot_condensation(found: Record, file: Path) -> None:
    """Mean cosine of the token vectors by layer, a line for each arm."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    panel = figure.subplots()
    for arm, figures in found["arms"].items():
        _line(panel, range(len(figures["cosine"])), figures["cosine"], arm)
    panel.set(
        xlabel="layer (0: embedding; the last before the final norm)", ylabel="mean cosine of two tokens of a sequence"
    )
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend()
    _save(figure, file)


def _line(panel: Any, x: Iterable[float], values: Iterable[Spread], label: str) -> None:
    points = [(at, *value.values()) for at, value in zip(x, values, strict=True) if None not in value.values()]
    at, middle, least, most = zip(*points, strict=True) if points else ((), (), (), ())
    reach = (
        [m - low for m, low in zip(middle, least, strict=True)],
        [h - m for m, h in zip(middle, most, strict=True)],
    )
    panel.errorbar(at, middle, yerr=reach, label=label, marker="o", markersize=3, linewidth=1, capsize=2)


def _save(figure: Figure, file: Path) -> None:
    # Without a date and with fixed names the same figures give the same file.
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "edgekit", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    write_whole(file, drawn.getvalue())
