"""The whole flow: what it writes, what it refuses, and what an interruption leaves."""

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgekit import pipeline
from edgekit.bundle import open_bundle, verify_bundle
from edgekit.cache import Cache
from edgekit.checkpoint import open_checkpoint
from edgekit.engines import litert
from edgekit.errors import Damaged, DoesNotFit, GateFailed, TargetMissing, Unsupported, UsageError
from edgekit.pipeline import Order, build, forecast, is_made_from
from edgekit.scheme import parse_recipe
from edgekit.testing import make_checkpoint
from edgekit.units import Bytes

TEXT = "The ferry left the harbour a little before six, while the lamps along the quay were still burning."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", context=64)


@pytest.fixture
def order(checkpoint, tmp_path):
    return Order(checkpoint, "host", parse_recipe("q4g32"), tmp_path / "out", probe_text=TEXT)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", Bytes(1 << 30))


def compiled(order, cache, seen=None):
    stages = [] if seen is None else seen
    return build(order, cache, lambda stage, done, total: stages.append(stage), lambda forecast: None)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_bundle_that_was_compiled_is_whole_and_says_what_it_is(order, cache):
    outcome = compiled(order, cache)
    bundle = open_bundle(order.output)
    verify_bundle(bundle)
    assert sorted(contents(order.output)) == ["edgekit-run", "manifest.json", "model.edge", "tokenizer.json"]
    assert (bundle.target, bundle.recipe, bundle.context) == ("host", "q4g32,head=q4g32", 64)
    assert bundle.eos_ids == (0,)
    assert bundle.coherence == outcome.measurement.coherence
    assert outcome.agreement.relative_error <= outcome.agreement.tolerance
    assert is_made_from(open_checkpoint(order.model), bundle)


def test_the_tokenizer_in_a_bundle_truncates_no_prompt(order, cache, tmp_path):
    order = replace(order, model=make_checkpoint(tmp_path / "tiny", context=64))
    path = order.model / "tokenizer.json"
    truncation = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": truncation}))
    compiled(order, cache)
    assert json.loads((order.output / "tokenizer.json").read_text())["truncation"] is None


def test_litert_lm_gets_the_tokenizer_of_the_bundle(order, cache, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    given = []

    def write_model(quant, folder, *, tokenizer, **options):
        given.append(tokenizer.relative_to(folder))
        raise Unsupported("it is enough")

    monkeypatch.setattr("edgekit.engines.litert.write_model", write_model)
    with pytest.raises(Unsupported, match="it is enough"):
        compiled(replace(order, engine="litert"), cache)
    assert given == [Path("tokenizer.json")]


def test_the_figures_of_a_bundle_are_those_of_the_cache_it_has(order, cache, tmp_path):
    half = compiled(order, cache)
    small = compiled(replace(order, kv="q8", output=tmp_path / "q8"), cache)
    assert (open_bundle(order.output).kv, open_bundle(tmp_path / "q8").kv) == ("f16", "q8")
    assert small.agreement == half.agreement
    assert small.measurement.coherence["kld_mean"] != half.measurement.coherence["kld_mean"]
    assert (half.measurement.memory["kv_format"], small.measurement.memory["kv_format"]) == ("f16", "q8")
    # Two layers, two heads of 16 for keys and for values, 64 positions.
    assert half.predicted["kv_bytes"] == half.measurement.memory["kv_bytes"] == 2 * 2 * 2 * 64 * (16 * 2)
    assert small.predicted["kv_bytes"] == small.measurement.memory["kv_bytes"] == 2 * 2 * 2 * 64 * (16 + 4)


@pytest.mark.parametrize(
    "engine",
    [{"engine": "native"}, {"engine": "onnxruntime"}, {"engine": "onnxruntime", "portable": True}],
    ids=["native", "onnxruntime", "portable"],
)
@pytest.mark.parametrize("method", ["gptq", "rtn_bias"])
def test_a_method_that_needs_inputs_gets_them_from_the_calibration_text(order, cache, tmp_path, method, engine):
    recipe = parse_recipe(f"q3g32,method={method}")
    stages = []
    outcome = compiled(replace(order, recipe=recipe, calibration_text=TEXT * 3, **engine), cache, stages)
    seen = list(dict.fromkeys(stages))
    measured = seen.index("calibrate: run the float32 reference")
    assert seen[measured + 1] == f"quantize: q3g32,head=q4g32,method={method}"
    bundle = open_bundle(order.output)
    verify_bundle(bundle)
    assert parse_recipe(bundle.recipe) == recipe and len(bundle.calibrated_on) == 64
    assert outcome.agreement.relative_error <= outcome.agreement.tolerance
    checkpoint = open_checkpoint(order.model)
    assert is_made_from(checkpoint, bundle)
    assert not is_made_from(checkpoint, replace(bundle, calibrated_on=None))
    assert not is_made_from(checkpoint, replace(bundle, recipe="q3g32"))
    plain = compiled(replace(order, recipe=parse_recipe("q3g32"), output=tmp_path / "plain", **engine), cache)
    assert open_bundle(tmp_path / "plain").calibrated_on is None
    assert plain.measurement.coherence["kld_mean"] != outcome.measurement.coherence["kld_mean"]


def test_inputs_are_measured_once_for_all_schemes_and_again_for_another_text(order, cache, tmp_path):
    recipes = [parse_recipe(text) for text in ("q3g32,method=gptq", "q2g32,method=gptq", "q3g32,method=rtn_bias")]
    seen = []
    for at, (recipe, text) in enumerate([*((recipe, TEXT * 3) for recipe in recipes), (recipes[0], TEXT[4:] * 3)]):
        stages = []
        order = replace(order, recipe=recipe, calibration_text=text, output=tmp_path / f"out{at}")
        compiled(order, cache, stages)
        seen.append(any(stage.startswith("calibrate") for stage in stages))
    assert seen == [True, False, False, True]
    programs = {(tmp_path / f"out{at}" / "model.edge").read_bytes() for at in range(4)}
    assert len(programs) == 4


@pytest.mark.parametrize(
    ("recipe", "text", "message", "hint"),
    [
        ("q4g32,method=gptq", None, "the method gptq needs a calibration text", "--calibration FILE"),
        ("q4g32,method=rtn_bias", None, "the method rtn_bias needs a calibration text", "--calibration FILE"),
        ("q4g32", TEXT, "the method rtn reads no calibration text", "is for gptq and rtn_bias"),
        ("q4g32,method=gptq", "The ferry.", "the calibration text has 8 tokens, and a sequence takes 64", "longer"),
    ],
)
def test_a_method_and_a_calibration_that_do_not_go_together_are_refused(order, cache, recipe, text, message, hint):
    stages = []
    with pytest.raises(UsageError, match=message) as caught:
        compiled(replace(order, recipe=parse_recipe(recipe), calibration_text=text), cache, stages)
    assert hint in caught.value.hint and stages == []


def test_our_kernels_keep_keys_and_values_as_told_in_every_engine(order, cache, tmp_path):
    native = compiled(replace(order, kv="q8"), cache)
    other = compiled(replace(order, kv="q8", engine="onnxruntime", output=tmp_path / "onnx"), cache)
    assert (other.bundle.kv, other.measurement.memory["kv_format"]) == ("q8", "q8")
    assert other.measurement.memory["kv_bytes"] == native.measurement.memory["kv_bytes"]
    assert other.measurement.coherence["kld_mean"] == pytest.approx(native.measurement.coherence["kld_mean"], rel=1e-5)


def test_an_engines_own_kernels_keep_keys_and_values_in_float32(order, cache, tmp_path):
    for engine, portable, name in (("onnxruntime", True, "onnxruntime --portable"), ("litert", False, "litert")):
        with pytest.raises(UsageError, match=f"the engine {name} keeps keys and values in float32"):
            compiled(replace(order, engine=engine, portable=portable, kv="q8"), cache)
    compiled(replace(order, engine="onnxruntime", portable=True), cache)
    assert open_bundle(order.output).kv == "f32"


def test_a_checkpoint_without_what_the_recipe_names_is_another(order, cache, tmp_path):
    compiled(replace(order, recipe=parse_recipe("q4g32,model.layers.1.*=q8g32")), cache)
    bundle = open_bundle(order.output)
    assert is_made_from(open_checkpoint(order.model), bundle)
    shallow = make_checkpoint(tmp_path / "shallow", context=64, layers=1)
    assert not is_made_from(open_checkpoint(shallow), bundle)


@pytest.mark.parametrize(
    ("recipe", "kind", "message"),
    [
        ("q4g32,head", Damaged, "manifest.json of .*: 'head' in the recipe is not PATTERN=SCHEME"),
        ("/dev/stdin.toml", Unsupported, "unknown scheme '/dev/stdin.toml'"),
    ],
)
def test_the_recipe_of_a_manifest_is_a_strangers_text(order, recipe, kind, message):
    bundle = SimpleNamespace(name="b", recipe=recipe, made_from="0" * 64)
    with pytest.raises(kind, match=message):
        is_made_from(open_checkpoint(order.model), bundle)


def test_a_float_recipe_keeps_every_top_token(order, cache):
    coherence = compiled(replace(order, recipe=parse_recipe("f32")), cache).measurement.coherence
    assert coherence["same_top"] == 1.0
    # Keys and values are rounded to 11 bits; two layers of them move a probability by far less than a thousandth.
    assert coherence["kld_mean"] < 1e-5
    assert coherence["perplexity"] == pytest.approx(coherence["reference_perplexity"], rel=1e-3)


def test_compiling_twice_gives_the_same_bytes_with_and_without_finished_stages(order, cache, tmp_path):
    compiled(order, cache)
    compiled(replace(order, output=tmp_path / "again"), cache)
    compiled(replace(order, output=tmp_path / "fresh"), Cache(tmp_path / "other", Bytes(1 << 30)))
    assert contents(order.output) == contents(tmp_path / "again") == contents(tmp_path / "fresh")


def test_no_path_of_this_machine_is_in_a_bundle(order, cache):
    compiled(order, cache)
    for content in contents(order.output).values():
        assert str(order.model).encode() not in content


def test_a_second_compile_goes_on_from_the_finished_stages(order, cache, tmp_path):
    first, second = [], []
    compiled(order, cache, first)
    compiled(replace(order, target="rpi5", output=tmp_path / "arm"), cache, second)
    assert {stage.partition(":")[0] for stage in first} == {
        "reference", "probe", "quantize", "write", "self-test", "coherence",
    }  # fmt: skip
    assert {stage.partition(":")[0] for stage in second} == {"write", "self-test", "coherence"}


@pytest.mark.parametrize("stage", ["reference", "probe", "quantize", "write", "self-test", "coherence"])
def test_an_interrupt_at_any_stage_leaves_nothing_half_written(order, cache, tmp_path, stage):
    def interrupt(at, done, total):
        if at.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(order, cache, interrupt, lambda forecast: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
    assert not list(cache.root.glob(".unfinished-*"))
    resumed = []
    compiled(order, cache, resumed)
    verify_bundle(open_bundle(order.output))
    stages = ["reference", "probe", "quantize", "write", "self-test", "coherence"]
    finished = stages[: stages.index(stage)]
    again = {at.partition(":")[0] for at in resumed}
    assert not again & set(finished) & {"reference", "probe", "quantize"}


def test_an_older_bundle_is_replaced_only_when_told_to(order, cache):
    compiled(order, cache)
    before = contents(order.output)
    with pytest.raises(UsageError, match="exists"):
        compiled(order, cache)
    compiled(replace(order, force=True, recipe=parse_recipe("q8g32")), cache)
    after = contents(order.output)
    assert before["model.edge"] != after["model.edge"]
    assert open_bundle(order.output).recipe == "q8g32,head=q8g32"


def test_a_program_with_other_weights_fails_its_self_test_and_is_not_written(order, cache, monkeypatch):
    def damaged(plan, quant, extras, path, *, progress=None):
        name = "model.layers.0.mlp.down_proj.weight"
        tensor = quant.tensors[name]
        codes = np.roll(np.asarray(tensor.codes), 1, axis=1)
        wrong = replace(quant, tensors={**quant.tensors, name: replace(tensor, codes=codes)})
        write(plan, wrong, extras, path, progress=progress)

    write = pipeline.write_program
    monkeypatch.setattr(pipeline, "write_program", damaged)
    with pytest.raises(GateFailed, match="the self-test failed: the logits on local are") as caught:
        compiled(order, cache)
    assert caught.value.exit_code == 5
    assert not order.output.exists()


def test_the_whole_is_refused_before_it_starts_when_it_takes_too_much_memory(order, cache):
    stages = []
    with pytest.raises(DoesNotFit, match=r"compiling takes .* of memory and --max-ram is 1.0 MiB") as caught:
        compiled(replace(order, most_memory=Bytes(1 << 20)), cache, stages)
    assert caught.value.exit_code == 9
    assert stages == []


def test_a_converter_that_takes_too_much_memory_is_refused_before_it_starts(order, cache):
    stages = []
    enough = forecast(order.model, "host", order.recipe, context=None).compile_bytes
    with pytest.raises(DoesNotFit, match=r"compiling takes .* of memory and --max-ram is"):
        compiled(replace(order, engine="litert", most_memory=enough), cache, stages)
    assert stages == []


def test_an_unknown_target_is_refused_before_anything_is_written(order, cache):
    with pytest.raises(TargetMissing, match="unknown target 'toaster'"):
        compiled(replace(order, target="toaster"), cache)
    assert not order.output.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"model": {}}', b'{"model": {"type": "BPE", "vocab": {"a": 0}}}'])
def test_a_damaged_tokenizer_is_refused_before_anything_takes_long(tmp_path, cache, order, content):
    path = make_checkpoint(tmp_path / "tiny", context=64)
    (path / "tokenizer_config.json").unlink()
    (path / "generation_config.json").unlink()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"eos_token_id": None, "bos_token_id": None}))
    (path / "tokenizer.json").write_bytes(content)
    stages = []
    with pytest.raises(Damaged) as caught:
        compiled(replace(order, model=path), cache, stages)
    assert caught.value.exit_code == 7
    assert stages == []


@pytest.mark.parametrize(
    ("engine", "missing"), [("native", "edgekit-run"), ("onnxruntime", "libedgekit_onnxruntime.so")]
)
def test_what_was_not_built_is_noticed_before_anything_takes_long(order, cache, monkeypatch, tmp_path, engine, missing):
    monkeypatch.setenv("EDGEKIT_RUNNERS", str(tmp_path))
    stages = []
    with pytest.raises(TargetMissing, match=f"there is no {missing} for"):
        compiled(replace(order, engine=engine), cache, stages)
    assert stages == []


@pytest.mark.parametrize(
    ("engine", "portable", "package"),
    [
        ("executorch", False, "executorch"), ("executorch", False, "torch"), ("executorch", True, "torchao"),
        ("litert", False, "ai-edge-litert"), ("litert", False, "litert-torch"), ("litert", False, "litert-lm-builder"),
        ("litert", False, "torch"),
    ],
)  # fmt: skip
def test_what_is_not_installed_is_noticed_before_anything_takes_long(
    order, cache, monkeypatch, engine, portable, package
):
    found = importlib.metadata.version

    def version(name):
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    stages = []
    with pytest.raises(TargetMissing, match=f"^{package} is not installed$") as caught:
        compiled(replace(order, engine=engine, portable=portable), cache, stages)
    assert caught.value.hint == f"pip install 'edgekit[{engine}]'"
    assert (caught.value.exit_code, stages) == (4, [])


@pytest.mark.parametrize(("engine", "portable"), [("executorch", True), ("litert", False)])
def test_rows_that_xnnpack_does_not_take_are_refused_before_anything_takes_long(
    order, cache, tmp_path, engine, portable
):
    model = make_checkpoint(tmp_path / "narrow", context=64, hidden=48)
    stages = []
    with pytest.raises(Unsupported, match="XNNPACK takes 4 bits in whole blocks of 32"):
        compiled(replace(order, model=model, engine=engine, portable=portable), cache, stages)
    assert stages == []


def test_a_model_beyond_a_flatbuffer_is_refused_before_anything_takes_long(order, cache, monkeypatch):
    monkeypatch.setattr(litert, "_MOST_BYTES", 1 << 10)
    stages = []
    with pytest.raises(Unsupported, match=r"a \.tflite file ends at 2 GiB"):
        compiled(replace(order, engine="litert"), cache, stages)
    assert stages == []


def test_a_missing_runner_of_this_machine_is_noticed_before_anything_takes_long(order, cache, monkeypatch, tmp_path):
    runner = tmp_path / "runners" / "aarch64-linux-musl" / "edgekit-run"
    runner.parent.mkdir(parents=True)
    runner.touch()
    host = pipeline.load_target("host")
    monkeypatch.setattr(pipeline, "load_target", lambda name: replace(host, triple="riscv64-linux-musl"))
    monkeypatch.setenv("EDGEKIT_RUNNERS", str(tmp_path / "runners"))
    stages = []
    with pytest.raises(TargetMissing, match="there is no edgekit-run for riscv64-linux-musl"):
        compiled(replace(order, target="rpi5"), cache, stages)
    assert stages == []


def test_a_bundle_of_another_checkpoint_is_known_as_such(order, cache, tmp_path):
    compiled(order, cache)
    other = open_checkpoint(make_checkpoint(tmp_path / "other", context=64, seed=1))
    assert not is_made_from(other, open_bundle(order.output))


def test_android_is_refused_a_library_that_it_cannot_load(order, cache):
    with pytest.raises(Unsupported, match="android-arm64 has no glibc"):
        compiled(replace(order, target="android-arm64", engine="onnxruntime"), cache)
    assert not order.output.exists()
    compiled(replace(order, target="android-arm64", engine="onnxruntime", portable=True), cache)


@pytest.mark.emulator
@pytest.mark.parametrize("target", ["rpi-zero2w", "rpi4", "rpi5", "android-armv9"])
def test_arm_bundles_are_tried_on_their_emulated_cpu_with_the_same_result(order, cache, emulator, target):
    arm = compiled(replace(order, target=target), cache)
    host = compiled(replace(order, output=order.output.with_name("host")), cache)
    assert arm.agreement.ran_on == f"qemu:{target}"
    assert arm.agreement.relative_error == host.agreement.relative_error
    assert arm.measurement.coherence == host.measurement.coherence


def test_the_manifest_is_json_with_the_predicted_figures_of_the_plan(order, cache):
    compiled(replace(order, target="rpi4"), cache)
    manifest = json.loads((order.output / "manifest.json").read_text())
    plan = forecast(order.model, "rpi4", order.recipe, context=None).plan
    assert manifest["predicted"]["weights_bytes"] == plan.weights_bytes
    assert manifest["predicted"]["decode_tokens_per_second"] == plan.decode_tokens_per_second
