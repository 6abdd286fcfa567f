"""The loop of a kernel that does the products, cut from a disassembly, and what llvm-mca says of it.

A kernel is a nest: an inner loop over k within a loop over groups of k, at whose end integers become floats. What is
counted is one pass of the outer loop, the inner one repeated as often as the products of a pass need: the end of the
group is in the figure with its weight.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# Multiply-adds of one instruction on 128-bit registers.
_MACS: Final = {
    "sdot": 16,
    "udot": 16,
    "usdot": 16,
    "smmla": 32,
    "ummla": 32,
    "usmmla": 32,
    "smlal": 8,
    "smlal2": 8,
    "smull": 8,
    "smull2": 8,
}
_BRANCH: Final = re.compile(r"(?:b|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+,\s+#\w+,)\s+0x([0-9a-f]+)")
_LINE: Final = re.compile(r"\s*([0-9a-f]+):\s+(\S.*)")
_EXTRA: Final = 1.15  # products that are no weights: sums of the activations


class LoopNotFound(Exception):
    """The disassembly does not hold the loop that was looked for."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction at an address of its object file."""

    address: int
    text: str

    @property
    def macs(self) -> int:
        """Multiply-adds of bytes; products of wider elements are not of weights."""
        return _MACS.get(self.text.split(None, 1)[0], 0) if re.search(r"\.(8|16)b", self.text) else 0


Span = tuple[int, int]  # addresses of the first and the last instruction


def functions(disassembly: str) -> dict[str, list[Instruction]]:
    """The instructions of every function by its demangled name."""
    found: dict[str, list[Instruction]] = {}
    for block in disassembly.split("\n\n"):
        title = re.match(r"[0-9a-f]+ <(.*)>:", block.strip())
        if title:
            lines = (_LINE.match(line) for line in block.splitlines()[1:])
            found[title[1]] = [Instruction(int(line[1], 16), line[2].strip()) for line in lines if line]
    return found


def loops(instructions: Sequence[Instruction]) -> list[Span]:
    """Spans from the target of each backward branch to the branch, the shortest first."""
    spans = set()
    for instruction in instructions:
        branch = _BRANCH.match(instruction.text)
        if branch and int(branch[1], 16) <= instruction.address:
            spans.add((int(branch[1], 16), instruction.address))
    return sorted(spans, key=lambda span: span[1] - span[0])


def one_pass(instructions: Sequence[Instruction], macs: int) -> list[str]:
    """The instructions of one pass of the loop over groups, which does `macs` multiply-adds, branches left out.

    Raises:
        LoopNotFound: there is no such nest, or its products are not those that were expected.
    """
    spans = [span for span in loops(instructions) if _macs(_inside(instructions, span)) > 0]
    ends = [span for span in spans if any(_ends_group(i.text) for i in _inside(instructions, span))]
    for outer in ends:
        inner = _inner(instructions, outer, spans)
        body = _inside(instructions, outer)
        in_inner = _macs(_inside(instructions, inner)) if inner else 0
        beside = _macs(body) - in_inner
        passes = max(1, -(-(macs - beside) // in_inner)) if in_inner else 1
        if macs <= beside + passes * in_inner <= macs * _EXTRA:
            return _unrolled(body, inner, passes)
    found = [_macs(_inside(instructions, span)) for span in ends]
    raise LoopNotFound(f"no loop over groups does {macs} multiply-adds a pass; one pass of those found does {found}")


def _inner(instructions: Sequence[Instruction], outer: Span, spans: Sequence[Span]) -> Span | None:
    """The loop within `outer` with the most products; none if all products stand beside each other."""
    within = [s for s in spans if s != outer and outer[0] <= s[0] and s[1] <= outer[1]]
    return max(within, key=lambda span: _macs(_inside(instructions, span)), default=None)


def _inside(instructions: Sequence[Instruction], span: Span) -> list[Instruction]:
    return [i for i in instructions if span[0] <= i.address <= span[1]]


def _macs(instructions: Sequence[Instruction]) -> int:
    return sum(i.macs for i in instructions)


def _ends_group(text: str) -> bool:
    return text.startswith(("scvtf", "ucvtf"))


def _unrolled(body: Sequence[Instruction], inner: Span | None, passes: int) -> list[str]:
    if inner is None:
        return [i.text for i in body if not _BRANCH.match(i.text)]
    before = [i for i in body if i.address < inner[0]]
    after = [i for i in body if i.address > inner[1]]
    repeated = [i for i in body if inner[0] <= i.address <= inner[1]] * passes
    return [i.text for i in (*before, *repeated, *after) if not _BRANCH.match(i.text)]


def as_source(texts: Sequence[str]) -> str:
    """Assembly that llvm-mca reads: symbols and comments of the disassembly taken off."""
    cleaned = (re.sub(r"\s*(//.*|<[^>]*>)", "", text).replace("\t", " ") for text in texts)
    return "\n".join([".arch armv8.6-a+i8mm+dotprod+fp16", *cleaned, ""])


def total_cycles(report: str, passes: int) -> float:
    """Cycles a pass in the report of llvm-mca over so many passes.

    Raises:
        LoopNotFound: the report gives none.
    """
    found = re.search(r"Total Cycles:\s+(\d+)", report)
    if not found:
        raise LoopNotFound("llvm-mca gave no cycles")
    return int(found[1]) / passes
