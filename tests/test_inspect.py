"""`edgekit inspect --condensation`: what it shows of a checkpoint, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.checkpoint import open_checkpoint
from edgekit.cli import _condensation, main
from edgekit.condensation import measure_condensation
from edgekit.reference import probe_text, tokens_of
from edgekit.scheme import parse_scheme
from edgekit.sensitivity import measure_sensitivity, sensitivity_work
from edgekit.testing import make_checkpoint


def run(*arguments, code=0):
    done = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", context=64, tied=False)


def test_the_json_holds_the_figures_of_every_layer(model):
    done = run(model, "--condensation", "--tokens", 100, "--bits", "3,2", "--json")
    found = json.loads(done.stdout)
    checkpoint = open_checkpoint(model)
    ids = tokens_of(checkpoint, probe_text())[:100]
    sequences = [ids[:64], ids[64:]]
    assert (found["tokens"], found["sequences"], found["method"]) == (98, 2, "rtn")
    assert [layer["layer"] for layer in found["layers"]] == ["embedding", "0", "1", "head"]
    schemes = [parse_scheme("q3g64"), parse_scheme("q2g64")]
    for part, by_scheme in measure_sensitivity(checkpoint, sequences, schemes).items():
        kld = next(layer["kld"] for layer in found["layers"] if layer["layer"] == part)
        # On two threads sums may be added in another order.
        assert kld == pytest.approx({str(scheme): value for scheme, value in by_scheme.items()}, rel=1e-4)
    for layer, figures in zip(found["layers"], measure_condensation(checkpoint, sequences), strict=False):
        expected = dataclasses.asdict(figures)
        assert {name: layer[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    head = found["layers"][-1]
    assert "cosine" not in head
    assert list(head["weight_kurtosis"]) == ["lm_head"]
    assert next(iter(found["layers"][1]["weight_kurtosis"])) == "model.layers.0.self_attn.q_proj"
    assert found["hurting"].keys() == {"q3g64", "q2g64"}


def test_the_table_has_a_row_a_layer_and_progress_is_on_stderr(model, tmp_path):
    text = tmp_path / "text"
    text.write_text("the man and the woman went on in the rain ")
    done = run(model, "--condensation", "--text", text, "--bits", "4")
    headings, _, *rows, empty, judgement, basis = done.stdout.splitlines()
    assert headings.split("  ")[0] == "layer" and headings.endswith("KLD q4g64")
    assert [row.split()[0] for row in rows] == ["embedding", "0", "1", "head"]
    assert [len(row.split()) for row in rows] == [6, 6, 6, 3]
    assert empty == ""
    assert judgement.startswith("Hurt when rounded alone (KLD above 0.1 nats): at q4g64 ")
    count = len(tokens_of(open_checkpoint(model), text.read_text())) - 1
    assert basis.startswith(f"KLD in nats a token over {count} tokens")
    assert f"rests on {count} tokens" in done.stderr and "KLD of each layer alone at q4g64" in done.stderr


def test_the_parts_that_hurt_are_named_the_worst_first(capsys):
    klds = {"embedding": 0.3, "0": 0.1, "1": 2.0, "2": 0.11, "3": 0.15, "4": 0.6}
    found = {
        "tokens": 9,
        "hurts_above": 0.1,
        "layers": [
            {"layer": part, "weight_kurtosis": {"x": 3.0}, "kld": {"q2g64": kld, "q4g64": 0.0}}
            for part, kld in klds.items()
        ],
        "hurting": {"q4g64": [], "q2g64": ["1", "4", "embedding", "3", "2"]},
    }
    _condensation.show_measured(found)
    line = "at q4g64 none; at q2g64 1 (2), 4 (0.6), embedding (0.3), 3 (0.15) and 1 more."
    assert f"Hurt when rounded alone (KLD above 0.1 nats): {line}" in capsys.readouterr().out


def test_every_sequence_begins_with_the_token_that_begins_a_text(model):
    checkpoint = dataclasses.replace(open_checkpoint(model), bos_id=7)
    first, second = _condensation._sequences(checkpoint, np.arange(100, 180, dtype=np.uint32))
    assert first.tolist() == [7, *range(100, 163)]  # 64 positions
    assert second.tolist() == [7, *range(163, 180)]


def test_a_large_model_is_run_on_fewer_tokens(model, monkeypatch):
    work = sensitivity_work(open_checkpoint(model).decoder, [parse_scheme("q4g64")])
    monkeypatch.setattr(_condensation, "_MOST_WORK", 200 * work)
    # 200 tokens in windows of 64; of each all but the first are scored.
    assert json.loads(run(model, "--condensation", "--bits", "4", "--json").stdout)["tokens"] == 196
    monkeypatch.setattr(_condensation, "_MOST_WORK", work)
    assert json.loads(run(model, "--condensation", "--bits", "4", "--json").stdout)["tokens"] == 126


@pytest.mark.parametrize(
    ("arguments", "sentence", "hint"),
    [
        (["--text", "x"], "--text needs --condensation", "only headers"),
        (["--tokens", "9"], "--tokens needs --condensation", "only headers"),
        (["--bits", "4"], "--bits needs --condensation", "only headers"),
        (["--condensation", "--bits", "5"], "--bits is '5'", "whole numbers from 2 to 4"),
        (["--condensation", "--bits", ""], "--bits is ''", "whole numbers from 2 to 4"),
        (["--condensation", "--tokens", "1"], "1 is not in the range 2<=x<=4096", "inspect --help"),
        (["--condensation", "--text", "/nowhere"], "cannot read /nowhere", ""),
    ],
)
def test_a_mistake_ends_in_a_sentence_and_a_hint(model, arguments, sentence, hint):
    done = run(model, *arguments, code=2)
    assert done.stdout == ""
    assert sentence in done.stderr and hint in done.stderr


def test_a_bundle_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    done = run(tmp_path, "--condensation", code=2)
    assert "is a bundle, and --condensation needs a checkpoint" in done.stderr
    assert "hint: give the checkpoint folder it was compiled from" in done.stderr


def test_a_text_too_short_and_a_checkpoint_without_a_tokenizer_are_refused(model, tmp_path):
    text = tmp_path / "text"
    text.write_text("a")
    done = run(model, "--condensation", "--text", text, code=2)
    assert "too few to predict one" in done.stderr and "hint: give a longer text" in done.stderr
    silent = make_checkpoint(tmp_path / "silent", tokenizer=False)
    assert "holds no tokenizer.json" in run(silent, "--condensation", code=3).stderr
