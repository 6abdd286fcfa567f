"""Inputs of the linear layers, against hooks in transformers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from edgekit import calibrate
from edgekit.calibrate import INDEX, measure_inputs, open_inputs
from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import Damaged, UsageError
from edgekit.graph import build_graph, save_graph
from edgekit.testing import make_checkpoint, write_safetensors

QKV = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
EMBEDDING = "model.embed_tokens.weight"


def sequences() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 320, count) for count in (40, 33, 1)]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    folder = tmp_path_factory.mktemp(request.param)
    yield open_checkpoint(make_checkpoint(folder, model_type=request.param, tied=request.param == "llama"))


def hooked(directory: Path) -> dict[str, np.ndarray]:
    """All inputs [tokens, k] of every linear module of transformers' model, by the name of its matrix."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    seen: dict[str, list[np.ndarray]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _, args, __, name=name: seen.setdefault(f"{name}.weight", []).append(args[0][0].numpy())
            )
    with torch.no_grad():
        for ids in sequences():
            model(torch.tensor(ids[None]))
    return {name: np.concatenate(parts).astype(np.float64) for name, parts in seen.items()}


def test_moments_are_those_of_what_transformers_multiplies_by(checkpoint: Checkpoint) -> None:
    found = measure_inputs(checkpoint, sequences())
    expected = hooked(checkpoint.path)
    if checkpoint.decoder.tied:
        expected[EMBEDDING] = expected.pop("lm_head.weight")
    assert found.keys() == expected.keys() and len(found) == 15
    for name, x in expected.items():
        assert found[name].tokens == len(x) == 74
        # Activations of two layers in float32: some 1e-6 of the largest.
        np.testing.assert_allclose(found[name].second, x.T @ x / 74, rtol=0, atol=1e-5 * np.square(x).max())
        np.testing.assert_allclose(found[name].mean, x.mean(0), rtol=0, atol=1e-5 * np.abs(x).max())
        assert found[name].second.dtype == found[name].mean.dtype == np.float32


def test_layers_that_share_an_input_share_its_moments(checkpoint: Checkpoint) -> None:
    found = measure_inputs(checkpoint, sequences())
    assert found[QKV[0]] is found[QKV[1]] is found[QKV[2]]
    assert found["model.layers.1.mlp.gate_proj.weight"] is found["model.layers.1.mlp.up_proj.weight"]
    assert len({id(inputs) for inputs in found.values()}) == 2 * 4 + 1  # four a layer, and the head's


def test_it_matters_not_how_much_is_measured_at_once(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    at_once = measure_inputs(checkpoint, sequences())
    monkeypatch.setattr(calibrate, "_PASS_BYTES", 1)
    monkeypatch.setattr(calibrate, "_BATCH_BYTES", 1)
    singly = measure_inputs(checkpoint, sequences(), progress=lambda *call: seen.append(call))
    for name, inputs in at_once.items():
        np.testing.assert_allclose(inputs.second, singly[name].second, rtol=1e-5, atol=1e-5)
    assert len(seen) == 9 * 3 and seen[0] == (40, 9 * 74) and seen[-1] == (9 * 74, 9 * 74)


def test_inputs_in_a_folder_are_those_in_memory(checkpoint: Checkpoint, tmp_path: Path) -> None:
    expected = measure_inputs(checkpoint, sequences())
    written = measure_inputs(checkpoint, sequences(), directory=tmp_path)
    opened = open_inputs(tmp_path)
    assert isinstance(written[QKV[0]].second, np.memmap)
    for found in (written, opened):
        assert found.keys() == expected.keys() and found[QKV[0]] is found[QKV[2]]
        for name, inputs in expected.items():
            np.testing.assert_array_equal(found[name].second, inputs.second)
            np.testing.assert_array_equal(found[name].mean, inputs.mean)
            assert found[name].tokens == 74


def test_a_graph_that_was_saved_is_used(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measure_inputs(checkpoint, sequences())
    save_graph(build_graph(checkpoint, context=64), tmp_path)
    files = sorted(tmp_path.iterdir())
    monkeypatch.setattr(calibrate, "save_graph", lambda *_: pytest.fail("the graph was saved again"))
    found = measure_inputs(checkpoint, sequences(), saved=tmp_path)
    for name, inputs in expected.items():
        np.testing.assert_allclose(found[name].second, inputs.second, rtol=1e-5, atol=1e-5)
    assert sorted(tmp_path.iterdir()) == files
    with pytest.raises(UsageError, match="65 tokens do not fit the context"):
        measure_inputs(checkpoint, [list(range(65))], saved=tmp_path)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "there are no tokens to calibrate on"),
        ([[]], "there are no tokens to calibrate on"),
        ([[1], [320]], "the token 320 is outside the vocabulary"),
        ([[-1]], "the token -1 is outside the vocabulary"),
        ([list(range(257))], "a context of 257 tokens is outside the model's"),
    ],
)
def test_tokens_that_the_model_cannot_read_are_refused(
    checkpoint: Checkpoint, ids: list[list[int]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        measure_inputs(checkpoint, ids)


def test_activations_that_overflow_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, dtype="F32")
    checkpoint = open_checkpoint(tmp_path)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    for part in ("gate", "up"):
        tensors[f"model.layers.0.mlp.{part}_proj.weight"] *= np.float32(1e14)
    write_safetensors(tmp_path / "model.safetensors", tensors, "F32")
    with pytest.raises(Damaged, match=r"the inputs of model\.layers\.0\.mlp\.down_proj\.weight are not finite"):
        measure_inputs(open_checkpoint(tmp_path), sequences())


@pytest.mark.parametrize("damage", ["missing", "index", "shape", "type", "cut", "empty"])
def test_a_folder_of_something_else_is_refused(checkpoint: Checkpoint, tmp_path: Path, damage: str) -> None:
    measure_inputs(checkpoint, sequences(), directory=tmp_path)
    file = tmp_path / "model.norm.second.npy"
    match damage:
        case "missing":
            file.unlink()
        case "index":
            (tmp_path / INDEX).write_text("[]")
        case "shape":
            np.save(file, np.zeros((64, 63), np.float32))
        case "type":
            np.save(file, np.zeros((64, 64)))
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "empty":
            file.write_bytes(b"")
    with pytest.raises(Damaged, match="holds no inputs") as refusal:
        open_inputs(tmp_path)
    assert refusal.value.hint == f"delete {tmp_path} and compile again"
