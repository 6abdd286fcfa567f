"""The LiteRT engine: what it writes computes what the graph does, and LiteRT-LM's reader finds it in its file."""

import dataclasses
import importlib.metadata
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from litert_lm_builder import litertlm_peek

from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.engines.host import main
from edgekit.engines.litert import nodes_outside, open_model, write_model
from edgekit.engines.litert_bundle import Words
from edgekit.engines.litert_weights import check_file
from edgekit.engines.written import Written, read_written
from edgekit.errors import Damaged, TargetMissing, Unsupported, UsageError
from edgekit.graph import Session, build_graph
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph, QuantTensor, quantize
from edgekit.scheme import parse_recipe
from edgekit.selftest import relative_error, tolerance
from edgekit.testing import make_checkpoint
from edgekit.xnnpack import suit_xnnpack

Float32 = npt.NDArray[np.float32]

CONTEXT = 140
MIXED = "q4g64,head=q4g32,*.o_proj=q2g64,*.down_proj=q8g32,*.v_proj=f16,*.q_proj=f32"
# The highest version of each operator that tflite-runtime 2.14.0 takes: raised in a file until it was refused.
OF_TFLITE_RUNTIME = {
    "ADD": 5, "BATCH_MATMUL": 4, "BROADCAST_TO": 3, "CONCATENATION": 4, "DEQUANTIZE": 5, "DIV": 2,
    "DYNAMIC_UPDATE_SLICE": 1, "EMBEDDING_LOOKUP": 3, "EXP": 2, "FULLY_CONNECTED": 10, "GATHER_ND": 4, "LESS": 3,
    "LESS_EQUAL": 2, "LOGISTIC": 3, "MAXIMUM": 4, "MEAN": 3, "MUL": 7, "PACK": 4, "REDUCE_MAX": 3, "RESHAPE": 1,
    "RSQRT": 2, "SELECT": 4, "SELECT_V2": 2, "SLICE": 6, "SOFTMAX": 3, "SUB": 5, "TRANSPOSE": 6,
}  # fmt: skip
IDS = np.random.default_rng(0).integers(1, 270, CONTEXT)


def suited(checkpoint: Checkpoint, recipe: str, *, four_bits: bool = True) -> QuantGraph:
    quant = quantize(build_graph(checkpoint, context=CONTEXT), checkpoint, parse_recipe(recipe))
    return suit_xnnpack(quant, four_bits=four_bits).quant


def expected(quant: QuantGraph, folder: Path) -> Float32:
    """The logits of IDS on ONNX Runtime, in float32."""
    portable_onnx(quant, folder / "reference.onnx")
    with Session(folder / "reference.onnx", threads=1, prepack=True, exact=True) as session:
        return session.logits(IDS)


def in_pieces(session: Any) -> Float32:
    """The logits of IDS: a whole prefill, a filled one, decodes, and an end that no filled prefill would fit."""
    session.reset()
    pieces = [session.prefill(IDS[:128].tolist()), session.prefill(IDS[128:137].tolist())]
    return np.concatenate([*pieces, *(session.decode(int(token))[None] for token in IDS[137:])])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("checkpoint"), layers=2))


@pytest.fixture(scope="module")
def mixed(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, QuantGraph]:
    """A model with every scheme that LiteRT has."""
    folder, quant = tmp_path_factory.mktemp("mixed"), suited(checkpoint, MIXED)
    assert checkpoint.tokenizer_file is not None
    words = Words(0, (0, 7), "{{ messages[0].content }}")
    written = write_model(quant, folder, probe=b"probe", words=words, tokenizer=checkpoint.tokenizer_file)
    shutil.copy(checkpoint.tokenizer_file, folder)
    return written, quant


def test_every_scheme_is_as_far_from_the_graph_as_rounding_activations(
    mixed: tuple[Written, QuantGraph], tmp_path: Path
) -> None:
    written, quant = mixed
    session = open_model(read_written(written.file), threads=1)
    error = relative_error(expected(quant, tmp_path), in_pieces(session))
    session.close()
    assert error < tolerance(quant.schemes.values(), 2, compares_rounded=False)
    assert error > 1e-3  # or nothing was rounded


def test_a_session_forgets_and_goes_on(mixed: tuple[Written, QuantGraph]) -> None:
    session = open_model(mixed[0], threads=2)
    whole = session.prefill(IDS[:40].tolist())
    session.reset(30)
    np.testing.assert_array_equal(session.prefill(IDS[30:40].tolist())[-1].argmax(), whole[-1].argmax())
    assert session.position == 40
    with pytest.raises(UsageError, match="141 tokens do not fit the context"):
        session.prefill([1] * 101)
    with pytest.raises(UsageError, match="the token 320 is outside the vocabulary"):
        session.prefill([320])
    assert session.position == 40
    session.reset()
    np.testing.assert_array_equal(session.prefill(IDS[:40].tolist(), last_only=True), whole[-1:])
    session.close()


def test_what_is_said_of_a_model(mixed: tuple[Written, QuantGraph]) -> None:
    written = read_written(mixed[0].file)
    assert written.engine_version == f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"
    assert (written.kernels, written.bos, written.eos, written.probe) == ("runtime", 0, (0, 7), b"probe")
    # Keys and values of 2 layers, 2 heads of 16, float32.
    assert written.kv_bytes == 2 * 2 * 2 * CONTEXT * 16 * 4
    layer = {
        "q_proj": 64 * 64 * 4,
        "k_proj": 32 * 64 // 2 + 32 * 2,  # blocks of 64, scales in float16
        "v_proj": 32 * 64 * 2,
        "o_proj": 64 * 64 // 2 + 64 * 2,
        "gate_proj, up_proj": 2 * (96 * 64 // 2 + 96 * 2),
        "down_proj": 64 * 96 + 64 * 4,  # one float32 scale a row
        "norms": 2 * 64 * 4,
    }
    head, norm = 320 * 64 // 2 + 320 * 2 * 2, 64 * 4
    assert written.weights_bytes == 2 * sum(layer.values()) + head + norm
    # XNNPACK widens halves when it packs them.
    assert written.bytes_per_token == written.weights_bytes + 2 * 32 * 64 * 2
    assert written.weights_bytes < written.file.stat().st_size < written.weights_bytes + 160_000


@pytest.mark.parametrize(("recipe", "runtime"), [("q4g32", "2"), ("q8g32", "2.14")])
def test_matrices_of_zeros_keep_their_shapes(recipe: str, runtime: str, tmp_path: Path) -> None:
    """As of a layer that was pruned: gate and up are [96, 64], down is [64, 96]."""
    quant = suited(open_checkpoint(make_checkpoint(tmp_path / "checkpoint", layers=1)), recipe)
    zeros = {name: without_values(tensor) for name, tensor in quant.tensors.items() if ".mlp." in name}
    pruned = dataclasses.replace(quant, tensors={**quant.tensors, **zeros})
    written = write_model(pruned, tmp_path, probe=b"", words=Words(None, (0,), None), runtime=runtime)
    session = open_model(written, threads=1)
    assert relative_error(expected(pruned, tmp_path), in_pieces(session)) < tolerance(
        quant.schemes.values(), 1, compares_rounded=False
    )
    session.close()


def without_values(tensor: QuantTensor) -> QuantTensor:
    codes, scales = np.zeros(tensor.shape, np.int8), np.full(tensor.scales.shape, 0x3F80, np.uint16)  # scales of 1
    return dataclasses.replace(tensor, codes=codes, scales=scales)


@pytest.mark.parametrize("recipe", ["q8g32", "f32"])
def test_equal_matrices_are_one(recipe: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "checkpoint", layers=1, tied=False))
    quant = suited(checkpoint, recipe)
    head = dataclasses.replace(quant.tensors["model.embed_tokens.weight"], name="lm_head.weight")
    equal = dataclasses.replace(quant, tensors={**quant.tensors, "lm_head.weight": head})
    written = write_model(equal, tmp_path, probe=b"", words=Words(None, (0,), None))
    # n of: gate, up and the table, whose rows are 64 long; q, k, v and o; down, of 96.
    rows, long_rows = (96 + 96 + 320) + (64 + 32 + 32 + 64), 64
    norms, weights = 3 * 64 * 4, rows * 64 + long_rows * 96
    in_codes = weights + (rows + long_rows) * 4  # one float32 scale a row
    assert written.weights_bytes == norms + (4 * weights if recipe == "f32" else in_codes)
    # The head is read, rows of the table are looked up.
    assert written.bytes_per_token == written.weights_bytes
    assert written.weights_bytes < written.file.stat().st_size < written.weights_bytes + 100_000


def test_the_same_codes_give_the_same_files(
    mixed: tuple[Written, QuantGraph], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    words = Words(0, (0, 7), "{{ messages[0].content }}")
    write_model(mixed[1], tmp_path, probe=b"probe", words=words, tokenizer=checkpoint.tokenizer_file)
    for name in ("model.tflite", "model.litertlm", "engine.json", "probe"):
        assert (tmp_path / name).read_bytes() == mixed[0].file.with_name(name).read_bytes(), name


def test_litert_lm_finds_the_model_its_tokens_and_the_tokenizer(
    mixed: tuple[Written, QuantGraph], tmp_path: Path
) -> None:
    said = io.StringIO()
    litertlm_peek.peek_litertlm_file(str(mixed[0].file.with_name("model.litertlm")), str(tmp_path), said)
    models = [file for file in tmp_path.iterdir() if file.suffix == ".tflite"]
    assert [file.read_bytes() for file in models] == [mixed[0].file.read_bytes()]
    assert "HF_Tokenizer_Zlib" in said.getvalue()
    # The tokenizer begins no text with token 0, so LiteRT-LM must not either.
    assert "start_token" not in said.getvalue()
    for line in ("ids: 0", "ids: 7", f"max_num_tokens: {CONTEXT}", "generic_model", "{{ messages[0].content }}"):
        assert line in said.getvalue()


def test_the_host_answers_for_it(mixed: tuple[Written, QuantGraph], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(mixed[0].file), "--prompt", "and the", "-n", "3", "--temperature", "0"]) == 0
    assert main(["bench", str(mixed[0].file), "-p", "4", "-n", "2", "-r", "1", "-t", "1"]) == 0
    assert '"engine": "ai-edge-litert' in capsys.readouterr().out


def test_few_operators_run_outside_xnnpack(mixed: tuple[Written, QuantGraph]) -> None:
    rows = nodes_outside(mixed[0])
    outside = {row.operator: row.count for row in rows}
    assert outside["EMBEDDING_LOOKUP"] == 1
    assert outside["DYNAMIC_UPDATE_SLICE"] == 4  # keys and values of two layers
    assert not any(row.matrices for row in rows)
    assert not outside.keys() & {"FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX", "MUL", "DEQUANTIZE"}


def test_for_tflite_runtime_eight_bits_are_widened_before_use(checkpoint: Checkpoint, tmp_path: Path) -> None:
    quant = suited(checkpoint, "q4g32,*.v_proj=f16", four_bits=False)
    assert checkpoint.tokenizer_file is not None
    written = write_model(
        quant,
        tmp_path,
        probe=b"",
        words=Words(None, (0,), None),
        tokenizer=checkpoint.tokenizer_file,
        runtime="2.14",
    )
    assert not (tmp_path / "model.litertlm").exists()
    assert operators(written.file)["DEQUANTIZE"] == 15  # a matrix each: 7 in 2 layers, the table
    products = nodes_outside(written)[0]
    names = ["q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # v_proj has no codes
    matrices = [name.split(".")[-2] for name in products.matrices]
    assert (products.operator, products.count) == ("FULLY_CONNECTED", 13)
    assert sorted(matrices) == sorted([*names, *names, "embed_tokens"])
    assert newer_operators(written.file) == set()
    # A token reads them in float32: a layer has 4 projections, 3 matrices of 64 by 96 and 2 norms.
    assert written.bytes_per_token == 4 * (2 * (192 * 64 + 3 * 64 * 96 + 2 * 64) + 320 * 64 + 64)
    session = open_model(written, threads=1)
    # Activations stay in float32 then.
    assert relative_error(expected(quant, tmp_path), in_pieces(session)) < 2e-2
    session.close()


def test_what_is_written_for_litert_is_too_new_for_tflite_runtime(mixed: tuple[Written, QuantGraph]) -> None:
    assert newer_operators(mixed[0].file) == {("FULLY_CONNECTED", 12), ("FULLY_CONNECTED", 13), ("EMBEDDING_LOOKUP", 4)}


def schema_model(file: Path) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(file.read_bytes(), 0))


def operator_names() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def operators(file: Path) -> dict[str, int]:
    """How often each operator is in the first graph."""
    model, names = schema_model(file), operator_names()
    made = [names[model.operatorCodes[node.opcodeIndex].builtinCode] for node in model.subgraphs[0].operators]
    return {name: made.count(name) for name in made}


def newer_operators(file: Path) -> set[tuple[str, int]]:
    """The operators of all graphs, with their versions, that tflite-runtime 2.14 has not."""
    model, names = schema_model(file), operator_names()
    used = {
        (names[code.builtinCode], int(code.version))
        for graph in model.subgraphs
        for code in (model.operatorCodes[node.opcodeIndex] for node in graph.operators)
    }
    return {(name, version) for name, version in used if version > OF_TFLITE_RUNTIME.get(name, 0)}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def replace_by_noise(file: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(5000))


def rewrite(file: Path, change: Callable[[Any], None]) -> None:
    import flatbuffers

    model = schema_model(file)
    change(model)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    file.write_bytes(builder.Output())


def lead_elsewhere(file: Path) -> None:
    """Makes the first node read a tensor that is not there."""

    def change(model: Any) -> None:
        model.subgraphs[0].operators[0].inputs = np.array([99_999, 0], np.int32)

    rewrite(file, change)


@pytest.mark.parametrize("damage", [truncate, replace_by_noise, lead_elsewhere])
def test_a_damaged_file_is_refused_in_one_sentence(
    damage: Callable[[Path], None], mixed: tuple[Written, QuantGraph], tmp_path: Path
) -> None:
    shutil.copytree(mixed[0].file.parent, tmp_path / "model")
    written = read_written(tmp_path / "model" / "model.tflite")
    damage(written.file)
    with pytest.raises(Damaged, match=r"ai-edge-litert .* refuses"):
        open_model(written, threads=1)


def test_no_operator_lacks_what_its_kernel_reads(mixed: tuple[Written, QuantGraph], tmp_path: Path) -> None:
    file, names = tmp_path / "model.tflite", operator_names()
    check_file(mixed[0].file)
    seen = set()
    for index, node in enumerate(schema_model(mixed[0].file).subgraphs[1].operators):
        if node.opcodeIndex in seen:
            continue
        seen.add(node.opcodeIndex)

        def cut(model: Any, index: int = index) -> None:
            node = model.subgraphs[1].operators[index]
            # A bias may be left out, and what is concatenated has any number.
            name = names[model.operatorCodes[node.opcodeIndex].builtinCode]
            least = {"FULLY_CONNECTED": 2, "PACK": 1, "CONCATENATION": 1}.get(name, len(node.inputs))
            node.inputs = node.inputs[: least - 1]

        def leave_out(model: Any, index: int = index) -> None:
            node = model.subgraphs[1].operators[index]
            node.inputs = np.array([-1, *node.inputs[1:]], np.int32)

        def drop_output(model: Any, index: int = index) -> None:
            model.subgraphs[1].operators[index].outputs = np.empty(0, np.int32)

        for change in (cut, leave_out, drop_output):
            shutil.copy(mixed[0].file, file)
            rewrite(file, change)
            with pytest.raises(ValueError, match=r"[A-Z_2]+ has \d inputs and [01] outputs"):
                check_file(file)
    assert len(seen) > 20


def test_an_operator_that_is_not_written_is_refused(mixed: tuple[Written, QuantGraph], tmp_path: Path) -> None:
    def make_unknown(model: Any) -> None:
        model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 48  # TOPK_V2

    file = shutil.copy(mixed[0].file, tmp_path / "model.tflite")
    rewrite(file, make_unknown)
    with pytest.raises(ValueError, match="the operator 48 is none that edgekit writes"):
        check_file(file)


def test_another_version_names_both(mixed: tuple[Written, QuantGraph], tmp_path: Path) -> None:
    shutil.copytree(mixed[0].file.parent, tmp_path / "model")
    written = dataclasses.replace(
        mixed[0], file=tmp_path / "model" / "model.tflite", engine_version="ai-edge-litert 9.1"
    )
    replace_by_noise(written.file)
    with pytest.raises(TargetMissing, match=r"was made with ai-edge-litert 9\.1 and ai-edge-litert 2.* refuses it"):
        open_model(written, threads=1)


def test_a_run_that_litert_refuses_is_refused_in_one_sentence(mixed: tuple[Written, QuantGraph]) -> None:
    session: Any = open_model(mixed[0], threads=1)
    session._logits["decode"] = session._inputs["decode"]["tokens"]  # a buffer of another type
    with pytest.raises(Damaged, match=r"^ai-edge-litert .* refuses "):
        session.decode(1)


@pytest.mark.parametrize(("key", "value"), [("vocab", 321), ("kv_bytes", 1)])
def test_a_model_that_is_not_the_one_described_is_refused(
    key: str, value: int, mixed: tuple[Written, QuantGraph]
) -> None:
    with pytest.raises(Damaged, match="another size than is said beside it"):
        open_model(dataclasses.replace(mixed[0], **{key: value}), threads=1)


@pytest.mark.parametrize("package", ["ai-edge-litert", "litert-torch"])
def test_a_missing_package_is_named_with_what_installs_it(
    package: str, mixed: tuple[Written, QuantGraph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(TargetMissing, match=f"{package} is not installed") as refusal:
        write_model(mixed[1], tmp_path, probe=b"", words=Words(None, (), None))
    assert refusal.value.hint == "pip install 'edgekit[litert]'"
    assert not any(tmp_path.iterdir())


def test_a_model_beyond_a_flatbuffer_is_refused_before_the_work(checkpoint: Checkpoint, tmp_path: Path) -> None:
    quant = suited(checkpoint, "q4g32")
    decoder = dataclasses.replace(quant.graph.decoder, vocab=10_000_000)
    large = dataclasses.replace(quant, graph=dataclasses.replace(quant.graph, decoder=decoder))
    with pytest.raises(Unsupported, match="a model of 640 million weights is converted in float32"):
        write_model(large, tmp_path, probe=b"", words=Words(None, (), None))
