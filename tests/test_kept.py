"""Checkpoints that others quantized, compiled: codes bit for bit, and a sentence where that cannot be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from packers import awq, gptq, make_packed
from test_packings import AWQ, GPTQ, UP

from edgekit.bundle import open_bundle
from edgekit.cache import Cache
from edgekit.checkpoint import open_checkpoint
from edgekit.cli import main
from edgekit.errors import UsageError
from edgekit.forecast import forecast
from edgekit.graph import Session, build_graph
from edgekit.kept import default_recipe
from edgekit.pipeline import Order, build, is_made_from
from edgekit.quantize import quantize, widen_bf16
from edgekit.scheme import parse_recipe
from edgekit.testing import make_checkpoint
from edgekit.units import Bytes

TEXT = "The ferry left the harbour a little before six, while the lamps along the quay were still burning."


def notes(directory: Path, recipe: str | None = None) -> tuple[str, ...]:
    wanted = None if recipe is None else parse_recipe(recipe)
    return forecast(directory, "rpi5", wanted, context=None).quant.notes


def test_without_a_recipe_codes_are_those_of_the_file(tmp_path: Path) -> None:
    matrices = make_packed(tmp_path / "model", GPTQ, gptq)
    checkpoint = open_checkpoint(tmp_path / "model")
    recipe = default_recipe(checkpoint)
    assert str(recipe) == "q4g32,head=f16,method=kept"
    quant = quantize(build_graph(checkpoint, context=16), checkpoint, recipe)
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(quant.tensors[name].codes, matrix.signed)
        moved = np.abs(widen_bf16(quant.tensors[name].scales) / matrix.scales.T.astype(np.float32) - 1)
        assert moved.max() <= 2**-8
        assert quant.errors[name] <= 2**-16  # squared
    np.testing.assert_array_equal(
        quant.tensors["model.embed_tokens.weight"].values(), checkpoint.read("model.embed_tokens.weight")
    )
    assert quant.errors["model.embed_tokens.weight"] == 0
    assert notes(tmp_path / "model") == (
        "14 of 14 packed matrices keep their codes; their scales are rounded to bf16, which moves values by at most"
        " 0.4 %",
    )


def test_scales_that_are_bf16_make_it_exact(tmp_path: Path) -> None:
    make_packed(tmp_path / "model", GPTQ, lambda matrix: gptq(replace(matrix, scales=matrix.scales * 0 + 2.0**-6)))
    checkpoint = open_checkpoint(tmp_path / "model")
    quant = quantize(build_graph(checkpoint, context=16), checkpoint, default_recipe(checkpoint))
    assert set(quant.errors.values()) == {0.0}


def test_a_checkpoint_in_floats_gets_four_bits(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model")
    assert str(default_recipe(open_checkpoint(directory))) == "q4g128,head=q4g128"
    assert notes(directory) == ()
    with pytest.raises(UsageError, match="the recipe keeps codes \\(method=kept\\), and the checkpoint has none"):
        notes(directory, "q4g32,method=kept")


def test_what_no_scheme_holds_is_rounded_again_and_said(tmp_path: Path) -> None:
    matrices = make_packed(tmp_path / "model", AWQ, awq, symmetric=False)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert str(default_recipe(checkpoint)) == "q4g32,head=f16,method=kept"
    (note,) = notes(tmp_path / "model")
    assert note == (
        "14 matrices are rounded again from their values, AWQ-4 to q4g32: its zero points make codes from -10 to 9,"
        " which only q8 holds (--recipe q8g32,head=f16,method=kept)"
    )
    wide = parse_recipe("q8g32,head=f16,method=kept")
    quant = quantize(build_graph(checkpoint, context=16), checkpoint, wide)
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(quant.tensors[name].codes, matrix.signed)
    assert notes(tmp_path / "model", str(wide))[0].startswith("14 of 14 packed matrices keep their codes")


def test_a_recipe_rounds_the_values_again_and_that_is_said(tmp_path: Path) -> None:
    make_packed(tmp_path / "model", GPTQ, gptq)
    (note,) = notes(tmp_path / "model", "q3g32")
    assert note.startswith("the checkpoint is quantized already (GPTQ-4), and the recipe rounds its values again")
    (note,) = notes(tmp_path / "model", "q3g32,method=kept")
    assert note.endswith("GPTQ-4 to q3g32: the recipe gives another scheme")


def test_layers_of_other_bits_keep_theirs(tmp_path: Path) -> None:
    make_packed(tmp_path / "model", GPTQ, gptq)
    checkpoint = open_checkpoint(tmp_path / "model")
    mixed = dict(checkpoint.tensors)
    plain = open_checkpoint(make_checkpoint(tmp_path / "plain", dtype="F32"))
    for name in checkpoint.tensors:
        if "down_proj" in name or name.startswith("model.layers.1.self_attn.q_proj"):
            mixed[name] = plain.tensors[name]
    recipe = default_recipe(replace(checkpoint, tensors=mixed))
    assert str(recipe) == "q4g32,head=f16,method=kept,*.down_proj=f32,model.layers.1.self_attn.q_proj=f32"


def test_a_bundle_computes_what_the_values_of_the_file_do(tmp_path: Path) -> None:
    make_packed(tmp_path / "model", GPTQ, gptq)
    order = Order(tmp_path / "model", "host", None, tmp_path / "out", probe_text=TEXT)
    outcome = build(order, Cache(tmp_path / "cache", Bytes(1 << 30)), lambda *_: None, lambda _: None)
    bundle = open_bundle(order.output)
    assert bundle.recipe == "q4g32,head=f16,method=kept"
    assert is_made_from(open_checkpoint(order.model), bundle)
    assert outcome.measurement.coherence["kld_mean"] < 1e-3
    assert outcome.measurement.coherence["same_top"] > 0.95


def test_the_reference_is_the_float_graph_of_the_values_in_the_file(tmp_path: Path) -> None:
    matrices = make_packed(tmp_path / "model", AWQ, awq, symmetric=False)
    plain = make_checkpoint(tmp_path / "plain", dtype="F32", context=64)
    packed, floats = open_checkpoint(tmp_path / "model"), open_checkpoint(plain)

    def read(name: str) -> np.ndarray:
        return matrices[name].values if name in matrices else packed.read(name)

    with (plain / "model.safetensors").open("r+b") as stream:
        for name, info in floats.tensors.items():
            stream.seek(info.offset)
            stream.write(read(name).astype("<f4").tobytes())
    ids = np.arange(1, 40)
    with (
        Session(build_graph(packed, context=64)) as found,
        Session(build_graph(open_checkpoint(plain), context=64)) as expected,
    ):
        np.testing.assert_array_equal(found.logits(ids), expected.logits(ids))


def test_commands_describe_and_estimate_a_quantized_checkpoint(tmp_path: Path) -> None:
    make_packed(tmp_path / "model", GPTQ, gptq)
    described = CliRunner().invoke(main, ["inspect", str(tmp_path / "model")])
    assert described.exit_code == 0 and "F16, GPTQ-4" in described.stdout
    estimated = CliRunner().invoke(main, ["estimate", str(tmp_path / "model"), "--target", "rpi5"])
    assert estimated.exit_code == 0 and "q4g32,head=f16,method=kept" in estimated.stdout
    assert "14 of 14 packed matrices keep their codes" in estimated.stderr
    assert UP in open_checkpoint(tmp_path / "model").tensors[f"{UP}.weight"].name
