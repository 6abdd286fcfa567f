import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit import _kernels
from edgekit.cores import find_isa, known_features, known_isas
from edgekit.kernels import (
    FORMATS,
    catalogue,
    code_bytes,
    cpu_features,
    gemm,
    pack_codes,
    pack_scales,
    quantize_weights,
    read_ceiling,
    scale_bytes,
    unpack,
)
from edgekit.scheme import Scheme, parse_scheme
from edgekit.target import detect_host
from edgekit.units import Bytes

ROOT = Path(__file__).parents[1]
SCHEMES = ["q8g32", "q4g64", "q3g32", "q2g128", "t2g32"]
ZEROS = np.zeros((4, 4), np.float32)
RUNNABLE = [kernel for kernel in catalogue() if kernel.runs_here and not kernel.features & ~cpu_features()]


def random_codes(scheme: Scheme, n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    if scheme.is_float:
        values = generator.standard_normal((n, k)).astype(np.float16 if scheme.format == "f16" else np.float32)
        return values, np.zeros((n, 0), np.uint16)
    low, high = scheme.code_range
    codes = generator.integers(low, high + 1, (n, k)).astype(np.int8)
    # bf16 of 2^-8 to 2^-5, some with a fraction.
    scales = ((generator.integers(119, 123, (n, scheme.groups(k))) << 7) + generator.integers(0, 128)).astype(np.uint16)
    return codes, scales


def values_of(scheme: Scheme, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    if scheme.is_float:
        return codes.astype(np.float32)
    widened = (scales.astype(np.uint32) << 16).view(np.float32)
    steps = np.repeat(widened, scheme.group, axis=1)[:, : codes.shape[1]]
    return (codes.astype(np.float32) + np.float32(scheme.offset)) * steps


def test_the_catalogue_is_the_table_of_all_architectures() -> None:
    table = (ROOT / "kernels" / "gemm" / "kernels.inc").read_text()
    assert [kernel.name for kernel in catalogue()] == [
        line.split("(")[1].split(",")[0] for line in table.splitlines() if line.startswith("EDGEKIT_GEMM_KERNEL(")
    ]
    assert {kernel.isa for kernel in catalogue()} <= {isa.word for isa in known_isas()}


def test_every_target_can_run_every_scheme() -> None:
    for weights in FORMATS:
        for many in (False, True):
            assert any(k.weights == weights and (k.rows > 1) == many and k.features == 0 for k in catalogue())


def test_a_kernel_needs_the_features_of_its_isa_word() -> None:
    for kernel in catalogue():
        needed = sum(1 << known_features()[name].bit for name in find_isa(kernel.isa).features)
        assert kernel.features & needed == needed, kernel.name
        assert kernel.features & needed == _kernels.isa_features(kernel.isa)


@pytest.mark.skipif("EDGEKIT_ISA" in os.environ, reason="EDGEKIT_ISA lowers what the CPU is taken for")
def test_reading_cpuinfo_and_asking_the_cpu_agree() -> None:
    assert detect_host().feature_bits == cpu_features()


@pytest.mark.parametrize("name", [*SCHEMES, "f16", "f32"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (15, 31), (16, 32), (17, 33), (48, 100), (64, 256)])
def test_unpacking_gives_back_what_was_packed(name: str, n: int, k: int) -> None:
    scheme = parse_scheme(name)
    codes, scales = random_codes(scheme, n, k)
    packed = pack_codes(scheme, codes)
    assert packed.nbytes == code_bytes(scheme, n, k)
    packed_scales = pack_scales(scales)
    assert packed_scales.nbytes == scale_bytes(scheme, n, k)
    np.testing.assert_array_equal(unpack(scheme, n, k, packed, packed_scales), values_of(scheme, codes, scales))


def test_a_q4_tile_lies_as_the_header_draws_it() -> None:
    # Two quads a row of 64 bytes; byte 4 * column + i: low nibble k = i as code + 8, high nibble k = 4 + i as is.
    codes = np.zeros((16, 32), np.int8)
    codes[3, 1], codes[3, 5] = -8, -1
    row = pack_codes(parse_scheme("q4g32"), codes)[0, :64]
    assert row[4 * 3 + 1] == 0x00 | 0xF0
    assert row[4 * 3 + 2] == 0x08


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("name", SCHEMES)
def test_the_number_of_threads_changes_no_bit(name: str, threads: int) -> None:
    scheme = parse_scheme(name)
    weights = np.random.default_rng(1).standard_normal((37, 96)).astype(np.float32)
    one, many = quantize_weights(scheme, weights, threads=1), quantize_weights(scheme, weights, threads=threads)
    for first, second in zip(one, many, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(pack_codes(scheme, one[0], threads=1), pack_codes(scheme, one[0], threads=threads))


@pytest.mark.parametrize("name", SCHEMES)
def test_codes_are_in_range_and_errors_below_those_of_the_plain_step(name: str) -> None:
    scheme = parse_scheme(name)
    weights = np.random.default_rng(2).standard_normal((16, 256)).astype(np.float32)
    codes, scales = quantize_weights(scheme, weights)
    low, high = scheme.code_range
    assert codes.min() >= low and codes.max() <= high
    found = np.square(values_of(scheme, codes, scales) - weights).sum()
    # The plain step spans the largest weight of each group with the code farthest from zero, and is a bf16 too.
    reach = max(abs(low + scheme.offset), high + scheme.offset)
    groups = weights.reshape(16, -1, scheme.group)
    exact = (np.abs(groups).max(axis=2, keepdims=True) / np.float32(reach)).view(np.uint32)
    step = ((exact + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
    plain = (np.clip(np.round(groups / step - scheme.offset), low, high) + scheme.offset) * step
    assert found <= np.square(plain - groups).sum() * 1.001


def test_importance_moves_the_error_to_where_it_counts_less() -> None:
    scheme = parse_scheme("q2g32")
    weights = np.random.default_rng(3).standard_normal((64, 32)).astype(np.float32)
    importance = np.ones(32, np.float32)
    importance[:8] = 100
    errors = [
        np.square(values_of(scheme, *quantize_weights(scheme, weights, importance=weigh)) - weights)[:, :8].sum()
        for weigh in (None, importance)
    ]
    assert errors[1] < errors[0]


def test_other_python_threads_run_while_weights_are_quantized() -> None:
    weights = np.zeros((4096, 2048), np.float32)
    running = threading.Event()
    turns = 0

    def work() -> None:
        running.set()
        quantize_weights(parse_scheme("q4g32"), weights, steps=64, threads=1)
        running.clear()

    thread = threading.Thread(target=work)
    thread.start()
    running.wait()
    while running.is_set():
        turns += 1
        time.sleep(0)
    thread.join()
    assert turns > 10


@pytest.mark.parametrize("kernel", RUNNABLE, ids=lambda kernel: kernel.name)
def test_a_product_is_that_of_the_values(kernel: object) -> None:
    assert isinstance(kernel, type(catalogue()[0]))
    scheme = Scheme(kernel.weights, 0 if kernel.weights in ("f32", "f16") else 32)
    m, n, k = max(kernel.rows, 2) + 1, 33, 100
    codes, scales = random_codes(scheme, n, k)
    a = np.random.default_rng(4).standard_normal((m, k)).astype(np.float32)
    found = gemm(kernel.name, scheme, a, pack_codes(scheme, codes), pack_scales(scales), n=n)
    values = values_of(scheme, codes, scales)
    expected = a.astype(np.float64) @ values.T.astype(np.float64)
    # float32 sums of k products; activations in int8 are off by at most half of 1/127 of the largest of their group.
    bound = (k + 2) * np.finfo(np.float32).eps * np.abs(a).max() * np.abs(values).max() * k
    if not scheme.is_float:
        bound += 0.5 / 127 * np.abs(a).max() * np.abs(values).sum(axis=1).max()
    assert np.abs(found - expected).max() <= bound


def test_all_kernels_of_a_format_agree_to_the_last_bit() -> None:
    for weights in FORMATS:
        scheme = Scheme(weights, 0 if weights in ("f32", "f16") else 64)
        codes, scales = random_codes(scheme, 50, 200)
        a = np.random.default_rng(5).standard_normal((9, 200)).astype(np.float32)
        packed = pack_codes(scheme, codes), pack_scales(scales)
        results = [gemm(kernel.name, scheme, a, *packed, n=50) for kernel in RUNNABLE if kernel.weights == weights]
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gemm("gemm_nothing", parse_scheme("f32"), np.zeros((1, 4), np.float32), *packed(16, 4), n=16),
         "no kernel of that name"),
        (lambda: gemm("gemm_f32_f32_f32_1x16x1_scalar", parse_scheme("f32"), np.zeros((1, 5), np.float32),
                      *packed(16, 4), n=16), "the codes do not have the size of the matrix"),
        (lambda: _kernels.pack_codes(3, ZEROS, 1), "the wrong element size"),
        (lambda: _kernels.pack_codes(9, np.zeros((4, 4), np.int8), 1), "unknown weight format"),
        (lambda: _kernels.quantize_weights(3, ZEROS, 33, 1, None, 1), "the group is not 32, 64 or 128"),
        (lambda: _kernels.quantize_weights(3, ZEROS, 32, 0, None, 1), "at least one step"),
        (lambda: _kernels.quantize_weights(3, ZEROS, 32, 1, np.zeros(3, np.float32), 1), "one value a column"),
        (lambda: _kernels.quantize_weights(0, ZEROS, 32, 1, None, 1), "floats are not quantized"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


def packed(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    scheme = parse_scheme("f32")
    codes, scales = random_codes(scheme, n, k)
    return pack_codes(scheme, codes), pack_scales(scales)


def test_the_read_ceiling_of_this_machine_is_a_plausible_number() -> None:
    rate = read_ceiling(1, size=Bytes(32 << 20), rounds=2)
    assert 1e8 < rate < 1e12
