"""What a command shows: tables and JSON on stdout, progress and warnings on stderr."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edgekit.errors import UsageError
from edgekit.transports import printable
from edgekit.units import Bytes, Seconds

# Without a terminal, a stage at work says so no more often than this, and than each tenth of its time.
_LINE_EVERY = Seconds(10)
_MOST_DIGITS = 18
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def show(text: str, *, newline: bool = True) -> None:
    """`text` on stdout; characters that stdout has no bytes for, such as those of a broken file name, as escapes."""
    encoding = sys.stdout.encoding
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=newline)


def show_json(value: object, *, indent: int | None = 2) -> None:
    """`value` as JSON on stdout."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent, allow_nan=False)
    click.echo(text)


def show_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their contents, on stdout; numbers to the right."""
    texts = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *texts, strict=True)]
    right = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in range(len(headings))]
    for line in [list(headings), ["-" * width for width in widths], *texts]:
        cells = (
            text.rjust(width) if is_right else text.ljust(width)
            for text, width, is_right in zip(line, widths, right, strict=True)
        )
        show("  ".join(cells).rstrip())


def show_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """One name and value a line, on stdout."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        show(f"{name.ljust(width)}  {printable(str(value))}")


def say(text: str) -> None:
    """A line on stderr."""
    click.echo(printable(text), err=True)


def warn(text: str) -> None:
    """A doubt, on stderr."""
    say(f"warning: {text}")


def parse_bytes(text: str) -> Bytes:
    """The count that `8G`, `500M` or `1000000` stands for; prefixes are binary.

    Raises:
        UsageError: not of that form.
    """
    lower = text.strip().lower().removesuffix("ib").removesuffix("b")
    number, unit = (lower[:-1], lower[-1]) if lower and lower[-1] in "kmgt" else (lower, "")
    try:
        count = float(number)
    except ValueError:
        count = -1.0
    if not 0 < count < 1e15:
        raise UsageError(f"'{text}' is not a size", hint="for example 8G or 500M")
    return Bytes(int(count * _UNITS[unit]))


def parse_counts(text: str, *, option: str, lowest: int = 1, highest: int, reason: str = "") -> tuple[int, ...]:
    """The whole numbers of a list such as `1,2,4`. `reason` ends the hint where one is refused.

    Raises:
        UsageError: not a list of numbers, or one below `lowest` or beyond `highest`.
    """
    parts = [part.strip() for part in text.split(",")]
    # Python refuses to read a number of thousands of digits.
    are_numbers = all(part.isdecimal() and len(part) <= _MOST_DIGITS for part in parts)
    if not are_numbers or not all(lowest <= int(part) <= highest for part in parts):
        raise UsageError(
            f"{option} is '{text}'", hint=f"whole numbers from {lowest} to {highest}, separated by commas{reason}"
        )
    return tuple(int(part) for part in parts)


def read_text(path: Path) -> str:
    """The text in the file `path`.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


class Stages:
    """Says on stderr which stage runs and how long it still takes: a bar on a terminal, else plain lines."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = self._stage_began = self._said = now()
        self._stage = ""
        self._first = 0  # parts that were done before the stage began
        self._bar: Progress | None = None
        self._task: Any = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` parts of `stage` are finished; a total of 0 is not known."""
        if stage != self._stage:
            self._finish()
            self._begin(stage, done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total or None)
            return
        now = self._now()
        elapsed = now - self._stage_began
        if now - self._said >= max(_LINE_EVERY, elapsed / 10) and self._first < done < total:
            left = Seconds(elapsed / (done - self._first) * (total - done))
            say(f"{stage}: {done / total:.0%} after {Seconds(elapsed)}, about {left} left")
            self._said = now

    def _begin(self, stage: str, first: int) -> None:
        self._stage, self._stage_began, self._first = stage, self._now(), first
        self._said = self._stage_began
        if self._bar is not None:
            # Not before there is something to show: lines written until now stay above the bar.
            self._bar.start()
            self._task = self._bar.add_task(stage, total=None, completed=first)
        else:
            say(f"{stage} ...")

    def _finish(self) -> None:
        if not self._stage:
            return
        took = Seconds(self._now() - self._stage_began)
        if self._bar is not None:
            self._bar.update(self._task, completed=1, total=1)
        elif took >= 1:
            say(f"{self._stage}: done in {took}, {Seconds(self._now() - self._began)} since the start")
        self._stage = ""
