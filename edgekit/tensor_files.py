"""Reads parts of a checkpoint's files, each time from a regular file that lies where the checkpoint says."""

import stat
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import Damaged
from edgekit.safetensors import TensorInfo

Float32 = npt.NDArray[np.float32]

FLOATS: Final[Mapping[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_VALUES_AT_ONCE: Final = 1 << 20  # read and widened while they are in the cache


def inside(directory: Path, name: str) -> Path:
    """The regular file `name` of `directory`, links followed.

    A link must not lead out of the directory; the Hugging Face cache is the exception, where the files of
    `snapshots/<revision>` are links to `../../blobs`.
    """
    file, root = (directory / name).resolve(), directory.resolve()
    blobs = root.parent.parent / "blobs"
    if not file.is_relative_to(root) and not (root.parent.name == "snapshots" and file.parent == blobs):
        raise Damaged(f"{name} is a link that leads out of {directory}", hint="copy the file there")
    try:
        is_regular = stat.S_ISREG(file.stat().st_mode)
    except OSError as error:
        raise Damaged(f"cannot read {name}: {error.strerror}", hint="download it again") from error
    if not is_regular:
        raise Damaged(f"{name} in {directory} is not a regular file", hint="download it again")
    return file


def read_floats(info: TensorInfo, offset: int, size: int) -> Float32:
    """The `size` bytes at `offset` of the tensor's file, in float32."""
    dtype = FLOATS[info.dtype]
    values = np.empty(size // dtype.itemsize, np.float32)
    read = np.empty(min(len(values), _VALUES_AT_ONCE), dtype)
    with inside(info.file.parent, info.file.name).open("rb", buffering=0) as stream:
        stream.seek(offset)
        for start in range(0, len(values), len(read)):
            part = read[: len(values) - start]
            _fill(memoryview(part.data).cast("B"), stream)
            if info.dtype == "BF16":
                # A bf16 is the upper half of a float32.
                np.left_shift(part, 16, out=values[start : start + len(part)].view(np.uint32), dtype=np.uint32)
            else:
                values[start : start + len(part)] = part
    return values


def read_array(file: Path, offset: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The array of `shape` that begins at `offset` of `file`."""
    array = np.empty(shape, dtype)
    with inside(file.parent, file.name).open("rb", buffering=0) as stream:
        stream.seek(offset)
        _fill(memoryview(array.reshape(-1).view(np.uint8).data), stream)
    return array


def _fill(buffer: memoryview, stream: FileIO) -> None:
    while buffer:
        count = stream.readinto(buffer)
        if not count:
            raise Damaged(f"{stream.name} became shorter while it was read", hint="start again")
        buffer = buffer[count:]
