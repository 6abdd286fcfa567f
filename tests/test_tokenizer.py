"""The runner's tokenizer gives what the `tokenizers` package gives, id for id; what it cannot is refused."""

import importlib.util
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers_zoo import ROOT, ZOO, fixed_texts, gpt2, llama2, qwen2, random_texts, split

from edgekit.errors import Damaged, EdgekitError, Unsupported
from edgekit.tokenizer import pack_tokenizer

FOLDER = ROOT / "kernels" / "tokenizer"
TALES = ROOT / "edgekit" / "models" / "tales" / "tokenizer.json"


@dataclass(frozen=True)
class Cli:
    """tests/kernels/tokenizer_cli.cc, which encodes and decodes with the code of the runner."""

    program: Path

    def ask(
        self, section: Path, requests: Iterable[tuple[str, bytes]], size: int = 1
    ) -> subprocess.CompletedProcess[bytes]:
        """`size` is of an element of the payload: 1 for text, 4 for ids."""
        sent = b"".join(kind.encode() + struct.pack("<I", len(data) // size) + data for kind, data in requests)
        return subprocess.run([self.program, section], input=sent, capture_output=True, check=False, timeout=300)

    def encode(self, section: Path, texts: list[bytes], *, with_template: bool = False) -> list[list[int]]:
        done = self.ask(section, [("E" if with_template else "e", text) for text in texts])
        assert done.returncode == 0, done.stderr
        return [list(struct.unpack(f"<{len(data) // 4}I", data)) for data in replies(done.stdout, 4)]

    def decode(self, section: Path, ids: list[list[int]], kind: str) -> list[str]:
        done = self.ask(section, [(kind, struct.pack(f"<{len(each)}I", *each)) for each in ids], 4)
        assert done.returncode == 0, done.stderr
        return [data.decode() for data in replies(done.stdout, 1)]


def replies(stream: bytes, size: int) -> Iterable[bytes]:
    at = 0
    while at < len(stream):
        (count,) = struct.unpack_from("<I", stream, at)
        yield stream[at + 4 : at + 4 + count * size]
        at += 4 + count * size


def compiled(folder: Path, *flags: str) -> Cli:
    subprocess.run([sys.executable, FOLDER / "make_unicode_tables.py", folder / "unicode_tables.h"], check=True)
    program = folder / "tokenizer_cli"
    sources = [*FOLDER.glob("*.cc"), ROOT / "tests" / "kernels" / "tokenizer_cli.cc"]
    includes = [f"-I{path}" for path in (folder, ROOT / "kernels", ROOT / "kernels" / "include")]
    command = [
        os.environ.get("CXX", "c++"),
        "-std=c++20",
        "-fno-exceptions",
        *flags,
        *includes,
        *sources,
        "-o",
        program,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Cli(program)


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return compiled(tmp_path_factory.mktemp("tokenizer"), "-O2")


@pytest.fixture(scope="session")
def sanitized_cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    return compiled(tmp_path_factory.mktemp("sanitized"), *flags)


@dataclass(frozen=True)
class Pair:
    """A tokenizer as the package has it and as packed."""

    theirs: Tokenizer
    ours: Path


def packed(content: dict[str, Any], folder: Path) -> Pair:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    section = folder / "section"
    section.write_bytes(pack_tokenizer(path))
    return Pair(Tokenizer.from_file(str(path)), section)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {name: packed(build(), tmp_path_factory.mktemp(name)) for name, build in ZOO.items()}


def check_equal(cli: Cli, pair: Pair, texts: list[str], *, with_template: bool = False) -> list[list[int]]:
    raw = [text.encode() for text in texts]
    ours = cli.encode(pair.ours, raw, with_template=with_template)
    theirs = pair.theirs.encode_batch_fast(texts, add_special_tokens=with_template)
    for text, mine, their in zip(texts, ours, theirs, strict=True):
        assert mine == their.ids, f"{text!r}: {[pair.theirs.id_to_token(token) for token in mine]} {their.tokens}"
    return ours


@pytest.mark.parametrize("name", ZOO)
def test_fixed_and_random_texts_encode_as_in_the_package(name: str, cli: Cli, pairs: dict[str, Pair]) -> None:
    texts = [*fixed_texts(), *random_texts(1, 1500)]
    check_equal(cli, pairs[name], texts)
    check_equal(cli, pairs[name], texts[:200], with_template=True)


@pytest.mark.parametrize("name", ZOO)
def test_ids_decode_as_in_the_package(name: str, cli: Cli, pairs: dict[str, Pair]) -> None:
    pair = pairs[name]
    texts = [*fixed_texts(), *random_texts(2, 200)]
    source = random.Random(3)
    count = pair.theirs.get_vocab_size()
    ids = [encoding.ids for encoding in pair.theirs.encode_batch(texts)]
    ids += [[source.randrange(count) for _ in range(source.randint(1, 30))] for _ in range(500)]
    ids += [[source.randrange(min(count, 262)) for _ in range(source.randint(1, 12))] for _ in range(1500)]
    for kind, skip in (("x", False), ("X", True)):
        theirs = pair.theirs.decode_batch(ids, skip_special_tokens=skip)
        for each, mine, their in zip(ids, cli.decode(pair.ours, ids, kind), theirs, strict=True):
            assert mine == their, each
