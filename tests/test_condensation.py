"""Figures of token vectors and of weights: by hand, by their definitions, and on the hidden states of transformers."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from edgekit.checkpoint import open_checkpoint
from edgekit.condensation import (
    Condensation,
    condensation,
    condensation_by_layer,
    kurtosis,
    mean_condensation,
    measure_condensation,
    weight_kurtosis,
)
from edgekit.errors import Damaged, UsageError
from edgekit.testing import make_checkpoint, write_safetensors

RANDOM = np.random.default_rng(0).standard_normal((20, 12)) + 0.3
# Sums of at most some hundred terms in float64.
CLOSE = {"rel": 1e-12, "abs": 1e-12}


def figures(states):
    return dataclasses.asdict(condensation(states))


def test_vectors_of_one_direction_have_a_cosine_of_1_and_a_rank_of_1():
    states = np.outer([1.0, 2.0, 5.0], [3.0, 0.0, 4.0])
    # |mean h|^2 = (8/3)^2 * 25 and mean |h|^2 = 10 * 25; powers are as 9 : 0 : 16.
    expected = {
        "cosine": 1,
        "squared_cosine": 1,
        "effective_rank": 1,
        "mean_share": 64 / 90,
        "feature_kurtosis": (81 + 256) / 3 / (25 / 3) ** 2,
    }
    assert figures(states) == pytest.approx(expected, **CLOSE)


def test_orthogonal_vectors_of_one_length_have_a_cosine_of_0_and_their_number_as_rank():
    # The mean is 1/4 in each feature: its share is 4 / 16.
    expected = {"cosine": 0, "squared_cosine": 0, "effective_rank": 4, "mean_share": 1 / 4, "feature_kurtosis": 1}
    assert figures(np.eye(4)) == pytest.approx(expected, **CLOSE)


def test_opposite_vectors_have_a_cosine_of_minus_1_and_no_mean():
    found = condensation(np.array([[3.0, 4.0], [-3.0, -4.0]], np.float32))
    assert (found.cosine, found.squared_cosine, found.mean_share) == pytest.approx((-1, 1, 0), **CLOSE)


def test_singular_values_of_3_and_1_have_the_rank_of_their_entropy():
    # Shares of 3/4 and 1/4: exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = (4/3)^(3/4) * 4^(1/4).
    found = condensation(np.diag([3.0, 1.0])).effective_rank
    assert found == pytest.approx((4 / 3) ** 0.75 * 4**0.25, **CLOSE)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40)])
def test_the_rank_is_that_of_singular_values_that_were_put_in(shape):
    random = np.random.default_rng(2)
    count = min(shape)
    left, right = (np.linalg.qr(random.standard_normal((n, count)))[0] for n in shape)
    sigma = np.geomspace(1, 1e-4, count)
    shares = sigma / sigma.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    # Squares are known to 40 * 2^-52, so the smallest singular value to 40 * 2^-52 / 1e-8, relative: a share of 1e-5.
    assert condensation((left * sigma) @ right.T).effective_rank == pytest.approx(expected, rel=1e-9)


def test_many_vectors_of_one_direction_have_a_rank_of_1_whatever_rounding_adds():
    random = np.random.default_rng(3)
    states = np.outer(random.standard_normal(256), random.standard_normal(300))
    assert condensation(states).effective_rank == pytest.approx(1, **CLOSE)


def test_a_single_active_feature_has_a_kurtosis_of_as_many_as_there_are():
    assert condensation(np.array([[0.0, 2.0, 0.0], [0.0, -1.0, 0.0]])).feature_kurtosis == pytest.approx(3, **CLOSE)


def test_cosines_are_those_of_all_pairs_of_different_tokens():
    cosines = [
        a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        for i, a in enumerate(RANDOM)
        for j, b in enumerate(RANDOM)
        if i != j
    ]
    found = condensation(RANDOM)
    assert found.cosine == pytest.approx(np.mean(cosines), **CLOSE)
    assert found.squared_cosine == pytest.approx(np.mean(np.square(cosines)), **CLOSE)


def test_kurtosis_and_correlated_features_make_up_the_squared_cosines_of_rows_of_rms_1():
    n, d = RANDOM.shape
    rows = RANDOM / np.sqrt(np.square(RANDOM).mean(1, keepdims=True))
    sigma = rows.T @ rows / n
    correlated = np.square(sigma - np.diag(np.diag(sigma))).sum()
    found = condensation(rows)
    all_pairs = (found.squared_cosine * (n - 1) + 1) / n
    assert found.feature_kurtosis + correlated / d == pytest.approx(d * all_pairs, **CLOSE)


def test_a_vector_of_length_0_has_a_cosine_of_0_with_any_other():
    # Of six ordered pairs two have a cosine of 1.
    assert condensation(np.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])).cosine == pytest.approx(1 / 3, **CLOSE)
    assert condensation(np.zeros((2, 3))) == Condensation(0, 0, 0, 0, 0)


@pytest.mark.parametrize("states", [np.ones((1, 3)), np.ones(3), np.array([[1.0, np.nan], [1.0, 1.0]])])
def test_states_of_another_shape_or_not_finite_are_refused(states):
    with pytest.raises(ValueError, match="n at least 2 and finite"):
        condensation(states)


def test_layers_are_averaged_over_the_sequences_of_a_batch():
    layer = np.stack([np.eye(3), np.ones((3, 3))])
    first, second = condensation_by_layer([layer, np.eye(3)])
    assert first == mean_condensation([condensation(np.eye(3)), condensation(np.ones((3, 3)))])
    assert first.cosine == pytest.approx(0.5, **CLOSE)
    assert second == condensation(np.eye(3))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_figures_of_a_checkpoint_are_those_of_the_hidden_states_of_transformers(model_type, tmp_path):
    config = {"sliding_window": 7} if model_type == "mistral" else None
    make_checkpoint(tmp_path, model_type=model_type, layers=3, config=config)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    # transformers norms the last entry of its hidden states; what the last block itself gives is told by a hook.
    last = []
    model.model.layers[-1].register_forward_hook(lambda block, arguments, output: last.append(output))
    sequences = [np.arange(1, 30, dtype=np.uint32), np.arange(100, 112, dtype=np.uint32)]
    by_sequence = []
    for ids in sequences:
        with torch.no_grad():
            states = model(torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True).hidden_states
        by_sequence.append(condensation_by_layer([state.numpy() for state in (*states[:-1], last.pop())]))
    seen = []
    found = measure_condensation(
        open_checkpoint(tmp_path), sequences, progress=lambda done, total: seen.append((done, total))
    )
    assert len(found) == 4
    for layer, figures_of_layer in enumerate(found):
        expected = mean_condensation([figures_of_sequence[layer] for figures_of_sequence in by_sequence])
        # Float32 sums of at most 96 terms of about one, added in another order.
        assert dataclasses.asdict(figures_of_layer) == pytest.approx(dataclasses.asdict(expected), rel=1e-4, abs=1e-5)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_sequence_beyond_the_context_is_refused(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, context=8))
    with pytest.raises(UsageError, match="a context of 9 tokens"):
        measure_condensation(checkpoint, [np.zeros(9, np.uint32)])


def test_two_values_have_a_kurtosis_of_1_and_a_spike_among_zeros_a_high_one():
    assert kurtosis([np.array([-1.0, 1.0], np.float32)]) == pytest.approx(1, **CLOSE)
    # One among n: mean 1/n, so the kurtosis is 1 / (p (1 - p)) - 3 with p = 1/n.
    assert kurtosis([np.eye(1, 10)]) == pytest.approx(1 / 0.09 - 3, **CLOSE)
    assert kurtosis([np.full(5, 7.0)]) == 0


def test_kurtosis_is_the_same_in_blocks_and_far_from_zero():
    values = np.random.default_rng(1).standard_normal(4000) ** 3
    expected = np.mean((values - values.mean()) ** 4) / values.var() ** 2
    blocks = (values + 1000).reshape(8, 20, 25)
    # Values of about 1000 in float64 are known to 1e-13, relative to a variance of 15.
    assert kurtosis(blocks) == pytest.approx(expected, rel=1e-9)
    assert kurtosis([np.linspace(-1, 1, 10001)]) == pytest.approx(1.8, rel=1e-6)


def test_every_matrix_of_a_checkpoint_has_a_kurtosis(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, layers=1, tied=False))
    found = weight_kurtosis(checkpoint)
    assert len(found) == 9  # embedding, q, k, v, o, gate, up, down, head
    values = checkpoint.read("lm_head.weight").astype(np.float64)
    expected = np.mean((values - values.mean()) ** 4) / values.var() ** 2
    assert found["lm_head.weight"] == pytest.approx(expected, rel=1e-9)


def test_weights_that_are_not_finite_are_damage(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, dtype="F32", layers=1))
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = np.nan
    write_safetensors(tmp_path / "model.safetensors", tensors, "F32")
    with pytest.raises(Damaged, match=r"mlp\.up_proj\.weight has weights that are not finite"):
        weight_kurtosis(open_checkpoint(tmp_path))
    with pytest.raises(Damaged, match="infinite or not a number"):
        measure_condensation(open_checkpoint(tmp_path), [np.arange(5, dtype=np.uint32)])
