import math
import re
import struct
import subprocess
import tracemalloc
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import find_runner
from edgekit.checkpoint import open_checkpoint
from edgekit.engines import native
from edgekit.engines.native import Extras, write_program
from edgekit.errors import DoesNotFit, TargetMissing
from edgekit.graph import build_graph
from edgekit.kernels import FORMATS, unpack
from edgekit.passes import lower
from edgekit.plan import Plan, make_plan
from edgekit.quantize import QuantGraph, quantize
from edgekit.scheme import Scheme, parse_recipe
from edgekit.target import load_target
from edgekit.testing import make_checkpoint

FORMAT_H = (Path(__file__).parents[1] / "kernels" / "program" / "format.h").read_text()
EXTRAS = Extras(b"tokenizer", b"probe", 1, (2, 7))
_NAMES = {number: name for name, number in FORMATS.items()}


@dataclass(frozen=True)
class Program:
    """A program file taken apart by the offsets it gives, nothing taken from the writer."""

    data: bytes
    header: tuple[int, ...]
    sections: dict[int, bytes]
    places: dict[int, tuple[int, int, int]]  # kind -> crc, offset, bytes

    def rows(self, kind: int, layout: str) -> list[tuple[int, ...]]:
        return list(struct.iter_unpack(layout, self.sections[kind]))

    def tensor(self, index: int) -> np.ndarray:
        format_, layout, group, n, k, _, codes_at, codes_bytes, scales_at, scales_bytes, _ = self.rows(4 - 1, "<6I5Q")[
            index
        ]
        weights = self.sections[8]
        if layout == 0:
            return np.frombuffer(weights, "<f4", k, codes_at)
        tiles = -(-n // 16)
        codes = np.frombuffer(weights, np.uint8, codes_bytes, codes_at).reshape(tiles, -1)
        scales = np.frombuffer(weights, np.uint16, scales_bytes // 2, scales_at).reshape(tiles, -1)
        return unpack(Scheme(_NAMES[format_], group), n, k, codes, scales)


def read(path: Path) -> Program:
    data = path.read_bytes()
    magic, version, header_bytes, file_bytes, count, table_crc = struct.unpack_from("<8sIIQII", data)
    assert (magic, version, header_bytes, file_bytes) == (b"edgekit\0", 1, 64, len(data))
    assert struct.unpack_from("<I", data, 60)[0] == zlib.crc32(data[:60])
    table = data[64 : 64 + 32 * count]
    assert zlib.crc32(table) == table_crc
    sections, places = {}, {}
    for kind, crc, offset, size, zero in struct.iter_unpack("<IIQQQ", table):
        sections[kind] = data[offset : offset + size]
        places[kind] = (crc, offset, size)
        assert zero == 0 and zlib.crc32(sections[kind]) == crc
    return Program(data, (version, count), sections, places)


def quantized(folder: Path, recipe: str, **shape: object) -> QuantGraph:
    sizes = {"hidden": 72, "heads": 4, "kv_heads": 2, "head_dim": 18, "intermediate": 100, "vocab": 331} | shape
    path = make_checkpoint(folder / "checkpoint", **sizes)  # type: ignore[arg-type]
    checkpoint = open_checkpoint(path)
    return quantize(build_graph(checkpoint, context=64), checkpoint, parse_recipe(recipe))


def written(folder: Path, quant: QuantGraph, extras: Extras = EXTRAS, name: str = "model.edge") -> tuple[Plan, Program]:
    plan = make_plan(lower(quant), quant.graph.decoder, load_target("rpi5"), context=64, max_rows=32)
    write_program(plan, quant, extras, folder / name)
    return plan, read(folder / name)


def c_fields(name: str) -> list[tuple[str, int, int]]:
    """The fields of a struct of format.h: type, count, offset; padding and reserved bytes left out."""
    body = re.search(rf"struct {name} \{{.*?\n(.*?)\n\}};", FORMAT_H, re.S)
    assert body is not None
    fields, offset = [], 0
    for kind, field, count in re.findall(r"^\s*(\w+) (\w+)(?:\[(\d+)\])?;", body[1], re.M):
        size = {"char": 1, "uint8_t": 1, "uint32_t": 4, "float": 4, "uint64_t": 8}[kind]
        offset = -(-offset // size) * size
        total = int(count or 1)
        if not field.startswith("reserved"):
            fields += (
                [(kind, 1, offset + i * size) for i in range(total)] if kind != "char" else [(kind, total, offset)]
            )
        offset += size * total
    return fields


def python_fields(layout: struct.Struct) -> list[tuple[str, int, int]]:
    names = {"s": "char", "I": "uint32_t", "f": "float", "Q": "uint64_t"}
    fields, offset = [], 0
    for count, code in re.findall(r"(\d*)([sIQfx])", layout.format):
        total = int(count or 1)
        size = {"s": 1, "x": 1, "I": 4, "f": 4, "Q": 8}[code]
        if code == "s":
            fields.append(("char", total, offset))
        elif code != "x":
            fields += [(names[code], 1, offset + i * size) for i in range(total)]
        offset += size * total
    return fields


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("Header", native.HEADER), ("Section", native.SECTION), ("Config", native.CONFIG),
        ("Operator", native.OPERATOR), ("Tensor", native.TENSOR), ("Buffer", native.BUFFER),
        ("KernelName", native.KERNEL_NAME),
    ],
)  # fmt: skip
def test_the_writer_and_the_c_header_agree_on_every_field(name: str, layout: struct.Struct) -> None:
    stated = re.search(rf"sizeof\({name}\) == (\d+)", FORMAT_H)
    assert layout.size == (int(stated[1]) if stated else 64)
    assert python_fields(layout) == c_fields(name)


def test_the_writer_and_the_c_header_agree_on_every_number() -> None:
    def enum(name: str) -> dict[str, int]:
        body = re.search(rf"enum class {name}.*?\{{(.*?)\}};", FORMAT_H, re.S)
        assert body is not None
        return {key.lower(): int(value) for key, value in re.findall(r"k(\w+) = (\d+)", body[1])}

    assert enum("SectionKind") == native.SECTION_KINDS
    assert enum("OperatorKind") == {name.lower(): number for name, number in native.OPERATOR_KINDS.items()}
    gemm = (Path(__file__).parents[1] / "kernels" / "include" / "edgekit" / "gemm.h").read_text()
    numbers = {name.lower(): int(number) for name, number in re.findall(r"EDGEKIT_([FQT]\d+) = (\d)", gemm)}
    assert numbers == FORMATS


@pytest.mark.parametrize("recipe", ["q4g32", "q8g64", "q3g32", "q2g64,head=q4g32", "t2g32,head=f16", "f16", "f32"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_of_the_file_has_the_values_of_its_sources(tmp_path: Path, recipe: str, tied: bool) -> None:
    quant = quantized(tmp_path, recipe, tied=tied)
    plan, program = written(tmp_path, quant)
    for index, tensor in enumerate(plan.tensors):
        parts = [
            quant.tensors[name].values() if name in quant.tensors else quant.vectors[name] for name in tensor.sources
        ]
        if tensor.join == "tiles":
            padded = [np.vstack([part, np.zeros((-len(part) % 16, part.shape[1]), np.float32)]) for part in parts]
            tiles = [
                tile
                for pair in zip(*(np.split(part, len(part) // 16) for part in padded), strict=True)
                for tile in pair
            ]
            expected = np.concatenate(tiles)
        else:
            expected = np.concatenate(parts) if parts else np.array(quant.graph.decoder.inv_freq, np.float32)
        np.testing.assert_array_equal(program.tensor(index), expected)


def test_the_matrices_of_gate_and_up_alternate_in_tiles(tmp_path: Path) -> None:
    quant = quantized(tmp_path, "q8g32")
    plan, program = written(tmp_path, quant)
    index = next(at for at, tensor in enumerate(plan.tensors) if tensor.join == "tiles")
    values = program.tensor(index)
    gate, up = (quant.tensors[f"model.layers.0.mlp.{part}_proj.weight"].values() for part in ("gate", "up"))
    assert values.shape == (2 * 112, 72)
    np.testing.assert_array_equal(values[:16], gate[:16])
    np.testing.assert_array_equal(values[16:32], up[:16])
    np.testing.assert_array_equal(values[192:196], gate[96:100])
    assert not values[196:208].any()


def test_biases_are_joined_as_their_matrices_are(tmp_path: Path) -> None:
    quant = quantized(tmp_path, "q4g32", model_type="qwen2")
    plan, program = written(tmp_path, quant)
    bias = plan.operators[1].products[0].bias
    assert bias is not None
    expected = np.concatenate([quant.vectors[f"model.layers.0.self_attn.{part}_proj.bias"] for part in "qkv"])
    np.testing.assert_array_equal(program.tensor(bias), expected)


def test_the_file_tells_the_loader_what_the_plan_says(tmp_path: Path) -> None:
    quant = quantized(tmp_path, "q4g32")
    plan, program = written(tmp_path, quant)
    config = struct.unpack("<13I8IIQI28x", program.sections[1])
    decoder = quant.graph.decoder
    assert config[:8] == (2, 72, 4, 2, 18, 100, 331, decoder.context)
    assert config[8:13] == (32, plan.decode_threads, plan.prefill_threads, 1, 2)
    assert config[13:21] == (2, 7, 0, 0, 0, 0, 0, 0)
    assert config[21:] == (plan.arena_bytes, 0b11, 0)
    write_program(replace(plan, kv="q8"), quant, EXTRAS, tmp_path / "q8.edge")
    assert struct.unpack("<13I8IIQI28x", read(tmp_path / "q8.edge").sections[1]) == (*config[:-1], 1)
    operators = program.rows(2, "<17I3f16x")
    assert [operator[0] for operator in operators] == [1, *2 * [2, 3, 4, 5, 4], 6]
    attention = operators[2]
    assert attention[1:3] == (0, operators[1][3]) and attention[5:11] == (native.NONE,) * 6
    assert attention[18] == pytest.approx(1 / math.sqrt(18))
    embed, linear_add, head = operators[0], operators[3], operators[-1]
    unused = ({2, 4, *range(6, 16), 17}, {4, 6, 7, 9, 10, *range(11, 14), 17}, {3, 6, 7, 9, 10, *range(11, 14)})
    for operator, fields in zip((embed, linear_add, head), unused, strict=True):
        assert all(operator[field] == (0 if field == 17 else native.NONE) for field in fields)
        assert (operator[1], operator[16], *operator[18:]) == (0, 0, 0, 1)
    assert [name.rstrip(b"\0").decode() for (name,) in program.rows(5, "64s")] == list(plan.kernels)
    assert program.sections[6] == b"tokenizer" and program.sections[7] == b"probe"


def test_sections_rise_without_overlap_and_the_weights_begin_on_a_page(tmp_path: Path) -> None:
    _, program = written(tmp_path, quantized(tmp_path, "q4g32"))
    end = 64 + 32 * len(program.places)
    for kind, (_, offset, size) in program.places.items():
        assert offset >= end and offset % (65536 if kind == 8 else 64) == 0
        end = offset + size
    assert end == len(program.data)
    assert list(program.places) == sorted(program.places)


def test_an_empty_probe_is_absent(tmp_path: Path) -> None:
    _, program = written(tmp_path, quantized(tmp_path, "q4g32"), replace(EXTRAS, probe=b""))
    assert list(program.places) == [1, 2, 3, 4, 5, 6, 8]


def test_writing_twice_gives_equal_bytes(tmp_path: Path) -> None:
    quant = quantized(tmp_path, "q4g32")
    assert written(tmp_path, quant, name="one")[1].data == written(tmp_path, quant, name="two")[1].data


def test_blocks_of_any_size_give_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quant = quantized(tmp_path, "q3g32,head=f16", model_type="qwen2")
    whole = written(tmp_path, quant, name="whole")[1].data
    monkeypatch.setattr(native, "_BLOCK_BYTES", 1)
    assert written(tmp_path, quant, name="blocks")[1].data == whole


def test_memory_does_not_grow_with_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "c", vocab=20_000, hidden=256, heads=4, layers=1))
    directory = tmp_path / "quantized"
    directory.mkdir()
    quant = quantize(build_graph(checkpoint, context=64), checkpoint, parse_recipe("q8g32"), directory=directory)
    plan = make_plan(lower(quant), quant.graph.decoder, load_target("rpi5"), context=64)
    monkeypatch.setattr(native, "_BLOCK_BYTES", 1 << 18)
    tracemalloc.start()
    write_program(plan, quant, EXTRAS, tmp_path / "model.edge")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The embedding alone is 5 MB of codes. A block is held three times: joined, packed, as bytes.
    assert peak < 4 * (1 << 18) < plan.weights_bytes / 4


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    quant = quantized(tmp_path, "q4g32")
    plan = make_plan(lower(quant), quant.graph.decoder, load_target("rpi5"), context=64)
    seen: list[tuple[int, int]] = []
    write_program(plan, quant, EXTRAS, tmp_path / "model.edge", progress=lambda *done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == (plan.weights_bytes, plan.weights_bytes)


def test_more_end_of_text_ids_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    quant = quantized(tmp_path, "q4g32")
    with pytest.raises(DoesNotFit, match="9 tokens; a program has room for 8"):
        written(tmp_path, quant, replace(EXTRAS, eos=tuple(range(9))))
    assert not (tmp_path / "model.edge").exists()


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    quant = quantized(tmp_path, "q4g32")
    (tmp_path / "model.edge").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        written(tmp_path, quant)
    assert (tmp_path / "model.edge").read_bytes() == b"mine"


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("recipe", ["q4g32", "q2g32,*.q_proj=q8g64,head=f16"])
def test_the_runner_accepts_what_is_written(tmp_path: Path, model_type: str, recipe: str) -> None:
    try:
        runner = find_runner(load_target("host").triple)
    except TargetMissing as error:
        pytest.skip(error.message)
    written(tmp_path, quantized(tmp_path, recipe, model_type=model_type), Extras(b"", b"", None, ()))
    done = subprocess.run(
        [runner, "verify", tmp_path / "model.edge"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
