"""What a kind of machine is: instruction sets, cores, caches, memory and its bandwidth, each number with its source.

Targets are data (targets/boards, targets/cores, targets/isa.json); `host` is this machine, read from /proc and /sys.
"""

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.cores import Core, Isa, data_folder, known_features, known_isas, load_core, macs_per_cycle, read_table
from edgekit.errors import TargetMissing, one_of
from edgekit.units import Bytes

HOST = "host"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Cores of one kind with one clock."""

    core: Core
    count: int
    clock_hz: int


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes a second that `threads` threads read together. `kind` is measured, theoretical, or measured here."""

    threads: int
    bytes_per_second: float
    kind: str
    source: str


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of machine, and how fast it reads from DRAM and from its shared cache.

    `dram` may be empty (the host until it is measured): then no time is predicted. `shared_cache` often is: such rates
    are not published.
    """

    name: str
    title: str
    triple: str
    qemu_cpu: str | None
    features: frozenset[str]
    clusters: tuple[Cluster, ...]
    shared_cache_bytes: Bytes
    memory: Bytes
    page_bytes: int
    dram: tuple[Rate, ...]
    sources: tuple[str, ...]
    shared_cache: tuple[Rate, ...] = ()
    libc: str = "glibc"  # the system's, which an app's libraries need

    @property
    def architecture(self) -> str:
        return self.triple.partition("-")[0]

    @property
    def feature_bits(self) -> int:
        """The features as bits of edgekit/cpu.h."""
        return sum(1 << known_features()[name].bit for name in self.features)

    @property
    def isas(self) -> tuple[Isa, ...]:
        """Every instruction set the machine has, best first; the last is scalar."""
        return tuple(
            isa
            for isa in known_isas()
            if isa.architecture in (self.architecture, "any") and isa.features <= self.features
        )

    @property
    def best_isa(self) -> str:
        return self.isas[0].word

    @property
    def workers(self) -> tuple[Cluster, ...]:
        """The clusters worth giving work to: out-of-order cores if there are any, else all."""
        fast = tuple(cluster for cluster in self.clusters if not cluster.core.in_order)
        return fast or self.clusters

    @property
    def worker_count(self) -> int:
        return sum(cluster.count for cluster in self.workers)

    def peak_ops(self, isa: str) -> float:
        """8-bit operations a second (a product and a sum are two) of all workers, nothing else in the way."""
        return sum(
            2.0 * cluster.count * cluster.clock_hz * macs_per_cycle(cluster.core, isa) for cluster in self.workers
        )

    def dram_rate(self, threads: int) -> Rate | None:
        """The DRAM rate listed for the most threads not above `threads`, else for the fewest; None if none is known."""
        return _rate_of(self.dram, threads)

    def shared_cache_rate(self, threads: int) -> Rate | None:
        """The same of the shared cache."""
        return _rate_of(self.shared_cache, threads)


def target_names() -> tuple[str, ...]:
    """Every target that can be named, `host` first."""
    return (HOST, *sorted(path.stem for path in (data_folder() / "boards").glob("*.toml")))


def load_target(name: str) -> Target:
    """The target of that name.

    Raises:
        TargetMissing: no such target.
        Damaged: its file does not follow targets/schema.json.
    """
    if name == HOST:
        return detect_host()
    if name not in target_names():
        raise TargetMissing(f"unknown target '{name}'", hint=one_of(target_names()))
    table = read_table(data_folder() / "boards" / f"{name}.toml", "board")
    clusters = tuple(
        Cluster(load_core(entry["core"]), entry["count"], entry["clock_hz"]) for entry in table["clusters"]
    )
    caches = table.get("caches", {"shared_bytes": 0, "source": "shared cache: not published"})
    parts = [*table["clusters"], caches, table["memory"], *table["dram"]]
    return Target(
        name=name,
        title=table["title"],
        triple=table["triple"],
        libc=table.get("libc", "glibc"),
        qemu_cpu=table.get("qemu_cpu"),
        features=frozenset.intersection(*(cluster.core.features for cluster in clusters)),
        clusters=clusters,
        shared_cache_bytes=Bytes(caches["shared_bytes"]),
        memory=Bytes(table["memory"]["bytes"]),
        page_bytes=table["memory"]["page_bytes"],
        dram=tuple(Rate(r["threads"], float(r["bytes_per_second"]), r["kind"], r["source"]) for r in table["dram"]),
        sources=tuple(dict.fromkeys(part["source"] for part in parts)),
    )


def detect_host() -> Target:
    """This machine. Its DRAM bandwidth is not known until `cost.measured` measures it."""
    system = Path("/sys/devices/system/cpu")
    clock = _read(system / "cpu0/cpufreq/cpuinfo_max_freq").strip()
    target = describe_host(Path("/proc/cpuinfo").read_text("utf-8", "replace"), platform.machine())
    clusters = target.clusters
    if clock.isdigit():
        clusters = tuple(replace(cluster, clock_hz=int(clock) * 1000) for cluster in clusters)
    return replace(
        target,
        clusters=_within(clusters, _usable_cores(system, Path("/sys/fs/cgroup"))),
        shared_cache_bytes=_last_cache(system / "cpu0/cache"),
        memory=_usable_memory(Path("/sys/fs/cgroup")),
        page_bytes=os.sysconf("SC_PAGE_SIZE"),
    )


def is_emulated() -> bool:
    """True if user-mode QEMU runs this process: it keeps its own name as the process's."""
    return _read(Path("/proc/self/comm")).startswith("qemu-")


def describe_host(cpuinfo: str, machine: str) -> Target:
    """The machine whose /proc/cpuinfo is `cpuinfo`, as far as that tells: features, cores, clock.

    Raises:
        TargetMissing: edgekit has no kernels for `machine`.
    """
    architecture = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}.get(machine)
    if architecture is None:
        raise TargetMissing(f"edgekit does not run on {machine}", hint="it runs on x86-64 and 64-bit Arm")
    processors = [_fields(block) for block in re.split(r"\n\s*\n", cpuinfo) if "processor" in block]
    if not processors:
        raise TargetMissing("/proc/cpuinfo lists no processor", hint="name a target instead of host")
    words = frozenset.intersection(*(_words(fields) for fields in processors))
    features = frozenset(name for name, feature in known_features().items() if feature.cpuinfo <= words)
    kinds: dict[str, list[dict[str, str]]] = {}
    for fields in processors:
        kinds.setdefault(_core_of(fields, architecture).name, []).append(fields)
    clusters = tuple(Cluster(load_core(name), len(members), _clock(members[0])) for name, members in kinds.items())
    return Target(
        name=HOST,
        title=_title(processors[-1], clusters),
        triple=f"{architecture}-linux-musl",
        qemu_cpu=None,
        features=features,
        clusters=clusters,
        shared_cache_bytes=Bytes(0),
        memory=Bytes(0),
        page_bytes=4096,
        dram=(),
        sources=("/proc/cpuinfo and /sys of this machine", *(cluster.core.source for cluster in clusters)),
    )


def cpuinfo_of(target: Target) -> str:
    """What /proc/cpuinfo of such a 64-bit Arm machine says: `describe_host` finds the target's cores and features."""
    words = frozenset().union(*(known_features()[name].cpuinfo for name in target.features))
    cores = [cluster.core for cluster in target.clusters for _ in range(cluster.count)]
    blocks = []
    for number, core in enumerate(cores):
        match = read_table(data_folder() / "cores" / f"{core.name}.toml", "core")["match"]
        fields = {
            "processor": number,
            "BogoMIPS": "100.00",
            "Features": " ".join(["fp", *sorted(words)]),
            "CPU implementer": match["implementer"],
            "CPU architecture": 8,
            "CPU variant": "0x0",
            "CPU part": match["part"][0],
            "CPU revision": 0,
        }
        blocks.append("".join(f"{key}\t: {value}\n" for key, value in fields.items()))
    return "\n".join([*blocks, f"Model\t\t: {target.title}\n"])


def _rate_of(listed: tuple[Rate, ...], threads: int) -> Rate | None:
    rates = sorted(listed, key=lambda rate: rate.threads)
    return next((rate for rate in reversed(rates) if rate.threads <= threads), rates[0] if rates else None)


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _words(fields: Mapping[str, str]) -> frozenset[str]:
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _core_of(fields: Mapping[str, str], architecture: str) -> Core:
    for path in sorted((data_folder() / "cores").glob("*.toml")):
        match = read_table(path, "core")["match"]
        is_arm = "part" in match and (fields.get("CPU implementer"), fields.get("CPU part")) in {
            (match["implementer"], part) for part in match["part"]
        }
        is_x86 = (
            "family" in match
            and (fields.get("vendor_id"), fields.get("cpu family")) == (match["vendor"], str(match["family"]))
            and (not match["model"] or fields.get("model", "") in map(str, match["model"]))
        )
        if is_arm or is_x86:
            return load_core(path.stem)
    return load_core(f"generic_{architecture}")


def _title(fields: Mapping[str, str], clusters: tuple[Cluster, ...]) -> str:
    return fields.get("model name") or ", ".join(cluster.core.title for cluster in clusters)


def _clock(fields: Mapping[str, str]) -> int:
    """The clock that cpuinfo gives, or 1 GHz where it gives none (Arm): predictions are then lower bounds."""
    megahertz = fields.get("cpu MHz", "")
    return int(float(megahertz) * 1e6) if megahertz else 1_000_000_000


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


def _usable_cores(system: Path, group: Path) -> int:
    """Physical cores that this process may use: threads of one core count once, and a container's quota is kept."""
    cpus = os.sched_getaffinity(0)
    cores = len({_read(system / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus})
    quota = re.match(r"(\d+) (\d+)", _read(group / "cpu.max"))
    return cores if quota is None else max(1, min(cores, int(quota[1]) // int(quota[2])))


def _usable_memory(group: Path) -> Bytes:
    """The machine's memory, or what its container may use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(group / "memory.max").strip()
    return Bytes(min(memory, int(limit)) if limit.isdigit() else memory)


def _within(clusters: tuple[Cluster, ...], cores: int) -> tuple[Cluster, ...]:
    """The clusters cut to `cores` cores, the later ones (fast cores have the higher numbers on Arm) kept first."""
    kept: list[Cluster] = []
    for cluster in reversed(clusters):
        count = min(cluster.count, cores - sum(other.count for other in kept))
        if count > 0:
            kept.insert(0, replace(cluster, count=count))
    return tuple(kept)


def _last_cache(folder: Path) -> Bytes:
    sizes = [_read(index / "size").strip() for index in sorted(folder.glob("index*"))]
    kibibytes = [int(size.removesuffix("K")) for size in sizes if re.fullmatch(r"\d+K", size)]
    return Bytes(max(kibibytes, default=0) * 1024)
