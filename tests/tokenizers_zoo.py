"""Small tokenizers in the shape of the published ones, trained here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nasty_texts import MARKER, fixed_texts
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from edgekit.tokenizer_json import GPT4O, PATTERNS

ROOT = Path(__file__).parents[1]
_LETTERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = _LETTERS % "{1,3}"
QWEN2 = _LETTERS % ""
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Json = dict[str, Any]


def added(token: int, content: str, **flags: bool) -> Json:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": token, "content": content, **{name: flags.get(name, False) for name in names}}


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def byte_level(use_regex: bool, add_prefix_space: bool = False) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def sequence(members: str, *steps: Json) -> Json:
    return {"type": "Sequence", members: list(steps)}


def template(before: list[tuple[str, int]], after: list[tuple[str, int]]) -> Json:
    def special(name: str) -> Json:
        return {"SpecialToken": {"id": name, "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [*(special(name) for name, _ in before), text, *(special(name) for name, _ in after)],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in [*before, *after]},
    }


def metaspace(scheme: str, split: bool) -> Json:
    return {"type": "Metaspace", "replacement": MARKER, "prepend_scheme": scheme, "split": split}


REPLACE_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARKER}
PREPEND = {"type": "Prepend", "prepend": MARKER}
LLAMA_DECODER = sequence(
    "decoders",
    {"type": "Replace", "pattern": {"String": MARKER}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
)


def training_texts() -> list[str]:
    prose = (ROOT / "README.md").read_text().splitlines()
    code = (ROOT / "edgekit" / "errors.py").read_text().splitlines()
    return [*prose, *code, *fixed_texts()[:60]] * 2


def trained(pre_tokenizer: Any, vocab_size: int, alphabet: list[str], normalizer: Any = None) -> Json:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(training_texts(), trainer)
    content: Json = json.loads(tokenizer.to_str())
    return content


def bytes_base(pre_tokenizer: Json, *, first: list[str] | None = None, nfc: bool = False, **model: Any) -> Json:
    """A byte-level tokenizer; `first` are special tokens with the lowest ids, as the default checkpoint has."""
    trainer = Tokenizer(models.BPE())
    content = json.loads(trainer.to_str())
    content["pre_tokenizer"] = pre_tokenizer
    steps = Tokenizer.from_str(json.dumps(content)).pre_tokenizer
    content = trained(steps, 900, sorted(pre_tokenizers.ByteLevel.alphabet()), normalizers.NFC() if nfc else None)
    if first:
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = {name: index for index, name in enumerate(first)} | {
            token: index + len(first) for token, index in vocab.items()
        }
        content["added_tokens"] = [added(index, name, special=True) for index, name in enumerate(first)]
    content["decoder"] = byte_level(True, add_prefix_space=True)
    content["model"] |= model
    return content


def pieces_base(pre_tokenizer: Json | None, normalizer: Json | None, decoder: Json, **model: Any) -> Json:
    """A SentencePiece-like tokenizer: unknown, start and end of text, the bytes, then what was learned."""
    content = trained(pre_tokenizers.Metaspace(), 700, list("abcdefghijklmnopqrstuvwxyz" + MARKER))
    names = ["<unk>", "<s>", "</s>"]
    if model.get("byte_fallback"):
        names += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    content["model"]["vocab"] = {name: index for index, name in enumerate([*names, *vocab])}
    content["added_tokens"] = [added(index, name, special=True) for index, name in enumerate(names[:3])]
    content |= {"pre_tokenizer": pre_tokenizer, "normalizer": normalizer, "decoder": decoder}
    content["post_processor"] = template([("<s>", 1)], [])
    content["model"] |= {"unk_token": "<unk>", "fuse_unk": True, **model}
    return content


def next_id(content: Json) -> int:
    return max([*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]) + 1


def with_added(content: Json, *tokens: tuple[str, Json]) -> Json:
    for text, flags in tokens:
        known = content["model"]["vocab"].get(text)
        content["added_tokens"].append(added(next_id(content) if known is None else known, text, **flags))
    return content


def gpt2() -> Json:
    return bytes_base(byte_level(True), first=["<|endoftext|>"])


def gpt2_prefix_space() -> Json:
    return bytes_base(byte_level(True, add_prefix_space=True)) | {"post_processor": byte_level(True)}


def smollm2() -> Json:
    digits = {"type": "Digits", "individual_digits": True}
    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    return bytes_base(sequence("pretokenizers", digits, byte_level(True)), first=first)


def llama3() -> Json:
    content = bytes_base(sequence("pretokenizers", split(LLAMA3), byte_level(False)), ignore_merges=True)
    start = next_id(content)
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{index}|>" for index in range(250))]
    with_added(content, *((name, {"special": True}) for name in names))
    post = sequence("processors", byte_level(True), template([("<|begin_of_text|>", start)], []))
    return content | {"post_processor": post}


def qwen2() -> Json:
    steps = sequence("pretokenizers", split(QWEN2), byte_level(False))
    content = bytes_base(steps, nfc=True) | {"normalizer": {"type": "NFC"}, "post_processor": byte_level(False)}
    return with_added(
        content,
        ("<|endoftext|>", {"special": True}),
        ("<|im_start|>", {"special": True}),
        ("<|im_end|>", {"special": True}),
        ("<think>", {}),
        ("</think>", {}),
        ("<tool_call>", {}),
    )


def tekken() -> Json:
    content = bytes_base(
        sequence("pretokenizers", split(TEKKEN), byte_level(False)), first=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    )
    content["model"] |= {"ignore_merges": True, "unk_token": None}
    return content | {"post_processor": template([("<s>", 1)], [("</s>", 2)])}


def gpt4o() -> Json:
    (pattern,) = (regex for regex, number in PATTERNS.items() if number == GPT4O)
    return bytes_base(sequence("pretokenizers", split(pattern), byte_level(False)))


def cl100k_removed() -> Json:
    pattern = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )
    return bytes_base(sequence("pretokenizers", split(pattern, "Removed", invert=True), byte_level(False)))


def deepseek_coder() -> Json:
    return bytes_base(
        sequence(
            "pretokenizers",
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
            {"type": "Digits", "individual_digits": True},
            byte_level(False),
        )
    )


def lines_and_digits() -> Json:
    newline = {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False}
    return bytes_base(sequence("pretokenizers", newline, split(r"\p{N}{1,3}"), byte_level(True, add_prefix_space=True)))


def newline_runs() -> Json:
    digits = {"type": "Digits", "individual_digits": False}
    return bytes_base(
        sequence("pretokenizers", split(r"\n+"), split(r"[\r\n]"), digits, split(r"\p{N}"), byte_level(True))
    )


def bytes_alone() -> Json:
    return bytes_base(byte_level(False))


def missing_bytes(unknown: str | None, fuse: bool) -> Callable[[], Json]:
    def build() -> Json:
        content = bytes_base(byte_level(True), first=["<unk>"], unk_token=unknown, fuse_unk=fuse)
        model = content["model"]
        gone = set("xyz\u0120\u010aQ0")
        model["vocab"] = {token: index for token, index in model["vocab"].items() if not gone & set(token)}
        model["vocab"] = {token: index for index, token in enumerate(model["vocab"])}
        model["merges"] = [pair for pair in model["merges"] if not gone & set("".join(pair))]
        return content

    return build


def llama2() -> Json:
    normal = sequence("normalizers", PREPEND, REPLACE_SPACE)
    content = pieces_base(None, normal, LLAMA_DECODER, byte_fallback=True)
    return with_added(content, ("<pad>", {"special": True}), ("\u20ac\u20ac", {"normalized": True}))


def mistral_v3() -> Json:
    content = pieces_base(metaspace("first", split=False), None, LLAMA_DECODER, byte_fallback=True)
    return with_added(content, *((name, {"special": True}) for name in ("[INST]", "[/INST]", "[TOOL_CALLS]")))


def marked(scheme: str, split: bool, **model: Any) -> Callable[[], Json]:
    def build() -> Json:
        return pieces_base(metaspace(scheme, split), None, metaspace(scheme, split), **model)

    return build


def nfc_pieces() -> Json:
    normal = sequence("normalizers", {"type": "NFC"}, REPLACE_SPACE)
    decoder = sequence("decoders", *LLAMA_DECODER["decoders"][:2])
    return pieces_base(None, normal, decoder, byte_fallback=True, ignore_merges=True)


FLAGS: tuple[tuple[str, Json], ...] = (
    ("<both>", {"lstrip": True, "rstrip": True}),
    ("<left>", {"lstrip": True, "special": True}),
    ("<right>", {"rstrip": True}),
    ("word", {"single_word": True}),
    ("wor", {"single_word": True, "normalized": True}),
    ("  ", {"rstrip": True}),
    ("<n> <n>", {"normalized": True}),
    ("<nl>", {"normalized": True, "lstrip": True}),
    ("<nw>", {"normalized": True, "single_word": True, "rstrip": True}),
    ("<", {}),
    ("<<", {"normalized": True}),
    ("\u00e9", {}),
    ("\u3042\u3044", {"normalized": True}),
)


def flagged(base: Callable[[], Json]) -> Callable[[], Json]:
    def build() -> Json:
        return with_added(base(), *FLAGS)

    return build


ZOO: dict[str, Callable[[], Json]] = {
    "gpt2": gpt2,
    "gpt2_prefix_space": gpt2_prefix_space,
    "smollm2": smollm2,
    "llama3": llama3,
    "qwen2": qwen2,
    "tekken": tekken,
    "gpt4o": gpt4o,
    "cl100k_removed": cl100k_removed,
    "deepseek_coder": deepseek_coder,
    "lines_and_digits": lines_and_digits,
    "newline_runs": newline_runs,
    "bytes_alone": bytes_alone,
    "missing_bytes_dropped": missing_bytes(None, fuse=False),
    "missing_bytes_unknown": missing_bytes("<unk>", fuse=False),
    "missing_bytes_fused": missing_bytes("<unk>", fuse=True),
    "llama2": llama2,
    "mistral_v3": mistral_v3,
    "metaspace_always": marked("always", split=True),
    "metaspace_first": marked("first", split=True, fuse_unk=False),
    "metaspace_never": marked("never", split=True, byte_fallback=True),
    "metaspace_unsplit": marked("always", split=False, unk_token=None),
    "nfc_pieces": nfc_pieces,
    "gpt2_flagged": flagged(gpt2),
    "qwen2_flagged": flagged(qwen2),
    "llama2_flagged": flagged(llama2),
    "mistral_v3_flagged": flagged(mistral_v3),
}
