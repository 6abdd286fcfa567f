"""The sweep beside transformers, whose weights are replaced by the rounded ones."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgekit.checkpoint import open_checkpoint
from edgekit.coherence import metrics
from edgekit.errors import UsageError
from edgekit.graph import build_graph
from edgekit.quantize import quantize
from edgekit.scheme import parse_recipe
from edgekit.sweep import sweep
from edgekit.testing import make_checkpoint

WINDOW = 32
IDS = np.random.default_rng(0).integers(0, 256, 2 * WINDOW + 1).astype(np.uint32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("model") / "m"))


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()


@pytest.mark.parametrize("text", ["q4g32", "q2g32,head=q3g32"])
def test_figures_are_those_of_transformers_with_the_rounded_weights(checkpoint, text):
    recipe = parse_recipe(text)
    [found] = sweep(checkpoint, [recipe], IDS, window=WINDOW)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    expected = [logits_of(model, part) for part in (IDS[:WINDOW], IDS[WINDOW : 2 * WINDOW])]
    quant = quantize(build_graph(checkpoint, context=WINDOW), checkpoint, recipe)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in quant.tensors.items():
            parameters[name].copy_(torch.from_numpy(tensor.values()))
    rounded = [logits_of(model, part) for part in (IDS[:WINDOW], IDS[WINDOW : 2 * WINDOW])]
    by_hand = metrics(
        np.concatenate([rows[:-1] for rows in expected]),
        np.concatenate([rows[:-1] for rows in rounded]),
        np.concatenate([IDS[1:WINDOW], IDS[WINDOW + 1 : 2 * WINDOW]]),
    )
    assert found.coherence.tokens == 2 * (WINDOW - 1)
    assert found.coherence.kld_mean == pytest.approx(by_hand.kld_mean, rel=1e-3)
    assert found.coherence.same_top == by_hand.same_top
    assert found.coherence.perplexity == pytest.approx(by_hand.perplexity, rel=1e-4)
    assert found.coherence.reference_perplexity == pytest.approx(by_hand.reference_perplexity, rel=1e-4)


def test_float_weights_lose_nothing(checkpoint):
    [found] = sweep(checkpoint, [parse_recipe("f32")], IDS, window=WINDOW)
    assert found.coherence.kld_mean == pytest.approx(0, abs=1e-9)
    assert found.coherence.same_top == 1
    assert found.coherence.rep4 == found.coherence.reference_rep4
    assert found.bits == 32


def test_bits_count_codes_and_scales(checkpoint):
    shapes = checkpoint.decoder.tensor_shapes()
    assert all(shape[1] % 32 == 0 for shape in shapes.values() if len(shape) == 2)
    [found] = sweep(checkpoint, [parse_recipe("q4g32")], IDS, window=WINDOW)
    assert found.bits == pytest.approx(4 + 16 / 32)


def test_each_recipe_is_reported_when_it_begins(checkpoint):
    told = []
    recipes = [parse_recipe("q4g32"), parse_recipe("q8g32")]
    found = sweep(checkpoint, recipes, IDS, window=WINDOW, on_progress=lambda *part: told.append(part))
    assert [row.recipe for row in found] == recipes
    assert told == [(0, 2), (1, 2), (2, 2)]
    row = found[0].as_json()
    # A window of 32 holds a prompt of 16 tokens, the one that begins a text, and no more than this.
    assert row["continued_tokens"] == WINDOW - 16 - (checkpoint.bos_id is not None)
    assert (row["recipe"], row["method"], row["verdict"]) == ("q4g32,head=q4g32", "rtn", found[0].coherence.verdict)


def test_a_recipe_that_matches_nothing_is_refused(checkpoint):
    with pytest.raises(UsageError, match="matches no weight matrix"):
        sweep(checkpoint, [parse_recipe("q4g32,*.nothing=q8g32")], IDS, window=WINDOW)
