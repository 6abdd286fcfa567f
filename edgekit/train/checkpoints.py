"""The states that a run saves while it goes on, each sealed with the digests of its files.

The Hugging Face trainer writes them to `checkpoints/checkpoint-N`; the seal is the last file, so a state without one,
or with one that does not agree, is not gone on from.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.cache import sync_tree
from edgekit.disk import write_whole
from edgekit.train.text import digest

_SEAL = "seal.json"


@dataclass(frozen=True, slots=True)
class Saved:
    """A whole state: that after `step` steps and `seconds` of training."""

    folder: Path
    step: int
    seconds: float


def seal(folder: Path, seconds: float) -> None:
    """Marks the state in `folder` as whole."""
    sync_tree(folder)
    files = {file.name: digest(file) for file in folder.iterdir()}
    write_whole(folder / _SEAL, json.dumps({"seconds": seconds, "files": files}))


def last_saved(checkpoints: Path, tell: Callable[[str], None]) -> Saved | None:
    """The newest whole state. Those that are not are told and removed."""
    for folder in sorted(checkpoints.glob("checkpoint-*"), key=_step, reverse=True):
        if found := _whole(folder):
            return found
        tell(f"{folder} is not whole: it is passed over")
        shutil.rmtree(folder)
    return None


def _whole(folder: Path) -> Saved | None:
    try:
        found = json.loads((folder / _SEAL).read_text("utf-8"))
        if all(digest(folder / name) == expected for name, expected in found["files"].items()):
            return Saved(folder, _step(folder), float(found["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
