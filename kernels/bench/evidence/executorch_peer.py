"""ExecuTorch's XNNPACK backend: linear layers of 8-bit activations and 4-bit weights (8da4w), in a venv of its own."""

import subprocess
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from evidence import products
from evidence.native import Programs, Timed
from evidence.progress import ToolFailed, run, say
from evidence.samples import Comparison
from evidence.shapes import PRODUCTS, Product

PACKAGES: Final = ("executorch==1.4.1", "torch==2.13.0", "torchao==0.18")
GROUPS: Final = (32, 128)
_WORKER: Final = Path(__file__).with_name("executorch_worker.py")


def weight_bytes(product: Product, group: int) -> int:
    """Bytes of 4-bit codes, of a bf16 scale a group and of a float32 sum a row, as XNNPACK packs them."""
    return product.n * product.k // 2 + 2 * product.n * product.k // group + 4 * product.n


def make_environment(work: Path) -> Path:
    """The Python of an environment that has ExecuTorch, made under `work` unless it is there.

    Raises:
        ToolFailed: it cannot be had.
    """
    folder = work / "executorch-venv"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        say(f"installing {', '.join(PACKAGES)} ...")
        venv.create(folder, with_pip=True, clear=True)
        run([python, "-m", "pip", "install", "-q", *PACKAGES])
        ready.touch()
    return python


class Worker:
    """A process that holds the layers and times them when asked."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, held: int) -> None:
        self._process = process
        self._log = log
        self._held = held
        self._read("ready")

    def time(self) -> Timed:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Timed(float(self._read()), self._held)

    def _read(self, wanted: str = "") -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line or (wanted and line != wanted):
            last = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise ToolFailed(f"ExecuTorch stopped: {' '.join([line, *last])}")
        return line


@contextmanager
def open_worker(python: Path, work: Path, product: Product, group: int, threads: int) -> Iterator[Worker]:
    held = weight_bytes(product, group)
    folder = work / "executorch"
    folder.mkdir(exist_ok=True)
    words = [product.m, product.n, product.k, group, products.copies_of(product, held), threads, products.SECONDS]
    command = [str(python), str(_WORKER), *map(str, words), str(folder)]
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
        )
        try:
            yield Worker(process, log, held)
        finally:
            process.kill()
            process.communicate()


def compare(programs: Programs, work: Path, threads: int, rounds: int) -> Iterator[Comparison]:
    """Every product at every group.

    Raises:
        ToolFailed: ExecuTorch cannot be had, or stops.
    """
    python = make_environment(work)
    for product in PRODUCTS:
        for group in GROUPS:
            with open_worker(python, work, product, group, threads) as worker:
                yield products.compare(
                    "executorch",
                    programs,
                    product,
                    weights="q4",
                    group=group,
                    theirs_name=f"XNNPACK 8da4w, group {group}",
                    theirs=worker.time,
                    threads=threads,
                    rounds=rounds,
                )
