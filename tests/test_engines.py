"""Engines by name, whose kernels they run, and what is said beside an artifact."""

import json
from pathlib import Path

import pytest

from edgekit.engines import ENGINES, Outside, by_operator, check_engine, find_engine, kernels_of
from edgekit.engines.written import Written, describe, read_written, refused
from edgekit.errors import Damaged, TargetMissing, Unsupported, UsageError
from edgekit.units import Bytes


@pytest.fixture
def written(tmp_path: Path) -> Written:
    (tmp_path / "model.onnx").write_bytes(b"")
    return Written(
        file=tmp_path / "model.onnx",
        engine="onnxruntime",
        engine_version="onnxruntime 1.32.0",
        kernels="runtime",
        made_from="ab" * 32,
        bos=None,
        eos=(0, 7),
        vocab=512,
        context=48,
        kv_format="f32",
        kv_bytes=Bytes(24576),
        weights_bytes=Bytes(1000),
        bytes_per_token=Bytes(900),
    )


def test_engines_are_known_by_name() -> None:
    assert [check_engine(name) for name in ENGINES] == ["native", "onnxruntime", "executorch", "litert"]
    with pytest.raises(Unsupported, match="unknown engine 'magic'") as refusal:
        check_engine("magic")
    assert refusal.value.hint == "one of: native, onnxruntime, executorch, litert"


@pytest.mark.parametrize("name", ["native", "magic", "os", "../os"])
def test_only_an_engine_that_the_host_runs_is_imported(name: str) -> None:
    with pytest.raises(Unsupported, match="is no engine that the host runs"):
        find_engine(name)


def test_native_has_no_kernels_but_ours() -> None:
    assert kernels_of("native", portable=False) == "edgekit"
    assert kernels_of("onnxruntime", portable=False) == "edgekit"
    assert kernels_of("onnxruntime", portable=True) == "runtime"
    assert [kernels_of("executorch", portable=portable) for portable in (False, True)] == ["edgekit", "runtime"]
    with pytest.raises(UsageError, match="the engine native has no kernels but edgekit's"):
        kernels_of("native", portable=True)


def test_nodes_are_gathered_products_of_codes_first_and_then_the_most() -> None:
    nodes = [("Add", None), ("Mul", None), ("MatMul", "a"), ("Mul", None), ("MatMul", None), ("Cast", None)]
    assert by_operator([*nodes, ("MatMul", "b")]) == (
        Outside("MatMul", 3, ("a", "b")),
        Outside("Mul", 2),
        Outside("Add", 1),
        Outside("Cast", 1),
    )
    assert by_operator([]) == ()


def test_what_was_described_is_read_again(written: Written) -> None:
    describe(written, probe=b"probe")
    assert read_written(written.file) == written
    assert written.probe == b"probe"


def test_a_link_to_the_model_is_followed(written: Written, tmp_path: Path) -> None:
    describe(written, probe=b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(written.file)
    assert read_written(tmp_path / "folder" / "link") == written


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        read_written(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos", [True]), ("eos", [-1]), ("eos", 0), ("eos", None), ("eos", ["a"]), ("eos", [0] * 1001),
        ("bos", -1), ("bos", 1.5), ("vocab", 0), ("context", 2**40), ("kernels", "others"), ("weights_bytes", -1),
        ("engine", None), ("schema", 2), ("more", 1),
    ],
)  # fmt: skip
def test_a_description_that_is_none_is_refused(written: Written, key: str, value: object) -> None:
    describe(written, probe=b"")
    file = written.file.with_name("engine.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(Damaged, match=r"engine\.json") as refusal:
        read_written(written.file)
    assert refusal.value.hint == "compile again"


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '"\\ud800"', "\0" * (2 << 20)])
def test_a_description_that_is_no_document_is_refused(written: Written, text: str) -> None:
    describe(written, probe=b"")
    written.file.with_name("engine.json").write_text(text)
    with pytest.raises(Damaged, match=r"engine\.json"):
        read_written(written.file)


def test_a_refusal_by_another_version_names_both_in_one_sentence(written: Written) -> None:
    error = refused(written, "onnxruntime 1.17.1", ValueError("Opset 24\n is\x1b[2J too new"))
    assert isinstance(error, TargetMissing)
    assert error.message == (
        "model.onnx was made with onnxruntime 1.32.0 and onnxruntime 1.17.1 refuses it: Opset 24 is[2J too new"
    )
    assert error.hint == "install onnxruntime==1.32.0, or compile again"


def test_a_refusal_by_the_same_version_is_damage(written: Written) -> None:
    assert isinstance(refused(written, "onnxruntime 1.32.0", "bad"), Damaged)
