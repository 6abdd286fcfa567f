"""The float32 model that everything is compared with, and texts in its tokens."""

import importlib.resources
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgekit.cache import Cache, code_digest
from edgekit.checkpoint import Checkpoint
from edgekit.coherence import Tokens
from edgekit.errors import Damaged, Unsupported, UsageError
from edgekit.graph import Session, build_graph, save_graph
from edgekit.tokenizer_json import read_tokenizer

Progress = Callable[[str, int, int], None]  # stage, parts done, parts in all (0: not known)


def embedded_model() -> Path:
    """The checkpoint that comes with edgekit."""
    return _package() / "models" / "tales"


def probe_text() -> str:
    """The held-out text that comes with edgekit."""
    return (_package() / "probe.txt").read_text("utf-8")


def tokenizer_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint's tokenizer.json.

    Raises:
        Unsupported: it has none.
    """
    if checkpoint.tokenizer_file is None:
        raise Unsupported(
            f"{checkpoint.path} holds no tokenizer.json", hint="save it with a fast tokenizer of transformers"
        )
    return checkpoint.tokenizer_file


def probe_ids(checkpoint: Checkpoint, text: str | None) -> Tokens:
    """The probe's text in the checkpoint's tokens, nothing put before it.

    Raises:
        Unsupported: the checkpoint has no tokenizer.
        UsageError: the text is too short to predict anything.
    """
    ids = tokens_of(checkpoint, probe_text() if text is None else text)
    if len(ids) < 2:
        raise UsageError(f"the probe text has {len(ids)} tokens, too few to predict one", hint="give a longer text")
    return ids


def tokens_of(checkpoint: Checkpoint, text: str, *, special: bool = False) -> Tokens:
    """`text` in tokens; `special` adds what the tokenizer puts around a text.

    Raises:
        Unsupported: the checkpoint has no tokenizer, or one with a step that edgekit does not know.
        Damaged: its tokenizer is malformed, or gives tokens that the model does not have.
    """
    ids = np.array(open_tokenizer(checkpoint).encode(text, add_special_tokens=special).ids, np.uint32)
    check_tokens(checkpoint, ids)
    return ids


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer.

    One that the runner would refuse is refused here too: its patterns are a stranger's, and the package would run any
    of them.

    Raises:
        Unsupported: the checkpoint has no tokenizer, or one with a step that edgekit does not know.
        Damaged: its tokenizer is malformed.
    """
    file = tokenizer_file(checkpoint)
    read_tokenizer(file)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        # The package raises nothing narrower for a file that it cannot read.
        raise Damaged(f"{file} is not a tokenizer: {error}", hint="download it again") from error


def check_tokens(checkpoint: Checkpoint, ids: npt.NDArray[Any]) -> None:
    """Refuses tokens that the model does not have.

    Raises:
        Damaged: there is one.
    """
    vocab = checkpoint.decoder.vocab
    if len(ids) and ids.max() >= vocab:
        raise Damaged(
            f"{checkpoint.tokenizer_file} gives the token {ids.max()} and the model has {vocab}",
            hint="they belong to different models",
        )


def open_reference(checkpoint: Checkpoint, *, context: int, cache: Cache, progress: Progress) -> Session:
    """The checkpoint's float32 graph, ready to run; its weights are written to the cache once."""
    key = {"code": code_digest(), "checkpoint": checkpoint.digest, "context": str(context)}
    found = cache.find("reference", key)
    if found is None:
        with cache.fill("reference", key) as folder:
            graph = build_graph(checkpoint, context=context)
            save_graph(graph, folder, progress=part_of(progress, "reference: write weights in float32"))
        found = cache.find("reference", key)
        assert found is not None
    return Session(found / "model.onnx", threads=len(os.sched_getaffinity(0)))


def part_of(progress: Progress, stage: str) -> Callable[[int, int], None]:
    """The progress of one stage, which begins now."""
    progress(stage, 0, 0)
    return lambda done, total: progress(stage, done, total)


def _package() -> Path:
    return Path(str(importlib.resources.files("edgekit")))
