"""Twins: what is compared with what, by hand, and a whole small experiment."""

import json
import multiprocessing
import os
import select
import signal
import time

import pytest

from edgekit.errors import Diverged, EdgekitError, UsageError
from edgekit.train import twins as module
from edgekit.train.recipe import read_recipe
from edgekit.train.twins import Run, compare, plot_coherence, plot_condensation, spread, table, twins
from edgekit.train.watch import Stop

TEXT = "".join(f"The {n}th day was long, and the road went on over hill number {n * 7}.\n" for n in range(600))
RECIPE = """
seeds = [1, 2]
[model]
hidden = 32
intermediate = 32
layers = 1
heads = 1
kv_heads = 1
[text]
train = ["a.txt"]
held_out = ["b.txt"]
context = 32
vocab = 280
[training]
tokens = 512
batch = 8
learning_rate = 1e-3
evaluations = 1
[sweep]
recipes = ["q4g32", "q2g32"]
methods = ["rtn", "gptq"]
tokens = 256
[arms.plain]
[arms.dispersed]
dispersion = { weight = 0.5, tokens = 16 }
"""


def write(folder, text=RECIPE):
    (folder / "a.txt").write_text(TEXT)
    (folder / "b.txt").write_text(TEXT[:20000])
    file = folder / "recipe.toml"
    file.write_text(text)
    return file


def record(loss, *klds, verdict="coherent"):
    row = {"recipe": "q4g32", "method": "rtn", "bits_per_weight": 4.5, "same_top": 0.5, "perplexity": 3.0, "rep4": 0.0}
    return {
        "held_out_loss": loss,
        "seconds": 1.0,
        "condensation": [{"cosine": 0.25}, {"cosine": loss}],
        "sweep": [{**row, "kld_mean": kld, "verdict": verdict} for kld in klds],
    }


def silent(*_):
    pass


@pytest.fixture(autouse=True)
def no_longer_than_five_minutes():
    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert not multiprocessing.active_children()


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Runs the experiment with another `train`, which begins at once."""
    recipe = read_recipe(write(tmp_path))

    def run(train, tell=silent, jobs=2):
        monkeypatch.setattr(module, "_CONTEXT", multiprocessing.get_context("fork"))
        monkeypatch.setattr(module, "make_start", lambda *_, **__: None)
        monkeypatch.setattr(module, "train", lambda _, folder, **how: train(folder, how["progress"], how["tell"]))
        return twins(recipe, tmp_path / "out", work=tmp_path / "work", jobs=jobs, progress=silent, tell=tell)

    return run


def finish(folder, figures):
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps({"steps": 2, **figures}))


def test_spread_is_median_least_and_most():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}


def test_what_is_not_finite_is_more_than_every_number():
    assert spread([3.0, None, 2.0]) == {"median": 3.0, "least": 2.0, "most": None}
    assert spread([]) == {"median": None, "least": None, "most": None}


def test_arms_are_compared_seed_by_seed(tmp_path):
    recipe = read_recipe(write(tmp_path))
    records = {
        Run("plain", 1): record(2.0, 0.4),
        Run("dispersed", 1): record(2.5, 0.2),
        Run("plain", 2): record(3.0, 0.8, verdict="degraded"),
        Run("dispersed", 2): record(3.5, 0.8),
    }
    found = compare(recipe, records)
    assert found["first"] == "plain"
    plain, dispersed = found["arms"]["plain"], found["arms"]["dispersed"]
    assert plain["sweep"][0]["ratio"] == {"median": 1.0, "least": 1.0, "most": 1.0}
    assert dispersed["sweep"][0]["ratio"] == {"median": 0.75, "least": 0.5, "most": 1.0}
    assert dispersed["sweep"][0]["kld_mean"] == {"median": 0.5, "least": 0.2, "most": 0.8}
    assert plain["sweep"][0]["verdicts"] == ["coherent", "degraded"]
    assert dispersed["cosine"][1] == {"median": 3.0, "least": 2.5, "most": 3.5}
    assert [(run["arm"], run["seed"]) for run in found["runs"]] == [(run.arm, run.seed) for run in records]
    assert "| dispersed | 3 (2.5 to 3.5) | q4g32 | 0.5 (0.2 to 0.8) | 0.75 (0.5 to 1) |" in table(found)


def test_an_experiment_trains_every_arm_and_goes_on_where_it_stopped(tmp_path):
    recipe = read_recipe(write(tmp_path))
    told, sentences = [], []
    output = tmp_path / "out"

    def run():
        told.clear()
        how = {"progress": lambda *part: told.append(part), "tell": sentences.append}
        return twins(recipe, output, work=tmp_path / "work", jobs=2, **how)

    found = run()
    assert sorted(path.name for path in output.iterdir()) == [
        "coherence.svg",
        "condensation.svg",
        *(f"{arm}-{seed}" for arm in ("dispersed", "plain") for seed in (1, 2)),
        "twins.json",
        "twins.md",
    ]
    assert json.loads((output / "twins.json").read_text()) == json.loads(json.dumps(found))
    assert (output / "twins.md").read_text() == table(found)
    rows = found["arms"]["dispersed"]["sweep"]
    names = ["q4g32,head=q4g32", "q2g32,head=q4g32"]
    assert [row["recipe"] for row in rows] == [*names, *(f"{name},method=gptq" for name in names)]
    initial = {run["seed"]: run["held_out_loss_before"] for run in found["runs"] if run["arm"] == "plain"}
    for each in found["runs"]:
        assert each["held_out_loss_before"] == initial[each["seed"]]  # the same initial weights
    assert initial[1] != initial[2]
    assert {stage for stage, _, _ in told} == {"tokenize", "train 4 runs"}
    assert told[-1] == ("train 4 runs", 8, 8)
    assert sentences.count("plain-2: begins") == 1
    assert any(sentence.startswith("plain-2: step 1 of 2: loss ") for sentence in sentences)
    assert sentences[-1].endswith("; 4 of 4 runs have ended")
    # One run is lost, and made again like the first time.
    (output / "plain-2" / "training.json").unlink()
    assert run()["arms"]["plain"]["held_out_loss"] == found["arms"]["plain"]["held_out_loss"]
    # What is finished is taken as it is.
    run()
    assert told == []


def test_a_recipe_without_arms_is_refused(tmp_path):
    text = RECIPE.replace("seeds = [1, 2]\n", "")
    recipe = read_recipe(write(tmp_path, text[: text.index("[arms.plain]")]))
    with pytest.raises(UsageError, match="no arms"):
        twins(recipe, tmp_path / "out", work=tmp_path / "work", jobs=1, progress=lambda *part: None)
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_is_shown_as_failed_and_the_others_go_on(experiment, tmp_path):
    def train(folder, progress, tell):
        if folder.name == "dispersed-2":
            raise Diverged("no longer a number", hint="lower it")
        finish(folder, record(2.0, 0.4))

    sentences = []
    found = experiment(train, sentences.append, jobs=1)  # of several at work any may end last
    assert found["runs"][-1] == {"arm": "dispersed", "seed": 2, "failed": "no longer a number"}
    assert found["arms"]["dispersed"]["sweep"][0]["ratio"]["median"] == 1.0
    assert len(found["arms"]["dispersed"]["sweep"][0]["verdicts"]) == 1
    assert "| dispersed | failed | seed 2: no longer a number | | | | | | |" in table(found)
    assert "dispersed-2: no longer a number; 4 of 4 runs have ended" in sentences
    assert json.loads((tmp_path / "out" / "twins.json").read_text()) == found


def test_an_arm_of_which_nothing_is_left_is_compared_and_drawn_too(tmp_path):
    recipe = read_recipe(write(tmp_path))
    flawed = record(2.0, None)
    found = compare(recipe, {Run("plain", 1): {"failed": "why"}, Run("dispersed", 1): flawed})
    assert found["arms"]["plain"]["sweep"] == []
    assert "| dispersed | 2 | q4g32 | none | none |" in table(found)
    plot_coherence(found, tmp_path / "a.svg")
    plot_condensation(found, tmp_path / "b.svg")
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["a.svg", "b.svg"]


def test_nothing_is_written_where_every_run_diverges(experiment, tmp_path):
    def train(folder, progress, tell):
        raise Diverged("no longer a number")

    with pytest.raises(Diverged, match="every run"):
        experiment(train)
    assert not (tmp_path / "out").exists()


def test_another_error_ends_the_experiment_while_other_runs_are_at_work(experiment, tmp_path):
    def train(folder, progress, tell):
        if folder.name == "plain-1":
            raise UsageError("it is not a training run", hint="another")
        time.sleep(100)

    sentences = []
    with pytest.raises(UsageError, match="it is not a training run") as refused:
        experiment(train, sentences.append)
    assert refused.value.hint == "another"
    assert sentences[-1] == "plain-1: failed"


def test_a_process_that_dies_ends_the_experiment(experiment):
    def train(folder, progress, tell):
        if folder.name == "dispersed-1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100)

    with pytest.raises(EdgekitError, match="the process of dispersed-1 has ended with code -9"):
        experiment(train)


def test_an_interrupt_lets_the_runs_at_work_save_and_begins_no_other(experiment, tmp_path):
    def train(folder, progress, tell):
        folder.mkdir(parents=True)
        with Stop() as stop:
            tell("ready")
            while not stop.asked:
                progress("train", 1, 2)  # more than a pipe holds
        tell("saved")
        (folder / "saved").touch()
        raise KeyboardInterrupt

    sentences = []

    def tell(sentence):
        sentences.append(sentence)
        if {"plain-1: ready", "dispersed-1: ready"} <= set(sentences) and "saved" not in sentence:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment(train, tell)
    assert {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*")} == {
        *("plain-1", "plain-1/saved", "dispersed-1", "dispersed-1/saved")
    }
    assert {"plain-1: saved", "dispersed-1: saved"} <= set(sentences)


def test_runs_that_do_not_stop_are_killed(experiment, monkeypatch):
    def train(folder, progress, tell):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell("deaf")
        time.sleep(100)

    def tell(sentence):
        if "deaf" in sentence:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_LONGEST_SAVE_SECONDS", 0.5)
    with pytest.raises(KeyboardInterrupt):
        experiment(train, tell)


def test_runs_end_with_the_process_that_started_them(experiment):
    reading, writing = os.pipe()  # every process holds its end for writing, until it is gone

    def train(folder, progress, tell):
        os.write(writing, b"x")
        time.sleep(100)

    first = multiprocessing.get_context("fork").Process(target=experiment, args=(train,))
    first.start()
    os.close(writing)
    for _ in range(2):
        assert os.read(reading, 1) == b"x"
    first.kill()
    first.join()
    assert select.select([reading], [], [], 30)[0]
    assert os.read(reading, 1) == b""
    os.close(reading)
