"""Writing to a disk that may be full: an OSError that names the file, and never a signal."""

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

UNFINISHED: Final = ".unfinished-"  # begins the names of what is not whole yet
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT_RESERVE: Final = (errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """While this lasts an OSError without a file is one of `file`, and so is every one about space.

    write(2) does not say where it failed, copying names what it read, and NumPy gives not even the number.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({error})", str(file)) from error
        if error.filename is None or error.errno in NO_SPACE:
            error.filename, error.filename2 = str(file), None
        raise


@contextlib.contextmanager
def told_as(temporary: Path, place: Path) -> Iterator[None]:
    """While this lasts an OSError of a file in the folder `temporary` names it in `place`, which the person knows."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(temporary):
            error.filename = str(place / Path(error.filename).relative_to(temporary))
        raise


@contextlib.contextmanager
def appearing(file: Path) -> Iterator[IO[bytes]]:
    """A stream to write `file` with, which appears whole, and on the disk, when the block ends without an error."""
    part = file.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    with writing(file):
        try:
            with part.open("xb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """Writes `file` whole or not at all; it is on the disk when this returns."""
    with appearing(file) as stream:
        stream.write(text.encode())


def make_folder(folder: Path) -> None:
    """Makes `folder` and those it is in, where they are not there; an OSError says if something else is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from error


def make_hidden(prefix: str, folder: Path) -> Path:
    """A new folder in `folder`, which is made if it is not there; an OSError names `folder`."""
    make_folder(folder)
    try:
        return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    except OSError as error:
        error.filename = str(folder)
        raise


def reserve(file: Path) -> None:
    """Gives every byte of `file` a place on the disk. Without one, writing to it through a map ends in SIGBUS."""
    with writing(file), file.open("r+b") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)
        except OSError as error:
            # A file system that cannot: glibc then writes zeros itself, musl leaves it at that.
            if error.errno not in _CANNOT_RESERVE:
                raise
