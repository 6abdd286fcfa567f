"""Run a model of any engine but native on this machine by edgekit-run's command line, with the same answers in JSON.

    python -m edgekit.engines.host generate|bench|probe|logits MODEL [OPTIONS]

A process of its own, so that memory and load time are the model's and not the compiler's.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from edgekit.coherence import nearest_rank
from edgekit.engines import Session, find_engine
from edgekit.engines.host_options import parse
from edgekit.engines.probe import run_probe
from edgekit.engines.sampling import Sampler
from edgekit.engines.text_stream import TextStream
from edgekit.engines.written import TOKENIZER, read_written, refused
from edgekit.errors import INTERRUPTED, Damaged, DoesNotFit, EdgekitError, UsageError
from edgekit.kernels import read_ceiling
from edgekit.target import detect_host, is_emulated
from edgekit.tokenizer_json import load_tokenizer
from edgekit.units import Bytes

_SAMPLES_FOR_P99: Final = 100
_MOST_PROMPT_BYTES: Final = 16 << 20
_MOST_TOKEN_BYTES: Final = 64 << 20
_ROWS_AT_ONCE: Final = 32  # of logits written
_LARGER_THAN_CACHES: Final = Bytes(256 << 20)

Report = dict[str, Any]


class _Run:
    """One model, opened, and what is reported of any run of it."""

    def __init__(self, file: Path, *, threads: int, context: int = 0) -> None:
        """
        Raises:
            UsageError: a `context` longer than the model was made for.
        """
        began = time.monotonic()
        self.written = read_written(file)
        if context > self.written.context:
            raise UsageError(f"--context is '{context}'", hint=f"a whole number from 1 to {self.written.context}")
        self.context = context or self.written.context
        self.engine = find_engine(self.written.engine)
        self.threads = threads or len(os.sched_getaffinity(0))
        try:
            self.session: Session = self.engine.open_model(self.written, threads=self.threads)
        except Damaged as error:
            if self.written.engine_version == self.engine.version():
                raise
            raise refused(self.written, self.engine.version(), error) from error
        self.load_seconds = time.monotonic() - began
        self.warnings = ["emulated: time has no meaning here"] if is_emulated() else []

    def tokenizer(self) -> Tokenizer:
        file = self.written.file.with_name(TOKENIZER)
        if not file.is_file():
            raise UsageError(f"there is no {TOKENIZER} beside the model", hint="give --tokens")
        return load_tokenizer(file)

    def bytes_per_token(self, depth: int, count: int) -> float:
        """What a token reads, of weights and cache: the mean of `count` tokens after `depth` others."""
        # The cache grows from one more than `depth` positions on: on average by half of what is added.
        attended = (depth + (count + 1) / 2) * self.written.kv_bytes / self.session.context
        return self.written.bytes_per_token + attended

    def report(self, *, latency: Report, bandwidth: Report) -> Report:
        """The parts of a measurement that every verb gives."""
        status = _fields(Path("/proc/self/status"))
        memory = {
            "weights_bytes": self.written.weights_bytes,
            "kv_format": self.written.kv_format,
            "kv_bytes": self.written.kv_bytes,
            "peak_rss_bytes": status["VmHWM"],
            "anonymous_bytes": status["RssAnon"],
            "file_backed_bytes": status["RssFile"],
        }
        cores = len(os.sched_getaffinity(0))
        if self.threads > cores:
            self.warnings.append("more threads than CPUs")
        host = detect_host()
        device = {
            "cpu": host.title,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "isa": host.best_isa,
            "engine": self.engine.version(),
            "cores": cores,
            "decode_threads": self.threads,
            "prefill_threads": self.threads,
            "emulated": is_emulated(),
        }
        latency = {"load_seconds": self.load_seconds, **latency}
        bandwidth = {"bytes_per_token": self.written.bytes_per_token, **bandwidth}
        parts = {"latency": latency, "memory": memory, "bandwidth": bandwidth, "device": device}
        return {"load_seconds": self.load_seconds, **parts, "warnings": self.warnings}


def generate(options: argparse.Namespace) -> None:
    """Continues a prompt; text to stdout as it comes."""
    run = _Run(options.model, threads=options.threads, context=options.context)
    session, stops = run.session, run.written.eos
    prompt = _prompt(options, run)
    if len(prompt) > run.context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens and the context holds {run.context}",
            hint=f"--context can be as much as {session.context}",
        )
    sampler = Sampler(
        options.temperature, options.top_k, options.top_p, options.repetition_penalty, options.seed, set(prompt)
    )
    show = _Printer(run, prompt, may_be_open=options.tokens is not None, prints=options.json != "-")
    made: list[int] = []
    samples: list[float] = []
    stop = "length"
    began = time.monotonic()
    logits = session.prefill(prompt, last_only=True)[0]
    prefill_seconds = time.monotonic() - began
    ttft_seconds = 0.0
    while len(made) < options.n:
        token = sampler.sample(logits)
        if made:
            samples.append(time.monotonic() - began)
        else:
            ttft_seconds = time.monotonic() - began
        made.append(token)
        if token in stops:
            stop = "eos"
            break
        show.push(token)
        if len(made) == options.n:
            break
        if session.position == run.context:
            run.warnings.append(f"the context of {run.context} tokens was full before the end")
            break
        sampler.see(token)
        began = time.monotonic()
        logits = session.decode(token)
    show.finish()
    latency = {
        "ttft_seconds": ttft_seconds,
        "prefill_tokens_per_second": len(prompt) / prefill_seconds,
        **_decode_latency(samples, run),
    }
    count = len(samples)
    moved = {"bytes_per_second": run.bytes_per_token(len(prompt), count) * count / sum(samples)} if samples else {}
    report = run.report(latency=latency, bandwidth=moved)
    _write(options.json, {"tokens": made, "prompt_tokens": prompt, "text": show.text, "stop": stop, **report})


def bench(options: argparse.Namespace) -> None:
    """Times prefill and decode: rows pp<n> and tg<n>, each run after one that is not counted."""
    rows: list[Report] = []
    report: Report = {}
    for threads in options.t or [0]:
        part, report = _bench(options, threads)
        rows += part
    bandwidth = report["bandwidth"]
    decoding = set() if report["device"]["emulated"] else {row["threads"] for row in rows if _is_decoding(row)}
    ceilings = {threads: read_ceiling(threads, size=_LARGER_THAN_CACHES) for threads in decoding}
    bandwidth["read_ceiling_bytes_per_second"] = {str(key): value for key, value in ceilings.items()}
    for row in filter(_is_decoding, rows):
        row["bytes_per_second"] = row["bytes_per_token"] * row["tokens_per_second"]
        # None where time has no meaning, 0 where there was no memory to measure in.
        if ceiling := ceilings.get(row["threads"]):
            row["fraction_of_read_ceiling"] = row["bytes_per_second"] / ceiling
    _write(options.json or "-", {**report, "rows": rows})


def _is_decoding(row: Report) -> bool:
    return str(row["test"]).startswith("tg")


def _bench(options: argparse.Namespace, threads: int) -> tuple[list[Report], Report]:
    """The rows of one number of threads, and the measurement's other parts. The session ends with it."""
    run = _Run(options.model, threads=threads)
    room = run.session.context - options.d
    prompts, lengths = options.p or [min(512, room)], options.n or [min(128, room)]
    if max(*prompts, *lengths) > room:
        raise UsageError(f"the context holds {run.session.context} tokens", hint=f"at most {max(0, room)} after -d")
    tokens = np.random.default_rng(1).integers(0, run.session.vocab, run.session.context).tolist()
    rows: list[Report] = []
    for name, counts in (("pp", prompts), ("tg", lengths)):
        for count in filter(None, counts):
            samples = [_timed(run.session, name, tokens, options.d, count) for _ in range(options.r + 1)][1:]
            rates = [count / sample for sample in samples]
            rows.append(
                {
                    "test": f"{name}{count}",
                    "threads": run.threads,
                    "depth": options.d,
                    "tokens": count,
                    "tokens_per_second": sum(rates) / len(rates),
                    "stddev": float(np.std(rates, ddof=1)) if len(rates) > 1 else 0.0,
                    "samples": samples,
                }
            )
            if name == "tg":
                rows[-1]["bytes_per_token"] = run.bytes_per_token(options.d, count)
    return rows, run.report(latency={}, bandwidth={})


def probe(options: argparse.Namespace) -> None:
    """Compares the model with the float reference recorded in its probe."""
    run = _Run(options.model, threads=options.threads, context=options.context)
    data = options.probe.read_bytes() if options.probe else run.written.probe
    if not data:
        raise UsageError("there is no probe beside the model", hint="give one with --probe FILE")
    coherence = run_probe(run.session, data)
    _write(options.json or "-", {"coherence": coherence.as_json(), **run.report(latency={}, bandwidth={})})


def logits(options: argparse.Namespace) -> None:
    """Writes the logits of every position of a given text, float32, little-endian."""
    data = _read(options.token_file, _MOST_TOKEN_BYTES)
    run = _Run(options.model, threads=options.threads, context=options.context)
    tokens = np.frombuffer(data, "<u4", len(data) // 4)
    if not data or len(data) % 4 or tokens.max() >= run.session.vocab:
        raise UsageError(
            f"'{options.token_file}' is not a list of tokens",
            hint=f"32-bit little-endian numbers below {run.session.vocab}",
        )
    if len(tokens) > run.context:
        raise UsageError(f"the text has {len(tokens)} tokens and the context holds {run.context}")
    chunk = options.chunk or _ROWS_AT_ONCE
    with options.out.open("wb") as stream:
        for start in range(0, len(tokens), chunk):
            rows = run.session.prefill(tokens[start : start + chunk].tolist())
            stream.write(rows[max(0, options.start - start) :].astype("<f4").tobytes())


class _Printer:
    """Gives the text of tokens as it becomes whole. What the prompt leaves open continues in the answer."""

    def __init__(self, run: _Run, prompt: Sequence[int], *, may_be_open: bool, prints: bool) -> None:
        has_text = run.written.file.with_name(TOKENIZER).is_file()
        self.stream = TextStream(run.tokenizer(), prompt, may_be_open=may_be_open) if has_text else None
        self.prints = prints
        self.text = ""

    def push(self, token: int) -> None:
        if self.stream is not None:
            self._show(self.stream.push(token))

    def finish(self) -> None:
        if self.stream is not None:
            self._show(self.stream.finish())
        if self.prints:
            print(flush=True)

    def _show(self, piece: str) -> None:
        self.text += piece
        if self.prints and piece:
            sys.stdout.buffer.write(piece.encode("utf-8", "replace"))
            sys.stdout.buffer.flush()


def _prompt(options: argparse.Namespace, run: _Run) -> list[int]:
    given = [value for value in (options.prompt, options.prompt_file, options.tokens) if value is not None]
    if len(given) != 1:
        raise UsageError(
            "no prompt is given" if not given else "more than one prompt is given",
            hint="one of: --prompt TEXT, --prompt-file FILE, --tokens 1,2,3",
        )
    if options.tokens is not None:
        prompt = list(options.tokens)
        if any(token >= run.session.vocab for token in prompt):
            raise UsageError("--tokens names a token that the model does not have", hint=f"below {run.session.vocab}")
    else:
        text = options.prompt
        if text is None:
            text = _read(options.prompt_file, _MOST_PROMPT_BYTES).decode("utf-8", "replace")
        encoded = run.tokenizer().encode(text, add_special_tokens=not options.raw)
        prompt = encoded.ids
        # What ends the text where the template puts it after every text: the answer continues the text.
        while prompt and encoded.special_tokens_mask[len(prompt) - 1] and prompt[-1] in run.written.eos:
            prompt.pop()
    if not prompt and run.written.bos is not None:
        prompt = [run.written.bos]
    if not prompt:
        raise UsageError("the prompt is empty", hint="this model has no token that starts a text; give it some")
    return prompt


def _timed(session: Session, name: str, tokens: Sequence[int], depth: int, count: int) -> float:
    """Seconds that `count` tokens take after `depth` others."""
    session.reset()
    if depth:
        session.prefill(tokens[:depth], last_only=True)
    began = time.monotonic()
    if name == "pp":
        session.prefill(tokens[:count], last_only=True)
    else:
        for token in tokens[:count]:
            session.decode(token)
    return time.monotonic() - began


def _decode_latency(samples: Sequence[float], run: _Run) -> Report:
    if not samples:
        return {"samples": []}
    if len(samples) < _SAMPLES_FOR_P99:
        run.warnings.append(f"fewer samples than the 99th percentile needs: {len(samples)}")
    if sum(samples) < 1:
        run.warnings.append("too short: less than a second of decoding")
    rising = np.sort(np.array(samples))
    ranks = {f"p{percent}": nearest_rank(rising, percent / 100) for percent in (50, 90, 99)}
    return {"decode_tokens_per_second": len(samples) / sum(samples), "token_seconds": ranks, "samples": list(samples)}


def _fields(file: Path) -> dict[str, Bytes]:
    """The sizes, given in kB, of a file of /proc."""
    lines = (line.split() for line in file.read_text("ascii", "replace").splitlines())
    return {line[0].rstrip(":"): Bytes(int(line[1]) << 10) for line in lines if line[-1:] == ["kB"]}


def _read(file: Path, limit: int) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise UsageError(f"'{file}' cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise UsageError(f"'{file}' is too long", hint=f"at most {Bytes(limit)} are read")
    return data


def _write(place: str | None, report: Report) -> None:
    if place == "-":
        print(json.dumps(report))
    elif place:
        Path(place).write_text(json.dumps(report), "utf-8")


_VERBS: Final[Mapping[str, Callable[[argparse.Namespace], None]]] = {
    "generate": generate,
    "bench": bench,
    "probe": probe,
    "logits": logits,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb that `argv` names and gives the exit code; a refusal is a sentence on stderr."""
    try:
        verb, options = parse(argv)
        _VERBS[verb](options)
    except EdgekitError as error:
        print(
            f"edgekit-run: {error.message}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr
        )
        return error.exit_code
    except MemoryError:
        print("edgekit-run: there is not enough memory", file=sys.stderr)
        return DoesNotFit.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
