import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import target
from edgekit.cores import data_folder, find_isa, known_features, known_isas, load_core, macs_per_cycle
from edgekit.errors import Damaged, TargetMissing
from edgekit.schema import problems
from edgekit.target import Cluster, Rate, cpuinfo_of, describe_host, detect_host, load_target, target_names

ROOT = Path(__file__).parents[1]
BOARDS = [name for name in target_names() if name != "host"]


def cpuinfo(name: str) -> str:
    return (ROOT / "tests" / "targets" / f"{name}.cpuinfo").read_text()


def test_the_targets_of_the_issue_are_there() -> None:
    assert target_names() == (
        "host", "android-arm64", "android-armv9", "jetson-orin", "rpi-zero2w", "rpi4", "rpi5", "x86-64-v3",
    )  # fmt: skip


@pytest.mark.parametrize("name", BOARDS)
def test_what_a_machine_says_of_itself_agrees_with_its_target(name: str) -> None:
    board = load_target(name)
    read = describe_host(cpuinfo(name), board.architecture)
    assert read.features == board.features
    assert read.best_isa == board.best_isa
    assert {(c.core.name, c.count) for c in read.clusters} == {(c.core.name, c.count) for c in board.clusters}


@pytest.mark.parametrize(
    ("name", "isa"),
    [
        ("rpi-zero2w", "neon"), ("rpi4", "neon"), ("rpi5", "neon_dotprod"), ("android-arm64", "neon_dotprod"),
        ("android-armv9", "neon_i8mm"), ("jetson-orin", "neon_dotprod"), ("x86-64-v3", "avx2"),
    ],
)  # fmt: skip
def test_the_best_isa_follows_from_the_features(name: str, isa: str) -> None:
    board = load_target(name)
    assert board.best_isa == isa
    assert board.isas[-1].word == "scalar"


def test_feature_bits_are_those_of_the_c_header() -> None:
    header = (ROOT / "kernels" / "include" / "edgekit" / "cpu.h").read_text()
    bits = {name.lower(): int(bit) for name, bit in re.findall(r"EDGEKIT_CPU_(\w+) = 1 << (\d+)", header)}
    assert {name: feature.bit for name, feature in known_features().items()} == bits
    assert load_target("rpi5").feature_bits == 0b11


# The word of /proc/cpuinfo for each bit of cpuid that cpu.cc asks for; osxsave has none, and avx is shown only with it.
CPUINFO_WORDS = {
    "kAvx": "avx", "kAvx2Bit": "avx2", "kBmi": "bmi1", "kBmi2": "bmi2", "kF16c": "f16c", "kFma": "fma", "kLzcnt": "abm",
    "kMovbe": "movbe", "kPopcnt": "popcnt", "kOsxsave": None, "kF": "avx512f", "kDq": "avx512dq", "kCd": "avx512cd",
    "kBw": "avx512bw", "kVl": "avx512vl", "kVnni": "avx512_vnni",
}  # fmt: skip


def test_a_feature_asks_for_the_same_bits_in_c_and_in_cpuinfo() -> None:
    source = (ROOT / "kernels" / "cpu" / "cpu.cc").read_text()
    detect = source.partition("uint64_t detect() {")[2].partition("#elif")[0]
    assert set(re.findall(r"(k\w+) = 1u << \d+", detect)) == CPUINFO_WORDS.keys()
    asked = {name: set(re.findall(r"k\w+", bits)) for name, bits in re.findall(r"(k\w+) = (k\w+ \|[^;]+);", detect)}
    words = {
        feature: {CPUINFO_WORDS[bit] for bit in bits} - {None}
        for feature, bits in {
            "avx2": asked["kNeeded"] | asked["kV3"] | {"kLzcnt"},
            "avx512_vnni": asked["kV4"] | {"kVnni"},
        }.items()
    }
    known = known_features()
    assert {name: known[name].cpuinfo for name in words} == words


@pytest.mark.parametrize("name", [name for name in target_names() if load_target(name).architecture == "aarch64"])
def test_an_emulated_board_says_of_itself_what_the_board_does(name: str) -> None:
    board = load_target(name)
    emulated = describe_host(cpuinfo_of(board), "aarch64")
    assert emulated.features == board.features
    assert [(cluster.core.name, cluster.count) for cluster in emulated.clusters] == [
        (cluster.core.name, cluster.count) for cluster in board.clusters
    ]


@pytest.mark.parametrize("word", ["avx2", "f16c", "fma", "movbe", "popcnt", "abm", "bmi1", "bmi2"])
def test_an_operating_system_that_hides_a_flag_takes_the_feature_away(word: str) -> None:
    hidden = re.sub(rf" {word}\b", "", cpuinfo("x86-64-v3"))
    assert describe_host(hidden, "x86_64").best_isa == "scalar"


def test_one_core_without_a_feature_takes_it_from_the_machine() -> None:
    text = cpuinfo("rpi5").replace(" asimddp", "", 1)
    assert describe_host(text, "aarch64").features == {"neon"}


def test_an_unknown_core_is_taken_for_a_slow_one() -> None:
    text = cpuinfo("rpi5").replace("0xd0b", "0xfff")
    assert describe_host(text, "aarch64").clusters[0].core.name == "generic_aarch64"


def test_the_host_is_described_completely() -> None:
    host = detect_host()
    assert host.memory > 2**27
    assert host.worker_count >= 1
    assert host.clusters[0].clock_hz > 10**8
    assert host.dram == ()


def test_a_container_gets_no_more_than_its_share(tmp_path: Path) -> None:
    nothing = tmp_path / "none"
    assert target._usable_cores(nothing, nothing) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert target._usable_cores(nothing, tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert target._usable_cores(nothing, tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "memory.max").write_text("268435456\n")
    assert target._usable_memory(tmp_path) == 2**28
    (tmp_path / "memory.max").write_text("max\n")
    assert target._usable_memory(tmp_path) == target._usable_memory(nothing)


def test_hardware_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    for cpu in range(4):
        (tmp_path / f"cpu{cpu}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert target._usable_cores(tmp_path, tmp_path) == 2


def test_fewer_cores_than_there_are_leave_the_fast_ones() -> None:
    clusters = load_target("android-armv9").clusters[::-1]  # as Linux numbers them: the slow cores first
    assert [(c.core.name, c.count) for c in target._within(clusters, 3)] == [("cortex_a720", 2), ("cortex_x4", 1)]


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(TargetMissing, match="edgekit does not run on riscv64"):
        describe_host("processor: 0\n", "riscv64")


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TargetMissing) as caught:
        load_target("rpi6")
    assert caught.value.exit_code == 4
    assert caught.value.hint.startswith("one of: host, android-arm64")


def test_the_int8_peak_of_four_a76_is_614_billion_products_and_sums() -> None:
    # 4 cores x 2.4 GHz x 2 sdot x 16 products, a product and a sum each.
    assert load_target("rpi5").peak_ops("neon_dotprod") == 2 * 4 * 2.4e9 * 32


def test_in_order_cores_get_no_work_where_there_are_others() -> None:
    phone = load_target("android-armv9")
    assert [cluster.core.name for cluster in phone.workers] == ["cortex_x4", "cortex_a720"]
    assert phone.worker_count == 6
    assert load_target("rpi-zero2w").worker_count == 4


def test_a_word_without_a_figure_takes_that_of_the_next_lesser_one() -> None:
    assert macs_per_cycle(load_core("cortex_a72"), "neon_dotprod") == 8
    assert macs_per_cycle(load_core("cortex_a72"), "scalar") == 1


def test_the_dram_rate_is_that_of_the_listed_threads_below() -> None:
    rpi5 = load_target("rpi5")
    rates = {threads: rate.bytes_per_second for threads in range(1, 6) if (rate := rpi5.dram_rate(threads))}
    assert rates == {1: 9.26e9, 2: 13.23e9, 3: 13.23e9, 4: 11.59e9, 5: 11.59e9}
    assert load_target("x86-64-v3").dram_rate(1) == load_target("x86-64-v3").dram[0]
    assert replace(rpi5, dram=()).dram_rate(1) is None


def test_every_figure_has_a_source() -> None:
    for name in BOARDS:
        board = load_target(name)
        assert all(len(source) > 20 for source in board.sources)
        assert all(len(rate.source) > 20 for rate in board.dram)
    for path in (data_folder() / "cores").glob("*.toml"):
        core = load_core(path.stem)
        assert len(core.source) > 20
        assert set(core.int8_macs_per_cycle) <= {isa.word for isa in known_isas()}
        assert core.features <= known_features().keys()


def test_isa_words_are_those_of_the_kernel_library() -> None:
    source = (ROOT / "kernels" / "cpu" / "cpu.cc").read_text()
    table = source[source.index("kIsas[]") :]
    words = re.findall(r'\{"(\w+)", \w+\}', table[: table.index("};")])
    assert [isa.word for isa in known_isas()] == words
    assert find_isa("neon_dotprod").vector_bits == 128


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"title": 3}, "$.title: 3 is not of type 'string'"),
        ({"colour": "green"}, "$: Additional properties are not allowed ('colour' was unexpected)"),
        ({"triple": "mips-linux"}, "$.triple: 'mips-linux' is not one of ['aarch64-linux-musl', 'x86_64-linux-musl']"),
        ({"dram": [{"threads": 0, "bytes_per_second": 1, "kind": "measured", "source": "s"}]},
         "$.dram[0].threads: 0 is less than the minimum of 1"),
        ({"dram": [{"threads": 1, "bytes_per_second": True, "kind": "measured", "source": "s"}]},
         "$.dram[0].bytes_per_second: True is not of type 'integer'"),
        ({"memory": {"bytes": 1, "page_bytes": 4096}}, "$.memory: 'source' is a required property"),
    ],
)  # fmt: skip
def test_a_board_that_breaks_the_schema_is_told_where(change: dict[str, object], problem: str) -> None:
    schema = json.loads((data_folder() / "schema.json").read_text())
    board = {
        "title": "a", "triple": "aarch64-linux-musl", "clusters": [], "dram": [],
        "memory": {"bytes": 1, "page_bytes": 4096, "source": "s"},
    }  # fmt: skip
    board_schema = {**schema, "$ref": "#/$defs/board"}
    assert list(problems(board, board_schema)) == []
    assert list(problems({**board, **change}, board_schema)) == [problem]


def test_a_damaged_board_file_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boards").mkdir()
    for name in ("isa.json", "schema.json"):
        (tmp_path / name).write_text((data_folder() / name).read_text())
    (tmp_path / "boards" / "mine.toml").write_text("title = 3\n")
    monkeypatch.setattr("edgekit.target.data_folder", lambda: tmp_path)
    with pytest.raises(Damaged, match=r"mine\.toml: .*required property"):
        load_target("mine")


def test_targets_compare_by_what_they_hold() -> None:
    rate = Rate(1, 1e9, "measured", "s")
    assert replace(load_target("rpi4"), dram=(rate,)) == replace(load_target("rpi4"), dram=(rate,))
    assert Cluster(load_core("cortex_a72"), 4, 10**9) != Cluster(load_core("cortex_a72"), 2, 10**9)
