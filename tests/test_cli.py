"""The command line: what goes to stdout and what to stderr, exit codes, sentences instead of tracebacks."""

import csv
import errno
import functools
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import edgekit
from edgekit.cli import main
from edgekit.cli._console import Stages, parse_bytes, parse_counts, show_json, show_pairs, show_table
from edgekit.cli.compile import _of_all_layers
from edgekit.cli.run import _summary
from edgekit.device import open_device
from edgekit.errors import TargetMissing, UsageError
from edgekit.measure import Generation, Measurement
from edgekit.target import load_target
from edgekit.testing import make_checkpoint

COMMANDS = ["bench", "compile", "estimate", "eval", "inspect", "run", "targets", "train", "verify"]
COMMAND_LINE = [sys.executable, "-P", "-m", "edgekit.cli"]


def run(*arguments, code=0):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", context=64)


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "tiny-host"
    run("compile", model, "--target", "host", "--recipe", "q4g32", "-o", path)
    return path


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle that may be damaged."""
    path = tmp_path / "copy"
    path.mkdir()
    for file in bundle.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
        (path / file.name).chmod(file.stat().st_mode)
    return path


def test_the_help_lists_these_commands_and_no_others():
    assert sorted(main.commands) == COMMANDS
    text = run("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in text
    assert "..." not in text.partition("Commands:")[2]  # no summary is cut


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_of_its_own(name):
    text = run(name, "-h").stdout
    assert text.startswith(f"Usage: main {name} ")
    assert "--json" in text


@pytest.mark.parametrize(
    ("arguments", "code", "sentence", "hint"),
    [
        (["targets", "toaster"], 4, "unknown target 'toaster'", "one of: host, "),
        (["compile", "--target", "toaster"], 4, "unknown target 'toaster'", "one of: host, "),
        (["estimate", "--target", "host", "--recipe", "q5g7"], 3, "unknown scheme 'q5g7'", "for example q4g128"),
        (["estimate", "--target", "host", "--context", "9999"], 2, "a context of 9999 tokens", "from 1 to 256"),
        (["estimate", "--target", "host", "--context", "0"], 2, "Invalid value for '--context'", "estimate --help"),
        (["estimate"], 2, "Missing option '--target'", "estimate --help"),
        (["estimate", "--target", "host", "--kv", "q4"], 2, "'q4' is not one of 'f16', 'q8'", "estimate --help"),
        (["compile", "--target", "host", "--engine", "litert", "--kv", "q8"], 2, "values in float32", "leave --kv out"),
        (["compile", "--target", "host", "--litert-runtime", "2.14"], 2, "--litert-runtime is for --engine litert", ""),
        (["compile", "--target", "host", "--method", "gptq"], 2, "the method gptq needs a", "--calibration FILE"),
        (
            ["compile", "--target", "host", "--method", "magic"],
            2,
            "'magic' is not one of 'gptq', 'kept', 'rtn'",
            "--help",
        ),
        (
            ["compile", "--target", "host", "--recipe", "q4g64,method=magic"],
            3,
            "'magic'",
            "one of: gptq, kept, rtn, rtn_bias",
        ),
        (["compile", "--target", "host", "--calibration", "/nowhere"], 2, "cannot read /nowhere", ""),
        (
            ["compile", "--target", "host", "--calibration", __file__],
            2,
            "rtn reads no calibration text",
            "for gptq and",
        ),
        (["compile", "/nowhere", "--target", "host"], 2, "/nowhere is not a directory", "config.json"),
        (["inspect", "/nowhere"], 2, "/nowhere is not a directory", ""),
        (["run", "/nowhere", "-p", "x"], 2, "/nowhere is not a bundle", "edgekit compile"),
        (["verify", "/nowhere"], 2, "/nowhere is not a bundle", "edgekit compile"),
        (["eval", "/nowhere"], 2, "/nowhere is not a bundle", "edgekit compile"),
        (["bench", "x", "-r", "1001"], 2, "1001 is not in the range 1<=x<=1000", "bench --help"),
        (["run", "x", "-p", "x", "--threads", "257"], 2, "257 is not in the range 1<=x<=256", "run --help"),
        (["bench", "/nowhere", "-o", "html"], 2, "'html' is not one of 'table', 'json'", "bench --help"),
        (["targets", "--colour"], 2, "No such option", "targets --help"),
        (["run", "x", "-p", "x", "--timeout", "inf"], 2, "inf is not in the range 0<x<=604800", "run --help"),
        (["run", "x", "-p", "x", "--timeout", "nan"], 2, "nan is not a finite number", "run --help"),
        (["run", "x", "-p", "x", "--top-p", "nan"], 2, "nan is not a finite number", "run --help"),
        (["run", "x", "-p", "x", "--temperature", "inf"], 2, "inf is not a finite number", "run --help"),
        (["deploy"], 2, "No such command 'deploy'", "--help"),
        (["compile", "--target", "host", "--max-ram", "lots"], 2, "'lots' is not a size", "for example 8G"),
    ],
)
def test_a_mistake_ends_in_a_sentence_a_hint_and_its_code(arguments, code, sentence, hint):
    done = run(*arguments, code=code)
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("edgekit: ") and sentence in first
    assert hint in "\n".join(rest)


@pytest.mark.parametrize(
    ("device", "code", "sentence"),
    [
        ("carrier-pigeon", 2, "unknown kind of device 'carrier-pigeon'"),
        ("local:here", 2, "the device 'local' takes no address"),
        ("qemu:toaster", 4, "qemu emulates no target 'toaster'"),
        ("qemu", 4, "qemu emulates no target ''"),
    ],
)
def test_an_unknown_device_names_the_known(bundle, device, code, sentence):
    done = run("run", bundle, "-p", "x", "--device", device, code=code)
    assert sentence in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.emulator
def test_a_bundle_on_a_device_of_another_kind_is_refused(bundle, emulator):
    if load_target("host").architecture == "aarch64":
        pytest.skip("this machine is of that kind")
    done = run("run", bundle, "-p", "x", "--device", "qemu:rpi4", code=6)
    assert "the bundle is for x86_64, the device 'qemu:rpi4' runs aarch64" in done.stderr
    assert "hint: compile it with --target rpi4, or leave --device out" in done.stderr


def test_targets_are_a_table_or_json():
    lines = run("targets").stdout.splitlines()
    assert lines[0].split()[:2] == ["target", "isa"]
    found = {target["name"]: target for target in json.loads(run("targets", "--json").stdout)}
    assert len(lines) == len(found) + 2
    assert found["rpi5"]["qemu_cpu"] == "cortex-a76"
    assert json.loads(run("targets", "rpi5", "--json").stdout) == found["rpi5"]
    assert "neon_dotprod" in run("targets", "rpi5").stdout


def test_estimate_adds_up_and_reads_no_weights(model):
    found = json.loads(run("estimate", model, "--target", "rpi4", "--recipe", "q4g32", "--json").stdout)
    parts = ("weights_bytes", "kv_bytes", "arena_bytes", "overhead_bytes")
    assert found["total_bytes"] == sum(found[part] for part in parts)
    assert found["fits"] is True
    # Two layers, two heads of 16 for keys and for values, two bytes each, 64 positions.
    assert found["kv_bytes"] == 2 * 2 * 2 * 16 * 2 * 64
    assert found["predicted"]["decode_tokens_per_second"] > 0
    small = json.loads(run("estimate", model, "--target", "rpi4", "--kv", "q8", "--json").stdout)
    assert (found["kv"], small["kv"], small["kv_bytes"]) == ("f16", "q8", 2 * 2 * 2 * (16 + 4) * 64)
    assert "(predicted)" in run("estimate", model, "--target", "rpi4").stdout


def test_an_estimate_that_does_not_fit_is_shown_and_gives_code_9(tmp_path):
    huge = make_checkpoint(tmp_path / "huge", context=1 << 20, head_dim=128)
    # 2 layers x 2 heads x 128 x 2 bytes x 2 (keys, values) x 2^20 positions = 2 GiB; the board has 425 MiB.
    done = run("estimate", huge, "--target", "rpi-zero2w", "--context", 1 << 20, "--json", code=9)
    assert json.loads(done.stdout)["kv_bytes"] == 1 << 31
    assert "rpi-zero2w has 425.0 MiB" in done.stderr


def test_inspect_tells_a_checkpoint_from_a_bundle(model, bundle):
    checkpoint = json.loads(run("inspect", model, "--json").stdout)
    assert (checkpoint["kind"], checkpoint["model_type"], checkpoint["layers"]) == ("checkpoint", "llama", 2)
    found = json.loads(run("inspect", bundle, "--json").stdout)
    assert (found["kind"], found["recipe"], found["target"]) == ("bundle", "q4g32,head=q4g32", "host")
    assert "tied head" in run("inspect", model).stdout
    text = run("inspect", bundle).stdout
    assert "model.edge" in text and "kv_bytes 16.0 KiB" in text  # 2 layers, 2 heads of 16, 64 positions


def test_compile_prints_figures_on_stdout_and_stages_on_stderr(model, tmp_path):
    done = run("compile", model, "--target", "host", "--recipe", "q8g64", "-o", tmp_path / "out", "--json")
    found = json.loads(done.stdout)
    assert found["recipe"] == "q8g64,head=q8g64"
    assert found["self_test"]["relative_error"] <= found["self_test"]["tolerance"]
    assert set(found["coherence"]) >= {"kld_mean", "same_top", "verdict"}
    first, *rest = done.stderr.splitlines()
    assert first.startswith("compiling tiny (") and "takes about" in first and "of memory" in first
    assert any(line.startswith("quantize: q8g64") for line in rest)


def test_a_calibrated_bundle_is_compiled_inspected_verified_and_evaluated(model, tmp_path):
    (tmp_path / "text").write_text("The ferry left the harbour a little before six. " * 4)
    options = ("--recipe", "q2g32", "--method", "gptq", "--calibration", tmp_path / "text", "-o", tmp_path / "out")
    done = run("compile", model, "--target", "host", *options, "--json")
    assert json.loads(done.stdout)["recipe"] == "q2g32,head=q4g32,method=gptq"
    assert "calibrate: run the float32 reference" in done.stderr
    described = json.loads(run("inspect", tmp_path / "out", "--json").stdout)
    assert described["recipe"] == "q2g32,head=q4g32,method=gptq" and len(described["calibrated_on"]) == 64
    run("verify", tmp_path / "out")
    evaluated = json.loads(run("eval", tmp_path / "out", "--reference", model, "--json").stdout)
    assert not any("not made from" in warning for warning in evaluated["warnings"])


def test_a_calibration_on_the_text_of_the_probe_is_told(model, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).write_text(f"The {name} ferry left the harbour at six, with {name} lamps alight. " * 4)
    options, told = ("--target", "host", "--method", "rtn_bias", "--calibration", tmp_path / "one"), []
    for probe in ("one", "other"):
        done = run("compile", model, *options, "--probe-text", tmp_path / probe, "-o", tmp_path / f"out-{probe}")
        told.append("warning: the calibration text holds text of the probe" in done.stderr)
    assert told == [True, False]


def test_the_method_of_the_command_line_is_used_instead_of_the_recipes(model, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('scheme = "q4g32"\nmethod = "gptq"\n')
    done = run("compile", model, "--target", "host", "--recipe", recipe, "--method", "rtn", "-o", tmp_path / "out")
    assert "recipe q4g32,head=q4g32 " in " ".join(done.stdout.split())


def test_compile_explains_its_kernels_as_estimate_does(model, tmp_path):
    options = (model, "--target", "rpi5", "--recipe", "q4g32", "--explain")
    estimated = json.loads(run("estimate", *options, "--json").stdout)["explain"]
    compiled = json.loads(run("compile", *options, "-o", tmp_path / "a", "--json").stdout)["explain"]
    assert compiled == estimated
    assert {each["operator"] for each in compiled} == {"NormLinear", "LinearAdd", "NormGatedLinear", "Head"}
    text = run("compile", *options, "-o", tmp_path / "b").stdout
    assert "verdict" in text and text.endswith(run("estimate", *options).stdout.partition("\n\n")[2])
    assert "\n\nPredicted speeds count what has no row, too: attention, " in text
    assert "not gemm_q8_q4_f32_4x16x32_neon_i8mm" in text and "rpi5 has no i8mm" in text
    assert "explain" not in json.loads(run("estimate", *options[:-1], "--json").stdout)


def test_of_an_engine_with_kernels_of_its_own_what_is_outside_the_fast_ones_is_explained(model, tmp_path):
    options = ("--target", "host", "--recipe", "q4g32", "--engine", "onnxruntime", "--portable", "--explain")
    done = run("compile", model, *options, "-o", tmp_path / "a")
    table = done.stdout.partition("Outside the fast kernels of onnxruntime a token takes:")[2].split("\n")
    assert table[2].split() == ["operator", "nodes", "matrices", "in", "codes"]
    assert ["RMSNormalization", "5"] in [line.split() for line in table]  # two a layer, and one before the head
    assert "low-bit kernels" not in done.stderr
    found = json.loads(run("compile", model, *options, "-o", tmp_path / "b", "--json").stdout)
    assert found["explain"] == []
    assert {"operator": "RMSNormalization", "count": 5, "matrices": []} in found["outside"]


def test_of_our_kernels_in_another_engine_every_product_is_explained(model, tmp_path):
    options = ("--target", "host", "--recipe", "q4g32", "--engine", "onnxruntime", "--explain", "--json")
    found = json.loads(run("compile", model, *options, "-o", tmp_path / "out").stdout)
    assert {each["operator"] for each in found["explain"]} == {"NormLinear", "LinearAdd", "NormGatedLinear", "Head"}
    assert found["outside"] == []


def test_many_matrices_are_shown_in_a_line():
    layers = [f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (0, 1, 10) for name in ("up", "down")]
    assert _of_all_layers([*layers, "lm_head.weight"]) == [
        "3 x model.layers.*.mlp.up_proj", "3 x model.layers.*.mlp.down_proj", "lm_head",
    ]  # fmt: skip


def test_a_compile_that_fails_its_gate_leaves_nothing(model, tmp_path):
    options = (model, "--target", "host", "-o", tmp_path / "out")
    done = run("compile", *options, "--recipe", "t2g32", "--gate", "coherent", code=5)
    assert done.stdout == "" and list(tmp_path.iterdir()) == []
    assert "and --gate asks for coherent: same_top 0." in done.stderr and " < 0.7\n" in done.stderr
    run("compile", *options, "--recipe", "f32", "--gate", "coherent")


def test_too_little_memory_says_how_much_is_enough(model, tmp_path):
    options = ("compile", model, "--target", "host", "--recipe", "q4g32", "-o", tmp_path / "out", "--max-ram")
    enough = run(*options, "1M", code=9).stderr.rpartition("hint: --max-ram ")[2].split()[0]
    less = f"{int(enough.removesuffix('M')) - 1}M"
    assert "--max-ram" in run(*options, less, code=9).stderr
    run(*options, enough)


@pytest.mark.parametrize(
    ("place", "sentence", "hint"),
    [("/proc/out", "cannot read or write /proc: ", "choose another place (-o)"), ("file/out", "file: Not a dir", "-o")],
)
def test_a_place_where_nothing_can_be_written_is_named(model, tmp_path, monkeypatch, place, sentence, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    done = run("compile", model, "--target", "host", "-o", place, code=2)
    assert sentence in done.stderr and hint in done.stderr


def test_a_cache_that_is_no_folder_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    done = run("compile", model, "--target", "host", "-o", tmp_path / "out", code=2)
    assert f"cannot read or write {tmp_path / 'file'}: Not a directory" in done.stderr
    assert "hint: set EDGEKIT_CACHE to another folder" in done.stderr


def test_compile_writes_where_model_and_target_say(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("compile", model, "--target", "host", "--recipe", "q4g32")
    assert (tmp_path / "tiny-host" / "manifest.json").is_file()
    for word in ("self-test   passed on local", "verdict", "KLD", "same top", "(predicted)"):
        assert word in done.stdout
    assert "tiny-host exists" in run("compile", model, "--target", "host", code=2).stderr


def test_the_embedded_model_is_compiled_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(run("compile", "--target", "host", "--json").stdout)
    assert found["bundle"] == "tales-host"
    assert json.loads(run("compile", "--target", "host", "--engine", "onnxruntime", "--json").stdout)["bundle"] == (
        "tales-host-onnxruntime"
    )
    assert found["coherence"]["verdict"] == "coherent"
    assert found["coherence"]["kld_mean"] < 0.1


def greedy(bundle, device="local", *options):
    arguments = ["run", bundle, "--device", device, "-p", "The wind", "-n", "12", "--temperature", "0", *options]
    return run(*arguments)


def test_run_streams_the_text_to_stdout_and_the_rest_to_stderr(bundle):
    found = json.loads(greedy(bundle, "local", "--json").stdout)
    done = greedy(bundle)
    assert len(found["tokens"]) == 12 or found["stop"] == "eos"
    assert "12 tokens" in done.stderr
    assert found["device"]["name"] == "local"
    assert found["memory"]["weights_bytes"] > 0


def test_run_tells_time_and_doubts_about_it_only_when_asked(bundle):
    quiet = greedy(bundle).stderr
    assert len(quiet.strip().splitlines()) == 1 and "tokens/s" not in quiet
    told = greedy(bundle, "local", "--stats").stderr
    assert "decode" in told and "tokens/s" in told and "warning: fewer samples than the 99th percentile needs" in told
    assert json.loads(greedy(bundle, "local", "--json").stdout)["warnings"]


def test_a_rate_that_is_no_number_is_left_out():
    latency = {"prefill_tokens_per_second": "fast", "decode_tokens_per_second": 2.5}
    made = Generation("", (1,), (), "eos", Measurement(latency, {}, {}, {}, {}, ()))
    assert _summary(made, stats=True) == "0 + 1 tokens, stopped by eos; decode 2.5 tokens/s"


def test_a_warning_about_the_text_is_given_without_stats(bundle):
    done = run("run", bundle, "-p", "The", "-n", 64, "--context", 8, "--temperature", 0)
    assert "the context of 8 tokens was full" in done.stderr


def test_a_seed_gives_the_same_text_again_and_another_another(bundle):
    def sampled(seed):
        return json.loads(run("run", bundle, "-p", "The", "-n", 24, "--seed", seed, "--json").stdout)["tokens"]

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


@pytest.mark.emulator
def test_every_target_of_this_scheme_gives_the_same_tokens(model, bundle, emulator, tmp_path):
    expected = json.loads(greedy(bundle, "local", "--json").stdout)["tokens"]
    for target in ("rpi-zero2w", "rpi5"):
        run("compile", model, "--target", target, "--recipe", "q4g32", "-o", tmp_path / target)
        done = greedy(tmp_path / target, f"qemu:{target}", "--json")
        found = json.loads(done.stdout)
        assert found["tokens"] == expected
        assert found["latency"]["decode_tokens_per_second"] is None
        assert "emulated: time has no meaning" in found["warnings"][-1]


def test_a_prompt_longer_than_the_context_is_refused(bundle):
    done = run("run", bundle, "-p", "x" * 500, code=2)
    assert "the context holds 64" in done.stderr


def bench(bundle, *options):
    return run("bench", bundle, "-p", 8, "-n", 4, "-r", 2, "-t", "1,2", *options).stdout


def test_bench_gives_a_row_for_each_test_and_number_of_threads(bundle):
    rows = json.loads(bench(bundle, "-o", "json"))
    assert [(row["test"], row["threads"]) for row in rows] == [("pp8", 1), ("tg4", 1), ("pp8", 2), ("tg4", 2)]
    for row in rows:
        assert row["tokens_per_second"] > 0 and row["stddev"] >= 0
        assert len(row["samples_seconds"]) == 2
        assert row["weights_bytes"] > 0 and row["peak_rss_bytes"] > 0
        assert all(name.startswith("gemm_q8_q4_f32_") for name in row["kernels"]) and row["fell_back"] is False
        decoding = row["test"] == "tg4"
        assert [row["bytes_per_second"] is not None, row["fraction_of_read_ceiling"] is not None] == [decoding] * 2
    assert rows[1]["bytes_per_second"] == pytest.approx(rows[1]["bytes_per_token"] * rows[1]["tokens_per_second"])
    # Decoding uses kernels made for one row alone.
    assert all("_1x16x32_" in name for name in rows[1]["kernels"]) and rows[1]["kernels"] != rows[0]["kernels"]
    assert json.loads(bench(bundle, "--json"))[0]["test"] == "pp8"


def test_bench_writes_the_formats_it_offers(bundle):
    assert [json.loads(line)["test"] for line in bench(bundle, "-o", "jsonl").splitlines()][:2] == ["pp8", "tg4"]
    rows = list(csv.DictReader(io.StringIO(bench(bundle, "-o", "csv"))))
    assert [row["test"] for row in rows][:2] == ["pp8", "tg4"] and float(rows[0]["tokens_per_second"]) > 0
    assert rows[0]["bytes_per_second"] == "" and float(rows[1]["bytes_per_second"]) > 0
    assert len(rows[0]["kernels"].split(" ")) == 2
    table = bench(bundle).splitlines()
    assert table[0].split()[:3] == ["bundle", "device", "test"] and len(table) == 6
    markdown = bench(bundle, "-o", "md").splitlines()
    assert markdown[1].startswith("| --- |") and len(markdown) == 6
    assert all(re.search(r"\d\.\d\d \+- \d+\.\d\d ", line) for line in (*table[2:], *markdown[2:]))


def test_bench_shows_no_spread_of_one_sample(bundle):
    options = ("bench", bundle, "-p", 8, "-n", 0, "-r", 1, "-t", 1)
    assert re.search(r"  1\s+\d+\.\d\d \+- -  ", run(*options).stdout)
    assert " +- - |" in run(*options, "-o", "md").stdout
    assert json.loads(run(*options, "--json").stdout)[0]["stddev"] == 0


def test_bench_calibrates_and_the_bundle_remembers(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    rows = json.loads(run("bench", copy, "--calibrate", "--json").stdout)
    chosen = {row["test"][:2]: row["threads"] for row in rows if row["chosen"]}
    assert len(chosen) == 2 and len(rows) >= 2
    assert f"\ndecode_threads {chosen['tg']}\n" in (copy / "model.edge.calibration").read_text()
    rows = json.loads(run("bench", copy, "-p", 0, "-n", 4, "-r", 1, "--json").stdout)
    assert (rows[0]["threads"], rows[0]["threads_from"]) == (chosen["tg"], "calibrated")
    rows = json.loads(run("bench", copy, "-p", 0, "-n", 4, "-r", 1, "-t", 1, "--json").stdout)
    assert rows[0]["threads_from"] == "asked"
    table = run("bench", copy, "--calibrate").stdout.splitlines()
    assert table[0].split() == ["test", "threads", "tokens/s", "chosen"]
    run("verify", copy)


def test_compile_says_when_the_program_of_the_board_was_not_run(model, tmp_path, monkeypatch):
    def only_local(name):
        if name != "local":
            raise TargetMissing("there is no emulator")
        return open_device(name)

    monkeypatch.setattr("edgekit.selftest.open_device", only_local)
    done = run("compile", model, "--target", "rpi5", "-o", tmp_path / "bundle")
    assert "the program for rpi5 was not run" in done.stderr
    assert "qemu-user-static" in done.stderr
    assert "was not run" not in run("compile", model, "--target", "host", "-o", tmp_path / "host").stderr


@pytest.mark.parametrize(("engine", "what"), [("onnxruntime", "library"), ("executorch", "delegate")])
def test_compile_says_that_what_an_engine_loads_on_the_board_was_not_run(model, tmp_path, engine, what):
    said = f"the {what} for rpi5 was not run: its model was, by this machine's {what} (run the bundle on the board"
    options = ("--engine", engine, "-o")
    assert said in run("compile", model, "--target", "rpi5", *options, tmp_path / "board").stderr
    assert "was not run" not in run("compile", model, "--target", "host", *options, tmp_path / "host").stderr


def test_what_is_portable_has_nothing_that_was_not_run(model, tmp_path):
    options = ("--engine", "onnxruntime", "--portable", "-o", tmp_path / "bundle")
    assert "was not run" not in run("compile", model, "--target", "rpi5", *options).stderr


def test_bench_does_not_calibrate_where_it_cannot_be_remembered(copy, monkeypatch):
    def fail(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(copy / "tmpx"))

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    monkeypatch.setattr("edgekit.measure.Runner.calibrate", lambda runner: pytest.fail("it was measured"))
    done = run("bench", copy, "--calibrate", code=2)
    assert f"cannot write {copy / 'model.edge.calibration'}: Permission denied\nhint: calibrate a copy" in done.stderr


def test_run_bench_and_eval_keep_keys_and_values_as_they_are_told(bundle):
    for kv in ("f16", "q8"):
        found = json.loads(run("run", bundle, "-p", "a", "-n", 2, "--kv", kv, "--json").stdout)
        (row,) = json.loads(run("bench", bundle, "-p", 0, "-n", 2, "-r", 1, "-t", 1, "--kv", kv, "--json").stdout)
        assert found["memory"]["kv_format"] == row["kv_format"] == kv
        assert json.loads(run("eval", bundle, "--kv", kv, "--json").stdout)["kv"] == kv
    assert json.loads(run("eval", bundle, "--json").stdout)["kv"] == "f16"


def test_bench_refuses_to_calibrate_with_tests_of_its_own_choice(bundle):
    for options in (("-t", 2), ("-p", 8), ("-n", 8), ("-r", 5), ("--kv", "q8"), ("-o", "csv")):
        assert "--calibrate chooses its own tests" in run("bench", bundle, "--calibrate", *options, code=2).stderr


def test_bench_takes_lengths_that_fit_the_context_by_default(bundle):
    rows = json.loads(run("bench", bundle, "-r", 1, "-t", 1, "-o", "json").stdout)
    assert [row["test"] for row in rows] == ["pp64", "tg32"]
    rows = json.loads(run("bench", bundle, "-d", 50, "-r", 1, "-t", 1, "-o", "json").stdout)
    assert [row["test"] for row in rows] == ["pp14", "tg14"]


def test_bench_refuses_lengths_beyond_the_context_and_nothing_at_all(bundle):
    for length in (65, 10**9):
        long = run("bench", bundle, "-p", length, code=2).stderr
        assert f"-p is '{length}'\nhint: whole numbers from 0 to 64, separated by commas; more takes a bundle" in long
    deep = run("bench", bundle, "-d", 60, "-n", 8, code=2).stderr
    assert (
        "-n is '8'\nhint: whole numbers from 0 to 4, " in deep
        and "; more after -d 60 takes a bundle compiled with a longer --context" in deep
    )
    assert "-d 64 leaves no room" in run("bench", bundle, "-d", 64, code=2).stderr
    assert "there is nothing to measure" in run("bench", bundle, "-p", 0, "-n", 0, code=2).stderr
    for threads in ("two", "257"):
        refused = run("bench", bundle, "-t", threads, code=2).stderr
        assert f"-t is '{threads}'\nhint: whole numbers from 1 to 256" in refused


def test_the_engine_onnxruntime_runs_the_native_program_with_the_same_text_and_figures(model, bundle, tmp_path):
    out = tmp_path / "onnx"
    options = ("--target", "host", "--recipe", "q4g32", "--engine", "onnxruntime", "-o", out, "--json")
    compiled = json.loads(run("compile", model, *options).stdout)
    assert (compiled["engine"], compiled["kernels"], compiled["kv"]) == ("onnxruntime", "edgekit", "f16")
    native = json.loads((bundle / "manifest.json").read_text())
    same = ("kld_mean", "perplexity", "same_top")
    assert [compiled["coherence"][key] for key in same] == pytest.approx([native["coherence"][key] for key in same])
    assert (
        compiled["predicted"]["bytes_per_token"] == native["predicted"]["bytes_per_token"]
    )  # speeds are of the moment
    names = {"model.onnx", "model.edge", "libedgekit_onnxruntime.so", "engine.json", "probe", "tokenizer.json"}
    assert {file.name for file in out.iterdir()} == {"manifest.json", *names}
    texts = [json.loads(greedy(folder, "local", "--json").stdout)["tokens"] for folder in (out, bundle)]
    assert texts[0] == texts[1]
    assert {row["test"] for row in json.loads(bench(out, "-o", "json"))} == {"pp8", "tg4"}
    run("verify", out)


def test_a_portable_bundle_for_onnxruntime_is_standard_onnx_that_runs_on_this_machine(model, bundle, tmp_path):
    out = tmp_path / "onnx"
    options = ("--target", "host", "--recipe", "q4g32", "--engine", "onnxruntime", "--portable", "-o", out, "--json")
    compiled = json.loads(run("compile", model, *options).stdout)
    assert compiled["self_test"]["relative_error"] <= compiled["self_test"]["tolerance"]
    assert compiled["predicted"] == {}  # the plan is that of edgekit's kernels
    names = {file.name for file in out.iterdir()}
    assert names >= {"manifest.json", "model.onnx", "probe", "tokenizer.json"} and "edgekit-run" not in names
    native = json.loads((bundle / "manifest.json").read_text())["coherence"]
    # Same codes and scales; the engines differ by the rounding of activations and of the cache.
    assert compiled["coherence"]["perplexity"] == pytest.approx(native["perplexity"], rel=0.02)
    found = json.loads(greedy(out, "local", "--json").stdout)
    assert len(found["tokens"]) == 12 or found["stop"] == "eos"
    assert found["device"]["engine"].startswith("onnxruntime ")
    rows = json.loads(bench(out, "-o", "json"))
    assert {row["test"] for row in rows} == {"pp8", "tg4"} and rows[0]["tokens_per_second"] > 0
    run("verify", out)
    text = tmp_path / "text"
    text.write_text("The wind is cold and the road is long.\n" * 4)
    evaluated = json.loads(run("eval", out, "--reference", model, "--text", text, "--context", 32, "--json").stdout)
    assert evaluated["kld_mean"] < 2


@pytest.fixture(scope="module")
def litert(model, tmp_path_factory):
    """A bundle for LiteRT, and what was said when it was compiled."""
    out = tmp_path_factory.mktemp("litert") / "bundle"
    options = ("--recipe", "q4g32", "--engine", "litert", "-o", out, "--json")
    return out, run("compile", model, "--target", "host", *options)


def test_a_bundle_for_litert_runs_and_says_what_was_rounded_again(litert, bundle):
    out, done = litert
    compiled = json.loads(done.stdout)
    assert "of the 4-bit blocks are rounded again: XNNPACK has positive scales only" in done.stderr
    assert (compiled["engine"], compiled["kernels"], compiled["kv"]) == ("litert", "runtime", "f32")
    assert compiled["self_test"]["relative_error"] <= compiled["self_test"]["tolerance"]
    names = {"manifest.json", "model.tflite", "model.litertlm", "engine.json", "probe", "tokenizer.json"}
    assert {file.name for file in out.iterdir()} == names
    native = json.loads((bundle / "manifest.json").read_text())["coherence"]
    assert compiled["coherence"]["perplexity"] == pytest.approx(native["perplexity"], rel=0.05)
    found = json.loads(greedy(out, "local", "--json").stdout)
    assert len(found["tokens"]) == 12 or found["stop"] == "eos"
    assert found["device"]["engine"].startswith("ai-edge-litert ")
    run("verify", out)


def test_a_portable_bundle_for_executorch_runs_without_our_kernels(tmp_path):
    model = make_checkpoint(tmp_path / "tiny", context=64, layers=1)
    out = tmp_path / "executorch"
    options = ("--recipe", "q3g32", "--engine", "executorch", "--portable", "-o", out, "--json")
    compiled = json.loads(run("compile", model, "--target", "host", *options).stdout)
    assert (compiled["engine"], compiled["kernels"], compiled["kv"]) == ("executorch", "runtime", "f32")
    assert compiled["self_test"]["relative_error"] <= compiled["self_test"]["tolerance"]
    assert {file.name for file in out.iterdir()} == {
        "manifest.json", "model.pte", "engine.json", "probe", "tokenizer.json",
    }  # fmt: skip
    found = json.loads(greedy(out, "local", "--json").stdout)
    assert len(found["tokens"]) == 12 or found["stop"] == "eos"


def test_a_bundle_for_an_old_tflite_runtime_has_eight_bits_and_says_so(model, tmp_path):
    out = tmp_path / "litert"
    options = ("--recipe", "q4g32", "--engine", "litert", "--litert-runtime", "2.14", "-o", out, "--explain", "--json")
    done = run("compile", model, "--target", "host", *options)
    assert "15 matrices are rounded again to 8 bits with one scale a row" in done.stderr
    slow = "15 matrices in codes are multiplied outside the engine's fast low-bit kernels: --explain says which"
    assert f"warning: {slow}\n" in done.stderr
    products = json.loads(done.stdout)["outside"][0]
    assert (products["operator"], products["count"]) == ("FULLY_CONNECTED", 15)
    assert {"model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"} < set(products["matrices"])
    assert not (out / "model.litertlm").exists()


@pytest.mark.emulator
@pytest.mark.parametrize("options", [["onnxruntime"], ["onnxruntime", "--portable"]], ids=" ".join)
def test_onnxruntime_on_an_emulated_board_gives_the_tokens_of_this_machine(model, arm64_root, tmp_path, options):
    out = tmp_path / "out"
    run("compile", model, "--target", "rpi5", "--recipe", "q4g32", "--engine", *options, "-o", out)
    check_same_tokens(out)


@pytest.mark.emulator
def test_litert_on_an_emulated_board_gives_the_tokens_of_this_machine(litert, arm64_root):
    check_same_tokens(litert[0])


def check_same_tokens(bundle):
    here, there = (json.loads(greedy(bundle, name, "-n", 4, "--json").stdout) for name in ("local", "qemu:rpi5"))
    assert there["tokens"] == here["tokens"]
    assert there["device"]["engine"] == here["device"]["engine"]
    assert (there["device"]["cpu"], there["device"]["isa"]) == ("Arm Cortex-A76", "neon_dotprod")
    assert there["device"]["emulated"] is True and there["latency"]["load_seconds"] is None
    assert there["warnings"][-1] == "emulated: time has no meaning here and is left out"


@pytest.mark.emulator
def test_bench_and_eval_of_an_engine_work_on_an_emulated_board(model, arm64_root, tmp_path):
    out = tmp_path / "out"
    run("compile", model, "--target", "rpi4", "--recipe", "q4g32", "--engine", "onnxruntime", "-o", out)
    rows = json.loads(bench(out, "-o", "json", "--device", "qemu:rpi4"))
    assert {row["test"]: row["tokens_per_second"] for row in rows} == {"pp8": None, "tg4": None}
    assert all(row["bytes_per_token"] > 0 for row in rows if row["test"] == "tg4")
    here, there = (json.loads(run("eval", out, "--device", name, "--json").stdout) for name in ("local", "qemu:rpi4"))
    assert {**there, "device": "local"} == here


def test_a_message_is_put_into_the_chat_template(tmp_path):
    chatty = make_checkpoint(tmp_path / "chatty", context=64)
    config = json.loads((chatty / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ eos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} ="
    (chatty / "tokenizer_config.json").write_text(json.dumps(config))
    run("compile", chatty, "--target", "host", "--recipe", "q4g32", "-o", tmp_path / "out")
    options = ("-n", 2, "--temperature", 0, "--json")
    chat = json.loads(run("run", tmp_path / "out", "-p", "the wind", "--chat", *options).stdout)
    plain = json.loads(run("run", tmp_path / "out", "-p", "<|endoftext|>[user] the wind =", *options).stdout)
    assert chat["prompt_tokens"] == plain["prompt_tokens"]
    assert chat["prompt_tokens"][0] == 0


def test_a_message_to_a_model_without_chat_template_is_refused(bundle):
    assert "has no chat template" in run("run", bundle, "-p", "x", "--chat", code=2).stderr


def test_verify_counts_the_files_that_are_right(bundle):
    assert run("verify", bundle).stdout.startswith("3 files, ")
    assert json.loads(run("verify", bundle, "--json").stdout)["verified"] is True


@pytest.mark.parametrize("command", [["verify"], ["run", "-p", "x"], ["bench"], ["eval"]])
@pytest.mark.parametrize("name", ["model.edge", "edgekit-run", "tokenizer.json"])
def test_a_bundle_with_one_wrong_byte_is_never_run(copy, command, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    done = run(command[0], copy, *command[1:], code=7)
    assert f"{name} of the bundle is not what its manifest.json says" in done.stderr


def test_a_truncated_file_and_a_broken_manifest_give_code_7(copy):
    with (copy / "model.edge").open("r+b") as stream:
        stream.truncate(1000)
    assert "has 1000 bytes and should have" in run("verify", copy, code=7).stderr
    (copy / "manifest.json").write_text("{")
    assert "is not JSON" in run("verify", copy, code=7).stderr


def test_a_command_that_takes_too_long_gives_code_8(bundle):
    done = run("bench", bundle, "-p", 64, "-n", 32, "-r", 1000, "--timeout", 0.2, code=8)
    assert "was still running after 200 ms" in done.stderr


def test_a_full_disk_gives_code_9_and_a_refused_folder_code_2(monkeypatch):
    def fail_with(number):
        def fail(path):
            raise OSError(number, os.strerror(number), "there")

        monkeypatch.setattr("edgekit.cli.verify.open_bundle", fail)

    fail_with(errno.ENOSPC)
    assert "no space left to write there" in run("verify", "x", code=9).stderr
    fail_with(errno.EACCES)
    said = run("verify", "x", code=2).stderr
    assert "there: Permission denied\nhint: look at its permissions, or choose another place" in said


def test_errors_about_temporary_files_name_tmpdir(monkeypatch):
    def fail_with(*error):
        def fail(path):
            raise OSError(*error)

        monkeypatch.setattr("edgekit.cli.verify.open_bundle", fail)

    fail_with(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/edgekit-device-x/prompt")
    assert "hint: free some, or set TMPDIR to another folder" in run("verify", "x", code=9).stderr
    fail_with(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert "there is no folder for temporary files\nhint: set TMPDIR" in run("verify", "x", code=2).stderr


def test_too_little_memory_gives_code_9(monkeypatch):
    def fail(path):
        raise MemoryError

    monkeypatch.setattr("edgekit.cli.verify.open_bundle", fail)
    assert "ran out of memory" in run("verify", "x", code=9).stderr


def test_an_error_of_ours_is_not_hidden(monkeypatch):
    def fail(path):
        raise AssertionError("ours")

    monkeypatch.setattr("edgekit.cli.verify.open_bundle", fail)
    done = CliRunner().invoke(main, ["verify", "x"])
    assert isinstance(done.exception, AssertionError)
    assert done.exit_code == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_compile_that_is_interrupted_leaves_nothing_and_gives_code_130(model, tmp_path, number, request):
    # Under nohup the signal is ignored, which a child would inherit; a handler is not inherited.
    request.addfinalizer(functools.partial(signal.signal, number, signal.signal(number, lambda *_: None)))
    environment = os.environ | {"EDGEKIT_CACHE": str(tmp_path / "cache")}
    command = [*COMMAND_LINE, "compile", str(model), "--target", "host", "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(("probe", "quantize")):
                process.send_signal(number)
                break
        said = process.stderr.read()
        assert process.wait(30) == 130
    assert "edgekit: interrupted" in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
    assert not list((tmp_path / "cache").glob(".unfinished-*"))


def test_an_interrupt_while_it_is_imported_gives_code_130_and_no_traceback(tmp_path):
    interrupt = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "click.py").write_text(interrupt)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]  # an empty entry would be this folder
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-P", "-m", "edgekit", "targets"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "edgekit: interrupted\n")


def test_signals_that_are_ignored_stay_ignored(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("edgekit.cli.verify.open_bundle", lambda path: found.append(signal.getsignal(signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        CliRunner().invoke(main, ["verify", "x"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert found == [signal.SIG_IGN]

    stub = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(77)\n"
    (tmp_path / "click.py").write_text(stub)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$0" -P -m edgekit targets', sys.executable],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        check=False,
    )
    assert done.returncode == 77


def test_the_installed_command_is_the_module():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "edgekit", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: edgekit [OPTIONS] COMMAND")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"edgekit": "edgekit.__main__:main"}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_path_that_is_not_utf_8_is_escaped_in_json_and_cleaned_in_a_table(monkeypatch, encoding):
    path = os.fsdecode(b"caf\xe9\xc3\xa9")
    for function, value in (
        (show_json, {path: path}),
        (show_pairs, [("path", path)]),
        (show_table, (["path"], [[path]])),
    ):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr("sys.stdout", stdout)
        function(*value) if function is show_table else function(value)
        stdout.flush()
        text = stdout.buffer.getvalue().decode(encoding)
        if function is show_json:
            assert json.loads(text) == value
        else:
            assert text.count("caf" + ("\u00e9" if encoding == "utf-8" else "\\xe9")) == 1


def test_a_bundle_in_a_folder_whose_name_is_not_utf_8_is_inspected(copy, tmp_path):
    broken = copy.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    done = subprocess.run([*COMMAND_LINE, "inspect", broken, "--json"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == broken.name


def test_a_reader_that_has_enough_is_no_error():
    with subprocess.Popen(
        [*COMMAND_LINE, "targets", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_sizes_and_lists_are_read_as_people_write_them():
    assert [parse_bytes(text) for text in ("8G", "500M", "1.5k", "42", "8GiB")] == [
        8 << 30, 500 << 20, 1536, 42, 8 << 30,
    ]  # fmt: skip
    assert parse_counts("1,2, 4", option="-t", highest=4) == (1, 2, 4)
    for text in ("", "G", "-1", "nan", "1e99"):
        with pytest.raises(UsageError):
            parse_bytes(text)
    for text in ("", "0", "1,,2", "5", "1000000000", "9" * 5000, "²"):
        with pytest.raises(UsageError, match=f"-t is '{text}'") as caught:
            parse_counts(text, option="-t", highest=4, reason="; no more")
        assert caught.value.hint == "whole numbers from 1 to 4, separated by commas; no more"


def test_a_table_aligns_numbers_right_and_drops_control_characters(capsys):
    show_table(("name", "count"), [("a\x1b[2J", 5), ("longer", 12345)])
    assert capsys.readouterr().out.splitlines() == [
        "name    count",
        "------  -----",
        "a[2J        5",
        "longer  12345",
    ]


def test_stages_without_a_terminal_are_plain_lines_with_what_is_left(capsys):
    now = [0.0]
    with Stages(now=lambda: now[0]) as stages:
        for second, stage, done in (
            (0, "quantize", 0),
            (5, "quantize", 10),
            (11, "quantize", 25),
            (12, "quantize", 30),
        ):
            now[0] = second
            stages(stage, done, 100)
        now[0] = 40.0
        stages("write", 0, 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "quantize ...",
        "quantize: 25% after 11 s, about 33 s left",
        "quantize: done in 40 s, 40 s since the start",
        "write ...",
    ]


def test_the_embedded_model_is_part_of_the_package():
    import edgekit

    assert (Path(edgekit.__file__).parent / "models" / "tales" / "config.json").is_file()
    assert (Path(edgekit.__file__).parent / "probe.txt").is_file()


def test_the_source_folder_without_compiled_kernels_says_how_to_run_it(tmp_path):
    for name in ("__init__.py", "__main__.py", "errors.py"):
        (tmp_path / "edgekit").mkdir(exist_ok=True)
        (tmp_path / "edgekit" / name).write_bytes((Path(edgekit.__file__).parent / name).read_bytes())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "edgekit", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    first, hint = done.stderr.splitlines()
    assert first == f"edgekit: {tmp_path / 'edgekit'} is the source of edgekit, without its compiled kernels"
    assert "`python -P -m edgekit`" in hint
