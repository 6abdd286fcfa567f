"""Read a Hugging Face tokenizer.json, and refuse what the runner could not do exactly.

The runner must give what the `tokenizers` package gives, id for id. So the file is translated step by step, and a step
that is not known here is refused: a tokenizer that is almost right makes a model that is quietly wrong. Truncation and
padding in the file are left out; they are about batches in training. Constants are those of kernels/tokenizer/format.h.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from edgekit.errors import Damaged, Unsupported

MAX_FILE_BYTES = 128 << 20
MAX_VOCAB = 1 << 22
MAX_MERGES = 1 << 24
MAX_TOKEN_BYTES = 1 << 16
MAX_ADDED_BYTES = 256
MAX_TEMPLATE_IDS = 64
MAX_NORMALIZERS = 4
MAX_STEPS = 8

NFC, PREPEND_MARKER, REPLACE_SPACE = 1, 2, 3
PATTERN, DIGITS, PREFIX, METASPACE = 1, 2, 3, 4
METASPACE_ALWAYS, METASPACE_FIRST, METASPACE_SPLIT = 1, 2, 4
DECODE_BYTES, DECODE_MARKER, DECODE_METASPACE = 1, 2, 3

MARKER = "\u2581"  # what SentencePiece writes for a space

# Pattern of format.h of each regular expression; several that match alike share a number.
GPT2, LLAMA3, QWEN2, TEKKEN, GPT4O, NEWLINE, NEWLINES, LINE_BREAK, NUMBER, NUMBER_TRIPLES, LETTERS, PUNCTUATION, CJK = (
    range(1, 14)
)
COVERING = (GPT2, LLAMA3, QWEN2, TEKKEN, GPT4O)  # match all of any text
_ANY_CASE = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OTHER = r" ?[^\s\p{L}\p{N}]+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_OTHER}|\s+(?!\S)|\s+": GPT2,
    rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}+| ?\p{{N}}+|{_OTHER}|\s+(?!\S)|\s+": GPT2,
    rf"{_ANY_CASE}|{_PREFIX}\p{{L}}+|\p{{N}}{{1,3}}|{_OTHER}[\r\n]*|{_SPACES}": LLAMA3,
    rf"'(?i:[sdmt]|ll|ve|re)|{_PREFIX}+\p{{L}}+|\p{{N}}{{1,3}}|{_OTHER}+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+": LLAMA3,
    rf"{_ANY_CASE}|{_PREFIX}\p{{L}}+|\p{{N}}|{_OTHER}[\r\n]*|{_SPACES}": QWEN2,
    rf"{_PREFIX}{_UPPER}*{_LOWER}+|{_PREFIX}{_UPPER}+{_LOWER}*|\p{{N}}|{_OTHER}[\r\n/]*|{_SPACES}": TEKKEN,
    rf"{_PREFIX}{_UPPER}*{_LOWER}+{_ANY_CASE}?|{_PREFIX}{_UPPER}+{_LOWER}*{_ANY_CASE}?"
    rf"|\p{{N}}{{1,3}}|{_OTHER}[\r\n/]*|{_SPACES}": GPT4O,
    r"\n": NEWLINE,
    r"\n+": NEWLINES,
    "\n": NEWLINE,
    r"[\r\n]": LINE_BREAK,
    "[\r\n]": LINE_BREAK,
    r"\p{N}": NUMBER,
    r"\p{N}{1,3}": NUMBER_TRIPLES,
    r"\s?\p{L}+": LETTERS,
    r"\s?\p{P}+": PUNCTUATION,
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+": CJK,
}
LITERALS = {"\n": NEWLINE}

Json = Mapping[str, Any]
T = TypeVar("T")


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


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """Everything that decides which ids a text gets, and which text ids give."""

    vocab: Mapping[str, int]
    merges: Mapping[tuple[int, int], tuple[int, int]]  # ids of a pair -> rank, id of the result
    added: Sequence[AddedToken]
    normalizers: Sequence[int]
    steps: Sequence[tuple[int, int]]  # kind and argument of each pre-tokenizer step
    byte_level: bool
    byte_fallback: bool
    fuse_unknown: bool
    ignore_merges: bool
    unknown: int | None
    decoder: Decoder
    before: Sequence[int]  # ids the post-processor puts around a text
    after: Sequence[int]

    @property
    def id_count(self) -> int:
        return 1 + max([*self.vocab.values(), *(token.id for token in self.added)])

    def byte_token(self, byte: int) -> int | None:
        """Id of the token that stands for one byte, if there is one."""
        return self.vocab.get(SPELLING[byte] if self.byte_level else f"<0x{byte:02X}>")


def _printable_alphabet() -> dict[str, int]:
    """Byte of each character that byte-level tokenizers write for one.

    Printable Latin-1 stands for itself and the rest for characters from U+0100 on, in rising order (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(rest)}


ALPHABET = _printable_alphabet()
SPELLING = {byte: character for character, byte in ALPHABET.items()}


def read_tokenizer(tokenizer_json: Path) -> TokenizerSpec:
    """What a tokenizer.json asks for.

    Raises:
        Damaged: the file is not a tokenizer.json, or contradicts itself.
        Unsupported: it asks for something the runner would not do exactly as the `tokenizers` package does.
    """
    with about(tokenizer_json):
        return _read(_load(tokenizer_json))


def load_tokenizer(tokenizer_json: Path) -> Tokenizer:
    """The `tokenizers` package's own, of a file that read_tokenizer takes: it gives the runner's ids.

    The package would obey truncation and padding, too.
    """
    tokenizer: Tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def bundled_tokenizer(tokenizer_json: Path) -> bytes:
    """The file as a bundle holds it: without truncation and padding, which a runtime would do to a prompt.

    LiteRT-LM would keep a prompt's first or last tokens, and say nothing.

    Raises:
        Damaged: the file is not a tokenizer.json.
    """
    with about(tokenizer_json):
        content = _load(tokenizer_json)
    unwanted = [name for name in ("truncation", "padding") if content.get(name) is not None]
    if not unwanted:
        return tokenizer_json.read_bytes()
    return json.dumps({**content, **dict.fromkeys(unwanted)}).encode()


@contextlib.contextmanager
def about(tokenizer_json: Path) -> Iterator[None]:
    """Refusals within say which file they are about."""
    try:
        yield
    except (Damaged, Unsupported) as error:
        raise type(error)(f"{tokenizer_json}: {error.message}", hint=error.hint or "download it again") from None


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


def _read(content: Json) -> TokenizerSpec:
    model = _get(content, "model", dict)
    if model.get("type", "BPE") != "BPE":
        raise Unsupported(f"the tokenizer's model is {_shown(model['type'])}", hint="supported: BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise Unsupported(f"the tokenizer's model has {option} {_shown(model[option])}", hint="supported: none")
    vocab = _vocab(model)
    steps, byte_level = _steps(content.get("pre_tokenizer"))
    before, after = _template(content.get("post_processor"))
    spec = TokenizerSpec(
        vocab=vocab,
        merges=_merges(model, vocab),
        added=_added_tokens(content, vocab),
        normalizers=_normalizers(content.get("normalizer")),
        steps=steps,
        byte_level=byte_level,
        byte_fallback=_get(model, "byte_fallback", bool, False),
        fuse_unknown=_get(model, "fuse_unk", bool, False),
        ignore_merges=_get(model, "ignore_merges", bool, False),
        unknown=vocab.get(model.get("unk_token") or ""),
        decoder=_decoder(content.get("decoder")),
        before=before,
        after=after,
    )
    _check(spec, model.get("unk_token"))
    return spec


def _check(spec: TokenizerSpec, unknown: str | None) -> None:
    """Refuses parts that are right by themselves and not together."""
    if spec.byte_level != (spec.decoder.kind == DECODE_BYTES):
        raise Unsupported("the tokenizer's pre-tokenizer and decoder disagree on bytes", hint="both ByteLevel, or none")
    if spec.byte_level and any(kind != NFC for kind in spec.normalizers):
        raise Unsupported("the tokenizer puts U+2581 for spaces and then works on bytes", hint="one of the two")
    if spec.steps and PREPEND_MARKER in spec.normalizers:
        raise Unsupported("the tokenizer prepends U+2581 twice", hint="in a normalizer or in a pre-tokenizer")
    if max([*spec.before, *spec.after], default=0) >= spec.id_count:
        raise Damaged("the post-processor adds an id that is not in the vocabulary")
    lacks_bytes = any(spec.byte_token(byte) is None for byte in range(256))
    if spec.byte_level and spec.byte_fallback and lacks_bytes:
        raise Unsupported("the tokenizer works on bytes, lacks some, and falls back to others", hint="add the bytes")
    # With a token for every byte no character is unknown, and the token for it need not exist.
    if unknown and spec.unknown is None and (lacks_bytes or not (spec.byte_level or spec.byte_fallback)):
        raise Damaged(f"the unknown token {_shown(unknown)} is not in the vocabulary")


def _get(content: Json, name: str, kind: type[T], default: T | None = None) -> T:
    """content[name], checked to be of `kind`; Damaged without it unless there is a default."""
    value = content.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Damaged(f"'{name}' should be of type {kind.__name__} and is {json.dumps(value)[:60]}")
    return value


def utf8(text: str) -> bytes:
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
    for text in vocab:
        utf8(text)
    return vocab


def _merges(model: Json, vocab: Mapping[str, int]) -> dict[tuple[int, int], tuple[int, int]]:
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
    return table


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
        if len(utf8(token.content)) > MAX_ADDED_BYTES:
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
        raise Unsupported(
            "the tokenizer splits text and does not end in ByteLevel", hint="supported: with ByteLevel last"
        )
    if len(steps) > MAX_STEPS:
        raise Unsupported(f"the tokenizer splits text in {len(steps)} steps", hint=f"at most {MAX_STEPS}")
    return steps, byte_level


def _pattern(step: Json) -> int:
    pattern = _get(step, "pattern", dict)
    known = PATTERNS.get(pattern.get("Regex", "")) or LITERALS.get(pattern.get("String", ""))
    if known is None:
        raise Unsupported(
            f"the tokenizer splits text by {json.dumps(pattern)[:300]}",
            hint="supported: the patterns of GPT-2, Llama 3, Qwen2, Tekken, GPT-4o and DeepSeek Coder, digits, lines",
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


def bytes_of(token: str) -> bytes | None:
    """The bytes a byte-level token stands for, or None if it is not written in the alphabet."""
    try:
        return bytes([ALPHABET[character] for character in token])
    except KeyError:
        return None


def byte_value(token: str) -> int | None:
    """The byte that the decoder takes a token like `<0x0A>` for.

    As lenient as the package, whose parser of numbers also takes small letters and a plus sign.
    """
    match = re.fullmatch(r"<0x([0-9a-fA-F]{2}|\+[0-9a-fA-F])>", token)
    return int(match[1].lstrip("+"), 16) if match else None


def _shown(entry: object) -> str:
    return json.dumps(entry)[:120]
