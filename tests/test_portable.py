"""The portable graph is standard ONNX, computes with the codes' exact values, and ONNX Runtime fuses all of it."""

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgekit.calibrate import measure_inputs
from edgekit.checkpoint import open_checkpoint
from edgekit.graph import Graph, Session, build_graph
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph, quantize
from edgekit.scheme import parse_recipe
from edgekit.testing import make_checkpoint

Float32 = npt.NDArray[np.float32]

FORMATS = ("q8", "q4", "q3", "q2", "t2")
SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, k not a multiple of the group": {
        "hidden": 72, "heads": 4, "head_dim": 18, "intermediate": 100, "tied": False,
    },
    "odd rows everywhere": {
        "hidden": 51, "heads": 3, "kv_heads": 1, "head_dim": 6, "intermediate": 77, "vocab": 321,
    },
}  # fmt: skip
CONTEXT = 16
IDS = np.array([5, 3, 300, 7, 7, 1, 250, 12])


def quantized(folder: Path, recipe: str, **shape: Any) -> QuantGraph:
    checkpoint = open_checkpoint(make_checkpoint(folder / "checkpoint", **shape))
    return quantize(build_graph(checkpoint, context=CONTEXT), checkpoint, parse_recipe(recipe))


def with_values(quant: QuantGraph) -> Graph:
    """The float graph with the quantized weights' values, which numpy makes from codes and scales."""
    model = quant.graph.model.clone()
    for name, tensor in quant.tensors.items():
        value = model.graph.initializers[name]
        as_stored = any(node.op_type == "Gather" for node, _ in value.uses())
        values = tensor.values() if as_stored else np.ascontiguousarray(tensor.values().T)
        value.const_value = ir.Tensor(values, name=name)
    return dataclasses.replace(quant.graph, model=model)


def options(*, accuracy: int, optimized: Path | None = None) -> onnxruntime.SessionOptions:
    made = onnxruntime.SessionOptions()
    made.log_severity_level = 3
    made.intra_op_num_threads = 1
    made.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy))
    if optimized is not None:
        made.optimized_model_filepath = str(optimized)
    return made


def run(file: Path, ids: npt.NDArray[np.int64], *, accuracy: int = 1, optimized: Path | None = None) -> Float32:
    """Logits of `ids` by stock ONNX Runtime, from an empty cache. Accuracy level 1 computes in float32."""
    session = onnxruntime.InferenceSession(file, options(accuracy=accuracy, optimized=optimized))
    feed = {
        value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs() if value.name.startswith("past")
    }
    feed |= {"input_ids": ids[None], "position": np.zeros(1, np.int64)}
    logits: Float32 = session.run(["logits"], feed)[0][0]
    return logits


def operators(file: Path) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load(file, load_external_data=False).graph.node)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("format", FORMATS)
def test_logits_are_those_of_the_codes_values(tmp_path: Path, format: str, shape: dict[str, Any]) -> None:
    quant = quantized(tmp_path, f"{format}g32,head={format}g64", **shape)
    file, optimized = tmp_path / "model.onnx", tmp_path / "optimized.onnx"
    portable_onnx(quant, file)
    with Session(with_values(quant)) as session:
        expected = session.logits(IDS)
    found = run(file, IDS, optimized=optimized)
    # Float32 sums of at most 100 terms of about one in two layers, added in another order.
    np.testing.assert_allclose(found, expected, atol=1e-4)

    matrices = len(quant.tensors) + (1 if quant.graph.decoder.tied else 0) - 1  # the embedding alone is none
    assert operators(optimized)["MatMulNBits"] == matrices
    assert operators(optimized)["DequantizeLinear"] == 0


@pytest.mark.parametrize("recipe", ["q4g32", "q2g128", "t2g64,head=q8g32", "f16", "q3g64,head=f16,*.v_proj=f32"])
def test_the_file_is_standard_onnx(tmp_path: Path, recipe: str) -> None:
    file = tmp_path / "model.onnx"
    portable_onnx(quantized(tmp_path, recipe), file)
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(file, load_external_data=False)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 24)}
    assert all(node.domain == "" for node in model.graph.node)


@pytest.mark.parametrize("recipe", ["f16", "f32", "q4g32,head=f16", "f16,head=q8g32"])
@pytest.mark.parametrize("tied", [True, False])
def test_float_schemes_need_no_codes(tmp_path: Path, recipe: str, tied: bool) -> None:
    quant = quantized(tmp_path, recipe, tied=tied)
    portable_onnx(quant, tmp_path / "model.onnx")
    with Session(with_values(quant)) as session:
        expected = session.logits(IDS)
    np.testing.assert_allclose(run(tmp_path / "model.onnx", IDS), expected, atol=1e-4)


def looked_up(file: Path, ids: list[int]) -> Float32:
    """What the embedding gives for `ids`: the first input of the first norm."""
    model = onnx.load(file)
    norm = next(node for node in model.graph.node if node.op_type == "RMSNormalization")
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(norm.input[0]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options(accuracy=1))
    feed = {
        value.name: np.zeros(value.shape, np.float32) for value in session.get_inputs() if value.name.startswith("past")
    }
    rows: Float32 = session.run(None, feed | {"input_ids": np.array([ids]), "position": np.zeros(1, np.int64)})[0][0]
    return rows


@pytest.mark.parametrize("hidden", [72, 51])
@pytest.mark.parametrize("format", FORMATS)
def test_looked_up_rows_are_exact(tmp_path: Path, format: str, hidden: int) -> None:
    quant = quantized(tmp_path, f"{format}g32,head={format}g32", hidden=hidden, heads=3, kv_heads=1, head_dim=6)
    portable_onnx(quant, tmp_path / "model.onnx")
    ids = [0, 1, 2, 3, 318, 319, 7]
    expected = quant.tensors["model.embed_tokens.weight"].values()[ids]
    np.testing.assert_array_equal(looked_up(tmp_path / "model.onnx", ids), expected)


def test_the_codes_of_a_tied_head_are_stored_once(tmp_path: Path) -> None:
    large = {"vocab": 4096, "layers": 1}
    for tied in (True, False):
        (tmp_path / str(tied)).mkdir()
        portable_onnx(quantized(tmp_path / str(tied), "q4g32", tied=tied, **large), tmp_path / str(tied) / "model.onnx")
    once, twice = ((tmp_path / str(tied) / "model.onnx.data").stat().st_size for tied in (True, False))
    codes, scales = 4096 * 64 // 2, 4096 * 2 * 2
    assert twice - once >= codes + scales
    assert once < 2 * codes + 3 * 65536  # the embedding, the layer, and rounding up to pages


def test_a_code_takes_four_bits_and_eight_where_rows_are_odd(tmp_path: Path) -> None:
    types = {}
    for name, vocab in (("even", 320), ("odd", 321)):
        (tmp_path / name).mkdir()
        portable_onnx(quantized(tmp_path / name, "q4g32", vocab=vocab), tmp_path / name / "model.onnx")
        model = onnx.load(tmp_path / name / "model.onnx", load_external_data=False)
        types[name] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    embedding, up = "model.embed_tokens.weight.codes", "model.layers.0.mlp.up_proj.weight.codes"
    assert (types["even"][embedding], types["even"][up]) == (onnx.TensorProto.INT4, onnx.TensorProto.INT4)
    assert (types["odd"][embedding], types["odd"][up]) == (onnx.TensorProto.INT8, onnx.TensorProto.INT4)


def test_tokens_one_by_one_give_what_they_give_together(tmp_path: Path) -> None:
    quant = quantized(tmp_path, "q4g32")
    portable_onnx(quant, tmp_path / "model.onnx")
    with Session(tmp_path / "model.onnx") as session:
        together = session.logits(IDS)
        session.reset()
        apart = [session.decode(token) for token in IDS.tolist()]
    np.testing.assert_allclose(apart, together, atol=1e-4)


@pytest.mark.parametrize("format", ["q8", "q4"])
def test_integer_activations_stay_near(tmp_path: Path, format: str) -> None:
    quant = quantized(tmp_path, f"{format}g32")
    portable_onnx(quant, tmp_path / "model.onnx")
    exact, integer = (run(tmp_path / "model.onnx", IDS, accuracy=accuracy) for accuracy in (1, 4))
    # Activations rounded to 127 steps of a group's largest: relative noise of about 1/127/sqrt(3) a product, a dozen
    # products deep, against logits of standard deviation near one.
    assert 0 < np.abs(integer - exact).mean() < 0.03 * exact.std()


def test_the_same_codes_give_the_same_bytes(tmp_path: Path) -> None:
    quant = quantized(tmp_path, "q2g32")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        portable_onnx(quant, tmp_path / name / "model.onnx")
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_biases_are_those_of_the_quantized_graph(tmp_path: Path, model_type: str) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "checkpoint", model_type=model_type))
    inputs = measure_inputs(checkpoint, [IDS])
    graph = build_graph(checkpoint, context=CONTEXT)
    quant = quantize(graph, checkpoint, parse_recipe("q2g32,method=rtn_bias"), inputs=inputs)
    portable_onnx(quant, tmp_path / "model.onnx")
    expected = with_values(quant)
    for name, vector in quant.vectors.items():
        expected.model.graph.initializers[name].const_value = ir.Tensor(vector, name=name)
    with Session(expected) as reference, Session(tmp_path / "model.onnx", prepack=True, exact=True) as session:
        logits = reference.logits(IDS)
        np.testing.assert_allclose(session.logits(IDS), logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    with Session(with_values(quant)) as uncorrected:
        assert np.abs(uncorrected.logits(IDS) - logits).max() > 0.01 * np.abs(logits).max()
