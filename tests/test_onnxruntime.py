"""The onnxruntime engine: what it writes is checked before it runs, and it answers as edgekit-run does."""

import json
import math
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from tokenizers_zoo import template

from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.coherence import make_probe, metrics
from edgekit.engines.host import main
from edgekit.engines.onnxruntime import nodes_outside, open_model, write_model
from edgekit.engines.probe import run_probe
from edgekit.engines.sampling import Sampler
from edgekit.engines.written import read_written
from edgekit.errors import Damaged, Unsupported
from edgekit.graph import Session, build_graph, session_options
from edgekit.quantize import quantize
from edgekit.scheme import parse_recipe
from edgekit.testing import END_OF_TEXT, make_checkpoint

Float32 = npt.NDArray[np.float32]

CONTEXT = 48
TEXT = np.random.default_rng(4).integers(1, 270, 90).astype(np.uint32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("checkpoint"), context=64, vocab=512))


@pytest.fixture(scope="module")
def probe(checkpoint: Checkpoint) -> bytes:
    with Session(build_graph(checkpoint, context=CONTEXT)) as session:
        return make_probe(session, TEXT, context=CONTEXT, begin=None)


def write(folder: Path, checkpoint: Checkpoint, probe: bytes, recipe: str) -> Path:
    quant = quantize(build_graph(checkpoint, context=CONTEXT), checkpoint, parse_recipe(recipe))
    write_model(quant, folder, probe=probe, bos=None, eos=(0,))
    assert checkpoint.tokenizer_file is not None
    shutil.copy(checkpoint.tokenizer_file, folder)
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint, probe: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model"), checkpoint, probe, "q8g32")


@pytest.fixture(scope="module")
def exact(checkpoint: Checkpoint, probe: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("exact"), checkpoint, probe, "f32")


def run(*argv: object) -> int:
    return main([str(word) for word in argv])


def answer(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert run(*argv, "--json", "-") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_model_knows_its_special_tokens_and_sizes(model: Path) -> None:
    written = read_written(model)
    assert (written.bos, written.eos) == (None, (0,))
    assert (written.engine, written.kernels, written.kv_format) == ("onnxruntime", "runtime", "f32")
    assert (written.vocab, written.context) == (512, CONTEXT)
    # Keys and values of 2 layers, 2 heads of 16, float32.
    assert written.kv_bytes == 2 * 2 * 2 * CONTEXT * 16 * 4
    matrices = 512 * 64 + 2 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 64 * 96)
    assert matrices * (1 + 2 / 32) < written.weights_bytes < matrices * (1 + 2 / 32) + 16_000
    assert written.bytes_per_token <= written.weights_bytes


@pytest.mark.parametrize("recipe", ["q8g32", "q4g128", "q3g64", "q2g32", "t2g32,head=t2g32"])
def test_every_product_of_codes_runs_in_the_fast_kernel(
    checkpoint: Checkpoint, probe: bytes, tmp_path: Path, recipe: str
) -> None:
    rows = nodes_outside(read_written(write(tmp_path, checkpoint, probe, recipe)))
    outside = {row.operator: row.count for row in rows}
    assert not any(row.matrices for row in rows)
    # Two norms a layer and one before the head; keys and values of two layers.
    assert (outside["RMSNormalization"], outside["Attention"], outside["TensorScatter"]) == (5, 2, 4)
    assert not outside.keys() & {"MatMulNBits", "MatMul", "DequantizeLinear"}


def test_products_that_are_not_fused_are_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_fusion(*arguments: Any, **options: Any) -> Any:
        made = session_options(*arguments, **options)
        made.add_session_config_entry("session.disable_quant_qdq", "1")
        return made

    monkeypatch.setattr("edgekit.graph.session_options", without_fusion)
    products = nodes_outside(read_written(model))[0]
    assert (products.operator, products.count) == ("MatMul", 15)  # 7 in 2 layers, the head
    assert {"model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"} < set(products.matrices)
    assert len(set(products.matrices)) == 15


def test_the_same_codes_give_the_same_files(model: Path, checkpoint: Checkpoint, probe: bytes, tmp_path: Path) -> None:
    again = write(tmp_path, checkpoint, probe, "q8g32")
    for name in ("model.onnx", "model.onnx.data", "probe", "engine.json"):
        assert again.with_name(name).read_bytes() == model.with_name(name).read_bytes()


def test_what_is_written_can_be_read_by_others(model: Path) -> None:
    modes = {name: model.with_name(name).stat().st_mode & 0o777 for name in ("model.onnx", "model.onnx.data")}
    assert set(modes.values()) == {0o644}


def copied(model: Path, folder: Path) -> Path:
    shutil.copytree(model.parent, folder, dirs_exist_ok=True)
    return folder / model.name


def refer_to(file: Path, key: str, value: str) -> None:
    """Changes where the first outside tensor is said to lie."""
    proto = onnx.load(file, load_external_data=False)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.external_data)
    next(entry for entry in tensor.external_data if entry.key == key).value = value
    file.write_bytes(proto.SerializeToString())


def test_a_link_to_the_model_is_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to(model)
    assert read_written(tmp_path / "link.onnx").file == model.resolve()


def link_data(model: Path) -> None:
    data = model.with_name("model.onnx.data")
    data.rename(model.with_name("elsewhere"))
    data.symlink_to("elsewhere")


def name_data_twice(model: Path) -> None:
    os.link(model.with_name("model.onnx.data"), model.with_name("second"))


DAMAGE = {
    "data that is a link": link_data,
    "data with a second name": name_data_twice,
    "data that is missing": lambda model: model.with_name("model.onnx.data").unlink(),
    "data that is cut short": lambda model: os.truncate(model.with_name("model.onnx.data"), 4096),
    "a tensor in another folder": lambda model: refer_to(model, "location", "../model.onnx.data"),
    "a tensor at an absolute path": lambda model: refer_to(model, "location", "/etc/passwd"),
    "a tensor past the end": lambda model: refer_to(model, "offset", str(1 << 40)),
    "a tensor before the start": lambda model: refer_to(model, "offset", "-65536"),
    "a tensor of another length": lambda model: refer_to(model, "length", "64"),
    "a model that is cut short": lambda model: os.truncate(model, 5000),
    "a model that is empty": lambda model: os.truncate(model, 0),
    "a model of someone else": lambda model: onnx.save(onnx.parser.parse_model(SOMEONE_ELSES), model),
}
SOMEONE_ELSES = '<ir_version: 10, opset_import: ["" : 21]> g (float[1] x) => (float[1] y) { y = Relu(x) }'


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_model_is_refused_in_a_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    bad = copied(model, tmp_path)
    damage(bad)
    with pytest.raises(Damaged):
        open_model(read_written(bad), threads=1)
    assert run("generate", bad, "--prompt", "a") == 7
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("edgekit-run: ") and said[-1] == "hint: compile again"


def test_a_model_with_any_byte_changed_runs_or_is_refused(model: Path, tmp_path: Path) -> None:
    bad, generator = copied(model, tmp_path), np.random.default_rng(0)
    good, outcomes = bad.read_bytes(), set()
    for _ in range(60):
        mutated = bytearray(good)
        mutated[generator.integers(len(good))] ^= generator.integers(1, 256)
        bad.write_bytes(mutated)
        try:
            with open_model(read_written(bad), threads=1) as session:
                session.prefill([1, 2])
            outcomes.add("ran")
        except Damaged:
            outcomes.add("refused")
    assert outcomes == {"ran", "refused"}


def greedy(file: Path, prompt: list[int], count: int) -> list[int]:
    """Without a cache: the whole text is computed again for every token."""
    with open_model(read_written(file), threads=1) as session:
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(session.logits(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_tokens_are_those_of_the_whole_text_computed_again(
    exact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--tokens", "5,9,200", "-n", 20, "--temperature", 0, "--threads", 1]
    found = answer(capsys, "generate", exact, *options)
    expected = greedy(exact, [5, 9, 200], 20)
    if 0 in expected:
        expected = expected[: expected.index(0) + 1]
    assert found["tokens"] == expected
    assert found["stop"] == ("eos" if expected[-1] == 0 else "length")
    assert found["prompt_tokens"] == [5, 9, 200]


def test_a_token_that_ends_the_text_stops_it(exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stops = copied(exact, tmp_path)
    third = greedy(exact, [5, 9, 200], 3)[2]
    described = stops.with_name("engine.json")
    described.write_text(json.dumps({**json.loads(described.read_text()), "eos": [third]}))
    found = answer(capsys, "generate", stops, "--tokens", "5,9,200", "--temperature", 0, "--threads", 1)
    assert found["stop"] == "eos" and found["tokens"][-1] == third and len(found["tokens"]) <= 3


def test_a_generation_reports_what_design_asks_for(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "generate", model, "--prompt", "hello", "-n", 8, "--seed", 1, "--threads", 1)
    assert {"tokens", "prompt_tokens", "text", "stop", "latency", "memory", "bandwidth", "device"} <= found.keys()
    latency = {"load_seconds", "ttft_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"}
    assert latency | {"token_seconds", "samples"} <= found["latency"].keys()
    assert len(found["latency"]["samples"]) == len(found["tokens"]) - 1
    assert found["memory"]["peak_rss_bytes"] > found["memory"]["weights_bytes"] > 0
    assert found["device"]["engine"].startswith("onnxruntime 1.") and not found["device"]["emulated"]
    assert "fewer samples than the 99th percentile needs: 7" in found["warnings"]
    # Tokens after the prompt see one position more each, themselves included.
    count, prompt = len(found["latency"]["samples"]), len(found["prompt_tokens"])
    positions = sum(range(prompt + 1, prompt + 1 + count))
    moved = count * found["bandwidth"]["bytes_per_token"] + positions * found["memory"]["kv_bytes"] / CONTEXT
    assert found["bandwidth"]["bytes_per_second"] == pytest.approx(moved / sum(found["latency"]["samples"]))


def test_a_prompt_is_not_truncated_as_the_tokenizers_file_asks(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompt", "he was in the garden", "-n", 1, "--threads", 1]
    expected = answer(capsys, "generate", model, *options)["prompt_tokens"]
    content = json.loads(model.with_name("tokenizer.json").read_text())
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    other = copied(model, tmp_path)
    other.with_name("tokenizer.json").write_text(json.dumps(content))
    assert len(expected) > 4 and answer(capsys, "generate", other, *options)["prompt_tokens"] == expected


def test_the_end_of_text_that_a_template_puts_after_a_prompt_is_left_out(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompt", f"he was{END_OF_TEXT}", "-n", 1, "--threads", 1]
    expected = answer(capsys, "generate", model, *options)["prompt_tokens"]
    content = json.loads(model.with_name("tokenizer.json").read_text())
    content["post_processor"] = template([], [(END_OF_TEXT, 0)])
    other = copied(model, tmp_path)
    other.with_name("tokenizer.json").write_text(json.dumps(content))
    assert expected[-1] == 0 and answer(capsys, "generate", other, *options)["prompt_tokens"] == expected


def test_text_is_streamed_and_ends_with_a_line(model: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run("generate", model, "--prompt", "hello", "-n", 6, "--seed", 1, "--threads", 1) == 0
    streamed = capfdbinary.readouterr().out
    assert run("generate", model, "--prompt", "hello", "-n", 6, "--seed", 1, "--threads", 1, "--json", "-") == 0
    assert streamed == json.loads(capfdbinary.readouterr().out)["text"].encode() + b"\n"


def test_a_full_context_ends_the_text_with_a_warning(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tokens", "5,9", "-n", 100, "--context", 6, "--seed", 3, "--threads", 1, "--top-k", 0]
    found = answer(capsys, "generate", exact, *options)
    if found["stop"] == "length":
        assert len(found["tokens"]) == 5  # two, four more in the cache, and one that needs no place
        assert "the context of 6 tokens was full before the end" in found["warnings"]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_teacher_forced_logits_are_those_of_the_graph(
    exact: Path, checkpoint: Checkpoint, tmp_path: Path, chunk: int
) -> None:
    ids = TEXT[:CONTEXT]
    (tmp_path / "ids").write_bytes(ids.astype("<u4").tobytes())
    options = ["--token-file", tmp_path / "ids", "--chunk", chunk, "--start", 5, "--threads", 1]
    assert run("logits", exact, *options, "--out", tmp_path / "logits") == 0
    found = np.fromfile(tmp_path / "logits", "<f4").reshape(-1, 512)
    with Session(build_graph(checkpoint, context=CONTEXT)) as session:
        expected = session.logits(ids)[5:]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_bench_gives_a_row_for_each_test_and_number_of_threads(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "bench", model, "-p", "8,16", "-n", 4, "-d", 3, "-r", 2, "-t", "1,2")
    rows = [(row["test"], row["threads"], row["depth"], row["tokens"]) for row in found["rows"]]
    assert rows == [(test, threads, 3, int(test[2:])) for threads in (1, 2) for test in ("pp8", "pp16", "tg4")]
    for row in found["rows"]:
        assert len(row["samples"]) == 2 and min(row["samples"]) > 0
        rates = [row["tokens"] / sample for sample in row["samples"]]
        assert row["tokens_per_second"] == pytest.approx(np.mean(rates))
        assert row["stddev"] == pytest.approx(np.std(rates, ddof=1))
        assert ("bytes_per_second" in row) == (row["test"] == "tg4")
    decoded = found["rows"][2]
    # Four tokens after 3 see 4 to 7 positions.
    attended = 5.5 * found["memory"]["kv_bytes"] / CONTEXT
    assert decoded["bytes_per_token"] == found["bandwidth"]["bytes_per_token"] + attended
    assert decoded["bytes_per_second"] == decoded["bytes_per_token"] * decoded["tokens_per_second"]
    ceiling = found["bandwidth"]["read_ceiling_bytes_per_second"]["1"]
    assert decoded["fraction_of_read_ceiling"] == decoded["bytes_per_second"] / ceiling


def test_bench_gives_no_share_of_a_ceiling_that_could_not_be_measured(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.engines.host.read_ceiling", lambda threads, size: 0.0)
    (row,) = answer(capsys, "bench", model, "-p", 0, "-n", 2, "-r", 1, "-t", 1)["rows"]
    assert row["bytes_per_second"] > 0 and "fraction_of_read_ceiling" not in row


def test_the_probe_of_the_same_model_finds_no_difference(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "probe", exact, "--threads", 1)["coherence"]
    assert found["tokens"] == 88  # 90 tokens in windows of 48 and 42, all but the first of each
    assert abs(found["kld_mean"]) < 1e-5 and found["same_top"] == 1 and found["verdict"] == "coherent"
    assert found["perplexity"] == pytest.approx(found["reference_perplexity"], rel=1e-4)
    assert found["rep4"] == pytest.approx(found["reference_rep4"], rel=1e-6)  # stored in float32


def test_the_probe_of_another_model_finds_the_full_divergence_or_less(
    checkpoint: Checkpoint, probe: bytes, tmp_path: Path
) -> None:
    coarse = write(tmp_path, checkpoint, probe, "q2g32,head=q4g32")
    with open_model(read_written(coarse), threads=1) as session:
        found = run_probe(session, probe)
        logits = [session.logits(window) for window in (TEXT[:48], TEXT[48:])]
    with Session(build_graph(checkpoint, context=CONTEXT)) as session:
        reference = [session.logits(window) for window in (TEXT[:48], TEXT[48:])]
    rows, expected_rows = (np.concatenate([part[:-1] for part in parts]) for parts in (logits, reference))
    full = metrics(expected_rows, rows, np.concatenate([TEXT[1:48], TEXT[49:]]))
    assert found.perplexity == pytest.approx(full.perplexity, rel=1e-4)
    assert found.same_top == full.same_top
    assert 0.5 * full.kld_mean < found.kld_mean <= full.kld_mean * (1 + 1e-4)


@pytest.mark.parametrize("kept", [0, 3, 63, 64, 71, 72, 300, -4, -1])
def test_a_probe_that_is_cut_short_is_refused(model: Path, probe: bytes, kept: int) -> None:
    with open_model(read_written(model), threads=1) as session, pytest.raises(Damaged, match="it is too short"):
        run_probe(session, probe[:kept])


@pytest.mark.parametrize(
    ("offset", "value", "error", "message"),
    [
        (0, 2, Unsupported, "the probe has version 2"),
        (4, 1, Damaged, "not hold as many tokens"),
        (8, 0, Damaged, "its header contradicts the model"),
        (8, 513, Damaged, "its header contradicts the model"),
        (32, 0, Damaged, "its header contradicts the model"),
        (32, 99, Damaged, "not hold as many tokens"),
        (64, 0, Damaged, "a sequence does not fit the model"),
        (64, CONTEXT + 1, Damaged, "a sequence does not fit the model"),
        (68, 0, Damaged, "scores tokens that it does not have"),
        (68, 49, Damaged, "scores tokens that it does not have"),
        (72, 512, Damaged, "a sequence does not fit the model"),
        (72 + 4 * 48 + 4, 512, Damaged, "names a token that the model does not have"),
    ],
)
def test_a_probe_that_lies_is_refused(
    model: Path, probe: bytes, offset: int, value: int, error: type[Exception], message: str
) -> None:
    bad = bytearray(probe)
    struct.pack_into("<I", bad, offset, value)
    with open_model(read_written(model), threads=1) as session, pytest.raises(error, match=message):
        run_probe(session, bytes(bad))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate"], "no prompt is given"),
        (["generate", "--prompt", "a", "--tokens", "1"], "more than one prompt is given"),
        (["generate", "--tokens", "512"], "names a token that the model does not have"),
        (["generate", "--tokens", "a"], "list of whole numbers from 0"),
        (["generate", "--prompt", ""], "the prompt is empty"),
        (["generate", "--prompt-file", "nowhere"], "'nowhere' cannot be read"),
        (["generate", "--tokens", ",".join("1" * 49)], "the prompt has 49 tokens and the context holds 48"),
        (["generate", "--prompt", "a", "--temperature", "-1"], "number from 0"),
        (["generate", "--prompt", "a", "--top-p", "nan"], "number from 0"),
        (["generate", "--prompt", "a", "-n", "0"], "whole number from 1"),
        (["generate", "--prompt", "a", "--surprise", "1"], "unrecognized arguments: --surprise"),
        (["generate", "--prompt", "a", "--context", "49"], "--context is '49'\nhint: a whole number from 1 to 48"),
        (
            ["generate", "--tokens", "1,1,1", "--context", "2"],
            "3 tokens and the context holds 2\nhint: --context can be",
        ),
        (["probe", "--context", "49"], "--context is '49'"),
        (["bench", "-p", "49"], "the context holds 48 tokens"),
        (["bench", "-t", "0"], "list of whole numbers from 1"),
        (["logits"], "required: --token-file, --out"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(
    model: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert run(argv[0], model, *argv[1:]) == 2
    said = capsys.readouterr().err
    assert said.startswith("edgekit-run: ") and message in said


@pytest.mark.parametrize("data", [b"", b"\1\0\0", b"\0\2\0\0"])
def test_a_file_that_is_no_list_of_tokens_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    (tmp_path / "ids").write_bytes(data)
    assert run("logits", model, "--token-file", tmp_path / "ids", "--out", tmp_path / "out") == 2
    assert "is not a list of tokens" in capsys.readouterr().err


def test_a_model_that_is_not_the_one_described_is_refused(model: Path, tmp_path: Path) -> None:
    bad = copied(model, tmp_path)
    described = bad.with_name("engine.json")
    described.write_text(described.read_text().replace('"vocab": 512', '"vocab": 500'))
    with pytest.raises(Damaged, match="is not the model that is described beside it"):
        open_model(read_written(bad), threads=1)


def test_splitmix64_begins_as_published() -> None:
    sampler = Sampler(1.0, 0, 1.0, 1.0, seed=0)
    # The first outputs for seed 0 are e220a8397b1dcdaf and 6e789e6aa1b965f4; 24 bits of each are used.
    assert [sampler._draw() for _ in range(2)] == [0xE220A8 / 2**24, 0x6E789E / 2**24]


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = np.array([1.0, 3.0, 3.0, 2.0], np.float32)
    assert Sampler(0.0, 40, 0.95, 1.0, seed=7).sample(logits) == 1
    assert Sampler(5.0, 1, 1.0, 1.0, seed=7).sample(logits) == 1
    assert Sampler(5.0, 0, 1e-9, 1.0, seed=7).sample(logits) == 1


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"), [(0, 1.0, [0, 1, 2, 3]), (2, 1.0, [0, 1]), (0, 0.8, [0, 1]), (3, 0.99, [0, 1, 2])]
)
def test_tokens_are_drawn_as_often_as_they_are_likely(top_k: int, top_p: float, kept: list[int]) -> None:
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(2.0, top_k, top_p, 1.0, seed=11)
    # At temperature 2 these logits have the shares above.
    logits = (2 * np.log(shares)).astype(np.float32)
    draws = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=4) / 20_000
    expected = np.where(np.isin(np.arange(4), kept), shares, 0)
    # Four standard deviations of a share of 20,000 draws: 4 * sqrt(0.25 / 20000) = 0.014.
    np.testing.assert_allclose(draws, expected / expected.sum(), atol=0.015)


@pytest.mark.parametrize("top_k", [0, 1, 2, 40, 999, 1000, 2000])
def test_the_likeliest_are_the_first_of_a_stable_sort(top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(5)
    for distinct in (1, 3, 50, 10**6):  # with few values there are equals at the end of what is kept
        logits = source.integers(-distinct, distinct, 1000).astype(np.float32)
        expected = np.argsort(-logits, kind="stable")[: top_k or None]
        np.testing.assert_array_equal(Sampler(1.0, top_k, 1.0, 1.0, seed=0)._likeliest(logits), expected)
    sorted_lengths: list[int] = []
    monkeypatch.setattr(np, "flatnonzero", lambda kept: sorted_lengths.append(kept.sum()) or kept.nonzero()[0])
    Sampler(1.0, top_k, 1.0, 1.0, seed=0)._likeliest(source.permutation(1000).astype(np.float32))
    assert sorted_lengths == ([top_k] if 0 < top_k < 1000 else [])


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    sampler = Sampler(0.0, 0, 1.0, 2.0, seed=0)
    sampler.see(0)
    sampler.see(2)
    assert sampler.sample(np.array([3.0, 1.6, -0.5], np.float32)) == 1  # 3 / 2 is below 1.6
    assert sampler.sample(np.array([-0.5, -0.9, -2.0], np.float32)) == 1  # -0.5 * 2 is below -0.9


def test_a_row_of_equal_logits_has_a_perplexity_of_the_vocabulary(model: Path, probe: bytes) -> None:
    class Uniform:
        vocab, context, position = 512, CONTEXT, 0

        def reset(self, position: int = 0) -> None:
            self.position = position

        def prefill(self, ids: list[int], *, last_only: bool = False) -> Float32:
            return np.zeros((len(ids), 512), np.float32)

        def decode(self, token: int) -> Float32:
            return np.zeros(512, np.float32)

        def close(self) -> None: ...

    found = run_probe(Uniform(), probe)
    assert found.perplexity == pytest.approx(512)
    assert found.kld_mean < math.log(512) and found.rep4 > 0.9


def test_a_damaged_model_of_another_version_is_refused_with_both(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model.parent, tmp_path / "copy")
    (folder / model.name).write_bytes(b"\xff" * 64)
    described = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps(described | {"engine_version": "onnxruntime 1.17.1"}))
    assert run("generate", folder / model.name, "--tokens", "1", "-n", "1") == 4
    assert re.search(
        r"was made with onnxruntime 1\.17\.1 and onnxruntime 1\.32\.\d+ refuses it: ", capsys.readouterr().err
    )
