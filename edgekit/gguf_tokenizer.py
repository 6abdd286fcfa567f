"""The tokenizer in a GGUF file as the tokenizer.json it was made from.

Byte-level BPE keeps its tokens and merges; how it splits text is only named, so names that stand for one
tokenizer.json are known here and others are refused. SentencePiece keeps scores: its merges are found again as
transformers does, every way to make a token of two others, best score first.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

from edgekit.archs.config import MOST_VOCAB, Config
from edgekit.errors import Damaged, Unsupported, one_of
from edgekit.tokenizer_json import LLAMA3, MARKER, PATTERNS, QWEN2

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_MOST_PIECE: Final = 256  # characters; SentencePiece makes them of 16
_MOST_PIECES_CHARACTERS: Final = 8 << 20

Json = dict[str, object]
Number = TypeVar("Number", int, float)


def read_tokenizer_of(metadata: Config) -> tuple[Json, Json] | None:
    """tokenizer.json and tokenizer_config.json of the metadata; None if it has no tokenizer.

    Raises:
        Unsupported: a tokenizer that is not known to the last id.
        Damaged: lists that contradict each other.
    """
    if not metadata.has("tokenizer.ggml.model"):
        return None
    model = metadata.refuse_unless("tokenizer.ggml.model", ("gpt2", "llama"), default="")
    tokens = metadata.strings("tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens) or not 0 < len(tokens) <= MOST_VOCAB:
        raise Damaged(f"tokenizer.ggml.tokens in {metadata.name} is empty or has a token twice", hint="convert again")
    kinds = _list(metadata, "tokenizer.ggml.token_type", len(tokens), int)
    tokenizer = _bytes(metadata, tokens, kinds) if model == "gpt2" else _pieces(metadata, tokens, kinds)
    tokenizer["added_tokens"] = [
        {"id": index, "content": token, "special": kind != _USER}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER, _UNKNOWN)
    ]
    begins = model == "llama" or metadata.text("tokenizer.ggml.pre", default="") == "llama-bpe"
    before = _around(metadata, tokens, "bos", default=begins)
    after = _around(metadata, tokens, "eos", default=False)
    if before or after:
        text: list[Json] = [{"Sequence": {"id": "A", "type_id": 0}}]
        pieces: list[Json] = [{"SpecialToken": {"id": tokens[index], "type_id": 0}} for index in (*before, *after)]
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": pieces[: len(before)] + text + pieces[len(before) :],
            "pair": pieces[: len(before)] + text + pieces[len(before) :],
            "special_tokens": {
                tokens[index]: {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]}
                for index in (*before, *after)
            },
        }
    names = {"bos_token": _token(metadata, tokens, "bos"), "eos_token": _token(metadata, tokens, "eos")}
    config: Json = {key: tokens[index] for key, index in names.items() if index is not None}
    if metadata.has("tokenizer.chat_template"):
        config["chat_template"] = metadata.text("tokenizer.chat_template", default="")
    return tokenizer, config


def end_ids(metadata: Config) -> list[int]:
    """The tokens that end a text or a turn."""
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot")]
    return [metadata.integer(key, low=0, high=MOST_VOCAB) for key in keys if metadata.has(key)]


def _bytes(metadata: Config, tokens: tuple[str, ...], kinds: list[int]) -> Json:
    steps = _pre_tokenizers()
    pre = metadata.text("tokenizer.ggml.pre", default="default")
    if pre not in steps:
        raise Unsupported(f"tokenizer.ggml.pre '{pre:.40}' in {metadata.name} is not supported", hint=one_of(steps))
    merges = metadata.strings("tokenizer.ggml.merges")
    # Tokens that were added behind the vocabulary are no part of it; unused ones only fill the embedding.
    size = len(tokens)
    while size and kinds[size - 1] == _UNUSED:
        size -= 1
    while size and kinds[size - 1] in (_CONTROL, _USER):
        size -= 1
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps[pre]},
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(tokens[:size], merges) | {"ignore_merges": pre == "llama-bpe"},
    }


def _pre_tokenizers() -> dict[str, list[Json]]:
    """What the names of llama.cpp's converter stand for."""
    digits: Json = {"type": "Digits", "individual_digits": True}
    return {
        "gpt-2": [_byte_level(use_regex=True)],
        "smollm": [digits, _byte_level(use_regex=True)],
        "llama-bpe": [_split(LLAMA3), _byte_level(use_regex=False)],
        "qwen2": [_split(QWEN2), _byte_level(use_regex=False)],
    }


def _split(kind: int) -> Json:
    pattern = next(text for text, known in PATTERNS.items() if known == kind)
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _pieces(metadata: Config, tokens: tuple[str, ...], kinds: list[int]) -> Json:
    scores = _list(metadata, "tokenizer.ggml.scores", len(tokens), float)
    normal = {token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == _NORMAL}
    if max(map(len, normal), default=0) > _MOST_PIECE or sum(map(len, normal)) > _MOST_PIECES_CHARACTERS:
        raise Unsupported(f"{metadata.name} has pieces of text too long for SentencePiece", hint="convert again")
    found = [
        (-scores[index], at, len(token) - at, normal[token[:at]], token[:at], token[at:])
        for token, index in normal.items()
        for at in range(1, len(token))
        if token[:at] in normal and token[at:] in normal
    ]
    unknown = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN]
    if len(unknown) != 1:
        raise Unsupported(f"{metadata.name} has {len(unknown)} unknown tokens", hint="SentencePiece has one")
    prefixed = metadata.boolean("tokenizer.ggml.add_space_prefix", default=True)
    spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": MARKER}
    normalizers: list[Json] = [{"type": "Prepend", "prepend": MARKER}] if prefixed else []
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": MARKER}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip: list[Json] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    merges = [[left, right] for *_, left, right in sorted(found)]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers, spaces]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*decoders, *strip]},
        "model": _bpe(tokens, merges) | {"unk_token": unknown[0], "fuse_unk": True, "byte_fallback": True},
    }


def _bpe(tokens: tuple[str, ...], merges: Sequence[object]) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": list(merges),
    }


def _list(metadata: Config, key: str, count: int, kind: type[Number]) -> list[Number]:
    value = metadata.values.get(key)
    if not isinstance(value, list) or len(value) != count or not all(type(item) is kind for item in value):
        raise Damaged(f"{key} in {metadata.name} is not a number for each of the {count} tokens", hint="convert again")
    return value


def _token(metadata: Config, tokens: tuple[str, ...], name: str) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    return metadata.integer(key, low=0, high=len(tokens) - 1) if metadata.has(key) else None


def _around(metadata: Config, tokens: tuple[str, ...], name: str, *, default: bool) -> list[int]:
    """The token that is put on that side of a text, if one is."""
    index = _token(metadata, tokens, name)
    adds = metadata.boolean(f"tokenizer.ggml.add_{name}_token", default=default)
    return [] if index is None or not adds else [index]
