"""Twins: what is compared with what, by hand, and a whole small experiment."""

import json

import pytest

from edgekit.errors import UsageError
from edgekit.train.recipe import read_recipe
from edgekit.train.twins import Run, compare, spread, table, twins

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


def test_spread_is_median_least_and_most():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}


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
    told = []
    output = tmp_path / "out"

    def run(jobs):
        return twins(recipe, output, work=tmp_path / "work", jobs=jobs, progress=lambda *part: told.append(part))

    found = run(1)
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
    # One run is lost, and made again by two processes, like the first time.
    (output / "plain-2" / "training.json").unlink()
    told.clear()
    again = run(2)
    assert again["arms"]["plain"]["held_out_loss"]["most"] == pytest.approx(
        found["arms"]["plain"]["held_out_loss"]["most"], rel=1e-4
    )
    assert {name.partition(":")[0] for name, _, _ in told} == {"plain-2"}


def test_a_recipe_without_arms_is_refused(tmp_path):
    text = RECIPE.replace("seeds = [1, 2]\n", "")
    recipe = read_recipe(write(tmp_path, text[: text.index("[arms.plain]")]))
    with pytest.raises(UsageError, match="no arms"):
        twins(recipe, tmp_path / "out", work=tmp_path / "work", jobs=1, progress=lambda *part: None)
    assert not (tmp_path / "out").exists()


def test_a_run_that_fails_ends_the_experiment_with_its_error(tmp_path):
    recipe = read_recipe(write(tmp_path))
    (tmp_path / "out" / "dispersed-2").mkdir(parents=True)
    (tmp_path / "out" / "dispersed-2" / "something").touch()
    with pytest.raises(UsageError, match="is not a training run"):
        twins(recipe, tmp_path / "out", work=tmp_path / "work", jobs=2, progress=lambda *part: None)
