"""Forecasts: from headers alone, the same on any machine, and refused when they do not fit."""

import shutil
from dataclasses import replace

import pytest

from edgekit import forecast as module
from edgekit.calibrate import measure_inputs
from edgekit.engines.onnxruntime import write_model
from edgekit.errors import DoesNotFit
from edgekit.forecast import check_fit, forecast
from edgekit.quantize import quantize
from edgekit.reference import embedded_model
from edgekit.scheme import parse_recipe
from edgekit.target import Rate
from edgekit.testing import make_checkpoint
from edgekit.units import Bytes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", context=64)


def test_a_model_too_large_for_its_target_is_refused(checkpoint, tmp_path):
    found = forecast(checkpoint, "rpi-zero2w", parse_recipe("q4g32"), context=None)
    assert found.fits
    small = replace(found, target=replace(found.target, memory=Bytes(1000)))
    with pytest.raises(DoesNotFit, match=r"the model takes .* and rpi-zero2w has 1000 B"):
        check_fit(small, None, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("kv", ["f16", "q8"])
def test_a_shorter_context_is_advised_exactly_where_it_can_save_enough_memory(checkpoint, tmp_path, kv):
    found = forecast(checkpoint, "host", parse_recipe("q4g32"), context=64, kv=kv)
    # 2 layers, 64 positions, 2 heads of 16 keys and 16 values in float32.
    cache = 2 * 64 * 2 * (16 + 16) * 4
    for most, advised in ((found.compile_bytes - cache, False), (found.compile_bytes - cache + 1, True)):
        with pytest.raises(DoesNotFit) as caught:
            check_fit(found, Bytes(most), tmp_path, tmp_path / "out")
        assert ("; so is a --context below 64" in caught.value.hint) is advised


def free_bytes(monkeypatch, sizes):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, sizes[path.name]))


@pytest.mark.parametrize(("cache", "there", "full"), [(1, 1 << 40, "cache"), (1 << 40, 1, "there")])
def test_a_full_disk_is_noticed_before_it_starts(checkpoint, tmp_path, monkeypatch, cache, there, full):
    found = forecast(checkpoint, "host", parse_recipe("q4g32"), context=None)
    free_bytes(monkeypatch, {"cache": cache, "there": there})
    with pytest.raises(DoesNotFit, match=rf"in .*/{full} and 1 B are free"):
        check_fit(found, None, tmp_path / "cache", tmp_path / "there" / "out")


def test_a_disk_that_holds_both_the_cache_and_the_bundle_needs_room_for_both(checkpoint, tmp_path, monkeypatch):
    found = forecast(checkpoint, "host", parse_recipe("q4g32"), context=None)
    both = found.disk_bytes + found.plan.weights_bytes
    free_bytes(monkeypatch, {"cache": both, "there": both})
    check_fit(found, None, tmp_path / "cache", tmp_path / "there" / "out")
    free_bytes(monkeypatch, {"cache": both - 1, "there": both - 1})
    with pytest.raises(DoesNotFit, match="cache and"):
        check_fit(found, None, tmp_path / "cache", tmp_path / "there" / "out")


# Float32 once; codes as the cache keeps them; codes as standard ONNX has them, and scales of 2 bytes a group with both.
@pytest.mark.parametrize(
    ("recipe", "bytes_each"),
    [("f32", 4 + 4 + 4), ("f16", 4 + 2 + 2), ("q8g32", 4 + 1 + 1 + 4 / 32), ("q4g32", 4 + 1 + 0.5 + 4 / 32)],
)
def test_the_disk_that_compiling_takes_follows_the_scheme(checkpoint, recipe, bytes_each):
    found = forecast(checkpoint, "host", parse_recipe(recipe), context=None)
    # Norms are vectors: kept in float32 once, which is the slack.
    assert found.disk_bytes == pytest.approx(bytes_each * found.checkpoint.parameters, rel=0.02)


def test_a_method_that_needs_inputs_takes_disk_and_memory_for_them(checkpoint, tmp_path):
    plain = forecast(checkpoint, "host", parse_recipe("q4g32"), context=None)
    found = forecast(checkpoint, "host", parse_recipe("q4g32,method=gptq"), context=None)
    measure_inputs(found.checkpoint, [range(20)], directory=tmp_path)
    written = sum(file.stat().st_size for file in tmp_path.glob("*.second.npy"))
    # Three inputs of 64 and one of 96 a layer, and the head's; files of NumPy begin with 128 bytes.
    assert found.disk_bytes - plain.disk_bytes == 4 * (2 * (3 * 64**2 + 96**2) + 64**2) == written - 9 * 128
    assert found.compile_bytes >= plain.compile_bytes
    wide = make_checkpoint(tmp_path / "wide", intermediate=4096, layers=1, context=64)
    memory = [
        forecast(wide, "host", parse_recipe(recipe), context=None).compile_bytes
        for recipe in ("q4g32", "q4g32,method=gptq")
    ]
    # A matrix and its transpose against the widest input's moments in float64, twice, and their factors.
    assert memory[1] - memory[0] == 24 * 4096**2 - 2 * 4 * 64 * 4096


MIB = 1 << 20


# Peaks of anonymous memory in MiB, of edgekit's processes together, measured while the story model was compiled.
@pytest.mark.parametrize(
    ("engine", "kernels", "measured"),
    [
        ("native", "edgekit", 339),
        ("onnxruntime", "runtime", 339),
        ("executorch", "edgekit", 557),
        ("executorch", "runtime", 721),
        ("litert", "runtime", 593),
    ],
)
def test_no_less_memory_is_foreseen_than_compiling_takes(engine, kernels, measured):
    recipe = parse_recipe("q4g128")
    found = forecast(embedded_model(), "host", recipe, context=None, engine=engine, kernels=kernels)
    assert measured * MIB <= found.compile_bytes < 1.4 * measured * MIB


# Itself, each of two layers, and the bytes of a weight.
@pytest.mark.parametrize(
    ("engine", "kernels", "itself", "each_layer", "each_weight"),
    [
        ("executorch", "runtime", 150, 12, 3 * 4),
        ("litert", "runtime", 100, 0, 5 * 4),
        ("executorch", "edgekit", 250, 0, 4),
    ],
)
def test_a_converter_takes_memory_for_layers_and_for_weights(
    tmp_path, engine, kernels, itself, each_layer, each_weight
):
    wide = make_checkpoint(tmp_path / "wide", intermediate=16384, layers=2, context=64)
    recipe = parse_recipe("f32")
    native = forecast(wide, "host", recipe, context=None)
    found = forecast(wide, "host", recipe, context=None, engine=engine, kernels=kernels)
    most = 2 * each_layer * MIB + each_weight * native.checkpoint.parameters
    # Natively it is a matrix and its transpose, in float32; the packed norms are more than their weights.
    expected = itself * MIB + most - 2 * 4 * 64 * 16384
    assert found.compile_bytes - native.compile_bytes == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("recipe", ["f32", "f16", "q8g32", "q4g32", "t2g32"])
def test_what_is_written_takes_the_space_that_was_foreseen(checkpoint, tmp_path, recipe):
    found = forecast(checkpoint, "host", parse_recipe(recipe), context=None)
    quant = quantize(found.quant.graph, found.checkpoint, parse_recipe(recipe), directory=tmp_path)
    codes = sum(tensor.codes.nbytes + tensor.scales.nbytes for tensor in quant.tensors.values())
    assert found.disk_bytes == 4 * found.checkpoint.parameters + codes + found.onnx_bytes
    written = write_model(quant, tmp_path, probe=b"", bos=None, eos=(0,)).weights_bytes
    # On top come 5 norms of 64, cosine and sine of 64 positions and 8 frequencies, and some indices.
    vectors = 4 * (5 * 64 + 2 * 64 * 8)
    assert found.onnx_bytes + vectors <= written < found.onnx_bytes + vectors + 512


def test_a_forecast_reads_no_weights(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    weights = copy / "model.safetensors"
    length = int.from_bytes(weights.read_bytes()[:8], "little")
    size = weights.stat().st_size
    with weights.open("r+b") as stream:
        stream.truncate(8 + length)
        stream.truncate(size)  # every weight is now zero
    found, expected = (forecast(path, "rpi5", parse_recipe("q4g32"), context=32) for path in (copy, checkpoint))
    assert found.plan == expected.plan
    assert found.device_bytes == found.plan.device_bytes


def test_the_plan_of_the_host_does_not_depend_on_what_is_measured(checkpoint, monkeypatch):
    def at(rate):
        monkeypatch.setattr(
            module, "measured", lambda host: replace(host, dram=(Rate(1, rate, "measured here", "a test"),))
        )
        return forecast(checkpoint, "host", parse_recipe("q4g32"), context=32)

    slow, fast = at(1e6), at(1e12)
    assert slow.plan == fast.plan
    assert slow.plan.decode_tokens_per_second is None
    assert slow.predicted.decode_tokens_per_second is not None
