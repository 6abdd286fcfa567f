"""What a kernel executes, instruction by instruction, and what llvm-mca says of it.

An emulator writes down the address of each instruction that it runs; the disassembly says what stands there. So every
loop, the ends of groups and the branches taken are in the figure as often as they are executed: nothing is guessed of
trip counts.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
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
_TITLE: Final = re.compile(r"[0-9a-f]+ <(.*)>:$")
_LINE: Final = re.compile(r"\s*([0-9a-f]+):\s+(\S.*)")
_JUMP: Final = re.compile(r"(?:b|bl|blr|br|ret|svc|b\.\w+|cbn?z|tbn?z)(?:\s|$)")
_EXECUTED: Final = re.compile(r"^Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]+)/", re.MULTILINE)
_EXTRA: Final = 1.15  # products that are no weights: sums of the activations


class NotExecuted(Exception):
    """What was looked for is not in what was executed."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction at an address of its program."""

    address: int
    text: str

    @property
    def macs(self) -> int:
        """Multiply-adds of bytes; products of wider elements are not of weights."""
        return _MACS.get(self.text.split(None, 1)[0], 0) if re.search(r"\.(8|16)b", self.text) else 0

    @property
    def jumps(self) -> bool:
        return _JUMP.match(self.text) is not None


@dataclass(frozen=True, slots=True)
class Program:
    """Instructions by address, and the demangled name of every function by its address; some share a name."""

    code: dict[int, Instruction] = field(default_factory=dict)
    functions: dict[int, str] = field(default_factory=dict)


def read_program(disassembly: str) -> Program:
    """What llvm-objdump -d prints."""
    program = Program()
    name = None
    for line in disassembly.splitlines():
        if title := _TITLE.match(line):
            name = title[1]
        elif found := _LINE.match(line):
            instruction = Instruction(int(found[1], 16), found[2].strip())
            program.code[instruction.address] = instruction
            if name is not None:
                program.functions[instruction.address] = name
                name = None
    return program


def read_addresses(log: str) -> list[int]:
    """Addresses in the log of QEMU's `-d exec,nochain`, in the order of their execution."""
    return [int(address, 16) for address in _EXECUTED.findall(log)]


def executed(program: Program, addresses: Sequence[int]) -> list[Instruction]:
    """The instructions at the addresses, of which there must be one for each.

    Raises:
        NotExecuted: some are missing, as when the emulator runs several at a time.
    """
    found = [program.code[address] for address in addresses if address in program.code]
    for before, after in pairwise(found):
        if after.address != before.address + 4 and not before.jumps:
            raise NotExecuted(f"'{before.text}' was followed by '{after.text}', which does not stand after it")
    return found


def calls(instructions: Sequence[Instruction], entry: int) -> list[Instruction]:
    """What is executed from each call of the function at `entry` to its return, functions it calls included."""
    found: list[Instruction] = []
    depth = 0
    for instruction in instructions:
        if depth == 0 and instruction.address == entry:
            depth = 1
        if depth > 0:
            found.append(instruction)
            word = instruction.text.split(None, 1)[0]
            depth += {"bl": 1, "blr": 1, "ret": -1}.get(word, 0)
    return found


def find_function(program: Program, part: str, instructions: Sequence[Instruction]) -> int:
    """The address of the one function that was executed and whose name contains `part`.

    Raises:
        NotExecuted: none is called so, or more than one.
    """
    reached = {instruction.address for instruction in instructions}
    found = [address for address, name in program.functions.items() if part in name and address in reached]
    if len(found) != 1:
        raise NotExecuted(f"{len(found)} functions called {part} were executed")
    return found[0]


def check_products(instructions: Sequence[Instruction], macs: int) -> None:
    """Sees that the kernel does its work with products of bytes, and no other work.

    Raises:
        NotExecuted: they are fewer than `macs`, or clearly more.
    """
    done = sum(instruction.macs for instruction in instructions)
    if not macs <= done <= macs * _EXTRA:
        raise NotExecuted(f"{done} multiply-adds of bytes were executed, {macs} expected")


def as_source(instructions: Sequence[Instruction]) -> str:
    """Assembly that llvm-mca reads: no symbols, no comments, every jump one to itself."""
    cleaned = [re.sub(r"\s*(//.*|<[^>]*>.*)", "", i.text).replace("\t", " ") for i in instructions]
    return "\n".join([".arch armv8.6-a+i8mm+dotprod+fp16", *map(_to_itself, cleaned), ""])


def _to_itself(text: str) -> str:
    if re.match(r"(bl|blr|br|ret)\b(?!\.)", text):
        return "b ."  # llvm-mca takes a call to last a hundred cycles
    return re.sub(
        r"^((?:b|b\.\w+|cbn?z \w+,|tbn?z \w+, #\w+,|adrp? \w+,|ldr \w+,) ?)(?:0x[0-9a-f]+|#-?\w+)$", r"\1.", text
    )


def total_cycles(report: str, passes: int) -> float:
    """Cycles a pass in the report of llvm-mca over so many passes.

    Raises:
        NotExecuted: the report gives none.
    """
    found = re.search(r"Total Cycles:\s+(\d+)", report)
    if not found:
        raise NotExecuted("llvm-mca gave no cycles")
    return int(found[1]) / passes
