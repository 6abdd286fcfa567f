"""`edgekit train`: its sentences and exit codes."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from edgekit.cache import Cache
from edgekit.cli import main
from edgekit.errors import UsageError
from edgekit.units import Bytes

# More than 400,000 million parameters, in a shape that edgekit would compile.
HUGE = (
    "hidden = 32\nintermediate = 48\nlayers = 2\nheads = 2\nkv_heads = 1\n",
    "hidden = 65536\nintermediate = 1048576\nlayers = 2\nheads = 64\nkv_heads = 64\n",
)
# A plain install, as far as imports can tell.
WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "accelerate"):
    sys.modules[name] = None
from edgekit.cli import main
for arguments in (["--help"], ["train", "--help"], ["train", sys.argv[1]]):
    try:
        main(arguments, prog_name="edgekit")
    except SystemExit as end:
        print("ended with", end.code)
"""


def run(*arguments, code=0):
    done = CliRunner().invoke(main, ["train", *map(str, arguments)])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


def test_training_prints_figures_on_stdout_and_how_it_goes_on_stderr(recipe_file, monkeypatch):
    monkeypatch.chdir(recipe_file.parent)
    done = run("toy.toml", "--work", "work")
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[:4]] == [
        "model",
        "trained on",
        "held-out loss",
        "perplexity",
    ]
    assert done.stdout.splitlines()[-1].startswith("q4g32,head=q4g32  ")
    assert "parameters on 384 tokens (" in done.stderr
    assert "step 3 of 6: loss " in done.stderr and "step 6 of 6: held-out loss " in done.stderr
    written = json.loads((recipe_file.parent / "toy" / "training.json").read_text())
    assert json.loads(run("toy.toml", "--work", "work", "--json").stdout) == written


def test_tokens_are_kept_in_the_cache_where_no_folder_is_named(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    run(recipe_file, "-o", tmp_path / "out")
    assert {file.suffix for file in (tmp_path / "cache" / "train").iterdir()} == {".json", ".tokens"}


def test_the_tokens_in_the_cache_stay_while_a_training_uses_them(recipe_file, tmp_path, monkeypatch):
    def train(recipe, output, *, work, progress, tell):
        work.mkdir()
        (work / "some.tokens").write_bytes(b"tokens")
        Cache(tmp_path / "cache", Bytes(0)).make_room()  # as another command does when it ends
        assert (work / "some.tokens").exists()
        raise UsageError("enough")

    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgekit.train.run.train", train)
    assert "edgekit: enough" in run(recipe_file, "-o", tmp_path / "out", code=2).stderr
    Cache(tmp_path / "cache", Bytes(0)).make_room()
    assert not (tmp_path / "cache" / "train").exists()


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (("hidden = 32", "hidden = 30"), 2, "hidden 30 is not an even number"),
        (('["q4g32"]', '["q4g32,none.*=q2g32"]'), 2, "pattern 'none.*' matches no weight matrix"),
        (('"q3g32"', '"q3g32,none.*=q2g32"'), 2, "pattern 'none.*' matches no weight matrix"),
        (("q3g32", "q9g32"), 3, "unknown scheme 'q9g32'"),
        (("vocab = 300", "vocab = 5000"), 2, "text.vocab asks for 5000"),
        (("batch = 4", "batch = 4000"), 2, "fewer than a batch of 4000"),
        (("context = 16", "context = 200"), 2, "text.held_out has "),
        (('["held-out.txt"]', '["train.txt"]'), 2, "train.txt is in text.train and in text.held_out"),
        (("intermediate = 48", "intermediate = 1000000000"), 3, "intermediate_size in config.json is 1000000000"),
        (HUGE, 9, "weights, gradients and moments of 447 billion parameters take "),
    ],
)
def test_a_mistake_ends_in_a_sentence_and_its_code(recipe_file, change, code, sentence):
    text = recipe_file.read_text()
    assert change[0] in text
    recipe_file.write_text(text.replace(*change))
    out = recipe_file.parent / "out"
    done = run(recipe_file, "-o", out, "--work", recipe_file.parent / "work", code=code)
    assert done.stdout == "" and sentence in done.stderr and "\nhint: " in done.stderr
    assert not out.exists()


def test_a_plain_install_has_the_help_and_says_what_to_install(recipe_file):
    command = [sys.executable, "-P", "-c", WITHOUT_TORCH, str(recipe_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    general, own = done.stdout.split("ended with ")[:2]
    assert "\n  train " in general and "RECIPE" in own and done.stdout.endswith("ended with 4\n")
    assert done.stderr == (
        "edgekit: training needs torch and transformers and accelerate\nhint: pip install 'edgekit[train]'\n"
    )
