"""ONNX files with their weights beside them: written one tensor at a time, and distrusted when read.

`<file>` holds the graph and the small tensors, `<file>.data` the others, each at a multiple of 64 KiB so that a reader
can map it whatever its page size.
"""

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgekit.disk import writing
from edgekit.errors import Damaged

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_Tensor = ir.Tensor[Any] | ir.LazyTensor | ir.PackedTensor[Any] | ir.ExternalTensor

_INLINE_BYTES: Final = 4096  # smaller tensors stay in the graph's file
_ALIGNMENT: Final = 65536


def save_model(
    model: ir.Model, file: Path, *, shared: Mapping[str, str] | None = None, progress: Progress | None = None
) -> None:
    """Writes `model` to `file` and its larger tensors to `<file>.data`.

    `shared` maps initializers to others with the same bytes, which are stored once. Lazy tensors are made, written and
    dropped one by one. Each file appears complete or not at all, the one that refers to the other last: an interrupted
    save leaves no model.
    """
    model = model.clone()
    large = [(value, tensor) for value, tensor in _tensors(model) if tensor.nbytes >= _INLINE_BYTES]
    names = {str(value.name) for value, _ in large}
    same = {name: other for name, other in (shared or {}).items() if name in names and other in names}
    offsets: dict[str, int] = {}
    total, done = sum(tensor.nbytes for _, tensor in large), 0
    data_file = _data_file(file)
    file.unlink(missing_ok=True)
    with _appearing(data_file) as stream:
        for value, tensor in large:
            name = str(value.name)
            first = same.get(name, name)
            if first not in offsets:
                offset = -(-stream.tell() // _ALIGNMENT) * _ALIGNMENT
                stream.seek(offset)
                tensor.tofile(stream)
                assert stream.tell() == offset + tensor.nbytes
                offsets[first] = offset
            value.const_value = ir.ExternalTensor(
                data_file.name, offsets[first], tensor.nbytes, tensor.dtype, shape=_fixed(tensor), name=name
            )
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)
    write_graph(model, file)


def write_graph(model: ir.Model, file: Path) -> None:
    """Writes `model`, whose tensors are in it or lie outside already, to `file`: complete or not at all."""
    with _appearing(file) as stream:
        stream.write(ir.to_proto(model).SerializeToString(deterministic=True))


def load_model(file: Path, *, data: Path | None = None) -> ir.Model:
    """The model in `file`; its larger tensors stay on disk, in the file `data` beside it: `<file>.data`.

    Raises:
        Damaged: not a model, or one whose tensors do not lie within `data`.
    """
    data_file = data or _data_file(file)
    try:
        model = ir.load(file)
        outside = [tensor for _, tensor in _tensors(model) if isinstance(tensor, ir.ExternalTensor)]
        data_bytes = _plain_file_bytes(data_file) if outside else 0
    except (OSError, DecodeError, ir.serde.SerdeError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{file} cannot be read: {error}", hint="compile again") from error
    for tensor in outside:
        # ONNX's external data has led readers out of their folder before (CVE-2024-27318, CVE-2026-27489).
        offset, length = tensor.offset or 0, tensor.length or 0
        if tensor.location != data_file.name or length != tensor.nbytes or not 0 <= offset <= data_bytes - length:
            raise Damaged(
                f"the tensor '{tensor.name}' of {file} does not lie within {data_file.name}",
                hint="compile again",
            )
    return model


def _tensors(model: ir.Model) -> list[tuple[ir.Value, _Tensor]]:
    """The initializers that have data."""
    return [
        (value, value.const_value)
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.Tensor | ir.LazyTensor | ir.PackedTensor | ir.ExternalTensor)
    ]


def _fixed(tensor: _Tensor) -> ir.Shape:
    return ir.Shape(tensor.shape.numpy())


def _data_file(file: Path) -> Path:
    return file.with_name(file.name + ".data")


def _plain_file_bytes(file: Path) -> int:
    """The size of a regular file that is no link and has no second name."""
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise ValueError(f"{file.name} is a link or not a regular file")
    return status.st_size


@contextlib.contextmanager
def _appearing(file: Path) -> Iterator[IO[bytes]]:
    """A stream whose bytes become `file` when the block ends well, and vanish when it does not."""
    # Closing flushes again, and fails again: the file is named around both.
    with (
        writing(file),
        tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as stream,
    ):
        written = Path(stream.name)
        try:
            yield stream.file
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)  # a temporary file is its owner's alone
            os.fsync(stream.fileno())
            written.replace(file)
        except BaseException:
            written.unlink(missing_ok=True)
            raise
