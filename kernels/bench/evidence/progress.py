"""Programs that are run, and what is said of it: progress to stderr, a failure with its last words."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class ToolFailed(Exception):
    """A program that was needed did not do its work."""


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
