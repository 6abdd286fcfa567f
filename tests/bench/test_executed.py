import pytest
from evidence.executed import (
    Instruction,
    NotExecuted,
    as_source,
    calls,
    check_products,
    executed,
    find_function,
    read_addresses,
    read_program,
    total_cycles,
)

# main calls dot, which passes twice through a loop, where it calls end.
DISASSEMBLY = """
arm_once:\tfile format elf64-littleaarch64

Disassembly of section .text:

0000000000001000 <main>:
    1000:      \tmov\tx8, xzr
    1004:      \tbl\t0x1010 <dot(args const*)>
    1008:      \tret

0000000000001010 <dot(args const*)>:
    1010:      \tsdot\tv0.4s, v1.16b, v2.4b[0]
    1014:      \tbl\t0x1020 <end>
    1018:      \tcbnz\tx8, 0x1010 <dot(args const*)>
    101c:      \tret

0000000000001020 <end>:
    1020:      \tscvtf\tv0.4s, v0.4s
    1024:      \tret

0000000000001030 <end>:
    1030:      \tret
"""
PROGRAM = read_program(DISASSEMBLY)
LOOP = [0x1010, 0x1014, 0x1020, 0x1024, 0x1018]
RUN = [0x1000, 0x1004, *LOOP, *LOOP, 0x101C, 0x1008]


def test_the_disassembly_gives_instructions_and_functions_that_may_share_a_name():
    assert PROGRAM.code[0x1010] == Instruction(0x1010, "sdot\tv0.4s, v1.16b, v2.4b[0]")
    assert PROGRAM.functions == {0x1000: "main", 0x1010: "dot(args const*)", 0x1020: "end", 0x1030: "end"}


def test_addresses_are_the_second_number_of_each_line_of_the_log():
    log = (
        "Trace 0: 0x7f1545600100 [0000000001009301/000000000101d84c/00000001/00000200] \n"
        "Linking TBs 0x7f1545600100 index 0 -> 0x7f1545600240\n"
        "Trace 0: 0x7f1545600240 [0000000001009301/000000000101d868/00000001/00000200] _start_c\n"
    )
    assert read_addresses(log) == [0x101D84C, 0x101D868]


def test_what_is_executed_outside_the_program_is_left_out():
    assert [i.address for i in executed(PROGRAM, [0x1000, 0x9000, 0x1004])] == [0x1000, 0x1004]


def test_several_instructions_at_a_time_are_refused():
    with pytest.raises(NotExecuted, match=r"'mov\tx8, xzr' was followed by 'sdot"):
        executed(PROGRAM, [0x1000, 0x1010])


def test_a_call_holds_every_pass_of_its_loops_and_what_it_calls():
    run = executed(PROGRAM, RUN)
    words = [i.text.split()[0] for i in calls(run, 0x1010)]
    assert words == [*["sdot", "bl", "scvtf", "ret", "cbnz"] * 2, "ret"]
    assert [i.address for i in calls(run, 0x1020)] == [0x1020, 0x1024, 0x1020, 0x1024]


def test_of_functions_with_one_name_the_executed_one_is_meant():
    run = executed(PROGRAM, RUN)
    assert find_function(PROGRAM, "end", run) == 0x1020
    with pytest.raises(NotExecuted, match="0 functions called gemm were executed"):
        find_function(PROGRAM, "gemm", run)
    with pytest.raises(NotExecuted, match="2 functions called n were executed"):
        find_function(PROGRAM, "n", [i for i in run if i.address in (0x1000, 0x1020)])


def test_products_may_be_a_few_more_than_the_weights_and_never_fewer():
    run = executed(PROGRAM, RUN)
    for macs in (28, 32):
        check_products(run, macs)
    for macs in (27, 33):
        with pytest.raises(NotExecuted, match=f"32 multiply-adds of bytes were executed, {macs} expected"):
            check_products(run, macs)


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


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("adrp\tx1, 0x10000 <dot(args const*)>", "adrp x1, ."),
        ("ldr\tq0, 0x2000 <table>", "ldr q0, ."),
        ("ldr\tq0, [x1, #0x10] // =0x10", "ldr q0, [x1, #0x10]"),
        ("b.ne\t0x1010 <dot(args const*)>", "b.ne ."),
        ("tbz\tw3, #0x1f, 0x1010 <dot>", "tbz w3, #0x1f, ."),
        ("cbnz\tx8, 0x1010 <dot>", "cbnz x8, ."),
        ("bl\t0x1010 <dot>", "b ."),
        ("ret", "b ."),
        ("bic\tv0.16b, v1.16b, v2.16b", "bic v0.16b, v1.16b, v2.16b"),
    ],
)
def test_jumps_go_nowhere_and_symbols_are_taken_off_for_the_assembler(text, source):
    assert as_source([Instruction(0, text)]).splitlines()[1:] == [source]


def test_cycles_are_those_of_one_pass():
    assert total_cycles("Iterations: 4\nTotal Cycles:      26\n", 4) == 6.5
    with pytest.raises(NotExecuted, match="gave no cycles"):
        total_cycles("error", 4)
