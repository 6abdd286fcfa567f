"""The torch module computes what the ONNX graph does on ONNX Runtime, however the tokens are divided."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Unsupported
from edgekit.graph import Session, build_graph
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph, quantize
from edgekit.scheme import parse_recipe
from edgekit.testing import make_checkpoint
from edgekit.torch_module import StatefulDecoder, TorchDecoder

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, one head of keys, untied": {"heads": 3, "kv_heads": 1, "head_dim": 10, "hidden": 51, "tied": False},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 24, "tied": False},
    "mistral": {"model_type": "mistral", "config": {"sliding_window": 5}},
}
CONTEXT = 24
IDS = np.random.default_rng(0).integers(0, 320, 20)
# Float32 sums of at most a hundred terms in another order, through two layers; logits are below 5.
TOLERANCE = 1e-4


def quantized(folder: Path, recipe: str = "f32", **shape: Any) -> QuantGraph:
    checkpoint = open_checkpoint(make_checkpoint(folder / "checkpoint", **shape))
    return quantize(build_graph(checkpoint, context=CONTEXT), checkpoint, parse_recipe(recipe))


def expected(quant: QuantGraph, folder: Path) -> Any:
    """The logits of IDS on ONNX Runtime, in float32."""
    portable_onnx(quant, folder / "model.onnx")
    with Session(folder / "model.onnx", threads=1, prepack=True, exact=True) as session:
        return session.logits(IDS)


@pytest.mark.parametrize("shape", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("cuts", [(), (7, 8, 9), tuple(range(1, 20))], ids=["prefill", "chunks", "decode"])
def test_every_architecture_gives_the_logits_of_the_graph(
    shape: dict[str, Any], cuts: tuple[int, ...], tmp_path: Path
) -> None:
    quant = quantized(tmp_path, **shape)
    module = StatefulDecoder(quant)
    pieces = np.split(IDS, cuts)
    starts = [0, *cuts]
    logits = [
        module(torch.from_numpy(piece[None]), torch.tensor([start]))[0].numpy()
        for piece, start in zip(pieces, starts, strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(logits), expected(quant, tmp_path), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("recipe", ["q4g32", "q2g64,head=q8g32", "q4g64,method=rtn"])
def test_weights_are_the_values_of_the_codes(recipe: str, tmp_path: Path) -> None:
    quant = quantized(tmp_path, recipe)
    logits = StatefulDecoder(quant)(torch.from_numpy(IDS[None]), torch.arange(20))[0].numpy()
    np.testing.assert_allclose(logits, expected(quant, tmp_path), rtol=0, atol=TOLERANCE)


def test_the_cache_is_given_back_and_nothing_of_the_old_one_changes(tmp_path: Path) -> None:
    quant = quantized(tmp_path)
    module = TorchDecoder(quant)
    past = [torch.zeros(shape) for shape in module.cache_shapes.values()]
    _, present = module(torch.from_numpy(IDS[None, :7]), torch.tensor([0]), past)
    logits, present = module(torch.from_numpy(IDS[None, 7:]), torch.tensor([7]), present)
    np.testing.assert_allclose(logits[0].numpy(), expected(quant, tmp_path)[7:], rtol=0, atol=TOLERANCE)
    assert all(not cache.any() for cache in past)
    assert list(module.cache_shapes) == ["past_key_0", "past_value_0", "past_key_1", "past_value_1"]
    assert [tuple(cache.shape) for cache in present] == [(1, 2, CONTEXT, 16)] * 4


def test_what_lies_behind_the_position_is_forgotten(tmp_path: Path) -> None:
    module = StatefulDecoder(quantized(tmp_path))
    module(torch.from_numpy(IDS[None]), torch.tensor([0]))
    again = module(torch.from_numpy(IDS[None, 3:6]), torch.tensor([3]))
    fresh = StatefulDecoder(quantized(tmp_path))
    fresh(torch.from_numpy(IDS[None, :3]), torch.tensor([0]))
    torch.testing.assert_close(again, fresh(torch.from_numpy(IDS[None, 3:6]), torch.tensor([3])))


def test_a_tied_head_shares_the_table_of_the_embedding(tmp_path: Path) -> None:
    module = TorchDecoder(quantized(tmp_path))
    (embedding,) = module.embeddings.values()
    assert module.linears["model_embed_tokens_weight"].weight is embedding.weight


def test_an_unknown_operator_is_refused_by_name(tmp_path: Path) -> None:
    quant = quantized(tmp_path)
    first = next(iter(quant.graph.model.graph))
    quant.graph.model.graph.append(ir.node("Celu", [first.outputs[0]]))
    with pytest.raises(Unsupported, match="the operator Celu has no counterpart"):
        TorchDecoder(quant)


def test_a_deep_model_can_be_exported(tmp_path: Path) -> None:
    """Exporters follow what the module reads; a chain of all the nodes would be too deep for Python's stack."""
    module = StatefulDecoder(quantized(tmp_path, layers=32))
    example = (torch.zeros((1, 2), dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    exported = torch.export.export(module, example, strict=True)
    assert exported.module()(*example).shape == (1, 2, 320)
