"""The runner's tokenizer gives what the `tokenizers` package gives, id for id; what it cannot is refused."""

import contextlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pytest
from nasty_texts import fixed_texts, random_texts
from tokenizers import Tokenizer
from tokenizers_zoo import (
    FLAGS,
    LLAMA_DECODER,
    REPLACE_SPACE,
    ROOT,
    ZOO,
    added,
    byte_level,
    bytes_alone,
    gpt2,
    metaspace,
    pieces_base,
    sequence,
    split,
    template,
)
from transformers.utils.chat_template_utils import render_jinja_template

from edgekit.engines.text_stream import TextStream
from edgekit.errors import Damaged, EdgekitError, TargetMissing, Unsupported
from edgekit.tokenizer import pack_tokenizer, render_chat
from edgekit.tokenizer_json import PATTERNS, bundled_tokenizer, load_tokenizer

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


def compiled(name: str, folder: Path, *flags: str) -> Path:
    """tests/kernels/<name>.cc with the tokenizer, and the tables of characters beside it."""
    subprocess.run([sys.executable, FOLDER / "make_unicode_tables.py", folder / "unicode_tables.h"], check=True)
    sources = [*FOLDER.glob("*.cc"), ROOT / "tests" / "kernels" / f"{name}.cc"]
    includes = [f"-I{path}" for path in (folder, ROOT / "kernels", ROOT / "kernels" / "include")]
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++20", "-fno-exceptions", *flags, *includes, *sources, "-o", folder / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / name


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return Cli(compiled("tokenizer_cli", tmp_path_factory.mktemp("tokenizer"), "-O2"))


@pytest.fixture(scope="session")
def mutations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    return compiled("tokenizer_mutations", tmp_path_factory.mktemp("mutations"), *flags)


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
    texts = [*fixed_texts(), *random_texts(1, 1500, [text for text, _ in FLAGS])]
    check_equal(cli, pairs[name], texts)
    check_equal(cli, pairs[name], texts[:200], with_template=True)


@pytest.mark.parametrize("name", ZOO)
def test_ids_decode_as_in_the_package(name: str, cli: Cli, pairs: dict[str, Pair]) -> None:
    pair = pairs[name]
    texts = [*fixed_texts(), *random_texts(2, 200, [text for text, _ in FLAGS])]
    source = random.Random(3)
    count = pair.theirs.get_vocab_size()
    ids = [encoding.ids for encoding in pair.theirs.encode_batch(texts)]
    ids += [[source.randrange(count) for _ in range(source.randint(1, 30))] for _ in range(500)]
    ids += [[source.randrange(min(count, 262)) for _ in range(source.randint(1, 12))] for _ in range(1500)]
    for kind, skip in (("x", False), ("X", True)):
        theirs = pair.theirs.decode_batch(ids, skip_special_tokens=skip)
        for each, mine, their in zip(ids, cli.decode(pair.ours, ids, kind), theirs, strict=True):
            assert mine == their, each


def test_the_default_checkpoint_encodes_as_in_the_package(cli: Cli, tmp_path: Path) -> None:
    pair = packed(json.loads(TALES.read_text()), tmp_path)
    ids = check_equal(cli, pair, [*fixed_texts(), *random_texts(4, 3000), (ROOT / "edgekit" / "probe.txt").read_text()])
    assert cli.decode(pair.ours, ids, "d") == pair.theirs.decode_batch(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", ["qwen2", "tekken", "deepseek_coder", "smollm2"])
def test_characters_where_a_property_changes_encode_as_in_the_package(
    name: str, cli: Cli, pairs: dict[str, Pair]
) -> None:
    tables = (cli.program.parent / "unicode_tables.h").read_text()
    (runs,) = re.findall(r"kProperties\[\] = \{(.*)\}", tables)
    firsts = [int(value, 16) >> 8 for value in runs.split(",")]
    codes = sorted({code for first in firsts for code in (first - 1, first) if code >= 0 and not is_surrogate(code)})
    texts = [f"a{chr(code)}1 {chr(code)}.\u0301{chr(code)}B\n" for code in codes]
    check_equal(cli, pairs[name], texts)


def is_surrogate(code: int) -> bool:
    return 0xD800 <= code <= 0xDFFF


@pytest.mark.parametrize("name", ["qwen2", "nfc_pieces"])
def test_every_composing_pair_is_composed_as_in_the_package(name: str, cli: Cli, pairs: dict[str, Pair]) -> None:
    tables = (cli.program.parent / "unicode_tables.h").read_text()
    arrays = {
        key: [int(value, 16) for value in row.split(",")] for key, row in re.findall(r"(k\w+)\[\] = \{(.*)\}", tables)
    }
    marks = [chr(value >> 8) for value in arrays["kCombining"]]
    source = random.Random(5)
    texts = []
    for first, second in zip(arrays["kFirst"], arrays["kSecond"], strict=True):
        texts.append(chr(first) + source.choice(marks) + chr(second) + source.choice(marks))
        texts.append(chr(first) + chr(second) + "".join(source.choices(marks, k=4)))
    texts += [chr(code) + source.choice(marks) + chr(code) for code in arrays["kDecomposable"]]
    texts += [
        "".join(chr(source.choice((0x1100, 0x1161, 0x11A7, 0xAC00, 0xD788)) + source.randrange(30)) for _ in range(6))
        for _ in range(500)
    ]
    check_equal(cli, pairs[name], texts)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama2"])
def test_wrong_bytes_encode_as_replacement_characters(name: str, cli: Cli, pairs: dict[str, Pair]) -> None:
    source = random.Random(6)
    raw = [source.randbytes(source.randint(1, 20)) for _ in range(500)]
    text = "\u00e9\u20ac\U0001f600\ud7ff\U0010ffff".encode()
    raw += [text[start:stop] for start in range(len(text)) for stop in range(start, len(text) + 1)]
    raw += [b"\xc0\xaf", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"a\xffb\xfe"]
    theirs = pairs[name].theirs.encode_batch_fast(
        [data.decode(errors="replace") for data in raw], add_special_tokens=False
    )
    assert cli.encode(pairs[name].ours, raw) == [encoding.ids for encoding in theirs]


@pytest.mark.parametrize("name", ["gpt2", "llama2", "mistral_v3", "metaspace_always"])
def test_a_stream_gives_the_text_that_was_encoded(name: str, cli: Cli, pairs: dict[str, Pair]) -> None:
    ids = [encoding.ids for encoding in pairs[name].theirs.encode_batch(fixed_texts())]
    assert cli.decode(pairs[name].ours, ids, "D") == pairs[name].theirs.decode_batch(ids)


def random_ids(pair: Pair, seed: int) -> list[list[int]]:
    """Ids of texts, and ids in any order, many of them of byte tokens."""
    source, count = random.Random(seed), pair.theirs.get_vocab_size()
    texts = [*fixed_texts(), *random_texts(seed, 200, [text for text, _ in FLAGS])]
    ids = [encoding.ids for encoding in pair.theirs.encode_batch(texts)]
    ids += [[source.randrange(count) for _ in range(source.randint(1, 30))] for _ in range(300)]
    return ids + [[source.randrange(min(count, 262)) for _ in range(source.randint(1, 12))] for _ in range(1000)]


def streamed(theirs: Tokenizer, prompt: list[int], ids: list[int], *, may_be_open: bool) -> str:
    stream = TextStream(theirs, prompt, may_be_open=may_be_open)
    return "".join([*map(stream.push, ids), stream.finish()])


@pytest.mark.parametrize("name", ZOO)
def test_the_hosts_stream_gives_what_the_runners_gives(name: str, cli: Cli, pairs: dict[str, Pair]) -> None:
    ids = random_ids(pairs[name], 10)
    for each, expected in zip(ids, cli.decode(pairs[name].ours, ids, "D"), strict=True):
        assert streamed(pairs[name].theirs, [], each, may_be_open=True) == expected, each


@pytest.mark.parametrize("name", ZOO)
def test_the_hosts_stream_continues_what_a_prompt_leaves_open(name: str, cli: Cli, pairs: dict[str, Pair]) -> None:
    pair, source = pairs[name], random.Random(11)
    ids = [encoding.ids for encoding in pair.theirs.encode_batch(fixed_texts())]
    prompts = [each[: source.randint(0, len(each))] for each in ids]
    shown, wholes = (cli.decode(pair.ours, each, "D") for each in (prompts, ids))
    for each, prompt, before, whole in zip(ids, prompts, shown, wholes, strict=True):
        if "\ufffd" not in whole:
            expected = whole[len(before.rstrip("\ufffd")) :]
            assert streamed(pair.theirs, prompt, each[len(prompt) :], may_be_open=True) == expected, (each, prompt)


def test_a_prompt_that_is_text_leaves_nothing_open(pairs: dict[str, Pair]) -> None:
    theirs = pairs["gpt2"].theirs
    prompt, ids = theirs.encode("a\ufffd").ids, theirs.encode("b").ids
    assert streamed(theirs, prompt, ids, may_be_open=False) == "b"


def test_what_was_shown_of_a_run_of_bytes_stays_when_a_wrong_one_follows(pairs: dict[str, Pair]) -> None:
    theirs = pairs["llama2"].theirs
    u, c3, a9, ff = (theirs.token_to_id(f"<0x{byte:02X}>") for byte in (0x75, 0xC3, 0xA9, 0xFF))
    word = theirs.token_to_id("\u2581w")
    stream = TextStream(theirs, [word], may_be_open=False)
    assert [stream.push(token) for token in (u, c3, a9, ff, u, word)] == ["u", "", "\u00e9", "", "", "\ufffd\ufffd w"]
    assert [stream.push(token) for token in (u, c3)] == ["u", ""] and stream.finish() == "\ufffd"
    assert theirs.decode([u, c3, a9, ff]) == "\ufffd\ufffd\ufffd\ufffd"


def test_a_million_letters_in_one_word_are_encoded(cli: Cli, pairs: dict[str, Pair]) -> None:
    source = random.Random(7)
    word = "".join(source.choices("etaoinshrdlu", k=1_000_000))
    check_equal(cli, pairs["gpt2"], [word])
    check_equal(cli, pairs["llama2"], [word])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_known_pattern_splits_as_in_the_package(pattern: str, cli: Cli, tmp_path: Path) -> None:
    content = bytes_alone()
    # Without merges every byte is a token of its own, so a second split shows where the first one cut: a piece that
    # does not start with a space is given one.
    content["model"]["merges"] = []
    content["pre_tokenizer"] = sequence("pretokenizers", split(pattern), byte_level(False, add_prefix_space=True))
    check_equal(cli, packed(content, tmp_path), [*fixed_texts(), *random_texts(8, 3000)])


@pytest.mark.parametrize("side", ["Left", "Right"])
def test_truncation_and_padding_in_the_file_are_left_out(cli: Cli, tmp_path: Path, side: str) -> None:
    text, content = "he was in the garden when they came", gpt2()
    content["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": side}
    content["padding"] = {
        **{"strategy": {"Fixed": 64}, "direction": side, "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"},
    }
    pair = packed(content, tmp_path)
    assert len(pair.theirs.encode(text).ids) == 64
    (ours,) = cli.encode(pair.ours, [text.encode()])
    assert load_tokenizer(tmp_path / "tokenizer.json").encode(text, add_special_tokens=False).ids == ours
    del content["truncation"], content["padding"]
    assert packed(content, tmp_path).theirs.encode(text).ids == ours


def test_a_bundle_has_the_file_without_truncation_and_padding(tmp_path: Path) -> None:
    path, content = tmp_path / "tokenizer.json", gpt2()
    path.write_text(json.dumps(content, ensure_ascii=False))
    assert bundled_tokenizer(path) == path.read_bytes()  # nothing to take out
    padding = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    truncation = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    path.write_text(json.dumps({**content, "padding": padding, "truncation": truncation}))
    assert json.loads(bundled_tokenizer(path)) == {**content, "padding": None, "truncation": None}


@pytest.mark.parametrize("name", ["gpt2_flagged", "qwen2_flagged", "llama2_flagged", "llama3", "nfc_pieces"])
def test_a_damaged_section_is_refused_or_harmless(name: str, mutations: Path, pairs: dict[str, Pair]) -> None:
    done = subprocess.run([mutations, pairs[name].ours], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_section_cut_short_is_refused_in_a_sentence(cli: Cli, pairs: dict[str, Pair], tmp_path: Path) -> None:
    cut = tmp_path / "section"
    cut.write_bytes(pairs["gpt2"].ours.read_bytes()[:-4])
    done = cli.ask(cut, [])
    assert done.returncode == 11  # 10 + EDGEKIT_DAMAGED
    assert done.stderr == b"the tokenizer section is damaged: it gives another size than it has\n"


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    assert pack_tokenizer(TALES) == pack_tokenizer(TALES)


def refusal(path: Path, content: object, kind: type[EdgekitError]) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(kind) as caught:
        pack_tokenizer(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    return caught.value.message


def changed(content: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """`content` with the entry at `path`, like "model.vocab", replaced."""
    *parents, last = path.split(".")
    inner: Any = content
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return content


UNSUPPORTED = {
    "model.type": ("WordPiece", "the tokenizer's model is"),
    "model.dropout": (0.1, "has dropout 0.1"),
    "model.continuing_subword_prefix": ("##", "continuing_subword_prefix"),
    "model.end_of_word_suffix": ("</w>", "end_of_word_suffix"),
    "normalizer": ({"type": "Lowercase"}, "Lowercase"),
    "pre_tokenizer": ({"type": "Whitespace"}, "Whitespace"),
    "decoder": (None, "decoder is null"),
    "post_processor": ({"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}, "BertProcessing"),
}


@pytest.mark.parametrize("path", UNSUPPORTED)
def test_what_cannot_be_reproduced_is_not_supported(path: str, tmp_path: Path) -> None:
    value, expected = UNSUPPORTED[path]
    assert expected in refusal(tmp_path / "tokenizer.json", changed(gpt2(), path, value), Unsupported)


PRE_TOKENIZERS = {
    "an unknown pattern": sequence("pretokenizers", split(r"\w+"), byte_level(False)),
    "a known pattern removed": sequence("pretokenizers", split(r"\p{N}", "Removed"), byte_level(False)),
    "bytes before a split": sequence("pretokenizers", byte_level(False), split(r"\p{N}")),
    "a split without bytes": split(r"\p{N}"),
    "Metaspace after a split": sequence("pretokenizers", split(r"\p{N}"), metaspace("always", True)),
    "another marker": {**metaspace("always", True), "replacement": "_"},
    "too many steps": sequence("pretokenizers", *[split(r"\n")] * 9, byte_level(False)),
}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_way_to_split_that_is_not_known_is_not_supported(name: str, tmp_path: Path) -> None:
    content = changed(gpt2(), "pre_tokenizer", PRE_TOKENIZERS[name])
    refusal(tmp_path / "tokenizer.json", content, Unsupported)


DAMAGED = {
    "model": ([], "'model' should be of type dict"),
    "model.vocab": ({"a": 0, "b": 0}, "two tokens have the same id"),
    "model.merges": ([["a", "nowhere"]], "not in the vocabulary"),
    "model.unk_token": ("<none>", "the unknown token"),
    "model.fuse_unk": ("yes", "'fuse_unk' should be of type bool"),
    "added_tokens": ([added(7, "<new>")], "has id 7, and its place is"),
    "normalizer": ([1], "one of the normalizers is not a JSON object"),
    "post_processor": (template([("<s>", 10**6)], []), "adds an id that is not in the vocabulary"),
}


@pytest.mark.parametrize("path", DAMAGED)
def test_a_file_that_contradicts_itself_is_damaged(path: str, tmp_path: Path) -> None:
    value, expected = DAMAGED[path]
    content = changed(pieces_base(None, REPLACE_SPACE, LLAMA_DECODER), path, value)
    assert expected in refusal(tmp_path / "tokenizer.json", content, Damaged)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"model": 1e999}', '{"model": {"vocab": {"\\ud800": 0}, "merges": []}}']
)
def test_a_file_that_is_no_tokenizer_is_damaged(text: str, tmp_path: Path) -> None:
    refusal(tmp_path / "tokenizer.json", text, Damaged)


def test_a_tokenizer_json_with_any_value_replaced_is_packed_or_refused(tmp_path: Path) -> None:
    """No other exception, whatever a file says."""
    source = random.Random(9)
    path = tmp_path / "tokenizer.json"
    values: list[object] = [None, True, -1, 2**40, 0.5, "", "x", [], [[]], {}, {"type": 3}, "\ud800"]
    for _ in range(400):
        content = copied(source.choice(("llama2", "qwen2", "llama3")))
        target, key = source.choice(list(places(content)))
        target[key] = source.choice(values)
        path.write_text(json.dumps(content))
        with contextlib.suppress(Damaged, Unsupported):
            pack_tokenizer(path)


def places(content: Any) -> Iterable[tuple[Any, Any]]:
    """(container, key) of every value but the vocabulary's and the merges', of which a few stand for all."""
    items = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in items[:40]:
        yield content, key
        if isinstance(value, dict | list):
            yield from places(value)


@cache
def written(name: str) -> str:
    return json.dumps(ZOO[name]())


def copied(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(written(name))
    return content


CONVERSATION = [
    {"role": "system", "content": "  Be brief.\n"},
    {"role": "user", "content": "What is <b> & 'c'? \u00e9\U0001f600"},
    {"role": "assistant", "content": "A tag."},
    {"role": "user", "content": "Thanks"},
]
TEMPLATES = {
    "chatml": """\
{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "llama3": """\
{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content + '<|eot_id|>' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "zephyr": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% else %}
{% generation %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endgeneration %}
{% endif %}
{% endfor %}""",
    "tools": """\
{%- if tools %}{%- for tool in tools %}{{ tool | tojson }}
{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}
{%- set ns = namespace(last=0) %}{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == 'user' %}{%- set ns.last = index %}{% break %}{%- endif %}
{%- endfor %}{{ ns.last }}{{ undefined }}""",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_render_as_in_transformers(name: str) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "<\u00e9>", "parameters": {}}}]
    (theirs,), _ = render_jinja_template(
        [CONVERSATION],
        tools=tools,
        chat_template=TEMPLATES[name],
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert render_chat(TEMPLATES[name], CONVERSATION, bos="<s>", eos="</s>", tools=tools) == theirs


def test_what_a_template_says_about_the_messages_is_shown() -> None:
    with pytest.raises(Unsupported, match="does not take these messages: TemplateError: roles must alternate"):
        render_chat("{{ raise_exception('roles must alternate') }}", CONVERSATION)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 11 }}",
        "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_asks_for_too_much_is_stopped(template: str) -> None:
    with pytest.raises(Damaged, match="too much time or memory"):
        render_chat(template, CONVERSATION)


@pytest.mark.parametrize(
    "template",
    [
        "{% include 'README.md' %}",
        "{% import 'x' as x %}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ namespace(_x=1) }}{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_template_reaches_nothing_outside_itself(template: str) -> None:
    with pytest.raises(Unsupported):
        render_chat(template, CONVERSATION)


def test_a_template_is_rendered_by_the_jinja_that_this_process_would_import(tmp_path: Path) -> None:
    # As after `pip install --user`, or with PYTHONPATH: isolated, Python would find another jinja2, or none.
    for module in (jinja2, markupsafe):
        copied = tmp_path / module.__name__
        shutil.copytree(Path(module.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "jinja2" / "defaults.py").open("a") as file:
        file.write("\nDEFAULT_NAMESPACE['where'] = lambda: __file__\n")
    (tmp_path / "json.py").write_text("raise SystemExit('this is not the json of Python')")
    program = "import json, sys; sys.path[:0] = sys.argv[1:]; from edgekit.tokenizer import render_chat"
    program += "; print(render_chat('{{ where() }}', []))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(tmp_path / "jinja2" / "defaults.py"), done.stderr


def test_a_jinja_that_is_missing_or_not_whole_is_not_the_fault_of_the_template(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("edgekit.tokenizer._folders_of", lambda *modules: [str(tmp_path)])
    with pytest.raises(TargetMissing, match="cannot be used: ModuleNotFoundError: No module named 'jinja2'"):
        render_chat("x", CONVERSATION)
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TargetMissing, match="cannot be used: no module named jinja2") as refusal:
        render_chat("x", CONVERSATION)
    assert refusal.value.hint == "pip install jinja2"
