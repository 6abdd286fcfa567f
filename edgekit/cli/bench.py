"""`edgekit bench`: how fast a bundle reads and writes on a device, in the rows that llama-bench made known."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from edgekit.bundle import Bundle, check_remembers, open_bundle, remember_calibration
from edgekit.cli import _options
from edgekit.cli._console import parse_counts, say, show, show_json, show_table, warn
from edgekit.device import open_device
from edgekit.errors import UsageError
from edgekit.measure import BenchRow, Measurement, open_runner
from edgekit.units import Bytes, Seconds

_MEMORY = (
    *("weights_bytes", "kv_format", "kv_bytes", "arena_bytes"),
    *("peak_rss_bytes", "anonymous_bytes", "file_backed_bytes"),
)
_PREFILL, _GENERATED, _RUNS = 512, 128, 5
_MOST_RUNS = 1000  # that edgekit-run makes


@click.command
@_options.bundle
@_options.device
@click.option(
    "-p", "prompt", metavar="N[,N]", help="Prompt lengths; 0: none. Default: 512, or what -d leaves of the context."
)
@click.option(
    "-n",
    "generated",
    metavar="N[,N]",
    help="Generated lengths; 0: none. Default: the least of 128, half the context, and what -d leaves.",
)
@click.option("-d", "depth", type=click.IntRange(0), default=0, show_default=True, help="Tokens in the cache before.")
@click.option("-r", "runs", type=click.IntRange(1, _MOST_RUNS), help=f"Samples of each test. Default: {_RUNS}.")
@click.option(
    "-t",
    "threads",
    metavar="N[,N]",
    help=f"Numbers of threads up to {_options.MOST_THREADS}. {_options.DEFAULT_THREADS}",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Find the numbers of threads that are best on the device; the bundle remembers them.",
)
@_options.kv
@click.option(
    "-o", "output", type=click.Choice(["table", "json", "jsonl", "csv", "md"]), default="table", show_default=True
)
@_options.timeout
@_options.as_json
def command(
    *,
    bundle: Path,
    device: str,
    prompt: str | None,
    generated: str | None,
    depth: int,
    runs: int | None,
    threads: str | None,
    calibrate: bool,
    kv: str | None,
    output: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Time prefill (pp) and decoding (tg) of BUNDLE on a device.

    GB/s and the share of the read ceiling are of decoding: weights and cache that a token reads, beside what the same
    threads read from memory in the same run. Emulated devices have no time: their rates are empty.
    """
    opened = open_bundle(bundle)
    if calibrate:
        if prompt or generated or threads or depth or kv or runs or output not in ("table", "json"):
            hint = "leave -p, -n, -d, -r, -t and --kv out; -o table or json"
            raise UsageError("--calibrate chooses its own tests", hint=hint)
        _calibrate(opened, device, Seconds(timeout), as_json=as_json or output == "json")
        return
    room = opened.context - depth
    if room < 1:
        raise UsageError(
            f"-d {depth} leaves no room in the bundle's context of {opened.context} tokens",
            hint=f"-d is at most {opened.context - 1}, or compile with a longer --context",
        )
    more = f"; more{f' after -d {depth}' if depth else ''} takes a bundle compiled with a longer --context"
    length = min(_GENERATED, max(1, opened.context // 2), room)
    prompts, lengths = (
        (default,) if text is None else parse_counts(text, option=option, lowest=0, highest=room, reason=more)
        for text, option, default in ((prompt, "-p", min(_PREFILL, room)), (generated, "-n", length))
    )
    if not any((*prompts, *lengths)):
        raise UsageError("there is nothing to measure", hint="give -p or -n a length above 0")
    with open_device(device) as machine:
        say(f"{opened.name} on {machine.name} ...")
        rows, measurement = open_runner(opened, machine, timeout=Seconds(timeout), kv=kv).bench(
            prompts=prompts,
            generated=lengths,
            depth=depth,
            runs=runs or _RUNS,
            threads=parse_counts(threads, option="-t", highest=_options.MOST_THREADS) if threads else (),
        )
    for text in measurement.warnings:
        warn(text)
    _SHOW["json" if as_json else output]([as_record(opened, row, measurement) for row in rows])


def _calibrate(bundle: Bundle, device: str, timeout: Seconds, *, as_json: bool) -> None:
    if bundle.engine != "native":
        raise UsageError(f"a bundle for {bundle.engine} cannot be calibrated", hint="compile with --engine native")
    check_remembers(bundle)
    with open_device(device) as machine:
        say(f"{bundle.name} on {machine.name} ...")
        found = open_runner(bundle, machine, timeout=timeout).calibrate()
    remember_calibration(bundle, found.content)
    for text in found.measurement.warnings:
        warn(text)
    if as_json:
        show_json(
            [asdict(trial) | {"device": device, "tokens_per_second": trial.tokens_per_second} for trial in found.trials]
        )
    else:
        rows = [
            (trial.test, trial.threads, f"{trial.tokens_per_second:.2f}", "yes" if trial.chosen else "")
            for trial in found.trials
        ]
        show_table(("test", "threads", "tokens/s", "chosen"), rows)


def as_record(bundle: Bundle, row: BenchRow, measurement: Measurement) -> dict[str, object]:
    """One row with everything needed to read it later; null where a figure has no meaning."""
    return {
        "bundle": bundle.name,
        "target": bundle.target,
        "recipe": bundle.recipe,
        "device": measurement.device.get("name"),
        "emulated": measurement.device.get("emulated"),
        "test": row.test,
        "threads": row.threads,
        "threads_from": measurement.device.get(
            "prefill_threads_from" if row.test.startswith("pp") else "decode_threads_from"
        ),
        "depth": row.depth,
        "tokens": row.tokens,
        "tokens_per_second": row.tokens_per_second,
        "stddev": row.stddev,
        "samples_seconds": list(row.samples_seconds) if row.samples_seconds is not None else None,
        "bytes_per_token": row.bytes_per_token,
        "bytes_per_second": row.bytes_per_second,
        "fraction_of_read_ceiling": row.fraction_of_read_ceiling,
        "kernels": list(row.kernels),
        "fell_back": row.fell_back,
        **{name: measurement.memory.get(name) for name in _MEMORY},
        "load_seconds": measurement.latency.get("load_seconds"),
    }


def _rate(record: dict[str, object]) -> str:
    rate, stddev, samples = record["tokens_per_second"], record["stddev"], record["samples_seconds"]
    if rate is None:
        return "-"
    assert isinstance(samples, list)
    return f"{rate:.2f} +- " + (f"{stddev:.2f}" if len(samples) > 1 else "-")


def _columns(records: Sequence[dict[str, object]]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    headings = (
        *("bundle", "device", "test", "threads", "tokens/s", "GB/s", "of ceiling"),
        *("weights", "peak memory", "kernels"),
    )
    rows: list[tuple[object, ...]] = []
    for record in records:
        test = f"{record['test']}@{record['depth']}" if record["depth"] else record["test"]
        sizes = (_size(record[name]) for name in ("weights_bytes", "peak_rss_bytes"))
        rows.append(
            (
                *(record["bundle"], record["device"], test, record["threads"], _rate(record)),
                *(_moved(record["bytes_per_second"]), _share(record["fraction_of_read_ceiling"])),
                *(*sizes, _kernels(record)),
            )
        )
    return headings, rows


def _moved(rate: object) -> str:
    return f"{rate / 1e9:.2f}" if isinstance(rate, float | int) else "-"


def _share(fraction: object) -> str:
    return f"{fraction:.0%}" if isinstance(fraction, float | int) else "-"


def _kernels(record: dict[str, object]) -> str:
    kernels = record["kernels"]
    assert isinstance(kernels, list)
    return (", ".join(kernels) or "-") + (" (not as planned)" if record["fell_back"] else "")


def _size(count: object) -> str:
    return str(Bytes(count)) if isinstance(count, int) else "-"


def _show_table(records: Sequence[dict[str, object]]) -> None:
    show_table(*_columns(records))


def _show_markdown(records: Sequence[dict[str, object]]) -> None:
    headings, rows = _columns(records)
    for cells in (headings, ["---"] * len(headings), *rows):
        show(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")


def _show_lines(records: Sequence[dict[str, object]]) -> None:
    for record in records:
        show_json(record, indent=None)


def _show_csv(records: Sequence[dict[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        lists = {name: " ".join(map(str, value)) for name, value in record.items() if isinstance(value, list)}
        writer.writerow(record | lists)
    show(text.getvalue(), newline=False)


_SHOW: dict[str, Callable[[Sequence[dict[str, object]]], None]] = {
    "table": _show_table,
    "json": show_json,
    "jsonl": _show_lines,
    "csv": _show_csv,
    "md": _show_markdown,
}
