"""Pack a Hugging Face tokenizer.json into the program file, and render chat templates.

The runner encodes and decodes with its own code (kernels/tokenizer), which must give what the `tokenizers` package gives,
id for id. So a tokenizer.json is translated step by step, and a step that is not on the list below is refused: a
tokenizer that is almost right makes a model that is quietly wrong. Truncation and padding in the file are ignored;
they are about training batches.

The layout of the section is kernels/tokenizer/format.h.
"""

import json
import re
import struct
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import Damaged, Unsupported

MAX_FILE_BYTES = 128 << 20
MAX_VOCAB = 1 << 22  # the bounds of format.h
MAX_MERGES = 1 << 24
MAX_TOKEN_BYTES = 1 << 16
MAX_ADDED_BYTES = 256
MAX_TEMPLATE_IDS = 64
MAX_NORMALIZERS = 4
MAX_STEPS = 8
MAX_SECTION_BYTES = 1 << 28

MAGIC, VERSION, NONE = 0x6B6F7465, 1, 0xFFFFFFFF
BYTE_LEVEL, BYTE_FALLBACK, FUSE_UNKNOWN, IGNORE_MERGES = 1, 2, 4, 8
SPECIAL, BYTE_TOKEN, HOLE = 1, 2, 4
NFC, PREPEND_MARKER, REPLACE_SPACE = 1, 2, 3
PATTERN, DIGITS, PREFIX, METASPACE = 1, 2, 3, 4
METASPACE_ALWAYS, METASPACE_FIRST, METASPACE_SPLIT = 1, 2, 4
DECODE_BYTES, DECODE_MARKER, DECODE_METASPACE = 1, 2, 3

MARKER = "\u2581"  # what SentencePiece writes for a space

GPT2 = 1
_CONTRACTIONS = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)", "(?i:[sdmt]|ll|ve|re)")
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = _CONTRACTIONS[0] + "?"
# Pattern of format.h of each regular expression; two that always match the same text share a number.
PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": GPT2,
    **{
        start + r"|[^\r\n\p{L}\p{N}]?" + word + rf"\p{{N}}{digits}" + other + spaces: number
        for start in _CONTRACTIONS[:2]
        for digits, number in (("{1,3}", 2), ("", 3))
        for word, other in (
            (r"\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*"),
            (r"+\p{L}+|", r"| ?[^\s\p{L}\p{N}]++[\r\n]*"),
        )
        for spaces in (_SPACES, r"|\s*[\r\n]|\s+(?!\S)|\s+")
    },
    rf"{_CASED}*{_LOWER}+|{_CASED}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + _SPACES: 4,
    rf"{_CASED}*{_LOWER}+{_SUFFIX}|{_CASED}+{_LOWER}*{_SUFFIX}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + _SPACES: 5,
    r"\n": 6,
    r"\n+": 7,
    r"[\r\n]": 8,
    r"\p{N}": 9,
    r"\p{N}{1,3}": 10,
}
COVERING = range(1, 6)  # patterns that match all of any text
LITERALS = {"\n": 6}

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is looked for in the text before the model sees it."""

    id: int
    content: str
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool

    @property
    def flags(self) -> int:
        return self.lstrip | self.rstrip << 1 | self.single_word << 2


@dataclass(frozen=True, slots=True)
class Decoder:
    """How ids become text: the kind of format.h, the spaces to strip, and whether `<0x0A>` is a byte."""

    kind: int
    strip_left: int
    byte_tokens: bool


def pack_tokenizer(tokenizer_json: Path) -> bytes:
    """The tokenizer section of a program file.

    Raises:
        Damaged: the file is not a tokenizer.json, or contradicts itself.
        Unsupported: it asks for something that the runner would not do exactly as the `tokenizers` package does.
    """
    try:
        return _pack(_load(tokenizer_json))
    except (Damaged, Unsupported) as error:
        error.message = f"{tokenizer_json}: {error.message}"
        error.args = (error.message,)
        raise


def _load(path: Path) -> Json:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise Damaged(f"larger than any tokenizer ({MAX_FILE_BYTES >> 20} MiB)")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise Damaged("not a JSON object")
    return content


def _pack(content: Json) -> bytes:
    model = _get(content, "model", dict)
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"the tokenizer model is {model['type']!r}", hint="supported: BPE, of bytes or SentencePiece")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise Unsupported(f"the tokenizer model has {option} {model[option]!r}", hint="supported: none")
    vocab = _vocab(model)
    added = _added_tokens(content, vocab)
    steps, byte_level = _steps(content.get("pre_tokenizer"))
    normalizers = _normalizers(content.get("normalizer"))
    if byte_level and any(kind != NFC for kind in normalizers):
        raise Unsupported("the tokenizer puts U+2581 for spaces and then works on bytes", hint="one of the two")
    if PREPEND_MARKER in normalizers and steps:
        raise Unsupported("the tokenizer prepends U+2581 twice", hint="either a normalizer or a pre-tokenizer")
    decoder = _decoder(content.get("decoder"))
    if byte_level != (decoder.kind == DECODE_BYTES):
        raise Unsupported("the tokenizer's pre-tokenizer and decoder disagree about bytes", hint="both ByteLevel, or none")
    before, after = _template(content.get("post_processor"))
    if max([*before, *after], default=0) >= _id_count(vocab, added):
        raise Damaged("the post-processor adds an id that is not in the vocabulary")
    return _write(model, vocab, added, normalizers, steps, decoder, byte_level, before, after)


def _get(content: Json, name: str, kind: type, default: Any = None) -> Any:
    """content[name], checked to be of `kind`; Damaged without it unless there is a default."""
    value = content.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Damaged(f"'{name}' should be of type {kind.__name__} and is {json.dumps(value)[:60]}")
    return value


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Damaged(f"{text!r} is half a surrogate pair") from None


def _vocab(model: Json) -> dict[str, int]:
    vocab = _get(model, "vocab", dict)
    ids = vocab.values()
    if not all(type(value) is int and 0 <= value < MAX_VOCAB for value in ids):
        raise Damaged(f"a token's id is not a whole number below {MAX_VOCAB}")
    if len(set(ids)) != len(vocab):
        raise Damaged("two tokens have the same id")
    if not vocab:
        raise Damaged("the vocabulary is empty")
    return vocab


def _id_count(vocab: Mapping[str, int], added: Sequence[AddedToken]) -> int:
    return max(max(vocab.values()), max((token.id for token in added), default=0)) + 1


def _added_tokens(content: Json, vocab: Mapping[str, int]) -> list[AddedToken]:
    """The added tokens, with the ids that the `tokenizers` package gives them.

    It takes the vocabulary's id of a token that is there, else the next free one, whatever the file says; a file that
    says something else is refused.
    """
    added: list[AddedToken] = []
    seen: set[str] = set()
    next_id = len(vocab)
    for entry in _get(content, "added_tokens", list, []):
        if not isinstance(entry, dict):
            raise Damaged("an added token is not a JSON object")
        token = AddedToken(
            id=_get(entry, "id", int),
            content=_get(entry, "content", str),
            **{name: _get(entry, name, bool) for name in ("special", "single_word", "lstrip", "rstrip", "normalized")},
        )
        if not token.content:
            continue
        if token.content in seen:
            raise Damaged(f"the added token {token.content!r} is there twice")
        expected = vocab.get(token.content, next_id)
        if token.id != expected:
            raise Damaged(f"the added token {token.content!r} has id {token.id}, and its place is {expected}")
        if token.content not in vocab:
            next_id += 1
        if len(_utf8(token.content)) > MAX_ADDED_BYTES:
            raise Unsupported(f"an added token is longer than {MAX_ADDED_BYTES} bytes", hint=f"it is {token.content!r}")
        seen.add(token.content)
        added.append(token)
    return added


def _flat(entry: Json | None, members: str) -> list[Json]:
    """The steps of a normalizer, pre-tokenizer, post-processor or decoder, nested sequences opened."""
    if entry is None:
        return []
    if not isinstance(entry, dict):
        raise Damaged(f"one of the {members} is not a JSON object")
    if entry.get("type") != "Sequence":
        return [entry]
    return [step for member in _get(entry, members, list) for step in _flat(member, members)]


def _is_replace_of_spaces(step: Json, old: str, new: str) -> bool:
    return step.get("type") == "Replace" and step.get("pattern") == {"String": old} and step.get("content") == new


def _normalizers(entry: Json | None) -> list[int]:
    kinds = []
    for step in _flat(entry, "normalizers"):
        if step.get("type") == "NFC":
            kinds.append(NFC)
        elif step.get("type") == "Prepend" and step.get("prepend") == MARKER:
            kinds.append(PREPEND_MARKER)
        elif _is_replace_of_spaces(step, " ", MARKER):
            kinds.append(REPLACE_SPACE)
        else:
            raise Unsupported(
                f"the tokenizer's normalizer is {_shown(step)}", hint="supported: NFC, Prepend and Replace of U+2581"
            )
    if len(kinds) > MAX_NORMALIZERS:
        raise Unsupported(f"the tokenizer has {len(kinds)} normalizers", hint=f"at most {MAX_NORMALIZERS}")
    return kinds


def _steps(entry: Json | None) -> tuple[list[tuple[int, int]], bool]:
    """(kind, argument) of each pre-tokenizer step, and whether the model then works on bytes."""
    entries = _flat(entry, "pretokenizers")
    steps: list[tuple[int, int]] = []
    for step in entries:
        kind = step.get("type")
        if kind == "Split":
            steps.append((PATTERN, _pattern(step)))
        elif kind == "Digits":
            steps.append((DIGITS, int(_get(step, "individual_digits", bool, False))))
        elif kind == "ByteLevel" and step is entries[-1]:
            if _get(step, "add_prefix_space", bool, True):
                steps.append((PREFIX, 0))
            if _get(step, "use_regex", bool, True):
                steps.append((PATTERN, GPT2))
        elif kind == "Metaspace" and len(entries) == 1:
            steps.append((METASPACE, _metaspace(step)))
        else:
            raise Unsupported(
                f"the tokenizer's pre-tokenizer has {_shown(step)} in this place",
                hint="supported: none, Metaspace, or any of Split and Digits and then ByteLevel",
            )
    byte_level = bool(entries) and entries[-1].get("type") == "ByteLevel"
    if not byte_level and any(kind != METASPACE for kind, _ in steps):
        raise Unsupported("the tokenizer splits text and does not end in ByteLevel", hint="supported: with ByteLevel last")
    if len(steps) > MAX_STEPS:
        raise Unsupported(f"the tokenizer splits text in {len(steps)} steps", hint=f"at most {MAX_STEPS}")
    return steps, byte_level


def _pattern(step: Json) -> int:
    pattern = _get(step, "pattern", dict)
    known = PATTERNS.get(pattern.get("Regex", "")) or LITERALS.get(pattern.get("String", ""))
    if known is None:
        raise Unsupported(
            f"the tokenizer splits text by {json.dumps(pattern)[:300]}",
            hint="supported: the patterns of GPT-2, Llama 3, Qwen2, Tekken and GPT-4o, line breaks and digits",
        )
    behavior, invert = _get(step, "behavior", str), _get(step, "invert", bool)
    if behavior == "Isolated" or (behavior == "Removed" and invert and known in COVERING):
        return known
    raise Unsupported(f"the tokenizer's Split has behavior {behavior!r}", hint="supported: 'Isolated'")


def _metaspace(step: Json) -> int:
    _require_marker(step)
    schemes = {"always": METASPACE_ALWAYS, "first": METASPACE_FIRST, "never": 0}
    split = METASPACE_SPLIT if _get(step, "split", bool, True) else 0
    return schemes[_prepend_scheme(step)] | split


def _require_marker(step: Json) -> None:
    if step.get("replacement") != MARKER:
        raise Unsupported(f"the tokenizer's space is {step.get('replacement')!r}", hint="supported: U+2581")


def _prepend_scheme(step: Json) -> str:
    scheme = _get(step, "prepend_scheme", str, "always")
    if scheme not in ("always", "first", "never"):
        raise Damaged(f"'prepend_scheme' is {scheme!r}", hint="one of: always, first, never")
    if step.get("add_prefix_space") is False and scheme != "never":
        raise Damaged(f"'prepend_scheme' is {scheme!r} and 'add_prefix_space' is false")
    return scheme


def _decoder(entry: Json | None) -> Decoder:
    steps = _flat(entry, "decoders")
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return Decoder(DECODE_BYTES, strip_left=0, byte_tokens=False)
    if kinds == ["Metaspace"]:
        _require_marker(steps[0])
        return Decoder(DECODE_METASPACE, strip_left=int(_prepend_scheme(steps[0]) != "never"), byte_tokens=False)
    # Fuse joins the tokens, so that Strip sees the start of the text; without Strip it changes nothing.
    names = "".join(f"{kind} " for kind in kinds)
    if not re.fullmatch(r"Replace (ByteFallback )?((Fuse )?|Fuse Strip )", names) or not _is_replace_of_spaces(
        steps[0], MARKER, " "
    ):
        raise Unsupported(
            f"the tokenizer's decoder is {_shown(entry)}",
            hint="supported: ByteLevel, Metaspace, or Replace of U+2581, ByteFallback, Fuse and Strip in this order",
        )
    strip = steps[-1] if kinds[-1] == "Strip" else {"content": " ", "start": 0, "stop": 0}
    if strip.get("content") != " " or strip.get("stop") != 0:
        raise Unsupported(f"the tokenizer's decoder has {_shown(strip)}", hint="supported: spaces from the start")
    return Decoder(DECODE_MARKER, strip_left=_get(strip, "start", int), byte_tokens="ByteFallback" in kinds)


def _template(entry: Json | None) -> tuple[list[int], list[int]]:
    """The ids the post-processor puts before and after a text."""
    steps = [step for step in _flat(entry, "processors") if step.get("type") != "ByteLevel"]  # it only moves offsets
    if not steps:
        return [], []
    if len(steps) > 1 or steps[0].get("type") != "TemplateProcessing":
        raise Unsupported(
            f"the tokenizer's post-processor is {_shown(entry)}", hint="supported: ByteLevel and one TemplateProcessing"
        )
    sides: tuple[list[int], list[int]] = ([], [])
    sequences = 0
    special = _get(steps[0], "special_tokens", dict, {})
    for piece in _get(steps[0], "single", list):
        if not isinstance(piece, dict):
            raise Damaged("a piece of the post-processor's template is not a JSON object")
        if "Sequence" in piece:
            sequences += 1
            continue
        name = _get(_get(piece, "SpecialToken", dict), "id", str)
        ids = _get(_get(special, name, dict), "ids", list)
        if not all(type(value) is int and 0 <= value < MAX_VOCAB for value in ids):
            raise Damaged(f"the post-processor's token {name!r} has ids {ids!r}")
        sides[min(sequences, 1)].extend(ids)
    if sequences != 1:
        raise Unsupported(f"the post-processor's template holds the text {sequences} times", hint="supported: once")
    if max(map(len, sides)) > MAX_TEMPLATE_IDS:
        raise Unsupported("the post-processor's template is long", hint=f"at most {MAX_TEMPLATE_IDS} tokens")
    return sides


def _shown(entry: object) -> str:
    return json.dumps(entry)[:120]


def _printable_alphabet() -> dict[str, int]:
    """Byte of each character that byte-level tokenizers write for one.

    Printable Latin-1 stands for itself and the rest for characters from U+0100 on, in rising order (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(rest)}


ALPHABET = _printable_alphabet()


def _bytes_of(token: str) -> bytes | None:
    """The bytes a byte-level token stands for, or None if it is not written in the alphabet."""
    try:
        return bytes([ALPHABET[character] for character in token])
    except KeyError:
        return None


def _byte_value(token: str) -> int | None:
    """The byte that the decoder takes a token like `<0x0A>` for.

    As lenient as the package, whose parser of numbers also takes small letters and a plus sign.
    """
    match = re.fullmatch(r"<0x([0-9a-fA-F]{2}|\+[0-9a-fA-F])>", token)
    return int(match[1].lstrip("+"), 16) if match else None


def _merges(model: Json, vocab: Mapping[str, int]) -> np.ndarray:
    """uint32 [count, 4] of left, right, rank and result, sorted by left and right."""
    merges = _get(model, "merges", list)
    if len(merges) > MAX_MERGES:
        raise Damaged(f"there are more than {MAX_MERGES} merges")
    table: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise Damaged(f"merge {rank} is not a pair: {_shown(merge)}")
        left, right, result = vocab.get(pair[0]), vocab.get(pair[1]), vocab.get(pair[0] + pair[1])
        if left is None or right is None or result is None:
            raise Damaged(f"merge {rank}, {_shown(merge)}, has a part or a result that is not in the vocabulary")
        table[left, right] = (rank, result)  # of a pair that comes twice the last counts, as in the package
    rows = [(left, right, rank, result) for (left, right), (rank, result) in sorted(table.items())]
    return np.array(rows, np.uint32).reshape(-1, 4)


def _unknown(model: Json, vocab: Mapping[str, int], is_complete: bool) -> int:
    """Id of the unknown token, or NONE. With a token for every byte it is never needed and need not exist."""
    token = model.get("unk_token")
    if token is None or (token not in vocab and is_complete):
        return NONE
    if token not in vocab:
        raise Damaged(f"the unknown token {_shown(token)} is not in the vocabulary")
    return vocab[token]


def _normal(text: str, normalizers: Iterable[int]) -> str:
    for kind in normalizers:
        if kind == NFC:
            text = unicodedata.normalize("NFC", text)
        elif kind == PREPEND_MARKER:
            text = MARKER + text
        else:
            text = text.replace(" ", MARKER)
    return text


def _added_section(added: Sequence[AddedToken], normalizers: Sequence[int]) -> tuple[np.ndarray, bytes, int]:
    """The table of added tokens, their text, and how many are looked for before normalization."""
    raw = {_utf8(token.content): token for token in added if not token.normalized}
    normal = {_utf8(_normal(token.content, normalizers)): token for token in added if token.normalized}
    if len(raw) + len(normal) != len(added):
        raise Unsupported("two added tokens are the same text once normalized", hint="remove one of them")
    if any(len(text) > MAX_ADDED_BYTES for text in normal):
        raise Unsupported(f"an added token is longer than {MAX_ADDED_BYTES} bytes", hint="shorten it")
    entries = [*sorted(raw.items()), *sorted(normal.items())]
    rows, offset = [], 0
    for text, token in entries:
        rows.append((token.id, token.flags, offset, len(text)))
        offset += len(text)
    return np.array(rows, np.uint32).reshape(-1, 4), b"".join(text for text, _ in entries), len(raw)


def _write(
    model: Json,
    vocab: Mapping[str, int],
    added: Sequence[AddedToken],
    normalizers: Sequence[int],
    steps: Sequence[tuple[int, int]],
    decoder: Decoder,
    byte_level: bool,
    before: Sequence[int],
    after: Sequence[int],
) -> bytes:
    count = _id_count(vocab, added)
    tokens: list[bytes] = [b""] * count
    attributes = np.full(count, HOLE, np.uint16)
    words: list[tuple[bytes, int]] = []  # what a whole word is compared with
    for text, token_id in [*vocab.items(), *((token.content, token.id) for token in added)]:
        raw = _utf8(text)
        spelled = _bytes_of(text) if byte_level else raw
        tokens[token_id] = raw if spelled is None else spelled
        if len(tokens[token_id]) > MAX_TOKEN_BYTES:
            raise Unsupported(f"token {token_id} is longer than {MAX_TOKEN_BYTES} bytes", hint="no word is")
        value = _byte_value(text) if decoder.byte_tokens else None
        attributes[token_id] = 0 if value is None else BYTE_TOKEN | value << 8
        if text in vocab and spelled is not None:
            words.append((spelled, token_id))
    for token in added:
        attributes[token.id] |= SPECIAL * token.special

    if byte_level:
        byte_names = {byte: character for character, byte in ALPHABET.items()}
    else:
        byte_names = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    byte_ids = np.array([vocab.get(byte_names[byte], NONE) for byte in range(256)], np.uint32)
    fallback = _get(model, "byte_fallback", bool, False)
    has_all_bytes = bool((byte_ids != NONE).all())
    if byte_level and fallback and not has_all_bytes:
        raise Unsupported("the tokenizer works on bytes, lacks some, and falls back to others", hint="add the bytes")
    flags = (
        BYTE_LEVEL * byte_level
        | BYTE_FALLBACK * (fallback and not byte_level)
        | FUSE_UNKNOWN * _get(model, "fuse_unk", bool, False)
        | IGNORE_MERGES * _get(model, "ignore_merges", bool, False)
    )
    characters = sorted((ord(text), token_id) for text, token_id in vocab.items() if len(text) == 1 and not byte_level)
    merges = _merges(model, vocab)
    added_rows, added_text, raw_added = _added_section(added, normalizers)
    is_complete = has_all_bytes and (byte_level or fallback)

    arrays: list[tuple[bytes, int]] = []  # content, elements

    def put(values: Any, kind: Any = np.uint32) -> None:
        array = np.ascontiguousarray(values, kind)
        arrays.append((array.astype(array.dtype.newbyteorder("<")).tobytes(), len(array)))

    put(np.cumsum([len(token) for token in tokens]))
    text = b"".join(tokens)
    arrays.append((text, len(text)))
    put(attributes, np.uint16)
    put(byte_ids)
    put(np.array(characters, np.uint32).reshape(-1, 2))
    put([token_id for _, token_id in sorted(words)] if flags & IGNORE_MERGES else [])
    put(np.searchsorted(merges[:, 0], np.arange(count), side="right"))
    put(merges[:, 1:])
    put(added_rows)
    arrays.append((added_text, len(added_text)))
    put(normalizers)
    put(np.array(steps, np.uint32).reshape(-1, 2))
    put(before)
    put(after)
    return _laid_out(
        (flags, count, _unknown(model, vocab, is_complete), decoder.kind, decoder.strip_left, raw_added), arrays
    )


def _laid_out(fields: Sequence[int], arrays: Sequence[tuple[bytes, int]]) -> bytes:
    """The header and then the arrays, each at a multiple of 4."""
    header = struct.Struct("<10I" + "2I" * len(arrays))
    spans: list[int] = []
    body = bytearray()
    for content, count in arrays:
        spans += (header.size + len(body), count)
        body += content + bytes(-len(content) % 4)
    size = header.size + len(body)
    if size > MAX_SECTION_BYTES:
        raise Unsupported(f"the tokenizer takes {size} bytes packed", hint=f"at most {MAX_SECTION_BYTES}")
    return header.pack(MAGIC, VERSION, size, *fields, 0, *spans) + bytes(body)
