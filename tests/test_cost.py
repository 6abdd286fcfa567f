from dataclasses import replace

import pytest

from edgekit import cost
from edgekit.cores import load_core
from edgekit.cost import GemmShape, Machine, attention_cost, gemm_cost, gemm_cycles, measured, tokens_per_second
from edgekit.kernels import Kernel
from edgekit.scheme import parse_scheme
from edgekit.target import Rate, detect_host, load_target
from edgekit.units import Bytes, Seconds

Q4 = parse_scheme("q4g128")
A76 = load_core("cortex_a76")


def kernel(rows: int, isa: str, weights: str = "q4") -> Kernel:
    return Kernel(f"gemm_q8_{weights}_f32_{rows}x16x32_{isa}", weights, rows, 0, True)


def test_a_group_of_128_four_bit_codes_takes_66_bytes() -> None:
    # 64 bytes of codes and one bf16; 16 rows of one group.
    assert cost.weight_bytes(Q4, 16, 128) == 16 * 66


def test_rows_are_padded_to_tiles_of_sixteen() -> None:
    assert cost.weight_bytes(Q4, 17, 128) == 32 * 66


@pytest.mark.parametrize(
    ("scheme", "isa", "per_32"),
    [
        # Two masks and one sdot pair on two pipes; at the group's end 3 operations of 4 lanes for 16 x 128 weights.
        ("q4g128", "neon_dotprod", 1.0 + 1.0 + 3 * 4 / (16 * 128 / 32) / 2),
        ("q4g32", "neon_dotprod", 1.0 + 1.0 + 3 * 4 / (16 * 32 / 32) / 2),
        ("q3g128", "neon_dotprod", 2.75 / 2 + 1.0 + 3 * 4 / (16 * 128 / 32) / 2),
        ("q8g128", "neon_dotprod", 1.0 + 3 * 4 / (16 * 128 / 32) / 2),
        ("q4g128", "neon", 1.0 + 4.0 + 3 * 4 / (16 * 128 / 32) / 2),
    ],
)
def test_cycles_of_32_weights_on_a_cortex_a76(scheme: str, isa: str, per_32: float) -> None:
    parsed = parse_scheme(scheme)
    shape = GemmShape(1, n=1600, k=3200)
    cycles = gemm_cycles(kernel(1, isa, parsed.format), parsed, shape, A76)
    assert cycles / (1600 * 3200 / 32) == pytest.approx(per_32, rel=1e-12)


def test_a_tile_of_rows_unpacks_once() -> None:
    shape = GemmShape(8, n=1600, k=3200)
    one, four = (gemm_cycles(kernel(rows, "neon_dotprod"), Q4, shape, A76) for rows in (1, 4))
    # The unpacking is 1 cycle of 32 weights; eight passes against two.
    assert one - four == pytest.approx((8 - 2) * 1600 * 3200 / 32)


def test_a_row_too_many_costs_a_whole_tile() -> None:
    four, five = (gemm_cycles(kernel(4, "neon_dotprod"), Q4, GemmShape(m, 160, 320), A76) for m in (4, 5))
    assert five == 2 * four


def test_scalar_code_takes_a_cycle_a_product() -> None:
    f32 = parse_scheme("f32")
    assert gemm_cycles(kernel(1, "scalar", "f32"), f32, GemmShape(1, 16, 32), A76) == 16 * 32


@pytest.mark.parametrize(("m", "bound"), [(1, "memory"), (512, "arithmetic")])
def test_one_row_is_bound_by_memory_and_many_by_arithmetic(m: int, bound: str) -> None:
    machine = Machine(load_target("rpi5"), threads=4)
    found = gemm_cost(kernel(1 if m == 1 else 4, "neon_dotprod"), Q4, GemmShape(m, 4096, 4096), machine)
    assert found.bound == bound
    assert found.moving == pytest.approx(4096 * 4096 / 128 * 66 / 11.59e9)
    assert found.seconds == max(found.computing, found.moving or 0)
    assert found.ops == 2 * m * 4096 * 4096


def test_threads_share_the_arithmetic() -> None:
    rpi5 = load_target("rpi5")
    shape = GemmShape(512, 4096, 4096)
    one, four = (gemm_cost(kernel(4, "neon_dotprod"), Q4, shape, Machine(rpi5, threads)) for threads in (1, 4))
    assert one.computing == pytest.approx(4 * four.computing)


def test_cores_of_different_speed_share_by_speed() -> None:
    phone = load_target("android-armv9")
    assert [(c.core.name, c.count) for c in Machine(phone, 3).clusters] == [("cortex_x4", 1), ("cortex_a720", 2)]
    # One unit takes an X4 1/3.3 ns a cycle and an A720 1/3.0; together the speeds add.
    together = Machine(phone, 3).computing({"cortex_x4": 1.0, "cortex_a720": 2.0})
    assert together == pytest.approx(cost.SLACK / (3.3e9 + 2 * 3.0e9 / 2))


def test_weights_that_stay_in_a_cache_take_the_time_of_the_cache_or_none_if_its_rate_is_not_known() -> None:
    machine = Machine(load_target("rpi5"), 2, resident=True)
    assert gemm_cost(kernel(1, "neon_dotprod"), Q4, GemmShape(1, 64, 64), machine).moving == 0
    rates = (Rate(1, 20e9, "measured", "a test"), Rate(2, 33e9, "measured", "a test"))
    known = Machine(replace(machine.target, shared_cache=rates), 2, resident=True)
    found = gemm_cost(kernel(1, "neon_dotprod"), Q4, GemmShape(1, 64, 64), known)
    assert found.moving == pytest.approx(found.moved / 33e9)
    assert Machine(known.target, 2).moving(1 << 20) == pytest.approx((1 << 20) / 13.23e9)


def test_fewer_bits_are_never_predicted_slower_where_reading_bounds() -> None:
    rates = (Rate(2, 10e9, "measured", "a test"),)
    cached = Machine(replace(load_target("rpi5"), shared_cache=rates), 2, resident=True)
    shape = GemmShape(1, 1024, 1024)
    seconds = [
        gemm_cost(kernel(1, "neon_dotprod", scheme.format), scheme, shape, cached).seconds or 0
        for scheme in map(parse_scheme, ("q8g128", "q4g128", "q3g128", "q2g128"))
    ]
    assert seconds == sorted(seconds, reverse=True) and len(set(seconds)) == 4


def test_without_a_dram_rate_no_time_is_predicted() -> None:
    unknown = replace(load_target("rpi5"), dram=())
    found = gemm_cost(kernel(1, "neon_dotprod"), Q4, GemmShape(1, 64, 64), Machine(unknown, 1))
    assert found.seconds is None
    assert Machine(unknown, 1, resident=True).moving(64) is None
    assert tokens_per_second(1, found.seconds) is None
    assert tokens_per_second(64, Seconds(2)) == 32


@pytest.mark.parametrize(("kv", "row_bytes"), [("f16", 64 * 2), ("q8", 64 + 4)])
def test_attention_reads_keys_and_values_of_every_position_once(kv: str, row_bytes: int) -> None:
    found = attention_cost(
        rows=1, positions=1000, heads=32, kv_heads=4, head_dim=64, kv=kv, machine=Machine(load_target("rpi5"), 2)
    )
    assert found.moved == 2 * 1000 * 4 * row_bytes
    assert found.ops == 2 * (1000 * 32 * 64 * 2)


def test_the_host_is_measured_once_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bool]] = []
    host = replace(detect_host(), shared_cache_bytes=Bytes(2 << 20), memory=Bytes(1 << 30))

    def read(threads: int, *, size: Bytes, rounds: int) -> float:
        assert (size, rounds) in {(128 << 20, 3), (1 << 20, 100)}
        in_cache = rounds == 100
        calls.append((threads, in_cache))
        return (10e9 if in_cache else 1e9) * threads

    monkeypatch.setattr(cost, "read_ceiling", read)
    cost._measured_rate.cache_clear()
    host = replace(host, clusters=(replace(host.clusters[0], count=3),))
    rates = measured(host).dram
    assert measured(host).dram == rates
    assert calls == [(1, False), (3, False), (1, True), (3, True)]
    assert [rate.bytes_per_second for rate in measured(host).shared_cache] == [10e9, 30e9]
    assert measured(replace(host, shared_cache_bytes=Bytes(0))).shared_cache == ()
    assert [(rate.threads, rate.bytes_per_second, rate.kind) for rate in rates] == [
        (1, 1e9, "measured here"),
        (3, 3e9, "measured here"),
    ]
    cost._measured_rate.cache_clear()


def test_what_could_not_be_measured_for_want_of_memory_is_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "read_ceiling", lambda threads, size, rounds: 0.0 if rounds == 3 else 5e9)
    cost._measured_rate.cache_clear()
    found = measured(replace(detect_host(), shared_cache_bytes=Bytes(2 << 20)))
    assert found.dram == () and {rate.bytes_per_second for rate in found.shared_cache} == {5e9}
    assert Machine(found, 1).moving(1 << 20) is None
    cost._measured_rate.cache_clear()
