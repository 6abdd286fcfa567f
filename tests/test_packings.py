"""GPTQ and AWQ checkpoints: the values they stand for, the codes that are kept, and what is refused."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packers import awq, gptq, make_packed
from safetensors.numpy import load_file, save_file

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Damaged, EdgekitError, Unsupported
from edgekit.packed import Packed
from edgekit.scheme import parse_scheme

GPTQ: dict[str, object] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ: dict[str, object] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 32,
    "zero_point": True,
    "version": "gemm",
}
UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("quantization", "pack", "kind"),
    [
        (GPTQ, gptq, {}),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, partial(gptq, less=0), {}),
        (GPTQ | {"sym": False}, gptq, {"symmetric": False}),
        (GPTQ | {"desc_act": True}, gptq, {"mixed": True}),
        (GPTQ | {"group_size": -1}, gptq, {"group": 1 << 20}),
        (GPTQ | {"group_size": 64}, gptq, {"group": 64}),  # rows of 96 end in half a group
        (GPTQ | {"bits": 2}, partial(gptq, bits=2), {"bits": 2}),
        (GPTQ | {"bits": 3}, partial(gptq, bits=3), {"bits": 3}),
        (GPTQ | {"bits": 8}, partial(gptq, bits=8), {"bits": 8}),
        (AWQ, awq, {"symmetric": False}),
        (AWQ | {"group_size": -1}, awq, {"symmetric": False, "group": 1 << 20}),
    ],
)
def test_values_are_scale_times_code_less_zero_point(
    tmp_path: Path, quantization: dict[str, object], pack: Callable[..., Any], kind: dict[str, Any]
) -> None:
    matrices = make_packed(tmp_path / "model", quantization, pack, **kind)
    checkpoint = open_checkpoint(tmp_path / "model")
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(checkpoint.read(name), matrix.values)
        np.testing.assert_array_equal(checkpoint.read_rows(name, 3, 9), matrix.values[3:9])
    assert checkpoint.tensors["model.norm.weight"].dtype == "F16"


@pytest.mark.parametrize(
    ("quantization", "pack", "kind", "scheme", "refusal"),
    [
        (GPTQ, gptq, {}, "q4g32", None),
        (GPTQ | {"group_size": -1}, gptq, {"group": 1 << 20}, "q4g64", None),  # a row
        (GPTQ | {"group_size": 64}, gptq, {"group": 64}, "q4g64", None),
        (GPTQ | {"group_size": 48}, gptq, {"group": 48}, "q4g32", "it has groups of 48"),
        (GPTQ | {"bits": 3}, partial(gptq, bits=3), {"bits": 3}, "q3g32", None),
        # -2 to 1, where q2 has levels between whole numbers.
        (GPTQ | {"bits": 2}, partial(gptq, bits=2), {"bits": 2}, "q3g32", None),
        (GPTQ | {"bits": 8}, partial(gptq, bits=8), {"bits": 8}, "q8g32", "its codes reach from -128 to 127"),
        (GPTQ | {"desc_act": True}, gptq, {"mixed": True}, "q4g32", "the columns of its groups are mixed (desc_act)"),
        (
            AWQ,
            awq,
            {"symmetric": False},
            "q4g32",
            "its zero points make codes from -10 to 9, which only q8 holds (--recipe q8g32,head=f16,method=kept)",
        ),
        (AWQ, awq, {}, "q4g32", None),
    ],
)
def test_a_matrix_has_the_scheme_that_holds_its_codes_or_says_why_none_does(
    tmp_path: Path,
    quantization: dict[str, object],
    pack: Callable[..., Any],
    kind: dict[str, Any],
    scheme: str,
    refusal: str | None,
) -> None:
    matrices = make_packed(tmp_path / "model", quantization, pack, **kind)
    name = f"{UP}.weight"
    packed = open_checkpoint(tmp_path / "model").tensors[name]
    assert isinstance(packed, Packed)
    assert (str(packed.natural), packed.refusal) == (scheme, refusal)
    assert packed.holds(packed.natural) == (refusal is None)
    if refusal is None:
        codes, _ = packed.kept(packed.natural, 0, 96)
        np.testing.assert_array_equal(codes, matrices[name].signed)


def test_zero_points_are_held_by_a_scheme_with_more_codes(tmp_path: Path) -> None:
    matrices = make_packed(tmp_path / "model", AWQ, awq, symmetric=False)
    packed = open_checkpoint(tmp_path / "model").tensors[f"{UP}.weight"]
    assert isinstance(packed, Packed)
    codes, _ = packed.kept(parse_scheme("q8g32"), 5, 8)
    np.testing.assert_array_equal(codes, matrices[f"{UP}.weight"].signed[5:8])


def test_scales_are_rounded_to_the_nearest_bf16(tmp_path: Path) -> None:
    matrices = make_packed(tmp_path / "model", GPTQ | {"group_size": 64}, gptq, group=64)
    packed = open_checkpoint(tmp_path / "model").tensors[f"{UP}.weight"]
    assert isinstance(packed, Packed)
    _, bits = packed.kept(parse_scheme("q4g32"), 0, 96)
    scales = np.repeat(matrices[f"{UP}.weight"].scales.T.astype(np.float64), 2, axis=1)
    rounded = (bits.astype(np.uint32) << 16).view(np.float32)
    assert bits.shape == (96, 2)
    # Eight bits of a bf16 count, the first of them 1: neighbours are at most 2^-7 apart.
    assert (np.abs(rounded / scales - 1) <= 2**-8).all()
    assert (rounded != scales).any()


def test_a_config_beside_the_checkpoint_is_read(tmp_path: Path) -> None:
    table = {key: value for key, value in GPTQ.items() if key != "quant_method"}
    matrices = make_packed(tmp_path / "model", table, gptq, beside=True)
    checkpoint = open_checkpoint(tmp_path / "model")
    np.testing.assert_array_equal(checkpoint.read(f"{UP}.weight"), matrices[f"{UP}.weight"].values)
    assert "quantize_config.json" in {file.name for file in checkpoint.files}


def change(directory: Path, **tensors: Any) -> None:
    file = directory / "model.safetensors"
    found = load_file(file) | tensors
    save_file({name: np.ascontiguousarray(values) for name, values in found.items() if values is not None}, file)


def configure(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] = config["quantization_config"] | changes
    file.write_text(json.dumps(config))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_packed(tmp_path / "model", GPTQ, gptq)
    return tmp_path / "model"


def test_a_bias_of_zeros_that_the_model_does_not_have_is_ignored(model: Path) -> None:
    change(model, **{f"{UP}.bias": np.zeros(96, np.float16)})
    assert f"{UP}.bias" not in open_checkpoint(model).tensors
    change(model, **{f"{UP}.bias": np.ones(96, np.float16)})
    with pytest.raises(Unsupported, match=r"up_proj\.bias', which a llama of this config\.json does not use"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"quant_method": "fp8"},
            Unsupported,
            "quant_method 'fp8' in quantization_config of config.json is not supported",
        ),
        ({"bits": 5}, Unsupported, "GPTQ with 5 bits"),
        ({"bits": "4"}, Damaged, "bits in quantization_config of config.json is '4'"),
        ({"bits": 3}, Damaged, "q_proj.qweight' has the shape"),
        ({"group_size": 0}, Damaged, "group_size in quantization_config of config.json is 0"),
        ({"group_size": 64}, Damaged, "q_proj.qzeros' has the shape"),
        ({"group_size": -7}, Damaged, "group_size in quantization_config of config.json is -7"),
        ({"checkpoint_format": "marlin"}, Unsupported, "checkpoint_format 'marlin'"),
        ({"dynamic": {"up_proj": {"bits": 8}}}, Unsupported, "other bits or groups for some layers"),
        ({"quant_method": "awq"}, Damaged, "q_proj.qweight' has the shape"),
        ({"quant_method": "awq", "version": "gemv"}, Unsupported, "version 'gemv'"),
        ({"quant_method": "awq", "bits": 8}, Unsupported, "AWQ with 8 bits"),
        ({"quant_method": "awq", "zero_point": False}, Unsupported, "AWQ without zero points"),
    ],
)
def test_other_layouts_are_refused_in_a_sentence(
    model: Path, changes: dict[str, object], kind: type[EdgekitError], message: str
) -> None:
    configure(model, **changes)
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(model)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{UP}.scales": None}, f"the weights hold no tensor '{UP}.scales'"),
        ({f"{UP}.scales": np.ones((3, 96), np.float16)}, "up_proj.scales' has the shape"),
        ({f"{UP}.scales": np.ones((2, 96), np.int32)}, "up_proj.scales' has the dtype I32"),
        ({f"{UP}.qweight": np.ones((8, 96), np.float32)}, "up_proj.qweight' has the dtype F32"),
        ({f"{UP}.g_idx": np.zeros(63, np.int32)}, "up_proj.g_idx' has the shape"),
        ({f"{UP}.weight": np.ones((96, 64), np.float16)}, "hold both"),
        ({f"{UP}.qweight": None}, f"the weights hold no tensor '{UP}.weight'"),
    ],
)
def test_tensors_that_contradict_the_config_are_refused(model: Path, changes: dict[str, Any], message: str) -> None:
    change(model, **changes)
    with pytest.raises((Damaged, Unsupported), match=message) as caught:
        open_checkpoint(model)
    assert caught.value.hint


def test_contents_that_cannot_be_are_refused_when_they_are_read(model: Path) -> None:
    change(model, **{f"{UP}.g_idx": np.full(64, -1, np.int32)})
    with pytest.raises(Damaged, match=f"g_idx of {UP}.weight names a group that is not there"):
        open_checkpoint(model).read(f"{UP}.weight")
    change(model, **{f"{UP}.g_idx": None, f"{UP}.scales": np.full((2, 96), np.inf, np.float16)})
    with pytest.raises(Damaged, match="scales that are not finite"):
        open_checkpoint(model).read(f"{UP}.weight")


def test_quantized_weights_without_their_config_are_refused_and_the_other_way_round(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    quantization = config.pop("quantization_config")
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(Damaged, match=r"config\.json has no quantization_config"):
        open_checkpoint(model)
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    tensors = load_file(model / "model.safetensors")
    change(model, **{name: None for name in tensors if name.rpartition(".")[2] in ("qweight", "qzeros", "scales")})
    with pytest.raises(Damaged, match="hold no packed matrix"):
        open_checkpoint(model)


def test_a_row_that_fills_no_whole_words_is_refused(tmp_path: Path) -> None:
    make_packed(tmp_path / "model", GPTQ, gptq)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"intermediate_size": 90}))
    change(tmp_path / "model", **{"model.layers.0.mlp.gate_proj.qweight": np.zeros((8, 90), np.int32)})
    with pytest.raises(Unsupported, match="90 codes of 4 bits in a row, which fill no whole words"):
        open_checkpoint(tmp_path / "model")
