"""Texts that tell a tokenizer that is right from one that is almost right."""

import random
from collections.abc import Iterator, Sequence

MARKER = "\u2581"
SPACES = (
    "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2002\u2003\u2009\u200a\u200b\u2028\u2029"
    "\u202f\u205f\u2060\u3000\ufeff"
)
MARKS = (
    "\u0300\u0301\u0316\u0323\u0327\u0345\u05b0\u064b\u093c\u094d\u0e38\u0f71\u0f72\u0f74\u20d0\u302a"
    "\u3099\ufe0f\U0001d165\u034f"
)
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


TOKENS = ("<|endoftext|>", "<|im_start|>", "<s>", "</s>", "[INST]", "<think>")


def fixed_texts() -> list[str]:
    return [
        "",
        " ",
        "a",
        "\n",
        "It was a dark and stormy night; the rain fell in torrents.",
        "Hello, world! How's it going? I'm fine, you're fine, we've all been fine, they'll be fine, he'd be fine.",
        "HELLO'S I'M YOU'RE WE'VE THEY'LL HE'D DON'T 'tis 'Twas rock'n'roll '\u017f 'Re 'rE 'Ll 'LL 'vE''s",
        "'s't're've'm'll'd 'S'T'RE'VE'M'LL'D ' s ''''",
        "x='s' y=\"it's\"\n\t'd\n",
        "1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F 1e-9 \u0661\u0662\u0663\u0664 \u00bd\u00be"
        " \u2160\u2161 \u4e00",
        'def f(x: int) -> str:\n    return f"{x!r:>10}"  # comment\n\n\nclass A:\n\tpass\n',
        '#include <stdio.h>\r\nint main(void) {\r\n  printf("%d\\n", 42);\r\n  return 0;\r\n}\r\n',
        "https://example.org/a/b//c?d=e&f=g#h //// /\r\n// /** */ ... --- === !!! ?!?!",
        "CamelCase XMLHttpRequest iPhone eBay McDonald aB AbC ABc aBC \u01c5ABC \u01c5abc A\u02b0b A"
        "\u02b0B \u6f22A\u6f22a",
        "   leading and trailing   ",
        "a  b   c    d\t\te\n\nf\n \ng \n h\r\ri\r\n\r\nj\n\r\n k",
        "\n\n\n   \n\t\n x",
        "tabs\tand\vvertical\fform\x85nel\xa0nbsp\u2028line\u2029para\u3000ideographic\u200bzero\u2060joiner\ufeffbom",
        " \u3000 \u00a0\u00a0 x \u2028\n\u2029 y\u3000\u3000",
        "caf\u00e9 cafe\u0301 \u0041\u030a \u00c5 \u212b \u1e9b\u0323 \u1e9b\u0323\u0301 q\u0323\u0307 q\u0307\u0323",
        "\uac00\u11a8 \uac00\u11a7 \uac00\u11c3 \u1100\u1161\u11a8 \uac01 \u1100\u1161 \uac00\u0301\u11a8 \ud55c\uad6d",
        "\u0958 \u0915\u093c \u2adc \u2add\u0338 \U0001d15e \U0001d157\U0001d165 \ufb2c \u0f73 \u0f71"
        "\u0f72 \u0344 \u0308\u0301",
        "a" + "\u0301\u0316" * 40 + "b",
        "\u0301\u0316 starts with marks \u0316\u0301",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 "
        "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 1\ufe0f\u20e3 \U0001f44d\U0001f3fd",
        "\u05e9\u05c1\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eRTL\u202c \u0627\u0644\u0633"
        "\u064e\u0651\u0644\u0627\u0645",
        "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3068English\u6df7\u5408\u3001\u3002\uff01"
        "\uff11\uff12\uff13 \u304c\u304b\u3099",
        "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u10d2\u10d0\u10db"
        "\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0 \u13a0\uab70",
        "\x00\x01\x02 nul\x00nul \x7f\x80\x9f \x1b[31mred\x1b[0m \b\b \x1c\x1d\x1e\x1f",
        "\ufffd\uffff\ufffe \ue000 \U000f0000 \U0010ffff \u0378\u0379 \U0001fc00 \U00011de0\U0001e030",
        "<|endoftext|>text<|endoftext|><|endoftext|> <|im_start|>user\nhi<|im_end|>\n<|begin_of_text|><|r"
        "eserved_special_token_25|>",
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


def random_texts(seed: int, count: int, extra: Sequence[str] = ()) -> Iterator[str]:
    """Short texts of a few scripts each, with any code points, added tokens and `extra` strewn in."""
    source = random.Random(seed)
    tokens = (*TOKENS, *extra)
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
