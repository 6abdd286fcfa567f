"""Times linear layers in ExecuTorch's XNNPACK backend; started by executorch_peer.py in its own venv.

    python executorch_worker.py M N K GROUP COPIES THREADS SECONDS FOLDER

Layers are quantized by torchao to 8-bit dynamic activations and 4-bit weights (8da4w). A program holds up to LAYERS of
them, and as many programs are loaded as give COPIES layers. For every line on stdin it prints the seconds of a layer.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.extension.pybindings import _portable_lib
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
from torchao.quantization.granularity import PerGroup

LAYERS = 8


class Layers(torch.nn.Module):
    def __init__(self, count: int, n: int, k: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(k, n, bias=False) for _ in range(count))

    def forward(self, a: torch.Tensor) -> list[torch.Tensor]:
        return [layer(a) for layer in self.layers]


def lower(file: Path, *, m: int, n: int, k: int, group: int, count: int) -> None:
    """Writes a program of `count` layers, every one of them in the delegate."""
    torch.manual_seed(0)
    model = Layers(count, n, k).eval()
    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(group))
    quantize_(model, config)
    exported = torch.export.export(model, (torch.randn(m, k),))
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    left = [str(node.target) for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    outside = [name for name in left if "delegate" not in name and "getitem" not in name]
    if outside:
        sys.exit(f"XNNPACK did not take {', '.join(sorted(set(outside)))}")
    part = file.with_suffix(".part")
    part.write_bytes(edge.to_executorch().buffer)
    part.rename(file)


def main() -> None:
    m, n, k, group, copies, threads = map(int, sys.argv[1:7])
    seconds, folder = float(sys.argv[7]), Path(sys.argv[8])
    count = min(LAYERS, copies)
    file = folder / f"{m}x{n}x{k}g{group}x{count}.pte"
    with torch.no_grad():
        if not file.exists():
            lower(file, m=m, n=n, k=k, group=group, count=count)
        _portable_lib._unsafe_reset_threadpool(threads)
        programs = [_portable_lib._load_for_executorch(str(file)) for _ in range(-(-copies // count))]
        inputs = (torch.randn(m, k),)
        for program in programs:
            program.forward(inputs)
        print("ready", flush=True)
        for _ in sys.stdin:
            passes: list[float] = []
            start = time.perf_counter()
            while len(passes) < 3 or time.perf_counter() - start < seconds:
                begin = time.perf_counter()
                for program in programs:
                    program.forward(inputs)
                passes.append((time.perf_counter() - begin) / (count * len(programs)))
            print(statistics.median(passes), flush=True)


main()
