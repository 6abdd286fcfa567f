import pytest
from evidence.loops import Instruction, LoopNotFound, as_source, functions, loops, one_pass, total_cycles

# Two passes of the inner loop (16 multiply-adds each) and one end of the group make a group of 32.
NEST = """
0000000000000000 <dot(args const*)>:
       0:      \tmov\tx8, xzr
       4:      \tmovi\tv0.2d, #0000000000000000
       8:      \tldr\tq1, [x0], #0x10
       c:      \tsdot\tv0.4s, v1.16b, v2.16b
      10:      \tb.ne\t0x8 <dot(args const*)+0x8>
      14:      \tscvtf\tv0.4s, v0.4s
      18:      \tcbnz\tx8, 0x4 <dot(args const*)+0x4>
      1c:      \tret

0000000000000020 <other>:
      20:      \tret
"""


def test_functions_are_found_by_their_demangled_name():
    found = functions(NEST)
    assert list(found) == ["dot(args const*)", "other"]
    assert found["other"] == [Instruction(0x20, "ret")]


def test_loops_are_backward_branches_the_shortest_first():
    assert loops(functions(NEST)["dot(args const*)"]) == [(0x8, 0x10), (0x4, 0x18)]


def test_a_pass_holds_the_inner_loop_as_often_as_its_products_need_and_the_end_once():
    texts = one_pass(functions(NEST)["dot(args const*)"], 32)
    assert [text.split()[0] for text in texts] == ["movi", "ldr", "sdot", "ldr", "sdot", "scvtf"]


def test_a_loop_without_an_inner_one_is_one_pass():
    flat = NEST.replace("b.ne\t0x8 <dot(args const*)+0x8>", "nop")
    texts = one_pass(functions(flat)["dot(args const*)"], 16)
    assert [text.split()[0] for text in texts] == ["movi", "ldr", "sdot", "nop", "scvtf"]


@pytest.mark.parametrize("macs", [8, 50])
def test_other_products_than_expected_are_refused(macs):
    flat = NEST.replace("b.ne\t0x8 <dot(args const*)+0x8>", "nop")
    with pytest.raises(LoopNotFound, match=f"no loop over groups does {macs} multiply-adds"):
        one_pass(functions(flat)["dot(args const*)"], macs)


def test_a_loop_in_which_no_integer_becomes_a_float_is_not_the_one():
    with pytest.raises(LoopNotFound, match="found does \\[\\]"):
        one_pass(functions(NEST.replace("scvtf", "mov"))["dot(args const*)"], 32)


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("sdot\tv0.4s, v1.16b, v2.4b[0]", 16),
        ("smmla\tv0.4s, v1.16b, v2.16b", 32),
        ("smlal2\tv0.8h, v1.16b, v2.16b", 8),
        ("smlal\tv0.4s, v1.4h, v2.4h", 0),
        ("fmla\tv0.4s, v1.4s, v2.4s", 0),
    ],
)
def test_only_products_of_bytes_count(text, macs):
    assert Instruction(0, text).macs == macs


def test_symbols_and_comments_are_taken_off_for_the_assembler():
    source = as_source(["adrp\tx1, 0x0 <dot(args const*)>", "ldr\tq0, [x1] // =0x10"])
    assert source.splitlines()[1:] == ["adrp x1, 0x0", "ldr q0, [x1]"]


def test_cycles_are_those_of_one_pass():
    assert total_cycles("Iterations: 4\nTotal Cycles:      26\n", 4) == 6.5
    with pytest.raises(LoopNotFound, match="gave no cycles"):
        total_cycles("error", 4)
