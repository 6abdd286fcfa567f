"""Text to tokens: a byte-level BPE tokenizer trained on it, and files of token ids that training reads in place."""

import bz2
import gzip
import hashlib
import json
import lzma
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset

from edgekit.disk import writing
from edgekit.errors import UsageError

END_OF_TEXT = "<|endoftext|>"

_OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_PART = 1 << 20  # characters of a text that are tokenized at once


def read_parts(files: Sequence[Path], separator: str | None = None) -> Iterator[tuple[str, bool]]:
    """The texts in parts of about a million characters, each with whether a document begins with it.

    A document begins with each file, and after lines that `separator`, a regular expression, matches from their start;
    those lines are left out.

    Raises:
        UsageError: a file that cannot be read, or is not UTF-8.
    """
    pattern = re.compile(separator) if separator else None
    for file in files:
        opener: Any = _OPENERS.get(file.suffix, open)
        try:
            with opener(file, "rt", encoding="utf-8") as stream:
                yield from _parts(stream, pattern)
        except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
            raise UsageError(
                f"cannot read the text {file}: {error}", hint="UTF-8 text, plain, .gz, .bz2 or .xz"
            ) from error


def _parts(stream: IO[str], separator: re.Pattern[str] | None) -> Iterator[tuple[str, bool]]:
    begins, lines, size = True, list[str](), 0
    for line in stream:
        ends = separator is not None and separator.match(line) is not None
        if (ends or size > _PART) and lines:
            yield "".join(lines), begins
            begins, lines, size = False, [], 0
        if ends:
            begins = True
        elif line.strip() or not begins or lines:  # a document does not begin with empty lines
            lines.append(line)
            size += len(line)
    if lines:
        yield "".join(lines), begins


def train_tokenizer(files: Sequence[Path], vocab: int, separator: str | None = None) -> Tokenizer:
    """A byte-level BPE tokenizer of `vocab` tokens, `END_OF_TEXT` the first of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for part, _ in read_parts(files, separator)), trainer)
    return tokenizer


def tokenize(
    files: Sequence[Path], tokenizer: Tokenizer, file: Path, *, separator: str | None = None, begin: int | None = None
) -> npt.NDArray[Any]:
    """The tokens of all texts, one after the other and `begin` before each document, mapped from `file`.

    They are made once: a text file beside it says what from.
    """
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    stamp = file.with_suffix(".json")
    made_from = [_digest(tokenizer), separator, begin, *map(_identity, files)]
    if not (stamp.exists() and json.loads(stamp.read_text("utf-8")) == made_from):
        stamp.unlink(missing_ok=True)
        with writing(file), file.open("wb") as stream:
            for part, begins in read_parts(files, separator):
                ids = tokenizer.encode(part, add_special_tokens=False).ids
                stream.write(np.array([begin, *ids] if begins and begin is not None else ids, dtype).tobytes())
        stamp.write_text(json.dumps(made_from), "utf-8")
    return np.memmap(file, dtype, mode="r")


def _digest(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def _identity(file: Path) -> str:
    status = file.stat()
    return f"{file} {status.st_size} {status.st_mtime_ns}"


class Sequences(Dataset[dict[str, torch.Tensor]]):
    """Consecutive, disjoint sequences of `context` tokens each; labels are the inputs, as causal models expect."""

    def __init__(self, tokens: npt.NDArray[Any], context: int) -> None:
        if len(tokens) < context:
            raise UsageError(f"the text has {len(tokens)} tokens, fewer than one sequence of {context}")
        self._tokens = tokens[: len(tokens) // context * context].reshape(-1, context)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self._tokens[index].astype(np.int64))
        return {"input_ids": ids, "labels": ids}
