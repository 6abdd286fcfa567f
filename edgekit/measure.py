"""Run a bundle on a device and say what was measured there, and what is doubtful about it.

What comes back is checked first (replies.py). Emulated time is never reported as time: those figures are null, and a
warning says why.
"""

import statistics
import tempfile
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import CALIBRATION, CALIBRATION_LIMIT, Bundle, verify_bundle
from edgekit.coherence import Logits, Tokens
from edgekit.device import Device
from edgekit.errors import DeviceUnavailable, GateFailed, UsageError
from edgekit.replies import MESSAGE_LIMIT, REPORT_LIMIT, elf_machine, is_row, parse_report, refusal, table, token_list
from edgekit.transports import Completed, printable
from edgekit.units import Bytes, Seconds

SCHEMA = 1
DEFAULT_TIMEOUT = Seconds(3600)
EMULATED = "emulated: time has no meaning here and is left out"
# Standard deviation of a rate, as a share of it, above which the rate is doubtful.
MOST_SPREAD = 0.1
_PROGRAM = "edgekit-run"
_PYTHON = "python"
_HOST = ("-m", "edgekit.engines.host")
_CALIBRATION_HEADING = b"edgekit-calibration 1\n"
# Beginnings of edgekit-run's warnings (devices/runner/measurement.cc) that say nothing where there is no time.
_DOUBTS_OF_TIME = (
    "emulated",
    "fewer samples",
    "too short",
    "the CPU was throttled",
    "the clock moved",
    "the frequency governor",
    "more threads than CPUs",
)
_TIMES = ("latency", "bandwidth")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy, whatever the rest says."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Resources:
    """Threads for decoding and for prefill, and positions of KV cache; 0 leaves each to the plan."""

    decode: int = 0
    prefill: int = 0
    context: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one run on one device showed (schema 1). Figures that the run did not take are absent or null."""

    latency: Mapping[str, Any]
    memory: Mapping[str, Any]
    bandwidth: Mapping[str, Any]
    coherence: Mapping[str, Any]
    device: Mapping[str, Any]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The content of `measurement.json`."""
        return {
            "schema": SCHEMA,
            "latency": dict(self.latency),
            "memory": dict(self.memory),
            "bandwidth": dict(self.bandwidth),
            "coherence": dict(self.coherence),
            "device": dict(self.device),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class Generation:
    """A continued prompt. `stop` is eos or length."""

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    stop: str
    measurement: Measurement


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One test at one number of threads. Times are None where the device is emulated, bytes where nothing was decoded.

    `kernels` are those that ran, and `fell_back` is True if one of them took the place of another that was planned.
    """

    test: str
    threads: int
    depth: int
    tokens: int
    samples_seconds: tuple[float, ...] | None
    bytes_per_token: float | None = None
    bytes_per_second: float | None = None
    fraction_of_read_ceiling: float | None = None
    kernels: tuple[str, ...] = ()
    fell_back: bool = False

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over the samples of tokens / seconds."""
        return None if self.samples_seconds is None else statistics.fmean(self._rates())

    @property
    def stddev(self) -> float | None:
        """Sample standard deviation of tokens / seconds; 0 for one sample."""
        if self.samples_seconds is None:
            return None
        return statistics.stdev(self._rates()) if len(self.samples_seconds) > 1 else 0.0

    def _rates(self) -> list[float]:
        return [self.tokens / seconds for seconds in self.samples_seconds or ()]


@dataclass(frozen=True, slots=True)
class Trial:
    """A number of threads that a calibration tried, and whether it is the one for its test."""

    test: str
    threads: int
    chosen: bool
    tokens: int
    samples_seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """Of the median sample: what the choice is by."""
        return self.tokens / statistics.median_low(self.samples_seconds)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a calibration tried, and the file that makes the device remember it."""

    trials: tuple[Trial, ...]
    content: bytes
    measurement: Measurement


class Runner:
    """A model on a device, ready to be run there."""

    def __init__(
        self,
        device: Device,
        *,
        model: Path,
        program: Path | None,
        calibration: Path | None = None,
        timeout: Seconds = DEFAULT_TIMEOUT,
        kv: str | None = None,
    ) -> None:
        """Puts `model` and the static `program` that runs it on the device, with the `calibration` if there is one.

        Without a program, `model` is run by its engine in the device's Python, which takes the words of edgekit-run.
        Keys and values are kept as the model says, or as `kv` does.

        Raises:
            DeviceUnavailable: the program is for another machine.
            TargetMissing: the device has no Python that runs the engine.
            UsageError: a `kv` without a program.
        """
        if kv is not None and program is None:
            raise UsageError("only a native bundle can keep keys and values as --kv says", hint="leave --kv out")
        self.device = device
        self.timeout = timeout
        self._kv = [] if kv is None else ["--kv", kv]
        self._model = model.name
        if program is not None:
            _check_machine(program, device)
            device.transport.put(program, _PROGRAM)
            self._command = [_PROGRAM]
        else:
            device.transport.put_python(_PYTHON)
            self._command = [_PYTHON, *_HOST]
        device.transport.put(model, self._model)
        if calibration is not None:
            device.transport.put(calibration, CALIBRATION)

    def generate(
        self,
        prompt: str,
        *,
        tokens: int,
        sampling: Sampling,
        resources: Resources,
        raw: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """`prompt` continued by at most `tokens` tokens; `raw` puts no token before it."""
        self.device.transport.write(prompt.encode("utf-8", "surrogateescape"), "prompt")
        text: list[str] = []
        decoder = getincrementaldecoder("utf-8")("replace")

        def receive(chunk: bytes, final: bool = False) -> None:
            piece = decoder.decode(chunk, final)
            text.append(piece)
            if on_text is not None and piece:
                on_text(printable(piece))

        argv = ["--prompt-file", "prompt", "-n", str(tokens), *_sampling_options(sampling)]
        argv += [*_resource_options(resources), *(["--raw"] if raw else []), "--json", "report.json"]
        self._run("generate", *argv, on_stdout=receive)
        receive(b"", final=True)
        report = self._fetch("report.json")
        return Generation(
            "".join(text).removesuffix("\n"),
            token_list(report, "tokens"),
            token_list(report, "prompt_tokens"),
            printable(str(report.get("stop", ""))),
            self._measurement(report),
        )

    def bench(
        self, *, prompts: Sequence[int], generated: Sequence[int], depth: int, runs: int, threads: Sequence[int]
    ) -> tuple[list[BenchRow], Measurement]:
        """Prefill and decode rates: rows pp<n> and tg<n> for every number of threads; without any, for those in use."""
        argv = ["-p", _listed(prompts), "-n", _listed(generated), "-d", str(depth), "-r", str(runs)]
        argv += ["-t", _listed(threads)] if threads else []
        done = self._run("bench", *argv, "--json", "-")
        report = parse_report(done.stdout)
        rows = report.get("rows")
        if not isinstance(rows, list):
            raise DeviceUnavailable("the device's report of bench has no rows")
        found, measurement = [self._row(row) for row in rows], self._measurement(report)
        doubts = tuple(doubt for row in found if (doubt := _doubt(row)))
        return found, replace(measurement, warnings=measurement.warnings + doubts)

    def calibrate(self) -> Calibration:
        """Tries numbers of threads for prefill and for decoding.

        Raises:
            UsageError: the device is emulated.
        """
        if self.device.transport.emulated:
            raise UsageError(
                f"the device '{self.device.name}' is emulated and cannot be calibrated: its time has no meaning",
                hint="--device local, or calibrate on the board: edgekit-run calibrate model.edge",
            )
        report = parse_report(self._run("calibrate", "--json", "-").stdout)
        rows = report.get("rows")
        if not isinstance(rows, list) or not rows:
            raise DeviceUnavailable("the device's report of the calibration has no rows")
        content = self._read(CALIBRATION, CALIBRATION_LIMIT)
        if not content.startswith(_CALIBRATION_HEADING):
            raise DeviceUnavailable("the device's calibration is not one that this edgekit reads")
        return Calibration(tuple(map(_trial, rows)), content, self._measurement(report))

    def probe(self) -> Measurement:
        """The bundle's own probe: coherence against the reference that was recorded when it was compiled."""
        report = parse_report(self._run("probe", "--json", "-").stdout)
        if not isinstance(report.get("coherence"), dict):
            raise DeviceUnavailable("the device's report of the probe has no coherence")
        return self._measurement(report)

    def logits(self, ids: Tokens, *, vocab: int, chunk: int = 0) -> Logits:
        """Logits [len(ids), vocab] of every position, teacher-forced from an empty cache; `chunk` tokens at a time."""
        with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
            folder = Path(name)
            self.device.transport.write(ids.astype("<u4").tobytes(), "tokens")
            argv = ["--token-file", "tokens", "--out", "logits", *(["--chunk", str(chunk)] if chunk else [])]
            self._run("logits", *argv)
            expected = Bytes(4 * vocab * len(ids))
            self.device.transport.get("logits", folder / "logits", limit=expected)
            found = np.fromfile(folder / "logits", np.dtype("<f4")).astype(np.float32, copy=False)
        if found.nbytes != expected:
            raise DeviceUnavailable(f"the device gave {Bytes(found.nbytes)} of logits, {expected} were expected")
        if not np.isfinite(found).all():
            raise GateFailed("the model's logits are not finite numbers", hint="try a recipe with more bits")
        return found.reshape(len(ids), vocab)

    def _run(self, command: str, *argv: str, on_stdout: Callable[[bytes], None] | None = None) -> Completed:
        done = self.device.transport.run(
            [*self._command, command, self._model, *argv, *self._kv], timeout=self.timeout, on_stdout=on_stdout
        )
        if done.returncode != 0:
            raise refusal(done)
        return done

    def _fetch(self, remote: str) -> dict[str, Any]:
        return parse_report(self._read(remote, REPORT_LIMIT))

    def _read(self, remote: str, limit: Bytes) -> bytes:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            self.device.transport.get(remote, Path(folder) / "fetched", limit=limit)
            return (Path(folder) / "fetched").read_bytes()

    def _row(self, row: object) -> BenchRow:
        if not isinstance(row, dict) or not is_row(row):
            raise DeviceUnavailable("the device's report of bench has a malformed row")
        emulated = self.device.transport.emulated
        return BenchRow(
            test=printable(row["test"])[:MESSAGE_LIMIT],
            threads=row["threads"],
            depth=row["depth"],
            tokens=row["tokens"],
            samples_seconds=None if emulated else tuple(map(float, row["samples"])),
            bytes_per_token=row.get("bytes_per_token"),
            bytes_per_second=None if emulated else row.get("bytes_per_second"),
            fraction_of_read_ceiling=None if emulated else row.get("fraction_of_read_ceiling"),
            kernels=tuple(printable(kernel)[:MESSAGE_LIMIT] for kernel in row.get("kernels", [])),
            fell_back=row.get("fell_back", False),
        )

    def _measurement(self, report: Mapping[str, Any]) -> Measurement:
        parts = {name: table(report, name) for name in ("latency", "memory", "bandwidth", "coherence", "device")}
        noted = report.get("warnings", [])
        warnings = [printable(str(text))[:MESSAGE_LIMIT] for text in noted] if isinstance(noted, list) else []
        if self.device.transport.emulated:
            for name in _TIMES:
                parts[name] = {key: _without_time(key, value) for key, value in parts[name].items()}
            warnings = [text for text in warnings if not is_about_time(text)] + [EMULATED]
        parts["device"] = {"name": self.device.name, **parts["device"], "emulated": self.device.transport.emulated}
        return Measurement(**parts, warnings=tuple(warnings))


def open_runner(bundle: Bundle, device: Device, *, timeout: Seconds = DEFAULT_TIMEOUT, kv: str | None = None) -> Runner:
    """The bundle on the device, after every byte of it was checked.

    Raises:
        Damaged: a file of the bundle is not what the manifest says.
        DeviceUnavailable: the bundle is for another machine.
        UsageError: a `kv` that its engine does not have.
    """
    verify_bundle(bundle)
    program = bundle.runner if bundle.engine == "native" else None
    calibration = bundle.calibration if program is not None and bundle.calibration.exists() else None
    return Runner(device, model=bundle.model, program=program, calibration=calibration, timeout=timeout, kv=kv)


def _check_machine(program: Path, device: Device) -> None:
    made_for, runs = elf_machine(program), device.transport.machine
    if made_for != runs:
        raise DeviceUnavailable(
            f"the bundle is for {made_for}, the device '{device.name}' runs {runs}",
            hint=_hint_for(device, made_for),
        )


def _trial(row: object) -> Trial:
    if not isinstance(row, dict) or not is_row(row) or not isinstance(row.get("chosen"), bool):
        raise DeviceUnavailable("the device's report of the calibration has a malformed row")
    samples = tuple(map(float, row["samples"]))
    return Trial(printable(row["test"])[:MESSAGE_LIMIT], row["threads"], row["chosen"], row["tokens"], samples)


def is_about_time(warning: str) -> bool:
    """True for a doubt that says nothing where no time is shown."""
    return warning.startswith(_DOUBTS_OF_TIME)


def _doubt(row: BenchRow) -> str:
    """What is doubtful about the samples of a row, or nothing."""
    if not row.stddev or not row.tokens_per_second or row.stddev / row.tokens_per_second <= MOST_SPREAD:
        return ""
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    return f"{row.test} with {threads}: samples spread by {row.stddev / row.tokens_per_second:.0%}"


def _hint_for(device: Device, made_for: str) -> str:
    kind, _, target = device.name.partition(":")
    if kind == "qemu":
        return f"compile it with --target {target}, or leave --device out to run it here"
    if made_for == "aarch64":
        return "--device qemu:TARGET, such as qemu:rpi5, emulates it; to run it here compile with --target host"
    return "compile it for the device's kind of machine; `edgekit targets` lists them"


def _without_time(key: str, value: object) -> object:
    """Null for a figure that holds a time; counts of bytes stay."""
    return value if key == "bytes_per_token" else None


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _sampling_options(sampling: Sampling) -> list[str]:
    return [
        *("--temperature", str(sampling.temperature)),
        *("--top-k", str(sampling.top_k)),
        *("--top-p", str(sampling.top_p)),
        *("--repetition-penalty", str(sampling.repetition_penalty)),
        *("--seed", str(sampling.seed)),
    ]


def _resource_options(resources: Resources) -> list[str]:
    options = [
        ("--threads", resources.decode),
        ("--prefill-threads", resources.prefill),
        ("--context", resources.context),
    ]
    return [text for name, count in options if count for text in (name, str(count))]
