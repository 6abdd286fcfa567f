"""Measurements: what is asked of a device, and what is believed of its answers."""

import itertools
import json
import math

import numpy as np
import pytest

from edgekit.errors import Damaged, DeviceUnavailable, GateFailed, UsageError
from edgekit.measure import EMULATED, BenchRow, Resources, Runner, Sampling
from edgekit.testing import FakeDevice, Reply, make_program_header

REPORT = {
    "tokens": [5, 6],
    "prompt_tokens": [1],
    "stop": "length",
    "latency": {"load_seconds": 0.01, "decode_tokens_per_second": 50.0, "samples": [0.02, 0.02]},
    "memory": {"weights_bytes": 1000},
    "bandwidth": {"bytes_per_token": 900, "bytes_per_second": 45000.0},
    "device": {"isa": "avx2"},
    "warnings": ["too short"],
}
LOGITS = Reply("logits", files={"logits": np.zeros(2, np.float32).tobytes()})
GREEDY = Sampling(temperature=0.0)
PLANNED = Resources()


@pytest.fixture
def start(tmp_path):
    """A function that starts a runner on a device that gives the replies."""
    (tmp_path / "model.edge").write_bytes(b"model")

    def start(*replies, **options):
        device = FakeDevice(replies, **options)
        return Runner(device, program=make_program_header(tmp_path / "edgekit-run"), model=tmp_path / "model.edge")

    return start


def generate(runner, **options):
    return runner.generate("It was", tokens=2, sampling=GREEDY, resources=PLANNED, **options)


def replied(report, **fields):
    return Reply("generate", b" a day\n", files={"report.json": json.dumps(report | fields).encode()})


def test_a_generation_is_what_the_device_wrote_and_reported(start):
    runner = start(replied(REPORT))
    found = generate(runner)
    assert found.text == " a day"
    assert (found.tokens, found.prompt_tokens, found.stop) == ((5, 6), (1,), "length")
    assert found.measurement.latency["decode_tokens_per_second"] == 50.0
    assert found.measurement.device == {"name": "fake", "isa": "avx2", "emulated": False}
    assert found.measurement.warnings == ("too short",)


def test_the_device_gets_the_program_the_model_and_the_prompt_as_files(start):
    runner = start(replied(REPORT))
    generate(runner)
    put = runner.device.transport.put_files
    assert put["model.edge"] == b"model"
    assert put["prompt"] == b"It was"
    (argv,) = runner.device.transport.calls
    assert argv[:6] == ["edgekit-run", "generate", "model.edge", "--prompt-file", "prompt", "-n"]
    assert argv[argv.index("--temperature") + 1] == "0.0"
    assert "--threads" not in argv and "--raw" not in argv


def test_a_prompt_may_look_like_an_option_or_hold_anything(start):
    runner = start(replied(REPORT))
    runner.generate("--json /etc/passwd\r\n\0é", tokens=2, sampling=GREEDY, resources=PLANNED)
    assert runner.device.transport.put_files["prompt"] == "--json /etc/passwd\r\n\0é".encode()


def test_threads_context_and_raw_are_handed_on(start):
    runner = start(replied(REPORT))
    runner.generate("x", tokens=2, sampling=GREEDY, resources=Resources(3, 4, 99), raw=True)
    (argv,) = runner.device.transport.calls
    options = dict(itertools.pairwise(argv))
    assert (options["--threads"], options["--prefill-threads"], options["--context"]) == ("3", "4", "99")
    assert "--raw" in argv


@pytest.mark.parametrize("kv", [None, "q8"])
def test_every_verb_is_told_how_keys_and_values_are_kept_if_it_is_not_as_the_bundle_says(tmp_path, kv):
    (tmp_path / "model.edge").write_bytes(b"model")
    rows = json.dumps({"rows": []}).encode()
    device = FakeDevice([replied(REPORT), Reply("bench", rows), Reply("probe", b'{"coherence": {}}'), LOGITS])
    program = make_program_header(tmp_path / "edgekit-run")
    runner = Runner(device, program=program, model=tmp_path / "model.edge", kv=kv)
    generate(runner)
    runner.bench(prompts=[1], generated=[], depth=0, runs=1, threads=[])
    runner.probe()
    runner.logits(np.array([1], np.uint32), vocab=2)
    assert len(device.transport.calls) == 4
    for argv in device.transport.calls:
        assert (argv[-2:] == ["--kv", "q8"]) is (kv == "q8") and ("--kv" in argv) is (kv == "q8")


def test_without_a_program_there_is_no_choice_of_how_keys_and_values_are_kept(tmp_path):
    with pytest.raises(UsageError, match="only a native bundle can keep keys and values as --kv says"):
        Runner(FakeDevice([]), program=None, model=tmp_path, kv="f16")


def test_text_is_streamed_by_whole_characters_and_without_commands_to_the_terminal(start):
    seen = []
    runner = start(
        Reply("generate", "é\x1b[31m€\x07\n".encode() + b"\xff", files={"report.json": json.dumps(REPORT).encode()})
    )
    found = generate(runner, on_text=seen.append)
    assert "".join(seen) == "é[31m€\n\ufffd"
    assert all("\ufffd" not in piece for piece in seen[:-1])
    assert found.text == "é\x1b[31m€\x07\n\ufffd"


def test_emulated_time_is_null_and_a_warning_says_so(start):
    doubts = ["too short: less than a second", "the context was full", "emulated: time has no meaning"]
    runner = start(replied(REPORT, warnings=doubts), emulated=True)
    found = generate(runner).measurement
    assert found.latency == {"load_seconds": None, "decode_tokens_per_second": None, "samples": None}
    assert found.bandwidth == {"bytes_per_token": 900, "bytes_per_second": None}
    assert found.memory == {"weights_bytes": 1000}
    assert found.warnings == ("the context was full", EMULATED)
    assert found.device["emulated"] is True


def test_a_program_for_another_machine_is_refused_before_it_is_run(tmp_path):
    device = FakeDevice([], machine="aarch64")
    with pytest.raises(DeviceUnavailable, match=r"the bundle is for x86_64, the device 'fake' runs aarch64"):
        Runner(device, program=make_program_header(tmp_path / "edgekit-run"), model=tmp_path)
    assert device.transport.put_files == {}


def test_without_a_program_a_model_is_run_by_the_devices_python(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"model")
    device = FakeDevice([Reply("probe", b'{"coherence": {}}')], emulated=True)
    Runner(device, program=None, model=tmp_path / "model.onnx").probe()
    assert device.transport.put_files == {"python": b"python", "model.onnx": b"model"}
    assert device.transport.calls == [["python", "-m", "edgekit.engines.host", "probe", "model.onnx", "--json", "-"]]


def test_a_refusal_on_the_device_is_raised(start):
    runner = start(Reply("generate", stderr=b"edgekit-run: model.edge is damaged\nhint: copy it again", returncode=7))
    with pytest.raises(Damaged, match=r"^model.edge is damaged$"):
        generate(runner)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"tokens": NaN}', "NaN is not a number"),
        (b'{"latency": {"load_seconds": -1e400}}', "-1e400 is beyond a double float"),
        (b'{"tokens": ["a"], "prompt_tokens": []}', "'tokens' in the device's report is not a list of tokens"),
        (b'{"tokens": [1], "prompt_tokens": [-1]}', "'prompt_tokens' in the device's report is not a list"),
        (b'{"tokens": [], "prompt_tokens": [], "latency": 3}', "'latency' in the device's report is not a table"),
    ],
)
def test_a_report_that_lies_about_its_form_is_refused(start, report, message):
    runner = start(Reply("generate", files={"report.json": report}))
    with pytest.raises(DeviceUnavailable, match=message):
        generate(runner)


def test_a_report_of_nine_mebibytes_is_refused(start):
    with pytest.raises(DeviceUnavailable, match=r"takes 9.0 MiB, at most 8.00? MiB are read"):
        start(Reply("probe", b" " * (9 << 20))).probe()


ROW = {"test": "pp64", "threads": 2, "depth": 0, "tokens": 64, "samples": [0.5, 0.25]}


def bench(runner):
    return runner.bench(prompts=(64,), generated=(0,), depth=0, runs=2, threads=(1, 2))


def bench_reply(*rows):
    return Reply("bench", json.dumps(REPORT | {"rows": list(rows)}).encode())


def test_a_rate_is_the_mean_of_the_samples_rates(start):
    runner = start(bench_reply(ROW))
    (row,), measurement = bench(runner)
    assert (row.test, row.threads, row.depth, row.tokens) == ("pp64", 2, 0, 64)
    assert row.tokens_per_second == (64 / 0.5 + 64 / 0.25) / 2
    assert row.stddev == pytest.approx(math.sqrt(2) * 64)  # of 128 and 256, divided by n - 1
    assert measurement.memory == {"weights_bytes": 1000}
    (argv,) = runner.device.transport.calls
    assert argv[2:] == ["model.edge", "-p", "64", "-n", "0", "-d", "0", "-r", "2", "-t", "1,2", "--json", "-"]


def test_a_row_says_which_kernels_ran_and_what_they_read(start):
    decoded = {"bytes_per_token": 9.5, "bytes_per_second": 27, "fraction_of_read_ceiling": 0.5, "fell_back": True}
    (first, second), _ = bench(start(bench_reply(ROW | decoded | {"kernels": ["a\x1b", "b"]}, ROW)))
    assert (first.bytes_per_token, first.bytes_per_second, first.fraction_of_read_ceiling) == (9.5, 27, 0.5)
    assert (first.kernels, first.fell_back) == (("a", "b"), True)
    assert (second.bytes_per_second, second.kernels, second.fell_back) == (None, (), False)


def test_the_name_of_a_row_is_cut_to_the_length_of_a_message(start):
    ((row,), measurement) = bench(start(bench_reply(ROW | {"test": "p" * 100_000})))
    assert row.test == "p" * 400
    assert measurement.warnings[-1] == f"{row.test} with 2 threads: samples spread by 47%"


def test_samples_that_spread_by_more_than_a_tenth_are_doubted(start):
    steady = ROW | {"samples": [0.5, 0.49]}
    _, measurement = bench(start(bench_reply(ROW, steady, ROW | {"samples": [0.5]})))
    # 64 sqrt(2) of 192 tokens a second is 47 %.
    assert measurement.warnings == ("too short", "pp64 with 2 threads: samples spread by 47%")


def test_one_sample_has_no_spread():
    assert BenchRow("tg8", 1, 0, 8, (2.0,)).stddev == 0.0


def test_emulated_rows_have_no_rate(start):
    decoded = {"bytes_per_token": 9, "bytes_per_second": 27.0, "fraction_of_read_ceiling": 0.5, "kernels": ["k"]}
    (row,), measurement = bench(start(bench_reply(ROW | decoded), emulated=True))
    assert (row.tokens_per_second, row.stddev, row.samples_seconds) == (None, None, None)
    assert (row.bytes_per_second, row.fraction_of_read_ceiling) == (None, None)
    assert (row.bytes_per_token, row.kernels, row.fell_back) == (9, ("k",), False)
    assert measurement.warnings[-1] == EMULATED


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": []},
        {"samples": [0]},
        {"samples": [-1.0]},
        {"samples": [5e-324, 6e-324]},
        {"samples": [1e10]},
        {"samples": [True]},
        {"tokens": 2**32},
        {"bytes_per_second": True},
        {"bytes_per_second": 1e300},
        {"samples": "fast"},
        {"tokens": 0},
        {"threads": True},
        {"test": 5},
        {"depth": -1},
        {"bytes_per_second": -1.0},
        {"bytes_per_token": "many"},
        {"fraction_of_read_ceiling": 1e300},
        {"kernels": "all"},
        {"kernels": [1]},
        {"fell_back": "no"},
    ],
)
def test_a_row_without_sense_is_refused(start, changes):
    with pytest.raises(DeviceUnavailable, match="malformed row"):
        bench(start(bench_reply(ROW | changes)))


@pytest.mark.parametrize("changes", [{"tokens": 10**400}, {"samples": [10**400]}, {"bytes_per_second": 10**400}])
def test_a_whole_number_that_is_no_float_is_refused(start, changes):
    with pytest.raises(DeviceUnavailable, match=r"is not JSON: 10{19}\.\.\. is beyond 64 bits"):
        bench(start(bench_reply(ROW | changes)))


def test_rows_that_are_missing_are_refused(start):
    with pytest.raises(DeviceUnavailable, match="has no rows"):
        bench(start(Reply("bench", b"{}")))


def test_a_probe_without_coherence_is_refused(start):
    with pytest.raises(DeviceUnavailable, match="has no coherence"):
        start(Reply("probe", b"{}")).probe()


def test_logits_are_as_many_finite_numbers_as_asked_for(start):
    values = np.arange(6, dtype="<f4")
    runner = start(Reply("logits", files={"logits": values.tobytes()}))
    found = runner.logits(np.array([7, 8], np.uint32), vocab=3, chunk=1)
    assert np.array_equal(found, values.reshape(2, 3))
    assert runner.device.transport.put_files["tokens"] == b"\x07\0\0\0\x08\0\0\0"
    assert runner.device.transport.calls[0][3:] == ["--token-file", "tokens", "--out", "logits", "--chunk", "1"]


def test_too_few_logits_are_refused(start):
    runner = start(Reply("logits", files={"logits": bytes(8)}))
    with pytest.raises(DeviceUnavailable, match="gave 8 B of logits, 24 B were expected"):
        runner.logits(np.array([7, 8], np.uint32), vocab=3)


def test_logits_that_are_not_numbers_fail_the_gate(start):
    runner = start(Reply("logits", files={"logits": np.array([1, np.nan, 0], "<f4").tobytes()}))
    with pytest.raises(GateFailed, match="not finite"):
        runner.logits(np.array([7], np.uint32), vocab=3)


def test_a_measurement_has_the_parts_of_schema_1(start):
    found = generate(start(replied(REPORT))).measurement.as_json()
    assert list(found) == ["schema", "latency", "memory", "bandwidth", "coherence", "device", "warnings"]
    assert found["schema"] == 1


CALIBRATION = b"edgekit-calibration 1\ncpu x\n"
TRIALS = [
    {"test": "tg64", "threads": 1, "depth": 0, "tokens": 64, "chosen": True, "samples": [0.5, 0.25, 1.0]},
    {"test": "tg64", "threads": 2, "depth": 0, "tokens": 64, "chosen": False, "samples": [1.0]},
]


def calibrated(rows=TRIALS, content=CALIBRATION):
    report = REPORT | {"rows": rows}
    return Reply("calibrate", json.dumps(report).encode(), files={"model.edge.calibration": content})


def test_a_calibration_is_what_was_tried_and_the_file_that_remembers_it(start):
    found = start(calibrated()).calibrate()
    assert [(trial.test, trial.threads, trial.chosen) for trial in found.trials] == [
        ("tg64", 1, True),
        ("tg64", 2, False),
    ]
    assert [trial.tokens_per_second for trial in found.trials] == [128.0, 64.0]
    assert found.content == CALIBRATION


def test_an_emulated_device_is_not_calibrated(start):
    runner = start(emulated=True)
    with pytest.raises(UsageError, match=r"the device 'fake' is emulated and cannot be calibrated"):
        runner.calibrate()
    assert runner.device.transport.calls == []


@pytest.mark.parametrize(
    ("rows", "content", "message"),
    [
        ([], CALIBRATION, "has no rows"),
        ("rows", CALIBRATION, "has no rows"),
        ([TRIALS[0] | {"chosen": 1}], CALIBRATION, "a malformed row"),
        ([TRIALS[0] | {"samples": [0]}], CALIBRATION, "a malformed row"),
        ([TRIALS[0] | {"samples": [True]}], CALIBRATION, "a malformed row"),
        ([TRIALS[0] | {"samples": [5e-324]}], CALIBRATION, "a malformed row"),
        ([TRIALS[0] | {"tokens": 10**400}], CALIBRATION, r"is not JSON: 10{19}\.\.\. is beyond 64 bits"),
        (TRIALS, b"\x7fELF", "is not one that this edgekit reads"),
    ],
)
def test_a_calibration_that_is_none_is_refused(start, rows, content, message):
    with pytest.raises(DeviceUnavailable, match=message):
        start(calibrated(rows, content)).calibrate()


def test_a_calibration_goes_to_the_device_with_the_model(tmp_path):
    for name in ("model.edge", "kept"):
        (tmp_path / name).write_bytes(CALIBRATION)
    device = FakeDevice([])
    program = make_program_header(tmp_path / "edgekit-run")
    Runner(device, program=program, model=tmp_path / "model.edge", calibration=tmp_path / "kept")
    assert device.transport.put_files["model.edge.calibration"] == CALIBRATION
