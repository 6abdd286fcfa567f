"""From a checkpoint to a bundle that has been tried: the whole flow, in order, on one screen.

Stages that take long (reference, probe, calibrate, quantize) are kept in the cache, so a compile that was interrupted
goes on where it was.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgekit.bundle import Bundle, Contents, Draft, draft_bundle, find_runner
from edgekit.cache import Cache, code_digest
from edgekit.checkpoint import Checkpoint
from edgekit.coherence import CONTINUATIONS, PROBE_TOKENS, PROBE_WINDOW, Tokens, check_gate, make_probe
from edgekit.cores import known_features
from edgekit.disk import writing
from edgekit.engines import (
    Outside,
    check_installed,
    executorch,
    executorch_portable,
    find_engine,
    kernels_of,
    litert,
    onnxruntime,
    onnxruntime_node,
)
from edgekit.engines.built import OPERATORS, find_built
from edgekit.engines.executorch_delegate import build_delegate
from edgekit.engines.litert_bundle import Words
from edgekit.engines.native import Extras, write_program
from edgekit.engines.written import read_written
from edgekit.errors import Damaged, Unsupported, UsageError
from edgekit.explain import Explained, explain
from edgekit.forecast import Forecast, check_fit, forecast
from edgekit.graph import build_graph
from edgekit.measure import Measurement
from edgekit.methods import find_method, known_methods
from edgekit.plan import DEFAULT_KV, Plan
from edgekit.quantize import QuantGraph, assign, open_quantized, quantize
from edgekit.reference import (
    Calibration,
    Progress,
    open_measured,
    open_reference,
    part_of,
    probe_ids,
    read_calibration,
    tokenizer_file,
)
from edgekit.scheme import Recipe, parse_recipe
from edgekit.selftest import Agreement, Trial, host_trial, native_trial, try_model
from edgekit.target import HOST, load_target
from edgekit.tokenizer import pack_tokenizer
from edgekit.tokenizer_json import bundled_tokenizer
from edgekit.units import Bytes
from edgekit.xnnpack import Suited, check_rows, suit_xnnpack

_LARGE = 300_000_000  # parameters
_CONTINUATIONS_IF_LARGE = 3


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be compiled, for what, and where to.

    `portable`: without edgekit's kernels, for the engine as it is. `recipe` None is the one that suits the model,
    `probe_text` None is edgekit's own. `calibration_text` is for methods that need the inputs of the linear layers, and
    for no others.
    """

    model: Path
    target: str
    recipe: Recipe | None
    output: Path
    engine: str = "native"
    portable: bool = False
    litert_runtime: str = litert.RUNTIMES[0]
    context: int | None = None
    kv: str = DEFAULT_KV
    probe_text: str | None = None
    calibration_text: str | None = None
    force: bool = False
    most_memory: Bytes | None = None
    gate: str | None = None  # the worst verdict with which the bundle appears


@dataclass(frozen=True, slots=True)
class Outcome:
    """A bundle, how well it agrees with the quantized graph, and how coherent it is.

    `predicted` has figures by name and `explained` every product; both are empty where the kernels are not edgekit's.
    `outside` is what the engine runs outside its fast kernels. `notes` are doubts about the figures, for the person.
    """

    bundle: Bundle
    predicted: Mapping[str, float | None]
    explained: tuple[Explained, ...]
    agreement: Agreement
    measurement: Measurement
    outside: tuple[Outside, ...] = ()
    notes: tuple[str, ...] = ()


def build(order: Order, cache: Cache, progress: Progress, on_forecast: Callable[[Forecast], None]) -> Outcome:
    """Compiles what was ordered. The bundle appears only if it ran, and its logits were those of the quantized graph.

    `on_forecast` is told what will be made and what that takes, before anything that takes long.

    Raises:
        DoesNotFit: the model is too large for the target, or compiling it for this machine.
        GateFailed: the bundle computes something else than the graph, or is less coherent than its gate.
        Damaged, Unsupported, TargetMissing, UsageError: what was ordered cannot be made.
    """
    kernels = kernels_of(order.engine, portable=order.portable)
    if kernels != "edgekit" and order.kv != DEFAULT_KV:
        engine = f"{order.engine} --portable" if order.portable else order.engine
        raise UsageError(f"the engine {engine} keeps keys and values in float32", hint="leave --kv out")
    with draft_bundle(order.output, force=order.force) as draft, cache.in_use():
        found = forecast(
            order.model,
            order.target,
            order.recipe,
            context=order.context,
            kv=order.kv,
            engine=order.engine,
            kernels=kernels,
        )
        check_calibration(found.quant.recipe, is_given=order.calibration_text is not None)
        on_forecast(found)
        check_fit(found, order.most_memory, cache.root, order.output)
        check_installed(order.engine)
        if order.engine == "native":
            check_native(found)
        if (order.engine, kernels) == ("onnxruntime", "edgekit"):
            check_operators(found)
        if (order.engine, kernels) in _BY_XNNPACK and _has_four_bits(order):
            check_rows(found.quant)
        if order.engine == "litert":
            litert.check_size(found.quant.graph.decoder)
        if (order.engine, kernels) == ("executorch", "edgekit"):
            build_delegate(cache, lambda: progress("build: the delegate for ExecuTorch", 0, 0))
        ids = probe_ids(found.checkpoint, order.probe_text)
        calibration = read_calibration(found.checkpoint, order.calibration_text, length=_window(found))
        probe = _probe(found, ids, cache, progress)
        quant = _quantize(found, calibration, cache, progress)
        suited = _suited(order, kernels, quant)
        quant = suited.quant
        draft.add_tokenizer(bundled_tokenizer(tokenizer_file(found.checkpoint)))
        write = _WRITERS[order.engine, kernels]
        if order.engine == "litert":
            write = partial(_write_litert, runtime=order.litert_runtime)
        trial = write(draft, found, quant, probe, progress)
        agreement, measurement = try_model(trial, quant, ids, cache=cache, progress=progress)
        check_gate(measurement.coherence, order.gate)
        is_native = order.engine == "native"
        outside = () if is_native else find_engine(order.engine).nodes_outside(read_written(trial.model))
        bundle = draft.publish(_contents(found, quant, trial, measurement))
    is_ours = kernels == "edgekit"
    return Outcome(
        bundle,
        _predicted(found.predicted) if is_ours else {},
        explain(found.predicted) if is_ours else (),
        agreement,
        measurement,
        outside,
        notes=(*suited.notes, *_slow(outside), *_notes(calibration, ids)),
    )


def is_made_from(checkpoint: Checkpoint, bundle: Bundle) -> bool:
    """True if the bundle was compiled from this checkpoint.

    Raises:
        Damaged: the bundle's recipe is none.
        Unsupported: it has a scheme or method that is not known.
    """
    try:
        recipe = parse_recipe(bundle.recipe)
    except UsageError as error:
        raise Damaged(f"manifest.json of {bundle.name}: {error.message}", hint="compile it again") from error
    try:
        # The digest does not depend on the context, and the bundle's recipe is written in full.
        quant = assign(build_graph(checkpoint, context=1), recipe, calibrated_on=bundle.calibrated_on)
    except UsageError:
        return False  # a pattern that matches no matrix of this checkpoint
    return quant.made_from == bundle.made_from


def _probe(found: Forecast, ids: Tokens, cache: Cache, progress: Progress) -> bytes:
    """The probe section, from the float graph."""
    checkpoint, context = found.checkpoint, _window(found)
    text = hashlib.sha256(ids.tobytes()).hexdigest()
    key = {"code": code_digest(), "checkpoint": checkpoint.digest, "context": str(context), "text": text}
    done = cache.find("probe", key)
    if done is None:
        with (
            open_reference(checkpoint, context=context, cache=cache, progress=progress) as session,
            cache.fill("probe", key) as folder,
        ):
            report = part_of(progress, "probe: run the float32 reference")
            # In float32 a large model decodes slowly: a minute a continuation at 3 billion parameters on two cores.
            continuations = CONTINUATIONS if checkpoint.parameters < _LARGE else _CONTINUATIONS_IF_LARGE
            begin = checkpoint.bos_id
            probe = make_probe(
                session, ids, context=context, begin=begin, continuations=continuations, on_progress=report
            )
            with writing(folder / "probe"):
                (folder / "probe").write_bytes(probe)
        return probe
    return (done / "probe").read_bytes()


def _window(found: Forecast) -> int:
    """Tokens of a window of the probe, and of a sequence of the calibration: one reference serves both."""
    return min(found.plan.context, PROBE_WINDOW)


def _quantize(found: Forecast, calibration: Calibration | None, cache: Cache, progress: Progress) -> QuantGraph:
    """Codes and scales, mapped from the cache."""
    graph, checkpoint, recipe = found.quant.graph, found.checkpoint, found.quant.recipe
    calibrated_on, inputs = None if calibration is None else calibration.digest, None
    key = {"code": code_digest(), "made_from": replace(found.quant, calibrated_on=calibrated_on).made_from}
    if cache.find("quantize", key) is None:
        if calibration is not None:
            inputs = open_measured(checkpoint, calibration, context=_window(found), cache=cache, progress=progress)
        with cache.fill("quantize", key) as folder:

            def report(tensor: str, done: int, total: int) -> None:
                progress(f"quantize: {recipe}", done, total)

            quantize(
                graph, checkpoint, recipe,
                inputs=inputs, calibrated_on=calibrated_on, directory=folder, progress=report,
            )  # fmt: skip
    folder_found = cache.find("quantize", key)
    assert folder_found is not None
    return open_quantized(graph, checkpoint, recipe, folder_found, calibrated_on=calibrated_on)


def _write_native(draft: Draft, found: Forecast, quant: QuantGraph, probe: bytes, progress: Progress) -> Trial:
    """The program file and its runner, and where they can be tried."""
    checkpoint = found.checkpoint
    draft.add_runner(found.target.triple)
    extras = Extras(pack_tokenizer(draft.tokenizer), probe, checkpoint.bos_id, checkpoint.eos_ids)
    write_program(found.plan, quant, extras, draft.program, progress=part_of(progress, "write: pack the weights"))
    return native_trial(found.target, draft.program, draft.runner)


def _write_onnx(draft: Draft, found: Forecast, quant: QuantGraph, probe: bytes, progress: Progress) -> Trial:
    """The graph for stock ONNX Runtime, which is tried on this machine."""
    checkpoint = found.checkpoint
    report = part_of(progress, "write: standard ONNX")
    return host_trial(
        onnxruntime.write_model(
            quant, draft.folder, probe=probe, bos=checkpoint.bos_id, eos=checkpoint.eos_ids, progress=report
        )
    )


def _write_onnx_node(draft: Draft, found: Forecast, quant: QuantGraph, probe: bytes, progress: Progress) -> Trial:
    """The program as a node, and the operators for the target; it is tried on this machine."""
    checkpoint = found.checkpoint
    draft.add_operators(found.target.triple)
    report = part_of(progress, "write: pack the weights")
    bos, eos = checkpoint.bos_id, checkpoint.eos_ids
    return host_trial(
        onnxruntime_node.write_model(found.plan, quant, draft.folder, probe=probe, bos=bos, eos=eos, progress=report)
    )


def _write_executorch(draft: Draft, found: Forecast, quant: QuantGraph, probe: bytes, progress: Progress) -> Trial:
    """The program in a file for ExecuTorch, which is tried on this machine."""
    checkpoint = found.checkpoint
    report = part_of(progress, "write: pack the weights for ExecuTorch")
    bos, eos = checkpoint.bos_id, checkpoint.eos_ids
    return host_trial(
        executorch.write_model(found.plan, quant, draft.folder, probe=probe, bos=bos, eos=eos, progress=report)
    )


def _write_litert(
    draft: Draft,
    found: Forecast,
    quant: QuantGraph,
    probe: bytes,
    progress: Progress,
    runtime: str = litert.RUNTIMES[0],
) -> Trial:
    """The model for LiteRT and LiteRT-LM, which is tried on this machine."""
    checkpoint = found.checkpoint
    progress("write: convert for LiteRT", 0, 0)
    words = Words(checkpoint.bos_id, checkpoint.eos_ids, checkpoint.chat_template)
    return host_trial(
        litert.write_model(quant, draft.folder, probe=probe, words=words, tokenizer=draft.tokenizer, runtime=runtime)
    )


def _write_portable_pte(draft: Draft, found: Forecast, quant: QuantGraph, probe: bytes, progress: Progress) -> Trial:
    """The model for ExecuTorch as it is, which is tried on this machine."""
    checkpoint = found.checkpoint
    progress("write: convert for ExecuTorch, about 15 s a layer", 0, 0)
    bos, eos = checkpoint.bos_id, checkpoint.eos_ids
    return host_trial(executorch_portable.write_model(quant, draft.folder, probe=probe, bos=bos, eos=eos))


_WRITERS = {
    ("native", "edgekit"): _write_native,
    ("onnxruntime", "edgekit"): _write_onnx_node,
    ("onnxruntime", "runtime"): _write_onnx,
    ("executorch", "edgekit"): _write_executorch,
    ("executorch", "runtime"): _write_portable_pte,
    ("litert", "runtime"): _write_litert,
}
_BY_XNNPACK = (("executorch", "runtime"), ("litert", "runtime"))


def _suited(order: Order, kernels: str, quant: QuantGraph) -> Suited:
    """The graph in codes that the engine's kernels take: what is written, and what that is compared with."""
    if (order.engine, kernels) not in _BY_XNNPACK:
        return Suited(quant, ())
    return suit_xnnpack(quant, four_bits=_has_four_bits(order))


def _has_four_bits(order: Order) -> bool:
    """False for tflite-runtime 2.14."""
    return order.litert_runtime == litert.RUNTIMES[0]


def _contents(found: Forecast, quant: QuantGraph, trial: Trial, measurement: Measurement) -> Contents:
    checkpoint, plan, is_ours = found.checkpoint, found.plan, trial.kernels == "edgekit"
    features = [name for name, feature in known_features().items() if plan.required_features >> feature.bit & 1]
    written = None if trial.program is not None else read_written(trial.model)
    return Contents(
        target=plan.target,
        triple=found.target.triple,
        engine="native" if written is None else written.engine,
        engine_version=None if written is None else written.engine_version,
        kernels=trial.kernels,
        recipe=str(quant.recipe),
        made_from=quant.made_from,
        calibrated_on=quant.calibrated_on,
        context=plan.context,
        kv=plan.kv if written is None else written.kv_format,
        required_features=tuple(sorted(features)) if is_ours else (),
        chat_template=checkpoint.chat_template,
        bos=checkpoint.bos_text,
        eos=checkpoint.eos_text,
        bos_id=checkpoint.bos_id,
        eos_ids=checkpoint.eos_ids,
        predicted=_predicted(plan) if is_ours else {},
        coherence=measurement.coherence,
    )


def _predicted(plan: Plan) -> dict[str, float | None]:
    return {
        "weights_bytes": plan.weights_bytes,
        "kv_bytes": plan.kv_bytes,
        "arena_bytes": plan.arena_bytes,
        "bytes_per_token": plan.bytes_per_token,
        "decode_tokens_per_second": plan.decode_tokens_per_second,
        "deep_decode_tokens_per_second": plan.deep_decode_tokens_per_second,
        "prefill_tokens_per_second": plan.prefill_tokens_per_second,
    }


def check_calibration(recipe: Recipe, *, is_given: bool) -> None:
    """Nothing, if a calibration text is given where the recipe's method needs one.

    Raises:
        UsageError: it is not, or is where it would not be read.
        Unsupported: an unknown method.
    """
    needs = find_method(recipe.method).needs_inputs
    if needs and not is_given:
        raise UsageError(
            f"the method {recipe.method} needs a calibration text",
            hint="--calibration FILE names one like those that the model will read",
        )
    if is_given and not needs:
        able = [name for name in known_methods() if find_method(name).needs_inputs]
        raise UsageError(
            f"the method {recipe.method} reads no calibration text", hint=f"--calibration is for {' and '.join(able)}"
        )


def _slow(outside: Sequence[Outside]) -> tuple[str, ...]:
    count = sum(len(row.matrices) for row in outside)
    if not count:
        return ()
    which = "a matrix in codes is" if count == 1 else f"{count} matrices in codes are"
    return (f"{which} multiplied outside the engine's fast low-bit kernels: --explain says which",)


def _notes(calibration: Calibration | None, probe: Tokens) -> tuple[str, ...]:
    if calibration is None or not calibration.shares_text(probe[:PROBE_TOKENS]):
        return ()
    return ("the calibration text holds text of the probe, so these figures are too good: give another --calibration",)


def check_native(found: Forecast) -> None:
    """Nothing, if the native engine has what it takes. Writing would find out too, but late.

    Raises:
        TargetMissing: there is no runner for the target, or none for this machine, which tries the bundle.
        Unsupported, Damaged: a tokenizer that the runner would not do exactly, or none.
    """
    for triple in (found.target.triple, load_target(HOST).triple):
        find_runner(triple)
    pack_tokenizer(tokenizer_file(found.checkpoint))


def check_operators(found: Forecast) -> None:
    """Nothing, if there are operators for the target, and for this machine, which tries the bundle.

    Raises:
        Unsupported: the target cannot load the library that has them.
        TargetMissing: there are none.
    """
    if found.target.libc != "glibc":
        raise Unsupported(
            f"{found.target.name} has no glibc, which the library with edgekit's kernels for ONNX Runtime needs",
            hint="--portable leaves it out, --engine native needs no library",
        )
    for triple in (found.target.triple, load_target(HOST).triple):
        find_built(OPERATORS, triple)
