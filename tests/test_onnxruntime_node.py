"""A compiled program inside ONNX Runtime: the same bits as natively, on the runtime's threads, and never a crash."""

import ctypes
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.device import open_device
from edgekit.engines.built import OPERATORS, RUNNER, find_built
from edgekit.engines.onnxruntime import open_model
from edgekit.engines.onnxruntime import write_model as write_portable
from edgekit.engines.onnxruntime_node import NodeSession, write_model
from edgekit.engines.written import Written, read_written
from edgekit.errors import Damaged, TargetMissing, UsageError
from edgekit.graph import RUNTIME_ERRORS, build_graph
from edgekit.measure import Runner
from edgekit.passes import lower
from edgekit.plan import make_plan
from edgekit.quantize import QuantGraph, quantize
from edgekit.scheme import parse_recipe
from edgekit.target import load_target
from edgekit.testing import make_checkpoint, make_program_header

EXAMPLES = Path(__file__).parents[1] / "kernels" / "adapters" / "onnxruntime" / "examples"
CONTEXT = 48
VOCAB = 512
IDS = np.random.default_rng(2).integers(0, VOCAB, 40).astype(np.uint32)

Float32 = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def operators() -> Path:
    return built(OPERATORS)


def built(name: str) -> Path:
    try:
        return find_built(name, load_target("host").triple)
    except TargetMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("checkpoint"), context=64, vocab=VOCAB))


@pytest.fixture(scope="module")
def quant(checkpoint: Checkpoint) -> QuantGraph:
    return quantize(build_graph(checkpoint, context=CONTEXT), checkpoint, parse_recipe("q4g32"))


@pytest.fixture(scope="module")
def written(
    quant: QuantGraph, checkpoint: Checkpoint, operators: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    return write(quant, checkpoint, tmp_path_factory.mktemp("model"))


def write(quant: QuantGraph, checkpoint: Checkpoint, folder: Path) -> Written:
    plan = make_plan(lower(quant), quant.graph.decoder, load_target("host"), context=CONTEXT)
    assert checkpoint.tokenizer_file is not None
    shutil.copy(checkpoint.tokenizer_file, folder)
    return write_model(plan, quant, folder, probe=b"", bos=1, eos=(0,))


def copied(written: Written, folder: Path) -> Written:
    shutil.copytree(written.file.parent, folder, dirs_exist_ok=True)
    return replace(written, file=folder / written.file.name)


def test_the_operators_beside_the_model_run_it_if_they_are_for_this_machine(written: Written, tmp_path: Path) -> None:
    model = copied(written, tmp_path)
    other, this = (183, 62) if load_target("host").architecture == "x86_64" else (62, 183)
    make_program_header(tmp_path / OPERATORS, other)
    NodeSession(model, threads=1).close()
    make_program_header(tmp_path / OPERATORS, this)
    with pytest.raises(Damaged, match=OPERATORS):
        NodeSession(model, threads=1)


def raw_session(written: Written, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(built(OPERATORS)))
    return onnxruntime.InferenceSession(written.file, options, providers=["CPUExecutionProvider"])


def call(session: onnxruntime.InferenceSession, ids: Any, position: int = 0, rows: int = 0) -> Float32:
    feeds = {
        "input_ids": np.array([ids], np.int64),
        "position": np.array([position], np.int64),
        "num_logits_to_keep": np.array([rows], np.int64),
    }
    logits: Float32 = session.run(None, feeds)[0]
    return logits[0]


@pytest.fixture(scope="module")
def natively(written: Written) -> Float32:
    """What edgekit-run computes from the same model.edge."""
    with open_device("local") as device:
        runner = Runner(device, model=written.file.with_name("model.edge"), program=built(RUNNER))
        return runner.logits(IDS, vocab=VOCAB)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_logits_are_those_of_the_native_engine_to_the_bit(
    written: Written, natively: Float32, threads: int
) -> None:
    session = NodeSession(written, threads=threads)
    np.testing.assert_array_equal(session.prefill(IDS.tolist()), natively)
    session.reset(7)
    found = [session.decode(int(token)) for token in IDS[7:12]]
    found += list(session.prefill(IDS[12:30].tolist()))
    np.testing.assert_array_equal(found, natively[7:30])
    assert (session.position, session.vocab, session.context) == (30, VOCAB, CONTEXT)
    session.reset(3)
    np.testing.assert_array_equal(session.prefill(IDS[3:].tolist(), last_only=True), natively[-1:])
    session.close()


def test_more_members_than_threads_change_no_bit(written: Written, natively: Float32) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("edgekit.threads", "7")
    options.register_custom_ops_library(str(built(OPERATORS)))
    session = onnxruntime.InferenceSession(written.file, options)
    np.testing.assert_array_equal(call(session, IDS), natively)
    np.testing.assert_array_equal(call(session, IDS[3:4], position=3), natively[3:4])


@pytest.mark.parametrize("threads", ["257", "-1", "two", "", "1 ", "00000000000000001"])
def test_a_number_of_threads_that_is_none_is_refused(operators: Path, threads: str) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("edgekit.threads", threads)
    with pytest.raises(RUNTIME_ERRORS, match=r"edgekit\.threads has to be a number from 0 \(as planned\) to 256"):
        options.register_custom_ops_library(str(operators))


def test_what_lies_behind_the_position_is_forgotten(written: Written, natively: Float32) -> None:
    session = raw_session(written)
    call(session, IDS[:20])
    call(session, [9, 9, 9], position=4)
    with pytest.raises(RUNTIME_ERRORS, match="position 8 was asked for and 7 tokens were read"):
        call(session, IDS[8:9], position=8)
    np.testing.assert_array_equal(call(session, IDS[4:20], position=4), natively[4:20])


@pytest.mark.parametrize(("rows", "kept"), [(0, 20), (1, 1), (3, 3), (20, 20)])
def test_only_the_rows_asked_for_are_given(written: Written, natively: Float32, rows: int, kept: int) -> None:
    np.testing.assert_array_equal(call(raw_session(written), IDS[:20], rows=rows), natively[20 - kept : 20])


BAD_CALLS = {
    "a negative token": (([-1],), "token -1 is not in the vocabulary of 512"),
    "a token past the vocabulary": (([5, VOCAB],), "token 512 is not in the vocabulary of 512"),
    "a token of 2^32": (([2**32],), "token 4294967296 is not in the vocabulary of 512"),
    "no token": (([],), "at least one token"),
    "too many tokens": (([1] * (CONTEXT + 1),), "49 tokens do not fit after 0 in a context of 48"),
    "too many after others": (([1] * CONTEXT, 1), "48 tokens do not fit after 1 in a context of 48"),
    "a negative position": (([1], -1), "position -1 was asked for and 3 tokens were read"),
    "a position past what was read": (([1], 4), "position 4 was asked for and 3 tokens were read"),
    "a position of 2^32": (([1], 2**32), "position 4294967296 was asked for"),
    "negative rows": (([1], 0, -1), "logits of -1 rows were asked for and 1 are computed"),
    "more rows than tokens": (([1, 2], 0, 3), "logits of 3 rows were asked for and 2 are computed"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_a_bad_call_is_refused_in_a_sentence_and_changes_nothing(
    written: Written, natively: Float32, arguments: Any, message: str
) -> None:
    session = raw_session(written)
    call(session, IDS[:3])
    with pytest.raises(RUNTIME_ERRORS, match=message):
        call(session, *arguments)
    np.testing.assert_array_equal(call(session, IDS[3:5], position=3), natively[3:5])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [2, 3]}, "input_ids has to be \\[1, s\\]"),
        ({"input_ids": [4]}, "input_ids has to be \\[1, s\\]"),
        ({"input_ids": [1, 1, 1, 1, 1, 1]}, "input_ids has to be \\[1, s\\]"),
        ({"position": [2]}, "position and num_logits_to_keep have to be one number each"),
        ({"num_logits_to_keep": []}, "position and num_logits_to_keep have to be one number each"),
    ],
)
def test_inputs_of_other_shapes_are_refused(
    written: Written, tmp_path: Path, inputs: dict[str, list[int]], message: str
) -> None:
    """By the node: a graph of someone else may declare its inputs without shapes."""
    bad = copied(written, tmp_path)
    proto = onnx.load(bad.file, load_external_data=False)
    for value in proto.graph.input:
        value.type.tensor_type.ClearField("shape")
    bad.file.write_bytes(proto.SerializeToString())
    shapes = {"input_ids": [1, 2], "position": [1], "num_logits_to_keep": [1]} | inputs
    session = raw_session(bad)
    with pytest.raises(RUNTIME_ERRORS, match=message):
        session.run(None, {name: np.zeros(shape, np.int64) for name, shape in shapes.items()})


def test_calls_at_the_same_time_follow_one_another(written: Written, natively: Float32) -> None:
    session = raw_session(written)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda length: (length, call(session, IDS[:length])), [40, 1, 17, 33] * 8):
            np.testing.assert_array_equal(found[1], natively[: found[0]])


def test_two_sessions_hold_two_sequences(written: Written, natively: Float32) -> None:
    one, other = NodeSession(written, threads=2), NodeSession(written, threads=1)
    one.prefill(IDS[:5].tolist())
    other.prefill([3, 3, 3])
    np.testing.assert_array_equal(one.decode(int(IDS[5])), natively[5])


def test_the_program_is_mapped_and_shared_with_the_page_cache(written: Written) -> None:
    session = NodeSession(written, threads=1)
    session.prefill([1])
    program = written.file.with_name("model.edge").resolve()
    rows = [line.split() for line in Path("/proc/self/smaps").read_text().splitlines()]
    mappings = [i for i, row in enumerate(rows) if row[-1] == str(program)]
    assert mappings
    for start in mappings:
        of_it = {row[0]: row[1] for row in rows[start + 1 : start + 24]}
        assert int(of_it["Rss:"]) * 1024 > written.weights_bytes / 2
        assert int(of_it["Anonymous:"]) == 0
    session.close()


def test_tokens_that_do_not_fit_are_the_callers_fault(written: Written) -> None:
    session = NodeSession(written, threads=1)
    with pytest.raises(UsageError, match="the token 512 is outside the vocabulary"):
        session.prefill([VOCAB])
    with pytest.raises(UsageError, match="49 tokens do not fit the context"):
        session.prefill([1] * (CONTEXT + 1))


def test_the_same_codes_give_the_same_files(
    written: Written, quant: QuantGraph, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    again = write(quant, checkpoint, tmp_path)
    for file in sorted(again.file.parent.iterdir()):
        assert file.read_bytes() == written.file.with_name(file.name).read_bytes()
    assert again.file.stat().st_mode & 0o777 == 0o644


def test_what_is_written_is_described(written: Written, quant: QuantGraph) -> None:
    found = read_written(written.file)
    assert found == written
    assert (found.engine, found.kernels, found.vocab, found.context) == ("onnxruntime", "edgekit", VOCAB, CONTEXT)
    assert found.engine_version == f"onnxruntime {onnxruntime.__version__}"
    # Keys and values of 2 layers, 2 heads of 16, in f16.
    assert (found.kv_format, found.kv_bytes) == ("f16", 2 * 2 * 2 * CONTEXT * 16 * 2)


def change(file: Path, act: Any) -> None:
    proto = onnx.load(file, load_external_data=False)
    act(proto)
    file.write_bytes(proto.SerializeToString())


def refer_to(file: Path, key: str, value: str) -> None:
    def act(proto: onnx.ModelProto) -> None:
        (tensor,) = proto.graph.initializer
        next(entry for entry in tensor.external_data if entry.key == key).value = value

    change(file, act)


def link_program(model: Path) -> None:
    program = model.with_name("model.edge")
    program.rename(model.with_name("elsewhere"))
    program.symlink_to("elsewhere")


def lengthen(model: Path) -> None:
    with model.with_name("model.edge").open("ab") as stream:
        stream.write(bytes(64))


def add_function(proto: onnx.ModelProto) -> None:
    proto.functions.add(name="Decoder", domain="edgekit")


DAMAGE = {
    "a program that is a link": link_program,
    "a program with a second name": lambda model: os.link(model.with_name("model.edge"), model.with_name("second")),
    "a program that is missing": lambda model: model.with_name("model.edge").unlink(),
    "a program that is cut short": lambda model: os.truncate(model.with_name("model.edge"), 70000),
    "a program that is too long": lengthen,
    "a program elsewhere": lambda model: refer_to(model, "location", "../model.edge"),
    "a program at an absolute path": lambda model: refer_to(model, "location", "/etc/passwd"),
    "a part of the program": lambda model: refer_to(model, "offset", "64"),
    "another node": lambda model: change(model, lambda proto: setattr(proto.graph.node[0], "op_type", "Relu")),
    "the node of another domain": lambda model: change(model, lambda proto: setattr(proto.graph.node[0], "domain", "")),
    "a function instead of the operator": lambda model: change(model, add_function),
    "a model that is cut short": lambda model: os.truncate(model, 100),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_model_that_is_not_what_was_written_is_refused(written: Written, tmp_path: Path, damage: Any) -> None:
    bad = copied(written, tmp_path)
    damage(bad.file)
    with pytest.raises(Damaged) as caught:
        open_model(bad, threads=1)
    assert caught.value.hint == "compile again"


def test_a_model_that_is_described_wrongly_is_refused(written: Written) -> None:
    with pytest.raises(Damaged, match="is not the model that is described beside it"):
        NodeSession(replace(written, vocab=VOCAB + 1), threads=1)
    with pytest.raises(Damaged, match="is not the model that is described beside it"):
        NodeSession(replace(written, context=CONTEXT + 1), threads=1)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (65, "a context of 65 was asked for and the model was made for 64"),
        (0, "cannot be 0 tokens"),
        (-(2**63), "cannot be -9223372036854775808 tokens"),
        (2**32 + 1, "cannot be 4294967297 tokens"),
    ],
)
def test_a_context_that_the_program_cannot_have_is_refused(
    written: Written, tmp_path: Path, context: int, message: str
) -> None:
    bad = copied(written, tmp_path)
    change(bad.file, lambda proto: setattr(proto.graph.node[0].attribute[0], "i", context))
    with pytest.raises(Damaged, match=message):
        NodeSession(replace(bad, context=context), threads=1)


def test_a_program_with_any_byte_changed_runs_or_is_refused(written: Written, tmp_path: Path) -> None:
    bad, random = copied(written, tmp_path), np.random.default_rng(0)
    program = bad.file.with_name("model.edge")
    good, outcomes = program.read_bytes(), set()
    for _ in range(60):
        mutated = bytearray(good)
        mutated[random.integers(min(len(good), 8192))] ^= random.integers(1, 256)
        program.write_bytes(mutated)
        try:
            NodeSession(bad, threads=1).prefill([1, 2])
            outcomes.add("ran")
        except Damaged:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_a_program_of_a_later_version_is_refused_with_both_versions(written: Written, tmp_path: Path) -> None:
    bad = copied(written, tmp_path)
    made = replace(bad, engine_version="onnxruntime 9.9")
    program = bad.file.with_name("model.edge")
    os.truncate(program, program.stat().st_size)
    data = bytearray(program.read_bytes())
    data[8] ^= 2  # the version, and with it the header's checksum
    program.write_bytes(data)
    with pytest.raises(TargetMissing, match=f"with onnxruntime 9.9 and onnxruntime {onnxruntime.__version__} refuses"):
        NodeSession(made, threads=1)


def test_a_program_that_is_no_constant_is_refused(written: Written, tmp_path: Path) -> None:
    bad = copied(written, tmp_path)

    def make_input(proto: onnx.ModelProto) -> None:
        (tensor,) = proto.graph.initializer
        proto.graph.input.append(onnx.helper.make_tensor_value_info("program", tensor.data_type, tensor.dims))
        proto.graph.ClearField("initializer")

    change(bad.file, make_input)
    with pytest.raises(RUNTIME_ERRORS, match="the program of an edgekit::Decoder has to be a constant"):
        raw_session(bad)


class ApiBase(ctypes.Structure):
    _fields_ = (
        ("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
        ("get_version_string", ctypes.CFUNCTYPE(ctypes.c_void_p)),
    )


def test_a_runtime_that_is_too_old_is_refused_with_both_versions(operators: Path) -> None:
    said: list[tuple[int, bytes]] = []
    create_status_type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    create_status = create_status_type(lambda code, message: said.append((code, message)) or 4711)
    table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))  # all of version 1 that is used
    asked: list[int] = []

    def get_api(version: int) -> int | None:
        asked.append(version)
        return ctypes.addressof(table) if version == 1 else None

    old = ctypes.create_string_buffer(b"1.15.1")
    base = ApiBase(ApiBase._fields_[0][1](get_api), ApiBase._fields_[1][1](lambda: ctypes.addressof(old)))
    register = ctypes.CDLL(str(operators)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 4711
    assert asked == [17, 1]
    assert said == [(9, b"edgekit::Decoder needs ONNX Runtime 1.17 or later and this is 1.15.1")]


@pytest.fixture(scope="module")
def bundles(
    written: Written, quant: QuantGraph, operators: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder with edgekit's kernels and a portable one, as `compile` writes them."""
    inside = copied(written, tmp_path_factory.mktemp("bundles") / "inside").file.parent
    shutil.copy(operators, inside)
    portable = inside.with_name("portable")
    portable.mkdir()
    write_portable(quant, portable, probe=b"", bos=1, eos=(0,))
    shutil.copy(inside / "tokenizer.json", portable)
    return {"inside": inside, "portable": portable}


def greedy(bundle: Path, tokens: list[int], count: int) -> list[int]:
    """By the engine of this package, the whole text again for every token."""
    tokens = list(tokens)
    for _ in range(count):
        session = open_model(read_written(bundle / "model.onnx"), threads=1)
        tokens.append(int(session.prefill(tokens)[-1].argmax()))
        session.close()
    return tokens


@pytest.mark.parametrize("kind", ["inside", "portable"])
def test_the_python_example_continues_a_text(bundles: dict[str, Path], kind: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "generate.py", bundles[kind], "hello"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hello") and len(done.stdout) > len("hello\n") and not done.stderr


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ example, compiled as its first lines say."""
    folder = tmp_path_factory.mktemp("example")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{EXAMPLES.parent}"]
    command += [str(EXAMPLES / "generate.cc"), "libonnxruntime.so.1", f"-Wl,-rpath,{folder}", "-o", "generate"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return folder / "generate"


@pytest.mark.parametrize("kind", ["inside", "portable"])
def test_the_cpp_example_continues_tokens(bundles: dict[str, Path], example: Path, kind: str) -> None:
    done = subprocess.run(
        [example, bundles[kind], "6", "5", "9", "200"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = [int(token) for token in done.stdout.split()]
    assert found[:3] == [5, 9, 200] and len(found) == 9
    if kind == "inside":  # the portable graph rounds no activations unless a session asks for it
        assert found == greedy(bundles[kind], [5, 9, 200], 6)


def test_the_cpp_example_passes_a_refusal_on(bundles: dict[str, Path], example: Path) -> None:
    done = subprocess.run(
        [example, bundles["inside"], "1", "512"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("token 512 is not in the vocabulary of 512")
