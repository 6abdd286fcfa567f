"""Text to tokens: a byte-level BPE tokenizer trained on it, and files of token ids that training reads in place.

Tokenizers and tokens are kept in a folder, for several runs, under the digest of all they are made from and with.
"""

import bz2
import gzip
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import Dataset

from edgekit.disk import appearing
from edgekit.errors import Damaged, UsageError
from edgekit.tokenizer_json import load_tokenizer

END_OF_TEXT = "<|endoftext|>"

_OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
_PART = 1 << 20  # characters of a text that are tokenized at once
# Of what is kept: another number where the same text would give other parts or tokens.
_FORMAT = 1


def read_parts(files: Sequence[Path], separator: str | None = None) -> Iterator[tuple[str, bool]]:
    """The texts in parts of about a million characters, each with whether a document begins with it.

    A document begins with each file, and after lines that `separator`, a regular expression, matches from their start;
    those lines are left out. A line of more than a million characters is cut too.

    Raises:
        UsageError: a file that cannot be read, or is not UTF-8.
        Damaged: a compressed file that ends early or is altered.
    """
    pattern = re.compile(separator) if separator else None
    for file in files:
        opener: Any = _OPENERS.get(file.suffix, open)
        try:
            with opener(file, "rt", encoding="utf-8") as stream:
                yield from _parts(stream, pattern)
        except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(f"cannot unpack the text {file}: {error}", hint="it is cut short or altered") from error
        except OSError as error:
            if error.strerror is None:  # as bz2 tells of its data
                raise Damaged(f"cannot unpack the text {file}: {error}", hint="it is altered") from error
            raise UsageError(f"cannot read the text {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{file} is not a text in UTF-8: {error.reason}", hint="convert it to UTF-8") from error


def _parts(stream: IO[str], separator: re.Pattern[str] | None) -> Iterator[tuple[str, bool]]:
    begins, lines, size = True, list[str](), 0
    is_start, ends = True, False
    for line in iter(partial(stream.readline, _PART), ""):  # the beginning, or more, of a very long one
        if is_start:
            ends = separator is not None and separator.match(line) is not None
        is_start = line.endswith("\n")
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


def kept_tokenizer(files: Sequence[Path], vocab: int, folder: Path, *, separator: str | None = None) -> Tokenizer:
    """As `train_tokenizer`, kept in `folder`.

    Raises:
        UsageError: the text has fewer different words than that.
    """
    file = folder / f"tokenizer-{_key(vocab, separator, *map(digest, files))}.json"
    if not file.exists():
        tokenizer = train_tokenizer(files, vocab, separator)
        if tokenizer.get_vocab_size() < vocab:
            raise UsageError(
                f"the text gives a vocabulary of {tokenizer.get_vocab_size()} tokens, text.vocab asks for {vocab}",
                hint="lower text.vocab, or give more text",
            )
        with appearing(file) as stream:
            stream.write(tokenizer.to_str().encode())
    return load_tokenizer(file)


def tokenize(
    files: Sequence[Path], tokenizer: Tokenizer, folder: Path, *, separator: str | None = None, begin: int | None = None
) -> npt.NDArray[Any]:
    """The tokens of all texts, one after the other and `begin` before each document, mapped from a file in `folder`.

    Raises:
        UsageError: the texts are empty, or cannot be read.
        Damaged: a compressed file that ends early or is altered.
    """
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    of_tokenizer = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    file = folder / f"{_key(of_tokenizer, separator, begin, *map(digest, files))}.tokens"
    if not file.exists():
        with appearing(file) as stream:
            for part, begins in read_parts(files, separator):
                ids = tokenizer.encode(part, add_special_tokens=False).ids
                stream.write(np.array([begin, *ids] if begins and begin is not None else ids, dtype).tobytes())
    if not file.stat().st_size:
        raise UsageError(f"there is no text in {', '.join(map(str, files))}")
    return np.memmap(file, dtype, mode="r")


def digest(file: Path) -> str:
    """SHA-256 of the file, in hex.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read the text {file}: {error.strerror}") from error


def _key(*made_from: object) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, tokenizers.__version__, *made_from]).encode()).hexdigest()[:40]


class Sequences(Dataset[dict[str, torch.Tensor]]):
    """Consecutive, disjoint sequences of `context` tokens each; labels are the inputs, as causal models expect."""

    def __init__(self, tokens: npt.NDArray[Any], context: int) -> None:
        """`tokens`, without those at the end that fill no sequence."""
        self._tokens = tokens[: len(tokens) // context * context].reshape(-1, context)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self._tokens[index].astype(np.int64))
        return {"input_ids": ids, "labels": ids}
