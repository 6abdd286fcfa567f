import errno
import functools
import json
import os
import shutil
import signal
import socket
import traceback
import warnings
from dataclasses import replace

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from toy_recipe import write_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Damaged, UsageError
from edgekit.train.recipe import Arm, read_recipe
from edgekit.train.run import train
from edgekit.train.watch import Stop, Watch
from edgekit.units import Bytes, rounded


def run(recipe_file, name, recipe=None, told=None, progress=lambda *_: None):
    folder = recipe_file.parent
    told = [] if told is None else told
    found = read_recipe(recipe_file) if recipe is None else recipe
    return train(found, folder / name, work=folder / "work", progress=progress, tell=told.append)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def curve(record):
    return [(entry["step"], entry["eval_loss"]) for entry in record["log"] if "eval_loss" in entry]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, one_thread):
    """What the recipe gives when nothing interrupts it."""
    recipe_file = write_recipe(tmp_path_factory.mktemp("straight"))
    run(recipe_file, "out")
    return recipe_file.parent / "out"


def test_a_run_leaves_a_model_that_edgekit_and_transformers_open(recipe_file):
    told = []
    record = run(recipe_file, "out", told=told)
    folder = recipe_file.parent / "out"
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    ]
    assert json.loads((folder / "training.json").read_text()) == record
    assert (record["steps"], record["tokens"]) == (6, 384)
    assert (record["made_with"]["device"], record["made_with"]["threads"]) == (str(PartialState().device), 1)
    assert record["held_out_loss"] < record["held_out_loss_before"]
    assert [step for step, _ in curve(record)] == [3, 6, 6]
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.decoder.vocab, checkpoint.eos_ids, checkpoint.parameters) == (300, (0,), record["parameters"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.use_cache
    assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]
    assert AutoTokenizer.from_pretrained(folder).decode(AutoTokenizer.from_pretrained(folder)("a tree").input_ids) == (
        "a tree"
    )
    assert told[0].startswith("training 25,120 parameters") and "in 6 steps takes about" in told[0]
    assert str(recipe_file.parent) not in (folder / "recipe.json").read_text()


def test_the_result_is_measured_by_layer_and_at_few_bits(straight):
    record = json.loads((straight / "training.json").read_text())
    assert [layer["layer"] for layer in record["condensation"]] == ["embedding", "0", "1"]
    assert all(-1 <= layer["cosine"] <= 1 and layer["effective_rank"] >= 1 for layer in record["condensation"])
    (row,) = record["sweep"]
    assert (row["recipe"], row["method"]) == ("q4g32,head=q4g32", "rtn")
    # 4 bits and a scale of 16 bits for each 32 weights; the rows of 48 have one for 16, too.
    assert 4.5 <= row["bits_per_weight"] < 5 and 0 < row["kld_mean"] < 0.5
    assert record["sweep_tokens"] == 64 and record["dispersion_cost"] > 0
    card = (straight / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "license" not in card
    assert f"perplexity {rounded(record['held_out_perplexity'])}." in card
    assert f"| {rounded(row['kld_mean'])} | {row['same_top']:.1%} |" in card
    assert row["continued_tokens"] == 0 and "greedy continuations by 0 tokens" in card
    assert "- dispersion\n- rounding\n" in card and "| trained on | train.txt |" in card


def test_another_sweep_is_measured_without_training_again(recipe_file, straight, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    before, told = (folder / "model.safetensors").stat().st_mtime_ns, []
    recipe = read_recipe(recipe_file)
    swept = replace(recipe, sweep=replace(recipe.sweep, methods=("rtn", "gptq"), recipes=("q2g32",)))
    record = run(recipe_file, folder, swept, told=told)
    assert [row["method"] for row in record["sweep"]] == ["rtn", "gptq"]
    # 2 blocks of 32, 32, 32 and 48 inputs, and the head of 32, whose moments have 4 bytes.
    assert told == [f"calibrating takes about 128.1 MiB of memory beside the model's, and {Bytes(47104)} of disk"]
    assert {file.name for file in folder.iterdir()} == {file.name for file in straight.iterdir()}
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert run(recipe_file, folder, swept) == record == json.loads((folder / "training.json").read_text())


def test_a_checkpoint_is_trained_further_with_its_own_tokenizer(recipe_file, straight):
    text = recipe_file.read_text()
    further = f'from = "{straight}"\n' + text[text.index("[text]") :].replace("vocab = 300\n", "")
    recipe_file.write_text(further.replace("learning_rate = 1e-2", "learning_rate = 1e-3"))
    record = run(recipe_file, "further")
    expected = json.loads((straight / "training.json").read_text())
    assert record["held_out_loss_before"] == pytest.approx(expected["held_out_loss"], abs=1e-5)
    folder = recipe_file.parent / "further"
    assert (folder / "tokenizer.json").read_bytes() == (straight / "tokenizer.json").read_bytes()
    assert "trained further from `out`" in (folder / "README.md").read_text()
    with pytest.raises(UsageError, match=r"text\.context is 32 and the model's 16"):
        recipe_file.write_text(further.replace("context = 16", "context = 32"))
        run(recipe_file, "longer")


def test_an_adapter_beside_the_model_is_refused(recipe_file, straight, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    text = recipe_file.read_text()
    recipe_file.write_text(f'from = "{folder}"\n' + text[text.index("[text]") :].replace("vocab = 300\n", ""))
    with pytest.raises(UsageError, match="holds an adapter beside the model"):
        run(recipe_file, "further")


@pytest.mark.parametrize(("change", "stored"), [("bfloat16", torch.bfloat16), ("float32", torch.float16)])
def test_the_held_out_loss_is_that_of_the_weights_as_they_are_stored(recipe_file, change, stored):
    text = recipe_file.read_text().replace("batch = 4", f'batch = 4\ndtype = "{change}"')
    grid = "" if stored is torch.bfloat16 else '\ngrid = "q4g32"'
    recipe_file.write_text(text.replace('"q2g32"]', f'"q2g32"]{grid}'))
    record = run(recipe_file, "out")
    assert {value.dtype for value in weights(recipe_file.parent / "out").values()} == {stored}
    further = f'from = "{recipe_file.parent / "out"}"\n' + text[text.index("[text]") :].replace("vocab = 300\n", "")
    recipe_file.write_text(further)
    assert run(recipe_file, "further")["held_out_loss_before"] == record["held_out_loss"]


def test_a_warmup_of_all_steps_lasts_to_the_end(recipe_file):
    recipe = read_recipe(recipe_file)
    record = run(recipe_file, "slow", replace(recipe, training=replace(recipe.training, warmup=1.0)))
    rates = [entry["learning_rate"] for entry in record["log"] if "learning_rate" in entry]
    assert rates == pytest.approx([1e-2 * step / 6 for step in range(6)])


def test_a_run_without_dispersion_has_no_cost_of_it(recipe_file):
    recipe = read_recipe(recipe_file)
    record = run(recipe_file, "plain", replace(recipe, losses=Arm(rounding=recipe.losses.rounding)))
    assert record["dispersion_cost"] is None
    assert "with dispersion" not in (recipe_file.parent / "plain" / "README.md").read_text()


def in_child(action):
    """The number of a process, forked from this one so that it has torch at hand, that does `action` and ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks in a process of several threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            if code:
                traceback.print_exc()  # nobody else would tell
            os._exit(code)
    return child


def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_two_processes_train_what_one_does_with_batches_twice_as_large(recipe_file):
    text = recipe_file.read_text().replace("tokens = 8\n", "tokens = 16\n")  # all positions: nothing is drawn
    recipe_file.write_text(text.replace("batch = 4", "batch = 2"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    launched["OMP_NUM_THREADS"] = "1"  # accelerate warns without it, and warnings are errors

    def run_as(rank):
        os.environ.update(launched | {"RANK": rank, "LOCAL_RANK": rank})
        PartialState._reset_state()
        told = []
        run(recipe_file, "two", told=told)
        assert bool(told) == (rank == "0")

    children = [in_child(functools.partial(run_as, rank)) for rank in ("0", "1")]
    assert [code_of(child) for child in children] == [0, 0]
    recipe_file.write_text(text)
    run(recipe_file, "one")
    assert json.loads((recipe_file.parent / "two" / "recipe.json").read_text())["processes"] == 2
    two, one = weights(recipe_file.parent / "two"), weights(recipe_file.parent / "one")
    for name, value in one.items():  # sums of the same gradients, in another order
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)


def test_a_finished_run_is_not_run_again(recipe_file, straight):
    before = (straight / "model.safetensors").stat().st_mtime_ns
    told = []
    assert run(recipe_file, straight, told=told) == json.loads((straight / "training.json").read_text())
    assert told == [] and (straight / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sweep": None}, r"training\.json is not what a training leaves: \$\.sweep: None is not of type 'array'"),
        ({"seconds": "1"}, r"\$\.seconds: '1' is not of type 'number'"),
        ({"condensation": [{}, {}]}, "'layer' is a required property"),
    ],
)
def test_an_altered_record_is_told(recipe_file, straight, tmp_path, change, sentence):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    record = json.loads((straight / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(record | change))
    with pytest.raises(Damaged, match=sentence):
        run(recipe_file, folder)


def test_a_record_without_its_sweep_is_completed(recipe_file, straight, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight, folder)
    record = json.loads((straight / "training.json").read_text())
    added = ("swept", "sweep", "sweep_tokens", "condensation", "made_with")  # the last is not in older ones
    before = {name: value for name, value in record.items() if name not in added}
    (folder / "training.json").write_text(json.dumps(before))
    found = run(recipe_file, folder)
    assert found == {name: value for name, value in record.items() if name != "made_with"}
    assert run(recipe_file, folder) == found


def signals_at(step, number):
    """Progress that sends this process a signal after a step."""
    return lambda stage, done, total: os.kill(os.getpid(), number) if (stage, done) == ("train", step) else None


def test_a_killed_run_goes_on_to_the_same_weights(recipe_file, straight):
    child = in_child(lambda: run(recipe_file, "killed", progress=signals_at(4, signal.SIGKILL)))
    assert code_of(child) == -signal.SIGKILL
    folder = recipe_file.parent / "killed"
    assert sorted(file.name for file in folder.iterdir()) == ["checkpoints", "recipe.json"]
    told = []
    record = run(recipe_file, "killed", told=told)
    assert "going on after step 3 of 6" in told
    assert_same(weights(folder), weights(straight))
    assert curve(record) == curve(json.loads((straight / "training.json").read_text()))


def test_a_signal_is_answered_after_the_step_at_work_and_nothing_of_it_is_lost(recipe_file, straight):
    before, told = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(KeyboardInterrupt):
        run(recipe_file, "stopped", told=told, progress=signals_at(4, signal.SIGTERM))
    assert "stopping after step 4, which is saved; once more stops at once" in told
    assert told[-1].startswith("step 4 of 6")
    assert signal.getsignal(signal.SIGTERM) is before
    told.clear()
    run(recipe_file, "stopped", told=told)
    assert "going on after step 4 of 6" in told
    assert_same(weights(recipe_file.parent / "stopped"), weights(straight))


def test_a_signal_after_the_last_step_is_answered_too(recipe_file, straight):
    with pytest.raises(KeyboardInterrupt):
        run(recipe_file, "late", progress=signals_at(6, signal.SIGTERM))
    folder = recipe_file.parent / "late"
    assert not (folder / "training.json").exists()
    run(recipe_file, "late")
    assert_same(weights(folder), weights(straight))
    assert {file.name for file in folder.iterdir()} == {file.name for file in straight.iterdir()}


def test_a_run_stopped_after_its_last_step_only_finishes(recipe_file, straight, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr("edgekit.train.run._save", fail)
        run(recipe_file, "full")
    assert sorted(file.name for file in (recipe_file.parent / "full").iterdir()) == ["checkpoints", "recipe.json"]
    told = []
    record = run(recipe_file, "full", told=told)
    assert not any(sentence.startswith("step") for sentence in told)
    expected = json.loads((straight / "training.json").read_text())
    assert curve(record) == curve(expected)
    assert_same(weights(recipe_file.parent / "full"), weights(straight))


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "rng_state.pth", "seal.json"])
def test_a_damaged_state_is_told_and_the_one_before_it_taken(recipe_file, straight, name):
    with pytest.raises(KeyboardInterrupt):
        run(recipe_file, "out", progress=signals_at(4, signal.SIGTERM))
    states = recipe_file.parent / "out" / "checkpoints"
    assert sorted(folder.name for folder in states.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    damaged = states / "checkpoint-4" / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    told = []
    run(recipe_file, "out", told=told)
    assert f"{states / 'checkpoint-4'} is not whole: it is passed over" in told
    assert "going on after step 3 of 6" in told
    assert_same(weights(recipe_file.parent / "out"), weights(straight))


def test_a_loss_that_is_no_number_ends_the_run():
    with Stop() as stop:
        watch = Watch(lambda *_: None, lambda sentence: None, stop, tokens_a_step=1, seconds=0.0)
    with pytest.raises(UsageError, match="after step 7 the held-out loss is no longer a number") as caught:
        watch.on_evaluate(None, TrainerState(global_step=7), None, {"eval_loss": float("nan")})
    assert "learning_rate" in caught.value.hint


def test_another_recipe_in_the_folder_is_refused_and_the_same_elsewhere_is_not(recipe_file, straight, tmp_path):
    recipe = read_recipe(recipe_file)
    with pytest.raises(UsageError, match="a run of another recipe, which differs in training"):
        run(recipe_file, straight, replace(recipe, training=replace(recipe.training, seed=1)))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("toy.toml", "train.txt", "held-out.txt"):
        (tmp_path / name).rename(moved / name)
    told = []
    run(recipe_file, straight, read_recipe(moved / "toy.toml"), told=told)
    assert told == []
    (moved / "train.txt").write_text((moved / "train.txt").read_text() + "more")
    with pytest.raises(UsageError, match="which differs in made_from"):
        run(recipe_file, straight, read_recipe(moved / "toy.toml"))


def test_a_folder_of_something_else_is_left_alone(recipe_file):
    other = recipe_file.parent / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a training run"):
        run(recipe_file, "other")
    assert [file.name for file in other.iterdir()] == ["notes.txt"]
    with pytest.raises(UsageError, match="exists and is not a training run"):
        run(recipe_file, "toy.toml")
    (other / "notes.txt").rename(other / ".unfinished-0")  # what a killed run may leave is no notes
    run(recipe_file, "other")
    assert not (other / ".unfinished-0").exists()
    (other / "recipe.json").write_text("{")
    with pytest.raises(Damaged, match=r"recipe\.json is not JSON"):
        run(recipe_file, "other")


def test_arms_are_not_one_run(recipe_file):
    recipe = replace(read_recipe(recipe_file), losses=Arm(), arms={"a": Arm(), "b": Arm()})
    with pytest.raises(UsageError, match=r"the recipe has \[arms\]"):
        run(recipe_file, "out", recipe)
    assert not (recipe_file.parent / "out").exists()
