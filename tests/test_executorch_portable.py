"""The portable .pte: ExecuTorch with XNNPACK computes what the graph does, from our codes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.engines.executorch import nodes_outside, open_model, version
from edgekit.engines.executorch_portable import write_model
from edgekit.engines.written import Written, read_written
from edgekit.errors import Damaged
from edgekit.graph import Session, build_graph
from edgekit.portable import portable_onnx
from edgekit.quantize import QuantGraph, quantize
from edgekit.scheme import parse_recipe
from edgekit.selftest import relative_error, tolerance
from edgekit.testing import make_checkpoint
from edgekit.xnnpack import suit_xnnpack

pytest.importorskip("executorch")

Float32 = npt.NDArray[np.float32]

CONTEXT = 40
MIXED = "q4g64,head=q4g32,*.o_proj=q2g64,*.down_proj=q8g32,*.v_proj=f16,*.q_proj=f32"
IDS = np.random.default_rng(0).integers(1, 270, CONTEXT)


def suited(checkpoint: Checkpoint, recipe: str) -> QuantGraph:
    quant = quantize(build_graph(checkpoint, context=CONTEXT), checkpoint, parse_recipe(recipe))
    return suit_xnnpack(quant).quant


def expected(quant: QuantGraph, folder: Path) -> Float32:
    """The logits of IDS on ONNX Runtime, in float32."""
    portable_onnx(quant, folder / "reference.onnx")
    with Session(folder / "reference.onnx", threads=1, prepack=True, exact=True) as session:
        return session.logits(IDS)


def in_pieces(session: Any) -> Float32:
    """The logits of IDS: a prefill, decodes, another prefill."""
    session.reset()
    decoded = [session.prefill(IDS[:17].tolist()), *(session.decode(int(token))[None] for token in IDS[17:20])]
    rest = session.prefill(IDS[20:].tolist())
    session.reset(20)
    np.testing.assert_array_equal(session.prefill(IDS[20:].tolist(), last_only=True), rest[-1:])
    return np.concatenate([*decoded, rest])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Written, QuantGraph]:
    """A model with every scheme that XNNPACK has."""
    folder = tmp_path_factory.mktemp("mixed")
    quant = suited(open_checkpoint(make_checkpoint(folder / "checkpoint", layers=1)), MIXED)
    return write_model(quant, folder, probe=b"probe", bos=0, eos=(0, 7)), quant


def test_every_scheme_is_as_far_from_the_graph_as_rounding_activations(
    mixed: tuple[Written, QuantGraph], tmp_path: Path
) -> None:
    written, quant = mixed
    session = open_model(read_written(written.file), threads=2)
    error = relative_error(expected(quant, tmp_path), in_pieces(session))
    assert error < tolerance(quant.schemes.values(), 1, compares_rounded=False)
    assert error > 1e-3  # or nothing was rounded


def test_what_is_said_of_a_model(mixed: tuple[Written, QuantGraph]) -> None:
    written = read_written(mixed[0].file)
    assert (written.engine_version, written.kernels, written.kv_format) == (version(), "runtime", "f32")
    assert (written.bos, written.eos, written.probe) == (0, (0, 7), b"probe")
    # Keys and values of 2 heads of 16, float32.
    assert written.kv_bytes == 2 * 2 * CONTEXT * 16 * 4
    layer = {
        "q_proj": 64 * 64 * 4,
        "k_proj": 32 * 64 // 2 + 32 * 2,  # blocks of 64, scales in bf16
        "v_proj": 32 * 64 * 4,
        "o_proj": 64 * 64 // 2 + 64 * 2,
        "gate_proj, up_proj": 2 * (96 * 64 // 2 + 96 * 2),
        "down_proj": 64 * 96 + 64 * 4,  # one float32 scale a row
        "norms": 3 * 64 * 4,
    }
    head, table = 320 * 64 // 2 + 320 * 2 * 2, 320 * 64 + 320 * 2 * 4
    assert written.bytes_per_token == sum(layer.values()) + head
    assert written.weights_bytes == written.bytes_per_token + table


def test_every_product_runs_in_xnnpack(mixed: tuple[Written, QuantGraph]) -> None:
    outside = {row.operator: row.count for row in nodes_outside(mixed[0])}
    assert outside["aten::embedding"] == 2  # codes and scales
    assert outside["aten::index_put_"] == 2  # keys and values, in place
    assert not outside.keys() & {"aten::index_put", "aten::copy_"}
    assert not outside.keys() & {"aten::linear", "aten::mm", "aten::addmm", "aten::bmm", "aten::_softmax"}
    assert not any("quantize" in name for name in outside)


def test_another_model_than_described_is_refused(mixed: tuple[Written, QuantGraph]) -> None:
    with pytest.raises(Damaged, match="is not the model that is described beside it"):
        open_model(replace(mixed[0], context=CONTEXT + 1), threads=1)


def test_a_truncated_file_is_refused_in_one_sentence(mixed: tuple[Written, QuantGraph], tmp_path: Path) -> None:
    file = tmp_path / "model.pte"
    file.write_bytes(mixed[0].file.read_bytes()[:5000])
    with pytest.raises(Damaged, match=r"executorch .* refuses"):
        open_model(replace(mixed[0], file=file), threads=1)
