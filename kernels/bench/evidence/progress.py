"""Programs that are run, and what is said of it: progress to stderr, a failure with its last words."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ON_PATH: Final = "pip install '.[test]', and have the environment's programs on PATH"


class ToolFailed(Exception):
    """A program that was needed did not do its work."""


def require(packages: Sequence[str], programs: Mapping[str, str]) -> None:
    """Sees that the packages and programs are there; `programs` says how each is had.

    Raises:
        ToolFailed: some are missing; all of them are named.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    wanted = [f"{', '.join(missing)}: pip install '.[test]'"] if missing else []
    wanted += [f"{name}: {how}" for name, how in programs.items() if shutil.which(name) is None]
    if wanted:
        raise ToolFailed(f"missing: {'; '.join(wanted)}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, text_in: str | None = None) -> str:
    """What the command prints.

    Raises:
        ToolFailed: it is not there, or fails.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, input=text_in, env={**os.environ, **(env or {})}, check=False
        )
    except OSError as error:
        raise ToolFailed(f"{words[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise ToolFailed(f"{' '.join(words)} failed with {done.returncode}:\n{last}")
    return done.stdout
