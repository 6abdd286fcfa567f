"""What the linear layers of a model are multiplied by, measured through the float graph on ONNX Runtime.

The inputs of the layers become outputs of the graph, some layers a pass, and every pass runs the model up to its last
one. Layers that share an input (q, k, v; gate, up) share its moments. A tied head is calibrated as the head it is: what
it is multiplied by is the last norm's result. An embedding that is no head only looks up rows, and has no inputs.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import onnxruntime

from edgekit.checkpoint import Checkpoint
from edgekit.disk import write_whole, writing
from edgekit.errors import Damaged, UsageError
from edgekit.graph import Graph, Int64, Tokens, build_graph, load_graph, open_session, save_graph
from edgekit.methods import Float32, Inputs

Progress = Callable[[int, int], None]  # tokens run, tokens to run in all passes

INDEX: Final = "inputs.json"

_Item = TypeVar("_Item")
_PASS_BYTES: Final = 1 << 30  # of moments; one input's are always taken
_BATCH_BYTES: Final = 128 << 20  # of values to sum over at once
_HEAD, _EMBEDDING = "lm_head", "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class _Site:
    """A value [1, s, k] of the graph, and the matrices that it is multiplied by."""

    value: str
    k: int
    matrices: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return 4 * self.k * self.k


def measure_inputs(
    checkpoint: Checkpoint,
    sequences: Sequence[Tokens],
    *,
    saved: Path | None = None,
    directory: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Mapping[str, Inputs]:
    """The inputs of every matrix that is multiplied by, by its name, over `sequences`, each run on its own.

    Moments take 4 k^2 bytes an input. They lie in files in `directory`, and in memory as many as a pass measures (a
    gigabyte, or those of one input); or all in memory without one. `saved` is the folder of the checkpoint's graph by
    `save_graph`; without one the weights go to a temporary folder, 4 bytes each. `threads`: without a number one for
    each core.

    Raises:
        UsageError: no tokens, one outside the vocabulary, or more in a sequence than the context holds.
        Damaged: activations that are not finite.
    """
    rows = [np.asarray(ids, np.int64).reshape(1, -1) for ids in sequences]
    longest = max((ids.size for ids in rows), default=0)
    if longest == 0:
        raise UsageError("there are no tokens to calibrate on", hint="give a longer text")
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        if saved is None:
            saved = Path(folder)
            save_graph(build_graph(checkpoint, context=longest), saved)
        graph = load_graph(saved)
        _check(rows, longest, graph)
        sites = _sites(graph)
        passes, threads = list(_in_memory(sites)), threads or len(os.sched_getaffinity(0))
        tokens, done = sum(ids.size for ids in rows), 0
        found: dict[str, Inputs] = {}
        for of_pass in passes:
            run = _Exposed(graph, of_pass, saved, threads)
            sums = [_Sums(site) for site in of_pass]
            # Few large products are faster than many.
            most = _BATCH_BYTES // (4 * sum(site.k for site in of_pass))
            for batch in _portions(rows, lambda ids: ids.size, most):
                for parts, of_site in zip(zip(*map(run.inputs, batch), strict=True), sums, strict=True):
                    of_site.add(np.concatenate(parts))
                done += sum(ids.size for ids in batch)
                if progress is not None:
                    progress(done, tokens * len(passes))
            for site, of_site in zip(of_pass, sums, strict=True):
                inputs = of_site.means(tokens)
                if directory is None:
                    found |= dict.fromkeys(site.matrices, inputs)
                else:
                    _write(inputs, directory, site)
    if directory is None:
        return found
    _write_index(directory, sites, tokens)
    return open_inputs(directory)


def inputs_bytes(graph: Graph) -> int:
    """Bytes of the moments of all inputs."""
    return sum(site.bytes for site in _sites(graph))


def measuring_bytes(graph: Graph) -> int:
    """Memory that the moments take while they are measured into a folder: those of a pass, a product, and values."""
    sites = _sites(graph)
    of_passes = max(sum(site.bytes for site in of_pass) for of_pass in _in_memory(sites))
    return of_passes + max(site.bytes for site in sites) + _BATCH_BYTES


def open_inputs(directory: Path) -> Mapping[str, Inputs]:
    """What `measure_inputs` wrote to `directory`, mapped from its files.

    Raises:
        Damaged: it holds something else.
    """
    found: dict[str, Inputs] = {}
    try:
        index = json.loads((directory / INDEX).read_text("utf-8"))
        for value, matrices in index["sites"].items():
            second, mean = (
                np.load(directory / f"{value}.{part}.npy", mmap_mode="r", allow_pickle=False)
                for part in ("second", "mean")
            )
            if second.shape != (mean.size, mean.size) or {second.dtype, mean.dtype} != {np.dtype(np.float32)}:
                raise ValueError(f"{value} has the wrong shape or type")
            found |= dict.fromkeys(matrices, Inputs(second, mean, index["tokens"]))
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{directory} holds no inputs: {error}", hint=f"delete {directory} and compile again") from error
    return found


class _Sums:
    """Sums over tokens of a site's values x: x x^T in float32, a batch at a time, and x in float64."""

    def __init__(self, site: _Site) -> None:
        self._name = site.matrices[0]
        self._second = np.zeros((site.k, site.k), np.float32)
        self._first = np.zeros(site.k)

    def add(self, x: Float32) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # `means` looks
            self._second += x.T @ x
            self._first += x.sum(0, dtype=np.float64)

    def means(self, tokens: int) -> Inputs:
        """The sums, which are used up, over `tokens`."""
        self._second /= tokens
        if not np.isfinite(self._second).all():
            raise Damaged(f"the inputs of {self._name} are not finite", hint="train or download the checkpoint again")
        return Inputs(self._second, (self._first / tokens).astype(np.float32), tokens)


class _Exposed:
    """The graph up to the last of some sites, which are its outputs."""

    def __init__(self, graph: Graph, sites: Sequence[_Site], saved: Path, threads: int) -> None:
        self._sites = [site.value for site in sites]
        model = graph.model.clone()
        values = {value.name: value for node in model.graph for value in node.outputs}
        model.graph.outputs[:] = [values[name] for name in self._sites]
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
        caches = [value for value in model.graph.inputs if str(value.name).startswith("past_") and value.uses()]
        model.graph.inputs[:] = [*model.graph.inputs[:2], *caches]
        model.graph.outputs.extend(values[_present(str(value.name))] for value in caches)
        content = ir.to_proto(model).SerializeToString()
        self._session = open_session(content, threads=threads, data=saved)
        self._caches = {
            value.name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(value.shape, np.float32))
            for value in self._session.get_inputs()
            if value.name.startswith("past_")
        }

    def inputs(self, ids: Int64) -> Iterator[Float32]:
        """The sites' values [s, k] for the tokens [1, s] in an empty cache."""
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("position", np.zeros(1, np.int64))
        for name in self._sites:
            binding.bind_output(name, "cpu")
        for name, cache in self._caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(_present(name), cache)
        self._session.run_with_iobinding(binding)
        for value in binding.get_outputs()[: len(self._sites)]:
            yield value.numpy()[0]


def _present(past: str) -> str:
    return past.replace("past_", "present_")


def _sites(graph: Graph) -> list[_Site]:
    """What the checkpoint's matrices are multiplied by, in the order in which it is computed."""
    shapes = graph.decoder.tensor_shapes()
    matrices: dict[str, list[str]] = {}
    for node in graph.model.graph:
        if node.op_type == "MatMul":
            is_tied = node.name == _HEAD and graph.decoder.tied
            assert node.inputs[0] is not None
            matrices.setdefault(str(node.inputs[0].name), []).append(f"{_EMBEDDING if is_tied else node.name}.weight")
    return [_Site(value, shapes[names[0]][1], tuple(names)) for value, names in matrices.items()]


def _in_memory(sites: Sequence[_Site]) -> Iterator[list[_Site]]:
    """Neighbours whose moments fit into memory together."""
    return _portions(sites, lambda site: site.bytes, _PASS_BYTES)


def _portions(items: Sequence[_Item], size: Callable[[_Item], int], most: int) -> Iterator[list[_Item]]:
    """Neighbours whose sizes are together no more than `most`; one that is larger stands alone."""
    portion: list[_Item] = []
    taken = 0
    for item in items:
        if portion and taken + size(item) > most:
            yield portion
            portion, taken = [], 0
        portion.append(item)
        taken += size(item)
    yield portion


def _check(rows: Sequence[Int64], longest: int, graph: Graph) -> None:
    if longest > graph.context:
        raise UsageError(f"{longest} tokens do not fit the context", hint=f"it holds {graph.context}")
    vocab = graph.decoder.vocab
    for ids in rows:
        outside = ids[(ids < 0) | (ids >= vocab)]
        if outside.size:
            raise UsageError(f"the token {outside[0]} is outside the vocabulary", hint=f"from 0 to {vocab - 1}")


def _write(inputs: Inputs, directory: Path, site: _Site) -> None:
    for part, values in (("second", inputs.second), ("mean", inputs.mean)):
        file = directory / f"{site.value}.{part}.npy"
        with writing(file):
            np.save(file, values)


def _write_index(directory: Path, sites: Sequence[_Site], tokens: int) -> None:
    """Written last: a directory without an index is not finished."""
    index = {"tokens": tokens, "sites": {site.value: site.matrices for site in sites}}
    write_whole(directory / INDEX, json.dumps(index, indent=1))
