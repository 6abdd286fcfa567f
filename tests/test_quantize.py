"""Codes and scales of whole models: who gets which scheme, what is stored, and that memory stays small."""

import dataclasses
import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.calibrate import measure_inputs
from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import Damaged, Unsupported, UsageError
from edgekit.graph import Graph, build_graph
from edgekit.methods import Inputs, gptq
from edgekit.methods.rtn import quantize_matrix
from edgekit.quantize import QuantGraph, assign, open_quantized, quantize, widen_bf16
from edgekit.scheme import parse_recipe, parse_scheme
from edgekit.testing import make_checkpoint, write_safetensors

FORMATS = ("q8", "q4", "q3", "q2", "t2")
EMBEDDING = "model.embed_tokens.weight"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("llama"), hidden=72, head_dim=18))


@pytest.fixture(scope="module")
def graph(checkpoint: Checkpoint) -> Graph:
    return build_graph(checkpoint, context=16)


def dequantized(codes: npt.NDArray[np.int8], bits: npt.NDArray[np.uint16], group: int, offset: float) -> Any:
    """Value by value, as the design says: scale * (code + offset)."""
    values = np.empty(codes.shape, np.float32)
    for row, column in np.ndindex(codes.shape):
        scale = np.array(int(bits[row, column // group]) << 16, np.uint32).view(np.float32)
        values[row, column] = scale * np.float32(codes[row, column] + offset)
    return values


@pytest.mark.parametrize("format", FORMATS)
def test_a_tensor_is_what_the_method_makes_of_its_matrix(checkpoint: Checkpoint, graph: Graph, format: str) -> None:
    quant = quantize(graph, checkpoint, parse_recipe(f"{format}g64"))
    tensor = quant.tensors[UP]
    codes, scales = quantize_matrix(checkpoint.read(UP), parse_scheme(f"{format}g64"))
    np.testing.assert_array_equal(tensor.codes, codes)
    np.testing.assert_array_equal(tensor.scales, scales)
    assert tensor.shape == (96, 72) and tensor.scales.shape == (96, 2)  # 72 = 64 + 8: the last group is partial


@pytest.mark.parametrize("format", FORMATS)
def test_values_are_scale_times_code_plus_offset(checkpoint: Checkpoint, graph: Graph, format: str) -> None:
    tensor = quantize(graph, checkpoint, parse_recipe(f"{format}g32")).tensors[UP]
    expected = dequantized(tensor.codes, tensor.scales, 32, 0.5 if format == "q2" else 0.0)
    np.testing.assert_array_equal(tensor.values(), expected)
    np.testing.assert_array_equal(tensor.values(3, 5), expected[3:5])


def test_errors_are_squared_and_relative(checkpoint: Checkpoint, graph: Graph) -> None:
    quant = quantize(graph, checkpoint, parse_recipe("q4g32"))
    assert quant.errors.keys() == quant.tensors.keys() == quant.schemes.keys()
    for name, tensor in quant.tensors.items():
        weights = checkpoint.read(name).astype(np.float64)
        expected = np.square(tensor.values() - weights).sum() / np.square(weights).sum()
        assert quant.errors[name] == pytest.approx(expected, rel=1e-6)


def test_fewer_bits_lose_more(checkpoint: Checkpoint, graph: Graph) -> None:
    losses = [quantize(graph, checkpoint, parse_recipe(f"{format}g32")).errors[UP] for format in FORMATS]
    assert losses == sorted(losses) and losses[0] < 1e-4 and losses[-1] < 0.25


def test_floats_keep_their_values(checkpoint: Checkpoint, graph: Graph) -> None:
    quant = quantize(graph, checkpoint, parse_recipe("f32,*.down_proj=f16"))
    down = UP.replace("up", "down")
    np.testing.assert_array_equal(quant.tensors[UP].values(), checkpoint.read(UP))
    np.testing.assert_array_equal(quant.tensors[down].values(), checkpoint.read(down).astype(np.float16))
    assert quant.tensors[down].codes.dtype == np.float16 and quant.tensors[UP].scales.shape == (96, 0)
    assert quant.errors[UP] == 0 and quant.errors[down] < 2.0**-22  # half of 11 bits, squared


def test_vectors_are_kept_in_float32(checkpoint: Checkpoint, graph: Graph) -> None:
    quant = quantize(graph, checkpoint, parse_recipe("t2g64"))
    assert len(quant.vectors) == 5  # two norms a layer and the last
    np.testing.assert_array_equal(quant.vectors["model.norm.weight"], checkpoint.read("model.norm.weight"))


def test_a_tied_head_is_stored_once_and_an_untied_one_is_a_matrix(tmp_path: Path, graph: Graph) -> None:
    assert EMBEDDING in assign(graph, parse_recipe("q4g32")).schemes
    assert "lm_head.weight" not in assign(graph, parse_recipe("q4g32")).schemes
    untied = build_graph(open_checkpoint(make_checkpoint(tmp_path, tied=False)), context=16)
    schemes = assign(untied, parse_recipe("q2g32,lm_head=q8g64")).schemes
    assert [str(schemes[name]) for name in (EMBEDDING, "lm_head.weight", UP)] == ["q4g32", "q8g64", "q2g32"]


def test_assigning_reads_no_weights(checkpoint: Checkpoint, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.checkpoint.read_floats", lambda *_: pytest.fail("weights were read"))
    assert not assign(graph, parse_recipe("q4g32")).tensors


def test_gate_and_up_get_the_better_scheme_of_the_two(graph: Graph) -> None:
    quant = assign(graph, parse_recipe("q4g64,*.gate_proj=q4g32,*.layers.1.mlp.up_proj=q8g64"))
    schemes = [
        str(quant.schemes[f"model.layers.{at}.mlp.{part}_proj.weight"]) for at in (0, 1) for part in ("gate", "up")
    ]
    assert schemes == ["q4g32", "q4g32", "q8g64", "q8g64"]
    assert quant.notes == (
        "up_proj is q4g32 and not q4g64, as gate_proj in 1 layers: they are one matrix",
        "gate_proj is q8g64 and not q4g32, as up_proj in 1 layers: they are one matrix",
    )
    assert not assign(graph, parse_recipe("q4g64")).notes


def test_a_pattern_that_matches_nothing_is_refused(graph: Graph) -> None:
    with pytest.raises(UsageError, match=r"pattern 'lm_head' matches no weight matrix") as refusal:
        assign(graph, parse_recipe("q4g32,lm_head=q8g32"))
    assert "model.embed_tokens" in refusal.value.hint
    with pytest.raises(UsageError, match=r"'\*\.up_proj' matches no weight matrix that an earlier one leaves"):
        assign(graph, parse_recipe("q4g32,*.mlp.*=q8g32,*.up_proj=q2g32"))


def test_an_unknown_method_is_refused(graph: Graph) -> None:
    with pytest.raises(Unsupported, match="unknown quantization method 'magic'"):
        assign(graph, dataclasses.replace(parse_recipe("q4g32"), method="magic"))


@pytest.fixture(scope="module")
def inputs(checkpoint: Checkpoint) -> Mapping[str, Inputs]:
    return measure_inputs(checkpoint, [np.arange(16), np.arange(100, 116)])


@pytest.mark.parametrize("method", ["gptq", "rtn_bias"])
def test_a_method_that_needs_inputs_is_refused_without(checkpoint: Checkpoint, graph: Graph, method: str) -> None:
    with pytest.raises(UsageError, match=f"the method {method} needs the inputs of the linear layers"):
        quantize(graph, checkpoint, parse_recipe(f"q4g32,method={method}"))


def test_gptq_gets_the_inputs_of_each_matrix(
    checkpoint: Checkpoint, graph: Graph, inputs: Mapping[str, Inputs]
) -> None:
    quant = quantize(graph, checkpoint, parse_recipe("q3g64,method=gptq"), inputs=inputs)
    for name in (UP, EMBEDDING):  # a tied head is calibrated as the head
        scheme = quant.schemes[name]
        codes, scales = gptq.quantize_matrix(checkpoint.read(name), scheme, inputs[name])
        np.testing.assert_array_equal(quant.tensors[name].codes, codes)
        np.testing.assert_array_equal(quant.tensors[name].scales, scales)
        assert not np.array_equal(codes, quantize_matrix(checkpoint.read(name), scheme)[0])
    assert len(quant.vectors) == 5 and quant.graph is graph


def test_an_embedding_that_is_no_head_is_rounded_to_nearest(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, tied=False))
    quant = quantize(
        build_graph(checkpoint, context=16),
        checkpoint,
        parse_recipe("q3g64,head=q3g64,method=gptq"),
        inputs=measure_inputs(checkpoint, [np.arange(16)]),
    )
    codes, _ = quantize_matrix(checkpoint.read(EMBEDDING), parse_scheme("q3g64"))
    np.testing.assert_array_equal(quant.tensors[EMBEDDING].codes, codes)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_biases_take_off_what_rounding_adds_on_average(tmp_path: Path, model_type: str) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", model_type=model_type))
    graph, recipe = build_graph(checkpoint, context=16), parse_recipe("q2g64,method=rtn_bias")
    inputs = measure_inputs(checkpoint, [np.arange(16)])
    plain = quantize(graph, checkpoint, parse_recipe("q2g64"))
    (tmp_path / "codes").mkdir()
    for quant in (
        quantize(graph, checkpoint, recipe, inputs=inputs),
        quantize(graph, checkpoint, recipe, inputs=inputs, directory=tmp_path / "codes"),
        open_quantized(graph, checkpoint, recipe, tmp_path / "codes"),
    ):
        decoder = quant.graph.decoder
        assert decoder.qkv_bias and decoder.o_bias and decoder.mlp_bias
        assert len([name for name in quant.vectors if name.endswith(".bias")]) == 2 * 7
        for name, tensor in quant.tensors.items():
            np.testing.assert_array_equal(tensor.codes, plain.tensors[name].codes)
            bias = f"{name.removesuffix('.weight')}.bias"
            if name != EMBEDDING:
                lost = checkpoint.read(name).astype(np.float64) - tensor.values()
                before = checkpoint.read(bias) if bias in checkpoint.tensors else 0
                np.testing.assert_allclose(quant.vectors[bias], before + lost @ inputs[name].mean, rtol=0, atol=1e-5)
    assert (UP.replace("weight", "bias") in plain.vectors) is False and graph.decoder == checkpoint.decoder


@pytest.mark.parametrize("content", [None, b"", np.zeros(3, np.float32), np.zeros(96)])
def test_a_corrected_bias_that_is_damaged_is_refused(
    checkpoint: Checkpoint, graph: Graph, inputs: Mapping[str, Inputs], tmp_path: Path, content: object
) -> None:
    recipe = parse_recipe("q4g32,method=rtn_bias")
    quantize(graph, checkpoint, recipe, inputs=inputs, directory=tmp_path)
    file = tmp_path / f"{UP.removesuffix('.weight')}.bias.npy"
    if isinstance(content, np.ndarray):
        np.save(file, content)
    else:
        file.unlink()
        if content is not None:
            file.write_bytes(b"")
    with pytest.raises(Damaged, match=r"the file of model\.layers\.0\.mlp\.up_proj\.bias in .* (is not|has the wrong)"):
        open_quantized(graph, checkpoint, recipe, tmp_path)


def test_progress_rises_to_the_end(checkpoint: Checkpoint, graph: Graph) -> None:
    calls: list[tuple[str, int, int]] = []
    quantize(graph, checkpoint, parse_recipe("q4g32"), progress=lambda *call: calls.append(call))
    weights = sum(n * k for n, k in (shape for shape in graph.decoder.tensor_shapes().values() if len(shape) == 2))
    done = [call[1] for call in calls]
    assert done == sorted(done) and calls[0][:2] == (EMBEDDING, 0) and calls[-1] == ("", weights, weights)


def replaced(checkpoint: Checkpoint, folder: Path, name: str, value: float) -> Checkpoint:
    """The checkpoint in float32 with the first value of one tensor replaced."""
    tensors = {key: checkpoint.read(key) for key in checkpoint.tensors}
    tensors[name].reshape(-1)[0] = value
    make_checkpoint(folder, hidden=72, head_dim=18, dtype="F32")
    write_safetensors(folder / "model.safetensors", tensors, "F32")
    return open_checkpoint(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [UP, "model.norm.weight"])
def test_weights_that_are_not_finite_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, name: str, value: float
) -> None:
    bad = replaced(checkpoint, tmp_path / "bad", name, value)
    with pytest.raises(Damaged, match=f"{name} has weights that are not finite"):
        quantize(build_graph(bad, context=16), bad, parse_recipe("q4g32"))


def test_weights_beyond_any_reason_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bad = replaced(checkpoint, tmp_path / "bad", UP, 2e15)
    with pytest.raises(Damaged, match=rf"{UP} has weights above 1e\+15"):
        quantize(build_graph(bad, context=16), bad, parse_recipe("q4g32"))


def test_weights_beyond_float16_are_refused_as_f16(checkpoint: Checkpoint, tmp_path: Path) -> None:
    large = replaced(checkpoint, tmp_path / "large", UP, 70000.0)
    graph = build_graph(large, context=16)
    with pytest.raises(Unsupported, match=f"{UP} has weights beyond the range of f16"):
        quantize(graph, large, parse_recipe("f16"))
    assert quantize(graph, large, parse_recipe("q8g32")).tensors[UP].values()[0, 0] == pytest.approx(70000, rel=0.01)


def assert_equal(found: QuantGraph, expected: QuantGraph) -> None:
    assert (found.schemes, found.errors, found.made_from) == (expected.schemes, expected.errors, expected.made_from)
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].codes, tensor.codes)
        np.testing.assert_array_equal(found.tensors[name].scales, tensor.scales)
    for name, vector in expected.vectors.items():
        np.testing.assert_array_equal(found.vectors[name], vector)


@pytest.mark.parametrize("recipe", ["q4g32", "q2g64,*.v_proj=f16", "f32"])
def test_what_is_written_to_a_folder_is_found_again(
    checkpoint: Checkpoint, graph: Graph, tmp_path: Path, recipe: str
) -> None:
    in_memory = quantize(graph, checkpoint, parse_recipe(recipe))
    on_disk = quantize(graph, checkpoint, parse_recipe(recipe), directory=tmp_path)
    found = open_quantized(graph, checkpoint, parse_recipe(recipe), tmp_path)
    assert isinstance(found.tensors[UP].codes, np.memmap) and isinstance(on_disk.tensors[UP].codes, np.memmap)
    assert_equal(on_disk, in_memory)
    assert_equal(found, in_memory)


def test_the_same_weights_and_recipe_give_the_same_files(checkpoint: Checkpoint, graph: Graph, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        quantize(graph, checkpoint, parse_recipe("q3g32"), directory=tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_a_folder_of_another_recipe_is_refused(checkpoint: Checkpoint, graph: Graph, tmp_path: Path) -> None:
    quantize(graph, checkpoint, parse_recipe("q4g32"), directory=tmp_path)
    with pytest.raises(Damaged, match="made from another checkpoint, recipe or calibration"):
        open_quantized(graph, checkpoint, parse_recipe("q4g64"), tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("quantized.json", None, "is not readable"),
        ("quantized.json", b"{", "is not readable"),
        ("quantized.json", b"[]", "is not readable"),
        ("quantized.json", b'{"made_from": "x"}', "is not readable"),
        (f"{UP}.codes.npy", None, f"a file of {UP} .* is not readable"),
        (f"{UP}.codes.npy", b"\x93NUMPY", f"a file of {UP} .* is not readable"),
        (f"{UP}.scales.npy", b"", f"a file of {UP} .* is not readable"),
    ],
)
def test_a_damaged_folder_is_refused(
    checkpoint: Checkpoint, graph: Graph, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    quantize(graph, checkpoint, parse_recipe("q4g32"), directory=tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(Damaged, match=message) as refusal:
        open_quantized(graph, checkpoint, parse_recipe("q4g32"), tmp_path)
    assert "compile again" in refusal.value.hint


def test_a_file_of_another_shape_or_type_is_refused(checkpoint: Checkpoint, graph: Graph, tmp_path: Path) -> None:
    quantize(graph, checkpoint, parse_recipe("q4g32"), directory=tmp_path)
    for wrong in (np.zeros((96, 71), np.int8), np.zeros((96, 72), np.float64)):
        np.save(tmp_path / f"{UP}.codes.npy", wrong)
        with pytest.raises(Damaged, match=f"the files of {UP} .* have the wrong shape or type"):
            open_quantized(graph, checkpoint, parse_recipe("q4g32"), tmp_path)


def test_the_index_is_readable_and_names_what_it_was_made_from(
    checkpoint: Checkpoint, graph: Graph, tmp_path: Path
) -> None:
    quant = quantize(graph, checkpoint, parse_recipe("q4g32"), directory=tmp_path)
    index = json.loads((tmp_path / "quantized.json").read_text())
    assert index["schema"] == 1 and index["made_from"] == quant.made_from


def test_made_from_changes_with_schemes_and_weights_only(checkpoint: Checkpoint, graph: Graph, tmp_path: Path) -> None:
    digest = assign(graph, parse_recipe("q4g32")).made_from
    assert assign(graph, parse_recipe("q4g32,*.up_proj=q4g32")).made_from == digest
    assert assign(graph, parse_recipe("q4g64")).made_from != digest
    other = replaced(checkpoint, tmp_path / "other", UP, 0.25)
    assert assign(build_graph(other, context=16), parse_recipe("q4g32")).made_from != digest
    calibrated = {
        assign(graph, parse_recipe(f"q4g32,method={method}"), calibrated_on=on).made_from
        for method in ("rtn", "gptq", "rtn_bias")
        for on in (None, "a", "b")
    }
    assert len(calibrated) == 9 and digest in calibrated


def test_memory_does_not_grow_with_the_matrix(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(
        make_checkpoint(tmp_path / "wide", vocab=160_000, hidden=128, layers=1, heads=2, kv_heads=2, tied=True)
    )
    graph = build_graph(checkpoint, context=16)
    (tmp_path / "codes").mkdir()
    tracemalloc.start()
    quantize(graph, checkpoint, parse_recipe("q4g32"), directory=tmp_path / "codes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The embedding takes 82 MB in float32. A block takes 32 MiB, and half a dozen copies of it would be 200 MB.
    assert peak < 6 * (32 << 20)


def test_widening_bf16_is_exact() -> None:
    bits = np.array([[0x3F80, 0xC049, 0x0001, 0x7F7F]], np.uint16)
    expected = np.array([[1.0, -3.140625, 2.0**-133, (2 - 2**-7) * 2.0**127]], np.float32)
    np.testing.assert_array_equal(widen_bf16(bits), expected)
