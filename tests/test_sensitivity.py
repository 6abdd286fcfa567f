"""The divergence that rounding one part causes, against transformers with the rounded values in its weights."""

import numpy as np
import pytest
import torch
import transformers

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Damaged, UsageError
from edgekit.methods import rtn
from edgekit.quantize import QuantTensor
from edgekit.scheme import parse_scheme
from edgekit.sensitivity import measure_sensitivity, sensitivity_work
from edgekit.testing import make_checkpoint, write_safetensors

SEQUENCES = [np.arange(1, 30, dtype=np.uint32), np.arange(100, 112, dtype=np.uint32)]
SCHEMES = [parse_scheme("q4g64"), parse_scheme("q2g32")]


def logits_of(model):
    with torch.no_grad():
        return [model(torch.tensor(ids[None].astype(np.int64))).logits[0, :-1].double() for ids in SEQUENCES]


def divergence(reference, found):
    """Nats a token, over the tokens of all sequences but the first of each."""
    total = count = 0
    for exact, rounded in zip(reference, found, strict=True):
        expected = exact.log_softmax(-1)
        total += (expected.exp() * (expected - rounded.log_softmax(-1))).sum().item()
        count += len(exact)
    return total / count


def round_weights(model, prefix, scheme):
    """Quantizes every matrix whose name begins with `prefix`, in place."""
    for name, weight in model.state_dict().items():
        if name.startswith(prefix) and weight.ndim == 2:
            codes, scales = rtn.quantize_matrix(weight.numpy(), scheme)
            values = QuantTensor(name, scheme, tuple(weight.shape), codes, scales).values()
            weight.copy_(torch.from_numpy(values))


@pytest.mark.parametrize("variant", [{}, {"tied": False}, {"model_type": "qwen2", "tied": False}])
def test_divergences_are_those_of_transformers_with_one_part_rounded(variant, tmp_path):
    make_checkpoint(tmp_path, **variant)
    tied = variant.get("tied", True)
    prefixes = {"embedding": "model.embed_tokens", "0": "model.layers.0.", "1": "model.layers.1."}
    if not tied:
        prefixes["head"] = "lm_head"
    found = measure_sensitivity(open_checkpoint(tmp_path), SEQUENCES, SCHEMES)
    assert found.keys() == prefixes.keys()

    def load():
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()

    reference = logits_of(load())
    for part, prefix in prefixes.items():
        for scheme in SCHEMES:
            model = load()
            round_weights(model, prefix, scheme)
            expected = divergence(reference, logits_of(model))
            assert expected > 1e-4
            # The float32 logits of both are known to 1e-4 at worst, and divergences here to some parts in a thousand.
            assert found[part][scheme] == pytest.approx(expected, rel=5e-3), (part, str(scheme))


def test_parts_come_in_the_order_in_which_they_are_run(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, layers=3, tied=False))
    assert list(measure_sensitivity(checkpoint, SEQUENCES, SCHEMES[:1])) == ["embedding", "0", "1", "2", "head"]
    tied = open_checkpoint(make_checkpoint(tmp_path, layers=3))
    assert list(measure_sensitivity(tied, SEQUENCES, SCHEMES[:1])) == ["embedding", "0", "1", "2"]


def test_progress_rises_to_its_total_and_the_work_is_that_total(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path))
    seen = []
    measure_sensitivity(checkpoint, SEQUENCES, SCHEMES, progress=lambda done, total: seen.append((done, total)))
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert counts[-1] == seen[-1][1]
    # Weights of a block: q and o of 64 x 64, k and v of 32 x 64, three of 96 x 64; of the head: 320 x 64.
    block, head = 64 * (64 + 64 + 32 + 32 + 3 * 96), 320 * 64
    # In float: 2 blocks and the head; for each scheme 2 from the embedding, 2 + 1 from the blocks, and 3 heads.
    assert counts[-1] == (2 + 2 * 5) * block + (1 + 2 * 3) * head
    assert sensitivity_work(checkpoint.decoder, SCHEMES) == counts[-1]


def test_weights_that_are_not_finite_are_damage(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, dtype="F32", layers=1))
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    tensors["model.embed_tokens.weight"][200] = np.inf  # a token that the texts do not hold
    write_safetensors(tmp_path / "model.safetensors", tensors, "F32")
    with pytest.raises(Damaged, match="infinite or not a number"):
        measure_sensitivity(open_checkpoint(tmp_path), SEQUENCES, SCHEMES)


def test_a_sequence_beyond_the_context_is_refused(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, context=8))
    with pytest.raises(UsageError, match="a context of 29 tokens"):
        measure_sensitivity(checkpoint, SEQUENCES, SCHEMES)
