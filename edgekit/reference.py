"""The float32 model that everything is compared with, and texts in its tokens."""

import hashlib
import importlib.resources
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edgekit.cache import Cache, code_digest
from edgekit.calibrate import measure_inputs, open_inputs
from edgekit.checkpoint import Checkpoint
from edgekit.coherence import Tokens
from edgekit.errors import Damaged, Unsupported, UsageError
from edgekit.graph import Session, build_graph, save_graph
from edgekit.methods import Inputs
from edgekit.tokenizer_json import load_tokenizer, read_tokenizer

CALIBRATION_SEQUENCES: Final = 128
_SHARED_RUN: Final = 32  # tokens in a row that two texts do not share by chance
_MOST_CHARACTERS: Final = 16  # of a text, that are read for each token wanted

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


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sequences of tokens to measure the inputs of the linear layers on."""

    sequences: tuple[Tokens, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of all sequences."""
        each = (hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest() for ids in self.sequences)
        return hashlib.sha256("\n".join(each).encode()).hexdigest()

    def shares_text(self, ids: Tokens) -> bool:
        """True if 32 tokens in a row of `ids`, or all of fewer, are in a sequence."""
        length = min(_SHARED_RUN, len(ids))
        runs = set(_runs(ids, length))
        return any(not runs.isdisjoint(_runs(sequence, length)) for sequence in self.sequences)


def _runs(ids: Tokens, length: int) -> Iterator[bytes]:
    """The bytes of every `length` tokens in a row."""
    values = ids.astype("<u4")
    return (values[at : at + length].tobytes() for at in range(len(values) - length + 1))


def read_calibration(checkpoint: Checkpoint, text: str | None, *, length: int) -> Calibration | None:
    """The beginning of `text` as at most CALIBRATION_SEQUENCES of `length` tokens, each begun as a text is.

    None without a text.

    Raises:
        Unsupported, Damaged: as `tokens_of`.
        UsageError: the text does not fill one sequence.
    """
    if text is None:
        return None
    begin = [] if checkpoint.bos_id is None else [checkpoint.bos_id]
    each = max(1, length - len(begin))
    ids = tokens_of(checkpoint, text[: CALIBRATION_SEQUENCES * each * _MOST_CHARACTERS])
    if len(ids) < each:
        raise UsageError(
            f"the calibration text has {len(ids)} tokens, and a sequence takes {each}",
            hint=f"give a longer text: up to {CALIBRATION_SEQUENCES} sequences are used",
        )
    count = min(CALIBRATION_SEQUENCES, len(ids) // each)
    return Calibration(tuple(np.array([*begin, *part], np.uint32) for part in ids[: count * each].reshape(count, each)))


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
        return load_tokenizer(file)
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
    """The checkpoint's float32 graph, ready to run."""
    folder = saved_reference(checkpoint, context=context, cache=cache, progress=progress)
    return Session(folder / "model.onnx", threads=len(os.sched_getaffinity(0)))


def saved_reference(checkpoint: Checkpoint, *, context: int, cache: Cache, progress: Progress) -> Path:
    """The folder of the checkpoint's float32 graph; its weights are written to the cache once."""
    key = {"code": code_digest(), "checkpoint": checkpoint.digest, "context": str(context)}
    found = cache.find("reference", key)
    if found is None:
        with cache.fill("reference", key) as folder:
            graph = build_graph(checkpoint, context=context)
            save_graph(graph, folder, progress=part_of(progress, "reference: write weights in float32"))
        found = cache.find("reference", key)
        assert found is not None
    return found


def open_measured(
    checkpoint: Checkpoint, calibration: Calibration, *, context: int, cache: Cache, progress: Progress
) -> Mapping[str, Inputs]:
    """The inputs of the linear layers, mapped from the cache; `context` is that of the graph that measures them."""
    key = {"code": code_digest(), "checkpoint": checkpoint.digest, "tokens": calibration.digest}
    found = cache.find("calibrate", key)
    if found is None:
        saved = saved_reference(checkpoint, context=context, cache=cache, progress=progress)
        report = part_of(progress, "calibrate: run the float32 reference")
        with cache.fill("calibrate", key) as folder:
            measure_inputs(checkpoint, calibration.sequences, saved=saved, directory=folder, progress=report)
        found = cache.find("calibrate", key)
        assert found is not None
    return open_inputs(found)


def part_of(progress: Progress, stage: str) -> Callable[[int, int], None]:
    """The progress of one stage, which begins now."""
    progress(stage, 0, 0)
    return lambda done, total: progress(stage, done, total)


def _package() -> Path:
    return Path(str(importlib.resources.files("edgekit")))
