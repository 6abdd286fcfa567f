"""`edgekit targets`: the kinds of machine that edgekit compiles for."""

import click

from edgekit.cli._console import show_json, show_pairs, show_table
from edgekit.target import Target, load_target, target_names


@click.command
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(name: str | None, as_json: bool) -> None:
    """List the targets, or describe the target NAME.

    `host` is this machine.
    """
    if name is None:
        found = [load_target(each) for each in target_names()]
        if as_json:
            show_json([describe(target) for target in found])
            return
        rows = [(t.name, t.best_isa, _cores(t), t.memory, _emulated(t), t.title) for t in found]
        show_table(("target", "isa", "cores", "memory", "emulated by", "title"), rows)
        return
    target = load_target(name)
    if as_json:
        show_json(describe(target))
        return
    show_pairs(
        [
            ("target", target.name),
            ("title", target.title),
            ("triple", target.triple),
            ("isas", ", ".join(isa.word for isa in target.isas)),
            *(
                (f"{cluster.count} cores", _cluster(cluster.core.title, cluster.clock_hz))
                for cluster in target.clusters
            ),
            ("shared cache", target.shared_cache_bytes or "not known"),
            ("memory", target.memory),
            ("page", target.page_bytes),
            *(
                (f"{rate.threads} threads read", f"{rate.bytes_per_second / 1e9:.1f} GB/s ({rate.kind})")
                for rate in target.dram
            ),
            ("emulated by", _emulated(target) or "-"),
            *(("source", source) for source in target.sources),
        ]
    )


def describe(target: Target) -> dict[str, object]:
    """The target as JSON."""
    return {
        "name": target.name,
        "title": target.title,
        "triple": target.triple,
        "libc": target.libc,
        "isas": [isa.word for isa in target.isas],
        "qemu_cpu": target.qemu_cpu,
        "cores": [
            {"core": cluster.core.name, "count": cluster.count, "clock_hz": cluster.clock_hz}
            for cluster in target.clusters
        ],
        "shared_cache_bytes": target.shared_cache_bytes,
        "memory_bytes": target.memory,
        "page_bytes": target.page_bytes,
        "dram": [
            {"threads": r.threads, "bytes_per_second": r.bytes_per_second, "kind": r.kind, "source": r.source}
            for r in target.dram
        ],
        "sources": list(target.sources),
    }


def _cores(target: Target) -> str:
    return " + ".join(f"{cluster.count} {cluster.core.name}" for cluster in target.clusters)


def _cluster(title: str, clock_hz: int) -> str:
    return f"{title}, {clock_hz / 1e9:.2f} GHz"


def _emulated(target: Target) -> str:
    return f"--device qemu:{target.name}" if target.qemu_cpu else ""
