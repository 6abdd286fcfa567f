"""What compiling a checkpoint for a target would make, and what that takes, from headers alone."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekit.calibrate import inputs_bytes, measuring_bytes
from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.coherence import PROBE_WINDOW
from edgekit.cost import measured
from edgekit.errors import DoesNotFit
from edgekit.graph import build_graph
from edgekit.kept import default_recipe, kept_notes
from edgekit.methods import find_method
from edgekit.packed import Packed
from edgekit.passes import lower
from edgekit.plan import DEFAULT_KV, Plan, default_context, kv_bytes, make_plan
from edgekit.portable import stored_bytes
from edgekit.quantize import QuantGraph, assign, codes_bytes
from edgekit.scheme import Recipe
from edgekit.target import HOST, Target, load_target
from edgekit.units import Bytes

# Measured: what Python, ONNX Runtime and the kernels take before a model is opened.
_BASE_MEMORY = Bytes(450 << 20)


@dataclass(frozen=True, slots=True)
class _Converter:
    """What torch and an engine's converter take, in this process and in the one that tries what they made."""

    itself: Bytes
    each_layer: Bytes
    times_float32: int  # of the model's weights in float32
    times_weights: int  # of the weights as they are packed


# Measured: peaks of anonymous memory, edgekit's processes together, of models of 5, 47 and 118 million weights in 2 and
# 6 layers; for litert also of 135 million in 30, and for ExecuTorch's own kernels of next to none in 2 and 5.
_CONVERTERS = {
    ("executorch", "edgekit"): _Converter(Bytes(250 << 20), Bytes(0), 0, 1),
    ("executorch", "runtime"): _Converter(Bytes(150 << 20), Bytes(12 << 20), 3, 0),
    ("litert", "runtime"): _Converter(Bytes(100 << 20), Bytes(0), 5, 0),
}
_NO_CONVERTER = _Converter(Bytes(0), Bytes(0), 0, 0)


@dataclass(frozen=True)
class Forecast:
    """What a compile will make, known from the checkpoint's headers alone. `predicted` is the plan with rates.

    It is for the engine `engine`, with edgekit's kernels or the runtime's (`kernels`).
    """

    checkpoint: Checkpoint
    quant: QuantGraph
    target: Target
    plan: Plan
    predicted: Plan
    engine: str = "native"
    kernels: str = "edgekit"

    @property
    def device_bytes(self) -> Bytes:
        """Memory that the model takes on the target: weights, KV cache of the whole context, activations, runner."""
        return self.plan.device_bytes

    @property
    def fits(self) -> bool:
        """True if the target has that much memory."""
        return self.device_bytes <= self.target.memory

    @property
    def compile_bytes(self) -> Bytes:
        """Memory that compiling takes here, without files that are mapped: weights in float32, libraries."""
        decoder = self.checkpoint.decoder
        largest = max(int(np.prod(shape)) for shape in decoder.tensor_shapes().values())
        # A matrix in float32 and its transpose, or the logits of a window, which are there three times at once.
        working = max(2 * 4 * largest, 3 * 4 * PROBE_WINDOW * decoder.vocab, self._calibration_memory)
        # Packed words, their codes and what unpacking takes; a matrix is unpacked whole.
        working += 4 * largest if any(isinstance(info, Packed) for info in self.checkpoint.tensors.values()) else 0
        # The self-test keeps codes as they come and packed; halves it widens.
        formats = {scheme.format for scheme in self.quant.schemes.values()}
        halves = 4 * self.checkpoint.parameters if "f16" in formats else 0
        kept = 0 if formats == {"f32"} else 2 * self.plan.weights_bytes + halves
        converter = _CONVERTERS.get((self.engine, self.kernels), _NO_CONVERTER)
        converting = converter.each_layer * decoder.layers
        converting += converter.times_float32 * 4 * self.checkpoint.parameters
        converting += converter.times_weights * self.plan.weights_bytes
        most = max(working + kept, converting)
        return Bytes(_BASE_MEMORY + converter.itself + most + self.compile_cache_bytes)

    @property
    def compile_cache_bytes(self) -> Bytes:
        """What of that the context takes: the cache of the self-test's reference, in float32."""
        return Bytes(2 * kv_bytes(self.checkpoint.decoder, self.plan.context, "f16"))

    @property
    def disk_bytes(self) -> Bytes:
        """Space that compiling takes in the cache: weights in float32, as codes, in the self-test's graph; inputs."""
        codes = sum(codes_bytes(scheme, *self._sizes(name)) for name, scheme in self.quant.schemes.items())
        return Bytes(4 * self.checkpoint.parameters + codes + self.onnx_bytes + self._calibration_disk)

    @property
    def needs_inputs(self) -> bool:
        """True if the recipe's method needs the inputs of the linear layers."""
        return find_method(self.quant.recipe.method).needs_inputs

    @property
    def _calibration_memory(self) -> int:
        """What measuring inputs takes, or factoring the widest: twice in float64, and two factors in float32."""
        if not self.needs_inputs:
            return 0
        decoder = self.checkpoint.decoder
        widest = max(decoder.hidden, decoder.heads * decoder.head_dim, decoder.intermediate)
        return max(measuring_bytes(self.quant.graph), (2 * 8 + 2 * 4) * widest * widest)

    @property
    def _calibration_disk(self) -> int:
        return inputs_bytes(self.quant.graph) if self.needs_inputs else 0

    @property
    def onnx_bytes(self) -> Bytes:
        """Space that the weights take in standard ONNX."""
        return Bytes(sum(stored_bytes(scheme, *self._sizes(name)) for name, scheme in self.quant.schemes.items()))

    @property
    def output_bytes(self) -> Bytes:
        """Space that the bundle's weights take, laid out for its kernels; tokenizer, probe and runner are small."""
        return self.plan.weights_bytes if self.kernels == "edgekit" else self.onnx_bytes

    def _sizes(self, name: str) -> tuple[int, int]:
        n, k = self.checkpoint.decoder.tensor_shapes()[name]
        return n, k


def forecast(
    model: Path,
    target_name: str,
    recipe: Recipe | None,
    *,
    context: int | None,
    kv: str = DEFAULT_KV,
    engine: str = "native",
    kernels: str = "edgekit",
) -> Forecast:
    """What compiling `model` would make; without a recipe, by the one that suits it. Reads no weights.

    The plan asks nothing of this machine, so it is the same whenever it is made; only `predicted` has the memory rate
    of this machine, measured now, if the target is the host.
    """
    checkpoint = open_checkpoint(model)
    target = load_target(target_name)
    positions = default_context(checkpoint.decoder) if context is None else context
    quant = assign(build_graph(checkpoint, context=positions), recipe or default_recipe(checkpoint))
    quant = replace(quant, notes=(*quant.notes, *kept_notes(checkpoint, quant)))
    lowered = lower(quant)
    plan = make_plan(lowered, checkpoint.decoder, target, context=positions, kv=kv)
    predicted = plan
    if target_name == HOST:
        predicted = make_plan(lowered, checkpoint.decoder, measured(target), context=positions, kv=kv)
    return Forecast(checkpoint, quant, target, plan, predicted, engine, kernels)


def check_fit(found: Forecast, most_memory: Bytes | None, cache_root: Path, output: Path) -> None:
    """Nothing, if the model fits its target, and this machine can compile it and hold the bundle `output`.

    Raises:
        DoesNotFit: it does not.
    """
    if not found.fits:
        raise does_not_fit(found)
    if most_memory is not None and found.compile_bytes > most_memory:
        raise DoesNotFit(
            f"compiling takes {found.compile_bytes} of memory and --max-ram is {most_memory}",
            hint=_enough_memory(found, most_memory),
        )
    _check_disks(((cache_root, found.disk_bytes), (output.parent, found.output_bytes)))


def does_not_fit(found: Forecast) -> DoesNotFit:
    """The refusal of a model that is too large for its target."""
    return DoesNotFit(
        f"the model takes {found.device_bytes} and {found.target.name} has {found.target.memory}",
        hint=f"a recipe with fewer bits, or a --context below {found.plan.context}",
    )


def _enough_memory(found: Forecast, most: Bytes) -> str:
    """What to do about too little memory to compile."""
    enough = f"--max-ram {-(-found.compile_bytes >> 20)}M is enough"
    without_cache = found.compile_bytes - found.compile_cache_bytes
    return f"{enough}; so is a --context below {found.plan.context}" if without_cache < most else enough


def _check_disks(takes: tuple[tuple[Path, Bytes], tuple[Path, Bytes]]) -> None:
    """Whether the cache's folder and the bundle's have room for what goes there, also where both are on one disk."""
    (cache, working), (output, written) = takes
    for folder, _ in takes:
        folder.mkdir(parents=True, exist_ok=True)
    if cache.stat().st_dev == output.stat().st_dev:
        takes = ((cache, Bytes(working + written)), (output, written))
    for folder, size in takes:
        free = Bytes(shutil.disk_usage(folder).free)
        if size > free:
            raise DoesNotFit(
                f"compiling takes {size} in {folder} and {free} are free",
                hint="free some, set EDGEKIT_CACHE to a folder with more, or choose another place with -o",
            )
