"""A disk that is full: every writer ends in an error that names its file, and leaves nothing half-written."""

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.cli import main
from edgekit.disk import NO_SPACE, appearing, make_hidden, reserve, told_as, writing
from edgekit.engines.native import Extras, write_program
from edgekit.engines.written import Written, describe
from edgekit.graph import build_graph, save_graph
from edgekit.passes import lower
from edgekit.plan import make_plan
from edgekit.quantize import QuantGraph, quantize
from edgekit.scheme import parse_recipe
from edgekit.target import load_target
from edgekit.testing import make_checkpoint
from edgekit.units import Bytes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", context=64))


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing past `size` fails with EFBIG: to a program the same as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def quantized(checkpoint: Checkpoint, folder: Path | None = None) -> QuantGraph:
    return quantize(build_graph(checkpoint, context=64), checkpoint, parse_recipe("q8g32"), directory=folder)


def write_native(checkpoint: Checkpoint, folder: Path) -> None:
    quant = quantized(checkpoint)
    plan = make_plan(lower(quant), quant.graph.decoder, load_target("rpi5"), context=64)
    write_program(plan, quant, Extras(b"", b"", None, (0,)), folder / "model.edge")


DESCRIBED = Written(
    file=Path("model"), engine="onnxruntime", engine_version="", kernels="runtime", made_from="", bos=None, eos=(),
    vocab=1, context=1, kv_format="f32", kv_bytes=Bytes(0), weights_bytes=Bytes(0), bytes_per_token=Bytes(0),
)  # fmt: skip

WRITERS: dict[str, Callable[[Checkpoint, Path], object]] = {
    "model.embed_tokens.weight.codes.npy": quantized,
    "model.onnx.data": lambda checkpoint, folder: save_graph(build_graph(checkpoint, context=64), folder),
    "model.edge": write_native,
    "probe": lambda checkpoint, folder: describe(replace(DESCRIBED, file=folder / "model"), probe=bytes(9000)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_names_the_file_that_does_not_fit(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError) as caught, files_of_at_most(8192):
        WRITERS[name](checkpoint, tmp_path)
    assert caught.value.errno in NO_SPACE
    assert caught.value.filename == str(tmp_path / name)
    # The folder is its owner's to remove; no file that others look for is in it.
    assert not (tmp_path / "model.onnx").exists() and not (tmp_path / "quantized.json").exists()


def test_codes_have_their_place_on_the_disk_before_one_is_written(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    monkeypatch.setattr("edgekit.quantize._fill", lambda *_: pytest.fail("written through the map"))
    with pytest.raises(OSError) as caught:
        quantized(checkpoint, tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "model.embed_tokens.weight.codes.npy")


def test_a_compile_on_a_full_disk_says_so_and_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    arguments = ["compile", str(checkpoint.path), "--target", "host", "-o", str(tmp_path / "out" / "bundle")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 9
    *_, sentence, hint = done.stderr.splitlines()
    # The cache's own name, and not that of the hidden folder in it.
    file = tmp_path / "cache" / "model.embed_tokens.weight.codes.npy"
    assert sentence == f"edgekit: no space left to write {file}"
    assert hint == "hint: free some, or set EDGEKIT_CACHE to another folder"
    assert list((tmp_path / "out").iterdir()) == []
    assert not list((tmp_path / "cache").glob(".*"))


def test_an_error_in_a_hidden_folder_is_told_as_one_of_the_place_it_is_for(tmp_path: Path) -> None:
    hidden = make_hidden(".out-", tmp_path)
    with pytest.raises(FileNotFoundError) as caught, told_as(hidden, tmp_path / "out"):
        (hidden / "model.edge").read_bytes()
    assert caught.value.filename == str(tmp_path / "out" / "model.edge")
    with pytest.raises(FileNotFoundError) as caught, told_as(hidden, tmp_path / "out"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError) as caught:
            make_hidden(".x-", place)
        assert caught.value.filename in (str(place), str(tmp_path / "file"))
    with pytest.raises(OSError) as refused:
        make_hidden(".x-", Path("/proc"))
    assert refused.value.filename == "/proc"


def test_a_reserved_file_has_blocks_for_all_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as stream:
        stream.truncate(1 << 20)
    reserve(file)
    assert file.stat().st_size == 1 << 20
    assert file.stat().st_blocks * 512 >= 1 << 20


def test_a_file_system_that_cannot_reserve_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    (tmp_path / "file").write_bytes(b"x")
    reserve(tmp_path / "file")


def test_an_error_of_numpy_that_says_nothing_is_one_of_space(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device \(9000 requested and \d+ written\)") as caught,
        files_of_at_most(4096),
        writing(tmp_path / "file"),
        (tmp_path / "file").open("wb") as stream,
    ):
        np.zeros(9000, np.uint8).tofile(stream)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, writing(tmp_path / "file"):
        (tmp_path / "missing").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing")


def test_a_file_appears_whole_and_on_the_disk_or_not_at_all(tmp_path, monkeypatch):
    file, synced = tmp_path / "file", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(file.exists()))
    with appearing(file) as stream:
        stream.write(b"old")
        assert not file.exists()
    assert file.read_bytes() == b"old" and synced == [False]
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode
    with pytest.raises(OSError, match="No space left") as caught, appearing(file) as stream:
        stream.write(b"new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(file) and file.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]
