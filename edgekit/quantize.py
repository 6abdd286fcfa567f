"""Turn a graph's weight matrices into codes and scales, as a recipe says.

Tensors are read, quantized and written one at a time and a few rows at once, so that memory does not grow with the
model. `assign` alone decides the schemes and reads no weights: estimate and plan need no more.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.archs import Decoder
from edgekit.checkpoint import Checkpoint
from edgekit.disk import reserve, write_whole, writing
from edgekit.errors import Damaged, Unsupported, UsageError
from edgekit.graph import Graph, with_biases
from edgekit.methods import Inputs, Method, find_method
from edgekit.packed import Packed
from edgekit.passes.gated import gated_pairs
from edgekit.scheme import Recipe, Rule, Scheme

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
UInt16 = npt.NDArray[np.uint16]
Progress = Callable[[str, int, int], None]  # tensor at work, weights done, weights in all

SCHEMA = 1
INDEX = "quantized.json"

_LARGEST_WEIGHT = 1e15


@dataclass(frozen=True, slots=True)
class QuantTensor:
    """A matrix (n, k) as codes int8 [n, k] and bf16 scales, their bits in uint16 [n, groups].

    For f16 and f32 `codes` holds the values in that type and `scales` is [n, 0].
    """

    name: str
    scheme: Scheme
    shape: tuple[int, int]
    codes: Array
    scales: UInt16

    def values(self, start: int = 0, stop: int | None = None) -> Float32:
        """The float32 values of rows [start, stop): what every engine computes with."""
        codes = np.asarray(self.codes[start:stop])
        if self.scheme.is_float:
            return codes.astype(np.float32)
        steps = np.repeat(widen_bf16(self.scales[start:stop]), self.scheme.group, axis=1)[:, : self.shape[1]]
        return (codes.astype(np.float32) + np.float32(self.scheme.offset)) * steps


@dataclass(frozen=True, slots=True)
class QuantGraph:
    """A graph with a scheme for every weight matrix and, once quantized, their codes and scales.

    `tensors`, `vectors` (norms and biases, float32) and `errors` (squared error relative to the squared weights) are
    empty until `quantize`. A tied head is the embedding and appears once. `calibrated_on` is a digest of the tokens
    that the inputs were measured on, if they were. `notes` are for the person.
    """

    graph: Graph
    recipe: Recipe
    schemes: Mapping[str, Scheme]
    calibrated_on: str | None = None
    notes: tuple[str, ...] = ()
    tensors: Mapping[str, QuantTensor] = field(default_factory=dict)
    vectors: Mapping[str, Float32] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def made_from(self) -> str:
        """Digest of the checkpoint, the recipe and what it was calibrated on: equal for equal codes and scales."""
        schemes = {name: str(scheme) for name, scheme in self.schemes.items()}
        parts = [SCHEMA, self.graph.made_from, self.recipe.method, schemes]
        parts += [] if self.calibrated_on is None else [self.calibrated_on]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def assign(graph: Graph, recipe: Recipe, *, calibrated_on: str | None = None) -> QuantGraph:
    """The graph with a scheme for every weight matrix, and no data.

    Gate and up are stored in one matrix, so both get the scheme of the one with more bits. A method that corrects
    biases gives one to every linear layer but the head.

    Raises:
        UsageError: a pattern of the recipe that no matrix matches.
        Unsupported: an unknown method.
    """
    rules = find_rules(graph.decoder, recipe)
    if find_method(recipe.method).corrects_biases:
        graph = with_biases(graph)
    schemes = {name: rule.scheme for name, rule in rules.items()}
    raised: Counter[str] = Counter()
    for pair in gated_pairs(graph.model.graph):
        # More bits, then smaller groups, are the better of two.
        low, high = sorted(pair, key=lambda name: (schemes[name].bits, -schemes[name].group))
        if schemes[low] != schemes[high]:
            raised[f"{_part(low)} is {schemes[high]} and not {schemes[low]}, as {_part(high)}"] += 1
            schemes[low] = schemes[high]
    notes = (f"{what} in {count} layers: they are one matrix" for what, count in raised.items())
    return QuantGraph(graph, recipe, schemes, calibrated_on, tuple(notes))


def find_rules(decoder: Decoder, recipe: Recipe) -> dict[str, Rule]:
    """The rule of the recipe for every weight matrix.

    Raises:
        UsageError: a pattern that no matrix matches.
    """
    matrices = [name for name, shape in decoder.tensor_shapes().items() if len(shape) == 2]
    rules = {name: recipe.rule_for(name) for name in matrices}
    for rule in recipe.rules:
        if rule not in rules.values():
            raise UsageError(
                f"the recipe's pattern '{rule.pattern}' matches no weight matrix that an earlier one leaves",
                hint=f"names are like {', '.join(name.removesuffix('.weight') for name in matrices[:3])}",
            )
    return rules


def quantize(
    graph: Graph,
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    inputs: Mapping[str, Inputs] | None = None,
    calibrated_on: str | None = None,
    directory: Path | None = None,
    progress: Progress | None = None,
) -> QuantGraph:
    """The graph with its weights quantized; codes and scales lie in files in `directory`, or in memory without one.

    `inputs` of the matrices are as `measure_inputs` gives them.

    Raises:
        UsageError, Unsupported: as `assign`; also a method that needs inputs without any, weights too large for f16.
        Damaged: weights that are not finite.
    """
    quant = assign(graph, recipe, calibrated_on=calibrated_on)
    method = find_method(recipe.method)
    if method.needs_inputs and inputs is None:
        raise UsageError(
            f"the method {recipe.method} needs the inputs of the linear layers",
            hint="edgekit.calibrate.measure_inputs measures them on a text",
        )
    shapes = quant.graph.decoder.tensor_shapes()
    vectors = {name: _vector(checkpoint, name, shape) for name, shape in shapes.items() if len(shape) == 1}
    for name, vector in vectors.items():
        _check_finite(vector, name)
    total, done = sum(int(np.prod(shapes[name])) for name in quant.schemes), 0
    tensors, errors = {}, {}
    for name, scheme in quant.schemes.items():
        shape = (shapes[name][0], shapes[name][1])
        tensor = _allocate(name, scheme, shape, directory)
        of_matrix = None if inputs is None else inputs.get(name)
        bias = vectors.get(f"{name.removesuffix('.weight')}.bias") if method.corrects_biases else None
        packed = checkpoint.tensors[name]
        lost = kept = 0.0
        for start, weights in checkpoint.read_blocks(name):
            if progress is not None:
                progress(name, done + start * shape[1], total)
            _check_finite(weights, name)
            stop = start + len(weights)
            if method.keeps_codes and isinstance(packed, Packed) and packed.holds(scheme):
                tensor.codes[start:stop], tensor.scales[start:stop] = packed.kept(scheme, start, stop)
            else:
                _fill(tensor, start, stop, weights, method, of_matrix)
            difference = tensor.values(start, stop) - weights
            if bias is not None and of_matrix is not None:
                bias[start:stop] -= difference @ of_matrix.mean
            lost += float(np.einsum("nk,nk->", difference, difference, dtype=np.float64))
            kept += float(np.einsum("nk,nk->", weights, weights, dtype=np.float64))
        tensors[name], errors[name] = _settled(tensor, directory), lost / kept if kept else 0.0
        done += shape[0] * shape[1]
    if progress is not None:
        progress("", total, total)
    quant = replace(quant, tensors=tensors, vectors=vectors, errors=errors)
    if directory is not None:
        _write_biases(quant, directory)
        _write_index(quant, directory)
    return quant


def open_quantized(
    graph: Graph, checkpoint: Checkpoint, recipe: Recipe, directory: Path, *, calibrated_on: str | None = None
) -> QuantGraph:
    """What `quantize` wrote to `directory` for the same graph, recipe and calibration.

    Raises:
        Damaged: the directory holds something else, or its files do not have the sizes they must.
    """
    quant = assign(graph, recipe, calibrated_on=calibrated_on)
    hint = f"delete {directory} and compile again"
    try:
        index = json.loads((directory / INDEX).read_text("utf-8"))
        found, errors = index["made_from"], dict(index["errors"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{directory / INDEX} is not readable: {error}", hint=hint) from error
    if found != quant.made_from:
        raise Damaged(f"{directory} was made from another checkpoint, recipe or calibration", hint=hint)
    shapes = quant.graph.decoder.tensor_shapes()
    tensors = {}
    for name, scheme in quant.schemes.items():
        n, k = shapes[name]
        try:
            codes, scales = _mapped(directory, name)
        except (OSError, ValueError) as error:
            raise Damaged(f"a file of {name} in {directory} is not readable: {error}", hint=hint) from error
        found_as = (codes.shape, codes.dtype, scales.shape, scales.dtype)
        if found_as != ((n, k), _stored_type(scheme), (n, _groups(scheme, k)), np.dtype(np.uint16)):
            raise Damaged(f"the files of {name} in {directory} have the wrong shape or type", hint=hint)
        tensors[name] = QuantTensor(name, scheme, (n, k), codes, scales)
    vectors = {name: _vector(checkpoint, name, shape) for name, shape in shapes.items() if len(shape) == 1}
    for name in _corrected(quant):
        try:
            vectors[name] = np.load(directory / f"{name}.npy", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise Damaged(f"the file of {name} in {directory} is not readable: {error}", hint=hint) from error
        if vectors[name].shape != shapes[name] or vectors[name].dtype != np.float32:
            raise Damaged(f"the file of {name} in {directory} has the wrong shape or type", hint=hint)
    return replace(quant, tensors=tensors, vectors=vectors, errors=errors)


def codes_bytes(scheme: Scheme, n: int, k: int) -> int:
    """Bytes of a matrix (n, k) as `quantize` writes it: codes of one byte or floats, and scales of two bytes."""
    return n * (k * _stored_type(scheme).itemsize + 2 * _groups(scheme, k))


def widen_bf16(bits: UInt16) -> Float32:
    """The float32 values of bf16 numbers given by their bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _part(name: str) -> str:
    """up_proj of model.layers.0.mlp.up_proj.weight."""
    return name.removesuffix(".weight").rpartition(".")[2]


def _stored_type(scheme: Scheme) -> np.dtype[Any]:
    types: dict[str, npt.DTypeLike] = {"f32": np.float32, "f16": np.float16}
    return np.dtype(types.get(scheme.format, np.int8))


def _groups(scheme: Scheme, k: int) -> int:
    return 0 if scheme.is_float else scheme.groups(k)


def _allocate(name: str, scheme: Scheme, shape: tuple[int, int], directory: Path | None) -> QuantTensor:
    def make(part: str, columns: int, dtype: np.dtype[Any]) -> Array:
        if directory is None:
            return np.empty((shape[0], columns), dtype)
        file = directory / f"{name}.{part}.npy"
        with writing(file):
            array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=(shape[0], columns))
        reserve(file)
        return array

    codes = make("codes", shape[1], _stored_type(scheme))
    return QuantTensor(name, scheme, shape, codes, make("scales", _groups(scheme, shape[1]), np.dtype(np.uint16)))


def _fill(tensor: QuantTensor, start: int, stop: int, weights: Float32, method: Method, inputs: Inputs | None) -> None:
    if not tensor.scheme.is_float:
        tensor.codes[start:stop], tensor.scales[start:stop] = method.quantize_matrix(weights, tensor.scheme, inputs)
        return
    if tensor.scheme.format == "f16" and np.abs(weights).max(initial=0) > np.finfo(np.float16).max:
        raise Unsupported(f"{tensor.name} has weights beyond the range of f16", hint="give it f32 or q8 in the recipe")
    tensor.codes[start:stop] = weights


def _vector(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Float32:
    """The vector `name`; zeros for a bias that the checkpoint does not have."""
    return checkpoint.read(name) if name in checkpoint.tensors else np.zeros(shape, np.float32)


def _corrected(quant: QuantGraph) -> list[str]:
    """The biases that are not the checkpoint's."""
    if not find_method(quant.recipe.method).corrects_biases:
        return []
    return [name for name in quant.graph.decoder.tensor_shapes() if name.endswith(".bias")]


def _check_finite(weights: Float32, name: str) -> None:
    if not np.isfinite(weights).all():
        raise Damaged(f"{name} has weights that are not finite", hint="train or download the checkpoint again")
    # The squared error of larger ones would overflow.
    if np.abs(weights).max(initial=0) > _LARGEST_WEIGHT:
        raise Damaged(f"{name} has weights above {_LARGEST_WEIGHT:g}", hint="train or download the checkpoint again")


def _settled(tensor: QuantTensor, directory: Path | None) -> QuantTensor:
    """The tensor read back from its files: pages that were written no longer count as this process's memory."""
    if directory is None:
        return tensor
    for part in (tensor.codes, tensor.scales):
        if isinstance(part, np.memmap):
            with writing(Path(str(part.filename))):
                part.flush()
    codes, scales = _mapped(directory, tensor.name)
    return replace(tensor, codes=codes, scales=scales)


def _mapped(directory: Path, name: str) -> tuple[Array, UInt16]:
    codes, scales = (
        np.lib.format.open_memmap(directory / f"{name}.{part}.npy", mode="r") for part in ("codes", "scales")
    )
    return codes, scales


def _write_biases(quant: QuantGraph, directory: Path) -> None:
    for name in _corrected(quant):
        file = directory / f"{name}.npy"
        with writing(file):
            np.save(file, quant.vectors[name])


def _write_index(quant: QuantGraph, directory: Path) -> None:
    """The index is written last: a directory without one is not finished."""
    index = {"schema": SCHEMA, "made_from": quant.made_from, "errors": dict(quant.errors)}
    write_whole(directory / INDEX, json.dumps(index, indent=1))
