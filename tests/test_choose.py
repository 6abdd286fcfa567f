from dataclasses import replace

import pytest

from edgekit.choose import choose
from edgekit.cores import find_isa, known_features
from edgekit.cost import GemmShape, Machine
from edgekit.errors import Unsupported
from edgekit.kernels import Kernel
from edgekit.scheme import parse_scheme
from edgekit.target import load_target

Q4 = parse_scheme("q4g128")
ONE, MANY = GemmShape(1, 2048, 2048), GemmShape(128, 2048, 2048)


def row(rows: int, isa: str, weights: str = "q4") -> Kernel:
    features = sum(1 << known_features()[name].bit for name in find_isa(isa).features)
    return Kernel(f"gemm_q8_{weights}_f32_{rows}x16x32_{isa}", weights, rows, features, False)


TABLE = tuple(
    row(rows, isa, weights)
    for weights in ("q8", "q4")
    for rows in (1, 4)
    for isa in ("avx512_vnni", "avx2", "neon_i8mm", "neon_dotprod", "neon", "scalar")
)


@pytest.mark.parametrize(
    ("target", "shape", "name"),
    [
        ("rpi4", ONE, "gemm_q8_q4_f32_1x16x32_neon"),
        ("rpi4", MANY, "gemm_q8_q4_f32_4x16x32_neon"),
        ("rpi5", ONE, "gemm_q8_q4_f32_1x16x32_neon_dotprod"),
        ("rpi5", MANY, "gemm_q8_q4_f32_4x16x32_neon_dotprod"),
        ("android-armv9", MANY, "gemm_q8_q4_f32_4x16x32_neon_i8mm"),
        ("x86-64-v3", ONE, "gemm_q8_q4_f32_1x16x32_avx2"),
    ],
)
def test_the_same_table_gives_each_target_its_kernel(target: str, shape: GemmShape, name: str) -> None:
    assert choose(TABLE, Q4, shape, Machine(load_target(target), 1)).kernel.name == name


def test_the_losers_are_of_the_same_format_and_architecture_and_say_why() -> None:
    losers = choose(TABLE, Q4, ONE, Machine(load_target("rpi5"), 1)).losers
    assert {loser.kernel: loser.reason for loser in losers}.keys() == {
        f"gemm_q8_q4_f32_{rows}x16x32_{isa}"
        for rows in (1, 4)
        for isa in ("neon_i8mm", "neon_dotprod", "neon", "scalar")
    } - {"gemm_q8_q4_f32_1x16x32_neon_dotprod"}
    reasons = {loser.kernel: (loser.computing, loser.reason) for loser in losers}
    assert reasons["gemm_q8_q4_f32_1x16x32_neon_i8mm"] == (None, "rpi5 has no i8mm")
    assert reasons["gemm_q8_q4_f32_1x16x32_neon"][1].endswith("times the arithmetic")
    assert reasons["gemm_q8_q4_f32_4x16x32_neon"][1] == "made for 4 rows"


def test_prefill_takes_a_tile_of_rows_also_where_rows_cost_the_same_one_by_one() -> None:
    f32 = parse_scheme("f32")
    table = tuple(replace(row(rows, "neon", "f32"), name=f"gemm_f32_f32_f32_{rows}x16x1_neon") for rows in (1, 12))
    choice = choose(table, f32, MANY, Machine(load_target("rpi5"), 1))
    assert choice.kernel.rows == 12
    assert choice.losers[0].reason == "made for one row"


def test_a_kernel_for_one_row_is_taken_where_there_is_no_other() -> None:
    assert choose((row(1, "neon"),), Q4, MANY, Machine(load_target("rpi4"), 1)).kernel.rows == 1


def test_the_earlier_of_two_equal_kernels_wins() -> None:
    first = row(1, "neon")
    second = replace(first, name="gemm_q8_q4_f32_1x16x64_neon")
    choice = choose((first, second), Q4, ONE, Machine(load_target("rpi4"), 1))
    assert choice.kernel is first
    assert choice.losers[0].reason == "as fast, later in the catalogue"


def test_the_choice_does_not_depend_on_the_dram_rate() -> None:
    rpi5 = load_target("rpi5")
    slow = replace(rpi5, dram=tuple(replace(rate, bytes_per_second=1.0) for rate in rpi5.dram))
    for target in (rpi5, slow, replace(rpi5, dram=())):
        assert choose(TABLE, Q4, ONE, Machine(target, 1)).kernel.isa == "neon_dotprod"


def test_a_scheme_without_a_kernel_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="no kernel multiplies q3g64 weights on rpi4"):
        choose(TABLE, parse_scheme("q3g64"), ONE, Machine(load_target("rpi4"), 1))
