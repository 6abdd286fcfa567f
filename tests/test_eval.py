"""Comparison over a text: which tokens are scored, and that transformers gives the same perplexity."""

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.cli import main
from edgekit.coherence import metrics
from edgekit.errors import UsageError
from edgekit.eval import evaluate
from edgekit.measure import Runner
from edgekit.testing import FakeDevice, Reply, make_checkpoint, make_program_header

TEXT = "The island lies about forty miles from the coast. It is long and narrow, and in winter the wind is cold.\n" * 8
PROBE = Reply("probe", json.dumps({"coherence": {"rep4": 0.25, "reference_rep4": 0.5}}).encode())


class Fixed:
    """A reference whose logits at a position depend only on how many tokens came before it in the window."""

    def __init__(self, rows):
        self.rows = rows
        self.asked = []

    def reset(self):
        self.asked.append([])

    def prefill(self, ids):
        self.asked[-1] += ids
        return self.rows[: len(ids)]


def start(tmp_path, replies):
    (tmp_path / "model.edge").touch()
    program = make_program_header(tmp_path / "edgekit-run")
    return Runner(FakeDevice(replies), program=program, model=tmp_path / "model.edge")


def test_every_token_but_the_first_of_a_window_is_scored(tmp_path):
    random = np.random.default_rng(0)
    expected, found = random.normal(size=(2, 3, 5)).astype(np.float32)
    replies = [PROBE, *(Reply("logits", files={"logits": found[:rows].tobytes()}) for rows in (3, 2))]
    runner = start(tmp_path, replies)
    reference = Fixed(expected)
    result = evaluate(runner, reference, np.array([0, 1, 2, 3, 4], np.uint32), window=3, vocab=5)
    rows = [0, 1, 0]
    by_hand = metrics(expected[rows], found[rows], np.array([1, 2, 4], np.uint32), rep4=0.25, reference_rep4=0.5)
    assert result == by_hand
    assert reference.asked == [[0, 1, 2], [3, 4]]


def test_a_text_of_one_token_is_refused(tmp_path):
    (tmp_path / "model.edge").touch()
    runner = start(tmp_path, [])
    with pytest.raises(UsageError, match="the text has 1 tokens, too few to predict one"):
        evaluate(runner, Fixed(None), np.array([7], np.uint32), window=3, vocab=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", context=64)


@pytest.fixture
def bundle(model, tmp_path):
    run("compile", model, "--target", "host", "--recipe", "f32", "-o", tmp_path / "f32")
    return tmp_path / "f32"


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def test_the_perplexity_of_a_float_bundle_is_that_of_transformers(model, bundle, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "text").write_text(TEXT)
    found = json.loads(
        run("eval", bundle, "--reference", model, "--text", tmp_path / "text", "--context", 32, "--json").stdout
    )
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(model)(TEXT).input_ids
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ids), 32):
            window = torch.tensor([ids[start : start + 32]])
            scored = window.shape[1] - 1
            if scored:
                total += float(theirs(window, labels=window).loss) * scored
                count += scored
    assert found["tokens"] == count
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-3)
    assert found["reference_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found["same_top"] > 0.99
    assert set(found) >= {"kld_mean", "kld_p99", "rep4", "verdict"}


def test_without_a_text_the_bundles_probe_is_used(bundle):
    found = json.loads(run("eval", bundle, "--json").stdout)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {name: found[name] for name in manifest["coherence"]} == manifest["coherence"]
    assert found["warnings"] == []  # the runner's doubts are about times, which are not shown


def test_a_text_without_reference_is_refused_if_the_bundle_is_not_of_the_embedded_model(bundle, tmp_path):
    (tmp_path / "text").write_text(TEXT)
    done = run("eval", bundle, "--text", tmp_path / "text", code=2)
    assert "was not made from the checkpoint that comes with edgekit" in done.stderr
    assert "hint: --reference DIR" in done.stderr


def test_another_reference_is_compared_with_and_doubted(bundle, tmp_path):
    other = make_checkpoint(tmp_path / "other", context=64, seed=5)
    (tmp_path / "text").write_text(TEXT)
    done = run("eval", bundle, "--reference", other, "--text", tmp_path / "text", "--json")
    assert f"f32 was not made from {other}: what follows compares two different models" in done.stderr
    assert json.loads(done.stdout)["verdict"] == "collapsed"


def test_of_tokenizers_that_truncate_alike_the_tokens_are_compared(tmp_path):
    models = [make_checkpoint(tmp_path / str(seed), context=64, seed=seed) for seed in (1, 2)]
    for model in models:
        tokenizer = json.loads((model / "tokenizer.json").read_text())
        tokenizer["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
        (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    run("compile", models[0], "--target", "host", "--recipe", "f32", "-o", tmp_path / "f32")
    done = run("eval", tmp_path / "f32", "--reference", models[1])
    assert "what follows compares two different models" in done.stderr


def test_a_reference_with_another_tokenizer_is_refused(bundle, tmp_path):
    other = make_checkpoint(tmp_path / "other", context=64)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = run("eval", bundle, "--reference", other, code=2)
    assert "their tokens differ, so nothing can be compared" in done.stderr


def test_a_gate_that_is_not_passed_gives_code_5_after_the_figures(bundle, model, tmp_path):
    other = make_checkpoint(tmp_path / "other", context=64, seed=5)
    (tmp_path / "text").write_text(TEXT)
    given = ("eval", bundle, "--text", tmp_path / "text", "--json")
    done = run(*given, "--reference", other, "--gate", "degraded", code=5)
    assert json.loads(done.stdout)["verdict"] == "collapsed"
    assert "edgekit: the model is collapsed and --gate asks for degraded: same_top 0.0" in done.stderr
    assert "same_top" in done.stderr and "hint: a recipe with more bits" in done.stderr
    run(*given, "--reference", model, "--gate", "coherent")


def test_a_window_beyond_the_bundles_context_is_refused(bundle, model):
    done = run("eval", bundle, "--reference", model, "--context", 65, code=2)
    assert "--context 65 is longer than the bundle's context of 64 tokens" in done.stderr
    assert "hint: --context is at most 64, or compile with a longer one" in done.stderr


def test_a_window_for_the_probe_is_refused(bundle):
    assert "--context needs --text or --reference" in run("eval", bundle, "--context", 32, code=2).stderr


def test_a_text_that_is_not_utf8_is_refused(bundle, model, tmp_path):
    (tmp_path / "text").write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in run("eval", bundle, "--reference", model, "--text", tmp_path / "text", code=2).stderr
