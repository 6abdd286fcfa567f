"""The executorch engine: its delegate computes what the native program does, and refuses what it cannot use."""

import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import edgekit
from edgekit.bundle import find_runner, open_bundle, verify_bundle
from edgekit.cache import user_cache
from edgekit.checkpoint import open_checkpoint
from edgekit.engines import executorch
from edgekit.engines.executorch import open_model, version, write_model
from edgekit.engines.executorch_delegate import load_runtime, take_refusal
from edgekit.engines.native import Extras, write_program
from edgekit.engines.written import Written, read_written
from edgekit.errors import Damaged, DoesNotFit, TargetMissing, UsageError
from edgekit.graph import build_graph
from edgekit.passes import lower
from edgekit.pipeline import Order, build
from edgekit.plan import Plan, make_plan
from edgekit.quantize import QuantGraph, quantize
from edgekit.scheme import parse_recipe
from edgekit.target import load_target
from edgekit.testing import make_checkpoint

pytest.importorskip("executorch")

CONTEXT, ROWS, VOCAB = 48, 16, 512
TOKENS = np.random.default_rng(3).integers(0, VOCAB, 40).tolist()


@pytest.fixture(scope="module", autouse=True)
def _delegate(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Builds the delegate once for all tests, which each have the cache that it is in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        try:
            load_runtime()
        except TargetMissing as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(error.message)


def planned(folder: Path, recipe: str = "q4g32", *, rows: int = ROWS, kv: str = "f16") -> tuple[Plan, QuantGraph]:
    checkpoint = open_checkpoint(make_checkpoint(folder / "checkpoint", context=64, vocab=VOCAB))
    quant = quantize(build_graph(checkpoint, context=CONTEXT), checkpoint, parse_recipe(recipe))
    host = load_target("host")
    return make_plan(lower(quant), quant.graph.decoder, host, context=CONTEXT, max_rows=rows, kv=kv), quant


def write(folder: Path, plan: Plan, quant: QuantGraph) -> Written:
    folder.mkdir(exist_ok=True)
    return write_model(plan, quant, folder, probe=b"probe", bos=None, eos=(0, 7))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("executorch")
    return write(folder / "model", *planned(folder))


def native_logits(folder: Path, plan: Plan, quant: QuantGraph, *options: str) -> npt.NDArray[np.float32]:
    """What edgekit-run computes from the same plan and codes."""
    try:
        runner = find_runner(load_target("host").triple)
    except TargetMissing as error:
        pytest.skip(error.message)
    write_program(plan, quant, Extras(b"", b"", None, ()), folder / "model.edge")
    (folder / "tokens").write_bytes(np.array(TOKENS, "<u4").tobytes())
    files = ("--token-file", folder / "tokens", "--out", folder / "logits")
    subprocess.run([runner, "logits", folder / "model.edge", *files, *options], check=True, timeout=60)
    return np.fromfile(folder / "logits", "<f4").reshape(len(TOKENS), VOCAB)


def test_logits_are_those_of_the_native_program_to_the_bit(tmp_path: Path) -> None:
    plan, quant = planned(tmp_path, "q2g64,head=q8g32", kv="q8")
    session = open_model(write(tmp_path / "model", plan, quant), threads=2)
    expected = native_logits(tmp_path, plan, quant)
    np.testing.assert_array_equal(session.prefill(TOKENS), expected)
    assert session.position == len(TOKENS)
    session.reset(7)
    np.testing.assert_array_equal(np.stack([session.decode(token) for token in TOKENS[7:]]), expected[7:])
    session.close()


def test_the_last_row_alone_comes_from_another_method_if_the_cache_is_empty(written: Written) -> None:
    session = open_model(written, threads=1)
    expected = session.prefill(TOKENS)
    session.reset(4)
    np.testing.assert_array_equal(session.prefill(TOKENS[4:], last_only=True), expected[-1:])
    session.reset()
    np.testing.assert_array_equal(session.prefill(TOKENS[:9], last_only=True), expected[8:9])
    np.testing.assert_array_equal(session.decode(TOKENS[9]), expected[9])
    np.testing.assert_array_equal(session.prefill(TOKENS[10:]), expected[10:])
    assert session.position == len(TOKENS)
    session.reset()
    np.testing.assert_array_equal(session.prefill(TOKENS), expected)


def test_for_the_last_row_alone_no_others_are_computed(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    session, given = open_model(written, threads=1), []
    run = session._run

    def recorded(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        given.append(run(tokens))
        return given[-1]

    monkeypatch.setattr(session, "_run", recorded)
    session.prefill(TOKENS, last_only=True)
    assert [rows.shape for rows in given] == [(1, VOCAB)]


def test_two_sessions_know_nothing_of_each_other(written: Written) -> None:
    one, other = open_model(written, threads=1), open_model(written, threads=2)
    first = one.prefill(TOKENS[:9])
    other.prefill(TOKENS[9:20])
    one.reset()
    np.testing.assert_array_equal(one.prefill(TOKENS[:9]), first)


def test_what_is_written_is_described(written: Written) -> None:
    again = read_written(written.file)
    assert again == written
    assert (again.engine, again.engine_version, again.kernels) == ("executorch", version(), "edgekit")
    assert (again.bos, again.eos, again.vocab, again.context, again.kv_format) == (None, (0, 7), VOCAB, CONTEXT, "f16")
    assert again.probe == b"probe"
    assert {path.name for path in written.file.parent.iterdir()} == {"model.pte", "engine.json", "probe"}


def test_the_same_plan_gives_the_same_bytes_with_the_program_once(written: Written, tmp_path: Path) -> None:
    plan, quant = planned(tmp_path)
    again = write(tmp_path / "again", plan, quant)
    assert again.file.read_bytes() == written.file.read_bytes()
    write_program(plan, quant, Extras(b"", b"", None, (0, 7)), tmp_path / "model.edge")
    program, data = (tmp_path / "model.edge").read_bytes(), written.file.read_bytes()
    at = data.find(program)
    assert at > 0 and at % 65536 == 0
    assert data.find(program, at + 1) == -1 and len(data) < len(program) + 2 * 65536


def test_weights_are_used_where_the_file_is_mapped(written: Written) -> None:
    session = open_model(written, threads=1)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(written.file) in line]
    sizes = [int(end, 16) - int(start, 16) for start, end in (fields[0].split("-") for fields in maps)]
    assert max(sizes) >= written.weights_bytes
    session.close()
    assert str(written.file) not in Path("/proc/self/maps").read_text()


def test_constant_methods_say_what_the_llm_runner_asks_for(tmp_path: Path) -> None:
    plan, quant = planned(tmp_path)
    file = write_model(plan, quant, tmp_path, probe=b"", bos=5, eos=(0, 7)).file
    program = load_runtime()._load_program(str(file))
    methods = {program.get_method_name(index) for index in range(program.num_methods())} - {"forward", "all_logits"}
    assert {name: program.load_method(name).call() for name in methods} == {
        "get_vocab_size": [VOCAB],
        "get_max_seq_len": [CONTEXT],
        "get_max_context_len": [CONTEXT],
        "get_n_layers": [2],
        "get_bos_id": [5],
        "get_eos_ids": [0, 7],
        "use_kv_cache": [True],
        "use_sdpa_with_kv_cache": [False],
        "enable_dynamic_shape": [True],
    }


def test_forward_gives_the_last_row_alone(written: Written) -> None:
    import torch

    session = open_model(written, threads=1)
    forward = load_runtime()._load_program(str(written.file)).load_method("forward")
    (logits,) = forward.call((torch.tensor([TOKENS]), torch.tensor([0])))
    np.testing.assert_array_equal(logits.numpy(), session.prefill(TOKENS)[-1:])


_GENERATE = """
import sys
from edgekit.engines.executorch_delegate import load_runtime
load_runtime()
from executorch.extension.llm.runner._llm_runner import GenerationConfig, TextLLMRunner
runner = TextLLMRunner(sys.argv[1], sys.argv[2])
pieces = []
for prompt in sys.argv[4:]:
    runner.reset()
    runner.generate(prompt, GenerationConfig(echo=False, max_new_tokens=40, temperature=0.0), pieces.append)
    pieces.append("\\0")
open(sys.argv[3], "w", encoding="utf-8").write("".join(pieces))
"""


def test_the_runner_of_executorch_continues_as_the_native_program_does(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(Path(edgekit.__file__).parent / "models" / "tales")
    assert checkpoint.tokenizer_file is not None
    quant = quantize(build_graph(checkpoint, context=128), checkpoint, parse_recipe("q4g128"))
    plan = make_plan(lower(quant), quant.graph.decoder, load_target("host"), context=128)
    file = write_model(plan, quant, tmp_path, probe=b"", bos=checkpoint.bos_id, eos=checkpoint.eos_ids).file
    session = open_model(read_written(file), threads=2)
    tokenizer = checkpoint.tokenizer_file
    from tokenizers import Tokenizer

    words = Tokenizer.from_file(str(tokenizer))
    prompts = ("It was", "The old man looked at the sea, and then")
    expected = ""
    for prompt in prompts:
        session.reset()
        ids = words.encode(prompt).ids
        made = [int(session.prefill(ids)[-1].argmax())]
        while len(made) < 40 and made[-1] not in checkpoint.eos_ids:
            made.append(int(session.decode(made[-1]).argmax()))
        expected += words.decode(ids + made)[len(words.decode(ids)) :] + "\0"
    command = [sys.executable, "-P", "-c", _GENERATE, str(file), str(tokenizer), str(tmp_path / "text"), *prompts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "text").read_text("utf-8") == expected


def changed(written: Written, folder: Path, change: Callable[[bytearray, int], None]) -> Written:
    """The model with its program, which begins at the given place, changed."""
    data = bytearray(written.file.read_bytes())
    change(data, data.index(b"edgekit\0"))
    file = folder / "model.pte"
    file.write_bytes(data)
    return replace(written, file=file)


def spoil_header(data: bytearray, at: int) -> None:
    data[at + 20] ^= 1


def set_version(data: bytearray, at: int) -> None:
    struct.pack_into("<I", data, at + 8, 99)
    struct.pack_into("<I", data, at + 60, zlib.crc32(data[at : at + 60]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spoil_header, "the header of the program file is damaged"),
        (set_version, "the program file has version 99 and this program reads version 1"),
    ],
)
def test_a_program_that_cannot_be_read_is_refused_with_the_reason(
    written: Written, tmp_path: Path, change: Callable[[bytearray, int], None], reason: str
) -> None:
    model = changed(written, tmp_path, change)
    with pytest.raises(Damaged, match=f"^{version()} refuses .*model.pte: {reason}$"):
        open_model(model, threads=1)
    with pytest.raises(
        TargetMissing, match=f"^model.pte was made with executorch 9.9 and {version()} refuses it: {reason}$"
    ):
        open_model(replace(model, engine_version="executorch 9.9"), threads=1)


@pytest.mark.parametrize("keep", [0, 3, 100, 4096, 65536 + 64, -1])
def test_a_truncated_file_is_refused(written: Written, tmp_path: Path, keep: int) -> None:
    with pytest.raises(Damaged, match="threads are a number"):
        open_model(written, threads=257)
    file = tmp_path / "model.pte"
    file.write_bytes(written.file.read_bytes()[:keep])
    with pytest.raises(Damaged, match=f"{version()} refuses .*: (?!threads)"):
        open_model(replace(written, file=file), threads=1)


def test_a_file_that_executorch_would_end_the_process_for_is_refused(written: Written, tmp_path: Path) -> None:
    file = tmp_path / "model.pte"
    file.write_bytes(b"\0\0\0\0XX" + written.file.read_bytes()[6:])
    with pytest.raises(Damaged, match=r"refuses .*: it does not begin as a program"):
        open_model(replace(written, file=file), threads=1)


def test_a_model_that_is_described_otherwise_is_refused(written: Written) -> None:
    for wrong in (replace(written, vocab=VOCAB + 1), replace(written, context=CONTEXT - 1)):
        with pytest.raises(Damaged, match="is not the model that is described"):
            open_model(wrong, threads=1)


def test_methods_that_changed_places_are_refused(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executorch, "FORWARD", "all_logits")
    with pytest.raises(Damaged, match="is not the model that is described"):
        open_model(written, threads=1)
    monkeypatch.setattr(executorch, "ALL_LOGITS", "forward")
    with pytest.raises(Damaged, match="is not the model that is described"):
        open_model(written, threads=1)
    monkeypatch.setattr(executorch, "FORWARD", "neither")
    with pytest.raises(Damaged, match=r"refuses .*model\.pte: "):
        open_model(written, threads=1)


def test_a_method_that_is_not_loaded_is_tried_again(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_model(written, threads=1)
    expected = session.prefill(TOKENS)[-1:]
    session.reset()
    monkeypatch.setattr(session, "_threads", 257)
    with pytest.raises(Damaged, match="threads are a number from 0 to 256"):
        session.prefill(TOKENS, last_only=True)
    monkeypatch.setattr(session, "_threads", 2)
    np.testing.assert_array_equal(session.prefill(TOKENS, last_only=True), expected)
    session.close()
    session.close()


def test_tokens_that_do_not_fit_are_refused_and_change_nothing(written: Written) -> None:
    session = open_model(written, threads=1)
    expected = session.prefill(TOKENS)
    session.reset(39)
    with pytest.raises(UsageError, match="the token 512 is outside the vocabulary"):
        session.prefill([VOCAB])
    with pytest.raises(UsageError, match="49 tokens do not fit the context"):
        session.prefill([1] * 10)
    with pytest.raises(UsageError, match="there are no tokens"):
        session.prefill([])
    np.testing.assert_array_equal(session.decode(TOKENS[39]), expected[39])


def test_a_call_that_the_delegate_refuses_is_refused_with_its_reason(written: Written) -> None:
    session = open_model(written, threads=1)
    session.position = 7  # nothing was read
    with pytest.raises(Damaged, match=r"refuses .*: position 7 was asked for and only 0 tokens were read"):
        session.decode(1)


def test_the_delegate_starts_as_many_threads_as_it_is_told(written: Written) -> None:
    before = len(list(Path("/proc/self/task").iterdir()))
    session = open_model(written, threads=3)
    assert len(list(Path("/proc/self/task").iterdir())) == before + 2
    session.close()
    assert "EDGEKIT_THREADS" not in os.environ


@pytest.mark.parametrize("threads", ["257", "-1", "two", "2x", ""])
def test_a_number_of_threads_that_is_none_is_refused(
    written: Written, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("EDGEKIT_THREADS", threads)
    with pytest.raises(RuntimeError):
        load_runtime()._load_program(str(written.file)).load_method("forward")
    assert take_refusal() == "threads are a number from 0 to 256"


def test_the_delegate_holds_the_planned_context_and_no_more(written: Written) -> None:
    import torch

    forward = load_runtime()._load_program(str(written.file)).load_method("forward")
    forward.call((torch.tensor([TOKENS]), torch.tensor([0])))
    forward.call((torch.tensor([TOKENS[:8]]), torch.tensor([40])))
    with pytest.raises(RuntimeError):
        forward.call((torch.tensor([[1]]), torch.tensor([48])))
    assert take_refusal() == "1 tokens do not fit after 48 in a context of 48"


def method_of(file: Path, tokens: Any, positions: Any, *, many: bool = False) -> Any:
    """A method whose delegate is called with values like those given, whatever it takes. Shapes are fixed."""
    import torch
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower

    from edgekit.engines import executorch_program as writer

    class Decoder(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            return writer._decode(tokens, positions, VOCAB, many)

    data = file.read_bytes()
    at = data.index(b"edgekit\0")
    with writer.quiet(), writer._set(data[at : at + struct.unpack_from("<Q", data, at + 16)[0]]):
        exported = torch.export.export(Decoder(), (tokens, positions), strict=True)
        lowered = to_edge_transform_and_lower(exported, partitioner=[writer._Whole([])])
        made = lowered.to_executorch(ExecutorchBackendConfig(segment_alignment=65536))
    file = file.with_name("called.pte")
    file.write_bytes(made.buffer)
    return load_runtime()._load_program(str(file)).load_method("forward")


@pytest.mark.parametrize(
    ("tokens", "positions", "reason"),
    [
        ([[1, 2]], [1], "position 1 was asked for and only 0 tokens were read"),
        ([[1, 2]], [-1], "position -1 is outside the context of 64"),
        ([[1, 2]], [1 << 40], "position 1099511627776 is outside the context of 64"),
        ([[1, 2]], [0, 2], "input_pos does not rise by one from 0"),
        ([[1, 2]], [0, 1, 2], "input_pos is int64 .1. or one for each of 2 tokens"),
        ([[1, 2]], [[0]], "input_pos is int64 .1. or one for each of 2 tokens"),
        ([[1, 2]], [0.0], "input_pos is int64 .1. or one for each of 2 tokens"),
        ([[1, VOCAB]], [0], "token 512 is not in the vocabulary of 512"),
        ([[1, -1]], [0], "token -1 is not in the vocabulary"),
        ([[1, 1 << 33]], [0], "token 8589934592 is not in the vocabulary"),
        ([[1, 2], [3, 4]], [0], "tokens are int64 .1, 1 to 64."),
        ([[1.0, 2.0]], [0], "tokens are int64 .1, 1 to 64."),
        ([[1] * 65], [0], "tokens are int64 .1, 1 to 64."),
    ],
)
def test_a_call_that_makes_no_sense_is_refused_with_the_reason(
    written: Written, tmp_path: Path, tokens: Any, positions: Any, reason: str
) -> None:
    import torch

    (tmp_path / "model.pte").write_bytes(written.file.read_bytes())
    given = (torch.tensor(tokens), torch.tensor(positions))
    method = method_of(tmp_path / "model.pte", *given)
    with pytest.raises(RuntimeError, match="execute"):
        method.call(given)
    assert re.fullmatch(reason, take_refusal())


def test_a_position_for_each_token_is_the_same_as_the_first(written: Written, tmp_path: Path) -> None:
    import torch

    (tmp_path / "model.pte").write_bytes(written.file.read_bytes())
    given = (torch.tensor([TOKENS[:3]]), torch.tensor([0, 1, 2]))
    method = method_of(tmp_path / "model.pte", *given, many=True)
    expected = open_model(written, threads=1).prefill(TOKENS[:3])
    np.testing.assert_array_equal(method.call(given)[0][0].numpy(), expected)


def test_a_loader_that_does_not_align_the_program_is_refused(written: Written) -> None:
    runtime, data = load_runtime(), written.file.read_bytes()
    at = data.index(b"edgekit\0")
    # Where an object of bytes lies is the allocator's choice: one of these is not at a multiple of 64.
    copies = [data + bytes(more) for more in range(0, 160, 16)]
    header = sys.getsizeof(b"") - 1
    odd = next(copy for copy in copies if (id(copy) + header + at) % 64)
    with pytest.raises(RuntimeError):
        runtime._load_program_from_buffer(odd).load_method("forward")
    assert take_refusal().startswith("the program does not lie at a multiple of 64 bytes")


@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_compile_measures_the_same_as_for_the_native_engine(tmp_path: Path, kv: str) -> None:
    try:
        find_runner(load_target("host").triple)
    except TargetMissing as error:
        pytest.skip(error.message)
    model = make_checkpoint(tmp_path / "checkpoint", context=64, vocab=VOCAB)
    native = Order(model, "host", parse_recipe("q3g32"), tmp_path / "native", kv=kv)
    ours = replace(native, engine="executorch", output=tmp_path / "executorch")
    outcomes = [build(order, user_cache(), lambda *stage: None, lambda found: None) for order in (native, ours)]
    # The native one is tried with a cache in f16, whatever it will have.
    assert (outcomes[0].agreement == outcomes[1].agreement) == (kv == "f16")
    found, expected = (dict(outcome.measurement.coherence) for outcome in reversed(outcomes))
    assert found.pop("verdict") == expected.pop("verdict")
    assert found == pytest.approx(expected, rel=1e-6)  # sums of float32 logits in another order
    assert outcomes[0].predicted == outcomes[1].predicted
    bundle = open_bundle(ours.output)
    verify_bundle(bundle)
    assert (bundle.engine, bundle.engine_version, bundle.kernels, bundle.kv) == (
        "executorch", version(), "edgekit", kv,
    )  # fmt: skip
    assert set(bundle.files) == {"model.pte", "engine.json", "probe", "tokenizer.json"}


def test_compile_says_that_there_is_no_compiler_before_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", context=64, vocab=VOCAB)
    order = Order(model, "host", parse_recipe("q3g32"), tmp_path / "out", engine="executorch")
    monkeypatch.setenv("CXX", "no-such-compiler")
    stages: list[str] = []
    with pytest.raises(TargetMissing, match=r"no C\+\+ compiler"):
        build(order, user_cache(), lambda stage, *done: stages.append(stage), lambda found: None)
    assert not stages and not order.output.exists()


def test_more_end_of_text_ids_than_a_program_holds_leave_nothing(tmp_path: Path) -> None:
    plan, quant = planned(tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(DoesNotFit, match="room for 8"):
        write_model(plan, quant, tmp_path / "model", probe=b"", bos=None, eos=tuple(range(9)))
    assert not list((tmp_path / "model").iterdir())
