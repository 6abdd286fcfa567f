"""Small tokenizers in the shape of the published ones, trained here, and texts that tell right from almost right."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from edgekit.tokenizer_json import PATTERNS

ROOT = Path(__file__).parents[1]
MARKER = "\u2581"

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
    (pattern,) = (regex for regex, number in PATTERNS.items() if number == PATTERNS_GPT4O)
    return bytes_base(sequence("pretokenizers", split(pattern), byte_level(False)))


PATTERNS_GPT4O = 5


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

SPACES = "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2002\u2003\u2009\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
MARKS = "\u0300\u0301\u0316\u0323\u0327\u0345\u05b0\u064b\u093c\u094d\u0e38\u0f71\u0f72\u0f74\u20d0\u302a\u3099\ufe0f\U0001d165\u034f"
SCRIPTS = (
    "abcdefgtmsdlvre ABCDEFGTMSDLVRE",
    "0123456789\u00b2\u00bd\u0664\u0967\u2160\u3007\u4e00\U0001d7d8\U0001f100",
    "\u00e9\u00c5\u00df\u0130\u0131\u017f\u01c5\u01c8\u02b0\u02bc\u1e9e\u212a\ufb01",
    "\u0391\u03a9\u03c9\u0416\u0436\u10a0\u10d0\u1c90\u13a0\uab70",
    "\u05d0\u05e9\u0627\u0644\u200f\u202e\u2066\u2069",
    "\u0915\u093f\u0924\u0e01\u0e33\u1100\u1161\u11a8\uac00\uac01\ud7a3\u3042\u30ab\u309b\u6f22\u5b57\U00020000",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\u00a1\u2018\u2019\u201c\u2026\u20ac\u2212",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd\u2764\ufe0f\U0001f1e6\U0001f1fa\u20e3",
    "\x00\x01\x07\x08\x1b\x7f\x80\x9f\u0378\u0600\ue000\ufdd0\ufffd\uffff\U000e0001\U0010ffff",
    "''''sStTmMdDrReEvVlL\u017f",
    SPACES,
    MARKS,
    f"{MARKER}{MARKER} \u0120\u010a",
)


def fixed_texts() -> list[str]:
    return [
        "",
        " ",
        "a",
        "\n",
        "It was a dark and stormy night; the rain fell in torrents.",
        "Hello, world! How's it going? I'm fine, you're fine, we've all been fine, they'll be fine, he'd be fine.",
        "HELLO'S I'M YOU'RE WE'VE THEY'LL HE'D DON'T 'tis 'Twas rock'n'roll 'ſ 'Re 'rE 'Ll 'LL 'vE''s",
        "'s't're've'm'll'd 'S'T'RE'VE'M'LL'D ' s ''''",
        "x='s' y=\"it's\"\n\t'd\n",
        "1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F 1e-9 \u0661\u0662\u0663\u0664 \u00bd\u00be \u2160\u2161 \u4e00",
        'def f(x: int) -> str:\n    return f"{x!r:>10}"  # comment\n\n\nclass A:\n\tpass\n',
        '#include <stdio.h>\r\nint main(void) {\r\n  printf("%d\\n", 42);\r\n  return 0;\r\n}\r\n',
        "https://example.org/a/b//c?d=e&f=g#h //// /\r\n// /** */ ... --- === !!! ?!?!",
        "CamelCase XMLHttpRequest iPhone eBay McDonald aB AbC ABc aBC \u01c5ABC \u01c5abc A\u02b0b A\u02b0B \u6f22A\u6f22a",
        "   leading and trailing   ",
        "a  b   c    d\t\te\n\nf\n \ng \n h\r\ri\r\n\r\nj\n\r\n k",
        "\n\n\n   \n\t\n x",
        "tabs\tand\vvertical\fform\x85nel\xa0nbsp\u2028line\u2029para\u3000ideographic\u200bzero\u2060joiner\ufeffbom",
        " \u3000 \u00a0\u00a0 x \u2028\n\u2029 y\u3000\u3000",
        "caf\u00e9 cafe\u0301 \u0041\u030a \u00c5 \u212b \u1e9b\u0323 \u1e9b\u0323\u0301 q\u0323\u0307 q\u0307\u0323",
        "\uac00\u11a8 \u1100\u1161\u11a8 \uac01 \u1100\u1161 \uac00\u0301\u11a8 \ud55c\uad6d\uc5b4",
        "\u0958 \u0915\u093c \u2adc \u2add\u0338 \U0001d15e \U0001d157\U0001d165 \ufb2c \u0f73 \u0f71\u0f72 \u0344 \u0308\u0301",
        "a" + "\u0301\u0316" * 40 + "b",
        "\u0301\u0316 starts with marks \u0316\u0301",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 1\ufe0f\u20e3 \U0001f44d\U0001f3fd",
        "\u05e9\u05c1\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eRTL\u202c \u0627\u0644\u0633\u064e\u0651\u0644\u0627\u0645",
        "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3068English\u6df7\u5408\u3001\u3002\uff01\uff11\uff12\uff13 \u304c\u304b\u3099",
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0 \u13a0\uab70",
        "\x00\x01\x02 nul\x00nul \x7f\x80\x9f \x1b[31mred\x1b[0m \b\b \x1c\x1d\x1e\x1f",
        "\ufffd\uffff\ufffe \ue000 \U000f0000 \U0010ffff \u0378\u0379 \U0001fc00 \U00011de0\U0001e030",
        "<|endoftext|>text<|endoftext|><|endoftext|> <|im_start|>user\nhi<|im_end|>\n<|begin_of_text|><|reserved_special_token_25|>",
        "<s> </s><unk>[INST] hi [/INST]<0x0A><0xFF><|endoftext|<|im_start|",
        "x  <both>  y\n<left> <left>z\u3000<right>\u3000\u3000<right> \t<both>",
        "word sword words word, word\u0301 wor worD (wor) _word_ word1 \u00e9word word\u200dx",
        "<n> <n><n> <n> <nl> x <nl>\n <nw> <nw>y y<nw> <<n <<< < <<<<n",
        "a     b <both>   <both>  \u3042\u3044 \u00e9 e\u0301 \u20ac\u20ac\u20ac",
        f"{MARKER}a {MARKER} b{MARKER}{MARKER} {MARKER}",
        "\u0120the \u010a \u00c4\u00a0",
        "supercalifragilisticexpialidocious" * 30,
        "a" * 3000,
        "\u00e9" * 1000,
        "ab" * 1500 + " " * 700 + "\n" * 300 + "1" * 500 + "!" * 500,
        " " * 2000,
        "\n" * 1999 + "x",
        "\r\n" * 500,
        "\u6f22" * 700,
        "\U0001f600" * 300,
        "-" * 80 + "\n" + "=" * 80 + "\n",
        "".join(f"{index} " for index in range(300)),
    ]


def random_texts(seed: int, count: int) -> Iterator[str]:
    """Short texts of a few scripts each, sometimes of any code point, with the zoo's added tokens strewn in."""
    source = random.Random(seed)
    tokens = ["<|endoftext|>", "<|im_start|>", "<s>", "</s>", "[INST]", "<think>", *(text for text, _ in FLAGS)]
    for _ in range(count):
        alphabets = source.sample(SCRIPTS, source.randint(1, 4))
        if source.random() < 0.3:
            alphabets.append(" ")
        parts = []
        for _ in range(source.randint(1, 24)):
            chance = source.random()
            if chance < 0.06:
                parts.append(source.choice(tokens))
            elif chance < 0.12:
                parts.append(any_character(source))
            else:
                parts.append(source.choice(source.choice(alphabets)) * source.choice((1, 1, 1, 1, 2, 3)))
        yield "".join(parts)


def any_character(source: random.Random) -> str:
    while True:
        code = source.randrange(0x110000) if source.random() < 0.5 else source.randrange(0x3000)
        if not 0xD800 <= code <= 0xDFFF:
            return chr(code)
