"""From a checkpoint to a bundle that has been tried: the whole flow, in order, on one screen.

Stages that take long (reference, probe, quantize) are kept in the cache, so a compile that was interrupted goes on
where it was.
"""

import hashlib
import importlib.resources
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edgekit.bundle import MODELS, Bundle, Contents, Draft, draft_bundle, find_runner
from edgekit.cache import Cache, code_digest
from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.coherence import CONTINUATIONS, PROBE_WINDOW, Tokens, make_probe
from edgekit.cores import known_features
from edgekit.cost import measured
from edgekit.engines import check_engine
from edgekit.engines.native import Extras, write_program
from edgekit.engines.onnxruntime import write_model
from edgekit.errors import Damaged, DoesNotFit, Unsupported, UsageError
from edgekit.graph import Session, build_graph, save_graph
from edgekit.measure import Measurement
from edgekit.passes import lower
from edgekit.plan import Plan, default_context, make_plan
from edgekit.quantize import QuantGraph, assign, open_quantized, quantize
from edgekit.scheme import Recipe, parse_recipe
from edgekit.selftest import Agreement, Trial, native_trial, onnx_trial, try_model
from edgekit.target import HOST, Target, load_target
from edgekit.tokenizer import pack_tokenizer
from edgekit.units import Bytes

Progress = Callable[[str, int, int], None]  # stage, parts done, parts in all (0: not known)

_LARGE = 300_000_000  # parameters
_CONTINUATIONS_IF_LARGE = 3
# Measured: what Python, ONNX Runtime and the kernels take before a model is opened.
_BASE_MEMORY = Bytes(450 << 20)


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be compiled, for what, and where to. `probe_text` None is edgekit's own."""

    model: Path
    target: str
    recipe: Recipe
    output: Path
    engine: str = "native"
    context: int | None = None
    probe_text: str | None = None
    force: bool = False
    most_memory: Bytes | None = None


@dataclass(frozen=True)
class Forecast:
    """What a compile will make, known from the checkpoint's headers alone. `predicted` is the plan with rates."""

    checkpoint: Checkpoint
    quant: QuantGraph
    target: Target
    plan: Plan
    predicted: Plan

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
        """Memory that compiling takes here; weights in float32 are mapped from a file and do not count."""
        decoder = self.checkpoint.decoder
        largest = max(int(np.prod(shape)) for shape in decoder.tensor_shapes().values())
        # A matrix in float32 and its transpose, or the logits of a window, which are there three times at once.
        working = max(2 * 4 * largest, 3 * 4 * PROBE_WINDOW * decoder.vocab)
        # The self-test keeps codes as they come and packed; halves it widens. Its cache is twice as wide as the plan's.
        formats = {scheme.format for scheme in self.quant.schemes.values()}
        halves = 4 * self.checkpoint.parameters if "f16" in formats else 0
        kept = 0 if formats == {"f32"} else 2 * self.plan.weights_bytes + halves
        return Bytes(_BASE_MEMORY + working + kept + 2 * self.plan.kv_bytes)

    @property
    def disk_bytes(self) -> Bytes:
        """Space that compiling takes in the cache: weights in float32, and as codes of a byte each, twice."""
        return Bytes(6 * self.checkpoint.parameters)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A bundle, how well it agrees with the quantized graph, and how coherent it is.

    `predicted` has figures by name, none for an engine whose speed and memory are not planned.
    """

    bundle: Bundle
    predicted: Mapping[str, float | None]
    agreement: Agreement
    measurement: Measurement


def build(order: Order, cache: Cache, progress: Progress, on_forecast: Callable[[Forecast], None]) -> Outcome:
    """Compiles what was ordered. The bundle appears only if it ran, and its logits were those of the quantized graph.

    `on_forecast` is told what will be made and what that takes, before anything that takes long.

    Raises:
        DoesNotFit: the model is too large for the target, or compiling it for this machine.
        GateFailed: the bundle computes something else than the graph.
        Damaged, Unsupported, TargetMissing, UsageError: what was ordered cannot be made.
    """
    check_engine(order.engine)
    with draft_bundle(order.output, force=order.force) as draft, cache.in_use():
        found = forecast(order.model, order.target, order.recipe, context=order.context)
        on_forecast(found)
        check_fit(found, order.most_memory, cache.root)
        if order.engine == "native":
            check_native(found)
        ids = probe_ids(found.checkpoint, order.probe_text)
        probe = _probe(found, ids, cache, progress)
        quant = _quantize(found, order.recipe, cache, progress)
        trial = _WRITERS[order.engine](draft, found, quant, probe, progress)
        agreement, measurement = try_model(trial, quant, ids, cache=cache, progress=progress)
        bundle = draft.publish(_contents(found, order.engine, measurement))
        predicted = _predicted(found.predicted) if order.engine == "native" else {}
    return Outcome(bundle, predicted, agreement, measurement)


def embedded_model() -> Path:
    """The checkpoint that comes with edgekit."""
    return _package() / "models" / "tales"


def probe_text() -> str:
    """The held-out text that comes with edgekit."""
    return (_package() / "probe.txt").read_text("utf-8")


def is_made_from(checkpoint: Checkpoint, bundle: Bundle) -> bool:
    """True if the bundle was compiled from this checkpoint."""
    # The digest does not depend on the context, and the bundle's recipe is written in full.
    quant = assign(build_graph(checkpoint, context=1), parse_recipe(bundle.recipe))
    return quant.made_from == bundle.made_from


def forecast(model: Path, target_name: str, recipe: Recipe, *, context: int | None) -> Forecast:
    """What compiling `model` would make. Reads no weights.

    The plan asks nothing of this machine, so it is the same whenever it is made; only `predicted` has the memory rate
    of this machine, measured now, if the target is the host.
    """
    checkpoint = open_checkpoint(model)
    target = load_target(target_name)
    positions = default_context(checkpoint.decoder) if context is None else context
    quant = assign(build_graph(checkpoint, context=positions), recipe)
    lowered = lower(quant)
    plan = make_plan(lowered, checkpoint.decoder, target, context=positions)
    predicted = plan
    if target_name == HOST:
        predicted = make_plan(lowered, checkpoint.decoder, measured(target), context=positions)
    return Forecast(checkpoint, quant, target, plan, predicted)


def check_fit(found: Forecast, most_memory: Bytes | None, cache_root: Path) -> None:
    """Nothing, if the model fits its target and this machine can compile it.

    Raises:
        DoesNotFit: it does not.
    """
    if not found.fits:
        raise DoesNotFit(
            f"the model takes {found.device_bytes} and {found.target.name} has {found.target.memory}",
            hint=f"a recipe with fewer bits, or a --context below {found.plan.context}",
        )
    if most_memory is not None and found.compile_bytes > most_memory:
        raise DoesNotFit(
            f"compiling takes {found.compile_bytes} of memory and --max-ram is {most_memory}",
            hint="a --context that is shorter takes less",
        )
    cache_root.mkdir(parents=True, exist_ok=True)
    free = Bytes(shutil.disk_usage(cache_root).free)
    if found.disk_bytes > free:
        raise DoesNotFit(
            f"compiling takes {found.disk_bytes} in {cache_root} and {free} are free",
            hint="free some, or set EDGEKIT_CACHE to a folder with more",
        )


def check_native(found: Forecast) -> None:
    """Nothing, if the native engine has what it takes. Writing would find out too, but late.

    Raises:
        TargetMissing: there is no runner for the target.
        Unsupported, Damaged: a tokenizer that the runner would not do exactly, or none.
    """
    find_runner(found.target.triple)
    pack_tokenizer(tokenizer_file(found.checkpoint))


def tokenizer_file(checkpoint: Checkpoint) -> Path:
    """The checkpoint's tokenizer.json.

    Raises:
        Unsupported: it has none.
    """
    if checkpoint.tokenizer_file is None:
        raise Unsupported(
            f"{checkpoint.path} holds no tokenizer.json", hint="save it with a fast tokenizer of transformers"
        )
    return checkpoint.tokenizer_file


def probe_ids(checkpoint: Checkpoint, text: str | None) -> Tokens:
    """The probe's text in the checkpoint's tokens, nothing put before it.

    Raises:
        Unsupported: the checkpoint has no tokenizer.
        UsageError: the text is too short to predict anything.
    """
    ids = tokens_of(checkpoint, probe_text() if text is None else text)
    if len(ids) < 2:
        raise UsageError(f"the probe text has {len(ids)} tokens, too few to predict one", hint="give a longer text")
    return ids


def tokens_of(checkpoint: Checkpoint, text: str, *, special: bool = False) -> Tokens:
    """`text` in tokens; `special` adds what the tokenizer puts around a text.

    Raises:
        Unsupported: the checkpoint has no tokenizer.
        Damaged: its tokenizer is malformed, or gives tokens that the model does not have.
    """
    file, vocab = tokenizer_file(checkpoint), checkpoint.decoder.vocab
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        # The package raises nothing narrower for a file that it cannot read.
        raise Damaged(f"{file} is not a tokenizer: {error}", hint="download it again") from error
    ids = np.array(tokenizer.encode(text, add_special_tokens=special).ids, np.uint32)
    if len(ids) and ids.max() >= vocab:
        raise Damaged(
            f"{file} gives the token {ids.max()} and the model has {vocab}", hint="they belong to different models"
        )
    return ids


def open_reference(checkpoint: Checkpoint, *, context: int, cache: Cache, progress: Progress) -> Session:
    """The checkpoint's float32 graph, ready to run; its weights are written to the cache once."""
    key = {"code": code_digest(), "checkpoint": checkpoint.digest, "context": str(context)}
    found = cache.find("reference", key)
    if found is None:
        with cache.fill("reference", key) as folder:
            graph = build_graph(checkpoint, context=context)
            save_graph(graph, folder, progress=_part(progress, "reference: write weights in float32"))
        found = cache.find("reference", key)
        assert found is not None
    return Session(found / "model.onnx", threads=len(os.sched_getaffinity(0)))


def _probe(found: Forecast, ids: Tokens, cache: Cache, progress: Progress) -> bytes:
    """The probe section, from the float graph."""
    checkpoint, context = found.checkpoint, min(found.plan.context, PROBE_WINDOW)
    text = hashlib.sha256(ids.tobytes()).hexdigest()
    key = {"code": code_digest(), "checkpoint": checkpoint.digest, "context": str(context), "text": text}
    done = cache.find("probe", key)
    if done is None:
        with (
            open_reference(checkpoint, context=context, cache=cache, progress=progress) as session,
            cache.fill("probe", key) as folder,
        ):
            report = _part(progress, "probe: run the float32 reference")
            # In float32 a large model decodes slowly: a minute a continuation at 3 billion parameters on two cores.
            continuations = CONTINUATIONS if checkpoint.parameters < _LARGE else _CONTINUATIONS_IF_LARGE
            begin = checkpoint.bos_id
            probe = make_probe(
                session, ids, context=context, begin=begin, continuations=continuations, on_progress=report
            )
            (folder / "probe").write_bytes(probe)
        return probe
    return (done / "probe").read_bytes()


def _quantize(found: Forecast, recipe: Recipe, cache: Cache, progress: Progress) -> QuantGraph:
    """Codes and scales, mapped from the cache."""
    graph, checkpoint = found.quant.graph, found.checkpoint
    key = {"code": code_digest(), "made_from": found.quant.made_from}
    if cache.find("quantize", key) is None:
        with cache.fill("quantize", key) as folder:

            def report(tensor: str, done: int, total: int) -> None:
                progress(f"quantize: {recipe}", done, total)

            quantize(graph, checkpoint, recipe, directory=folder, progress=report)
    folder_found = cache.find("quantize", key)
    assert folder_found is not None
    return open_quantized(graph, checkpoint, recipe, folder_found)


def _write_native(draft: Draft, found: Forecast, quant: QuantGraph, probe: bytes, progress: Progress) -> Trial:
    """The program file and its runner, and where they can be tried."""
    checkpoint = found.checkpoint
    draft.add_runner(found.target.triple)
    draft.add_tokenizer(tokenizer_file(checkpoint))
    extras = Extras(pack_tokenizer(tokenizer_file(checkpoint)), probe, checkpoint.bos_id, checkpoint.eos_ids)
    write_program(found.plan, quant, extras, draft.program, progress=_part(progress, "write: pack the weights"))
    return native_trial(found.target, draft.program, draft.runner)


def _write_onnx(draft: Draft, found: Forecast, quant: QuantGraph, probe: bytes, progress: Progress) -> Trial:
    """The graph for stock ONNX Runtime, which is tried on this machine."""
    checkpoint = found.checkpoint
    draft.add_tokenizer(tokenizer_file(checkpoint))
    report = _part(progress, "write: standard ONNX")
    write_model(quant, draft.folder, probe=probe, bos=checkpoint.bos_id, eos=checkpoint.eos_ids, progress=report)
    return onnx_trial(draft.folder / MODELS["onnxruntime"])


_WRITERS = {"native": _write_native, "onnxruntime": _write_onnx}


def _contents(found: Forecast, engine: str, measurement: Measurement) -> Contents:
    checkpoint, plan, is_native = found.checkpoint, found.plan, engine == "native"
    features = [name for name, feature in known_features().items() if plan.required_features >> feature.bit & 1]
    return Contents(
        target=plan.target,
        triple=found.target.triple,
        engine=engine,
        recipe=str(found.quant.recipe),
        made_from=found.quant.made_from,
        context=plan.context,
        required_features=tuple(sorted(features)) if is_native else (),
        chat_template=checkpoint.chat_template,
        bos=checkpoint.bos_text,
        eos=checkpoint.eos_text,
        bos_id=checkpoint.bos_id,
        eos_ids=checkpoint.eos_ids,
        predicted=_predicted(plan) if is_native else {},
        coherence=measurement.coherence,
    )


def _predicted(plan: Plan) -> dict[str, float | None]:
    return {
        "weights_bytes": plan.weights_bytes,
        "kv_bytes": plan.kv_bytes,
        "arena_bytes": plan.arena_bytes,
        "bytes_per_token": plan.bytes_per_token,
        "decode_tokens_per_second": plan.decode_tokens_per_second,
        "prefill_tokens_per_second": plan.prefill_tokens_per_second,
    }


def _part(progress: Progress, stage: str) -> Callable[[int, int], None]:
    """The progress of one stage, which begins now."""
    progress(stage, 0, 0)
    return lambda done, total: progress(stage, done, total)


def _package() -> Path:
    return Path(str(importlib.resources.files("edgekit")))
