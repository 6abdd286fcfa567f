"""Write unicode_tables.h: the character properties and the NFC tables that the tokenizer scanners need.

The reference is the `tokenizers` package, and it uses several versions of Unicode at once: its regex engine, the Rust
standard library and its normalizer each bring their own. So the properties are not looked up in Python's unicodedata,
which would be wrong for every character added since; the package is asked about every code point. What it says about
Unicode's stable parts is the same everywhere, and what it says about the newest characters is what we must reproduce.

    python make_unicode_tables.py OUTPUT
"""

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CODES = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
CHUNK = 8192  # code points asked about at once: the package slows down on much longer strings

# One bit a property; the same order as the constants in unicode.h.
LETTER, NUMBER, SPACE, UPPER_SIDE, LOWER_SIDE, NUMERIC, WORD, PUNCTUATION = (1 << bit for bit in range(8))

HANGUL = range(0xAC00, 0xAC00 + 11172)  # composed and decomposed by arithmetic


def chunks() -> Iterator[list[int]]:
    for start in range(0, len(CODES), CHUNK):
        yield CODES[start : start + CHUNK]


def matching(pattern: str) -> set[int]:
    """Code points that the package's regex engine matches with `pattern`, a class of one character."""
    keep = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    found: set[int] = set()
    for chunk in chunks():
        for piece, _ in keep.pre_tokenize_str("".join(map(chr, chunk))):
            found.update(map(ord, piece))
    return found


def numeric() -> set[int]:
    """Code points that the Digits pre-tokenizer isolates."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    found: set[int] = set()
    for chunk in chunks():
        for piece, _ in digits.pre_tokenize_str("a".join(map(chr, chunk))):
            if len(piece) == 1:
                found.add(ord(piece))
    return found - {ord("a")}


def word() -> set[int]:
    """Code points that stop an added token with `single_word` from matching beside them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens([AddedToken("@", single_word=True, normalized=False)])
    found: set[int] = set()
    for chunk in chunks():
        # Each code point is followed by "@" and by a line break, which is not part of a word.
        matched = {start for start, _ in tokenizer.encode("".join(chr(code) + "@\n" for code in chunk)).offsets}
        found.update(code for index, code in enumerate(chunk) if code != ord("@") and 3 * index + 1 not in matched)
    return found


def normalized(normalize: Callable[[str], str], texts: Iterable[str]) -> Iterator[str]:
    """Each text normalized on its own; line breaks keep them apart."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == CHUNK:
            yield from normalize("\n".join(batch)).split("\n")
            batch = []
    if batch:
        yield from normalize("\n".join(batch)).split("\n")


def properties() -> list[tuple[int, int]]:
    """(first code point, properties) of each run of code points that share them."""
    bits = [0] * 0x110000
    for bit, members in (
        (LETTER, matching(r"\p{L}")),
        (NUMBER, matching(r"\p{N}")),
        (SPACE, matching(r"\s")),
        (UPPER_SIDE, matching(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]")),
        (LOWER_SIDE, matching(r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]")),
        (NUMERIC, numeric()),
        (WORD, word()),
        (PUNCTUATION, matching(r"\p{P}")),
    ):
        for code in members:
            bits[code] |= bit
    return [(code, value) for code, value in enumerate(bits) if code == 0 or value != bits[code - 1]]


def decompositions() -> dict[int, str]:
    """Full canonical decomposition of every code point that has one, Hangul left out."""
    nfd = normalizers.NFD().normalize_str
    codes = [code for code in CODES if code not in HANGUL and code != ord("\n")]
    texts = normalized(nfd, map(chr, codes))
    return {code: text for code, text in zip(codes, texts, strict=True) if text != chr(code)}


def compositions(decomposed: dict[int, str]) -> list[tuple[int, int, int]]:
    """(first, second, composed) for every pair that NFC joins, Hangul left out, in rising order."""
    nfc = normalizers.NFC().normalize_str
    pairs = []
    for code, text in decomposed.items():
        if nfc(chr(code)) == chr(code):
            first = nfc(text[:-1])
            assert len(first) == 1 and nfc(first + text[-1]) == chr(code)
            pairs.append((ord(first), ord(text[-1]), code))
    return sorted(pairs)


def combining_classes(decomposed: dict[int, str]) -> list[tuple[int, int]]:
    """(code point, canonical combining class) where it is not zero.

    The package does not tell the class, but shows it: in NFD a mark moves before one of a higher class. The classes
    themselves and one old mark for each come from unicodedata; they can never change.
    """
    nfd = normalizers.NFD().normalize_str
    codes = [code for code in CODES if code not in decomposed and code not in HANGUL and code != ord("\n")]
    highest, below_highest = "\u0345", "\u0316"  # classes 240, which has one member, and 220
    before = normalized(nfd, (highest + chr(code) for code in codes))
    after = normalized(nfd, (chr(code) + below_highest for code in codes))
    marks = [
        code
        for code, first, second in zip(codes, before, after, strict=True)
        if first != highest + chr(code) or second != chr(code) + below_highest
    ]
    example: dict[int, str] = {}
    for code in marks:
        if unicodedata.combining(chr(code)):
            example.setdefault(unicodedata.combining(chr(code)), chr(code))
    classes = []
    for code in marks:
        mark = chr(code)
        same = [
            value
            for value, other in example.items()
            if nfd(mark + other) == mark + other and nfd(other + mark) == other + mark
        ]
        assert len(same) == 1, f"U+{code:04X} sorts like no known combining class"
        classes.append((code, same[0]))
    return classes


def array(name: str, values: Iterable[int]) -> str:
    """A C++ array of 32-bit constants."""
    body = ",".join(f"{value:#x}" for value in values)
    return f"inline constexpr uint32_t {name}[] = {{{body}}};\n"


def main(output: Path) -> None:
    decomposed = decompositions()
    pool = "".join(decomposed.values())
    starts, at = [], 0
    for text in decomposed.values():
        starts.append(at)
        at += len(text)
    assert max(map(len, decomposed.values())) < 8 and at < 1 << 16
    composed = compositions(decomposed)
    header = [
        "// Generated by make_unicode_tables.py. Sorted; see unicode.cc for how each is read.\n",
        "#pragma once\n#include <stdint.h>\nnamespace edgekit::tokenizer::tables {\n",
        "// First code point of a run << 8 | properties.\n",
        array("kProperties", (code << 8 | bits for code, bits in properties())),
        "// Code point, then start in kDecomposed << 3 | length.\n",
        array("kDecomposable", decomposed),
        array("kDecomposition", (at << 3 | len(text) for at, text in zip(starts, decomposed.values(), strict=True))),
        array("kDecomposed", map(ord, pool)),
        "// First and second code point, then what they compose to.\n",
        array("kFirst", (first for first, _, _ in composed)),
        array("kSecond", (second for _, second, _ in composed)),
        array("kComposed", (code for _, _, code in composed)),
        "// Code point << 8 | canonical combining class.\n",
        array("kCombining", (code << 8 | value for code, value in combining_classes(decomposed))),
        "}  // namespace edgekit::tokenizer::tables\n",
    ]
    output.write_text("".join(header), encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
