"""The verbs and options of edgekit-run that the host's runner takes, refused in the same way."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgekit.errors import UsageError


def parse(argv: Sequence[str] | None) -> tuple[str, argparse.Namespace]:
    """The verb and its options.

    Raises:
        UsageError: an unknown verb or option, or a value out of range.
    """
    parser = _Parser(prog="edgekit-run", allow_abbrev=False)
    parsers = parser.add_subparsers(required=True, metavar="VERB", dest="verb")
    verbs = {name: parsers.add_parser(name, allow_abbrev=False) for name in ("generate", "bench", "probe", "logits")}
    for verb in verbs.values():
        verb.add_argument("model", type=Path)
    for name in ("generate", "probe", "logits"):
        verbs[name].add_argument("--threads", type=_whole(1, 256), default=0)
        # ONNX Runtime has one pool of threads, and the cache is as long as the graph was made for.
        verbs[name].add_argument("--prefill-threads", type=_whole(1, 256), default=0)
        verbs[name].add_argument("--context", type=_whole(1), default=0)
    for name in ("generate", "bench", "probe"):
        verbs[name].add_argument("--json")
    add = verbs["generate"].add_argument
    add("--prompt")
    add("--prompt-file", type=Path)
    add("--tokens", type=_counts(0))
    add("-n", type=_whole(1, 1 << 20), default=128)
    add("--temperature", type=_number(0, 100), default=0.8)
    add("--top-k", type=_whole(0), default=40)
    add("--top-p", type=_number(0, 1), default=0.95)
    add("--repetition-penalty", type=_number(0.01, 100), default=1.0)
    add("--seed", type=_whole(0, 2**64 - 1), default=0)
    add("--raw", action="store_true")
    add = verbs["bench"].add_argument
    add("-p", type=_counts(0))
    add("-n", type=_counts(0))
    add("-d", type=_whole(0), default=0)
    add("-r", type=_whole(1, 1000), default=5)
    add("-t", type=_counts(1))
    verbs["probe"].add_argument("--probe", type=Path)
    add = verbs["logits"].add_argument
    add("--token-file", type=Path, required=True)
    add("--out", type=Path, required=True)
    add("--chunk", type=_whole(1), default=0)
    add("--start", type=_whole(0), default=0)
    options = parser.parse_args(argv)
    return str(options.verb), options


class _Parser(argparse.ArgumentParser):
    """Refuses as the rest of edgekit does, and not with a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _counts(low: int) -> Any:
    def parse(text: str) -> list[int]:
        counts = [int(part) for part in text.split(",")]
        if min(counts) < low:
            raise ValueError
        return counts

    parse.__name__ = f"list of whole numbers from {low}"
    return parse


def _number(low: float, high: float) -> Any:
    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError
        return value

    parse.__name__ = f"number from {low} to {high}"
    return parse


def _whole(low: int, high: int = 2**63) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__name__ = f"whole number from {low}"
    return parse
