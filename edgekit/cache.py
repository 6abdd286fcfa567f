"""Finished stages of earlier compiles, found again by the digest of everything that went into them.

Folder: $EDGEKIT_CACHE, else $XDG_CACHE_HOME/edgekit, else ~/.cache/edgekit. It may be deleted at any time.
It is cut to $EDGEKIT_CACHE_BYTES (20 GiB where unset) when nothing uses it: stages not used for longest go first.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.resources
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekit.disk import UNFINISHED, make_folder, make_hidden, told_as, writing
from edgekit.errors import UsageError
from edgekit.units import Bytes, Seconds

DEFAULT_LIMIT = Bytes(20 << 30)
# A stage that an interrupted machine left unfinished this long ago is nobody's any more.
_ABANDONED = Seconds(24 * 3600)


class Cache:
    """Folders of finished stages. A stage is there whole or not at all, also when two compiles run at once."""

    def __init__(self, root: Path, limit: Bytes) -> None:
        self.root = root
        self.limit = limit

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While this lasts no stage of the cache is removed by another process to make room."""
        make_folder(self.root)
        with (self.root / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield
        self.make_room()

    def find(self, stage: str, key: Mapping[str, str]) -> Path | None:
        """The folder of the finished stage made from `key`, now the one used last; None if it has to be made."""
        path = self._path(stage, key)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    @contextlib.contextmanager
    def fill(self, stage: str, key: Mapping[str, str]) -> Iterator[Path]:
        """A folder to write the stage into. It is found from then on if the block ends without an error, else gone."""
        folder = make_hidden(UNFINISHED, self.root)
        try:
            with told_as(folder, self.root):
                yield folder
            sync_tree(folder)
            # Another compile may have finished the same stage meanwhile: the same bytes, so either will do.
            try:
                folder.rename(self._path(stage, key))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            sync_folder(self.root)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the cache's disk that is gone after the block."""
        folder = make_hidden(UNFINISHED, self.root)
        try:
            with told_as(folder, self.root):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def make_room(self) -> None:
        """Removes the stages not used for longest until the rest fits the limit, unless a compile is using them."""
        with (self.root / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            used = 0
            for path in sorted(self._stages(), key=lambda path: path.stat().st_mtime, reverse=True):
                used += folder_bytes(path)
                abandoned = path.name.startswith(UNFINISHED) and time.time() - path.stat().st_mtime > _ABANDONED
                if used > self.limit or abandoned:
                    shutil.rmtree(path, ignore_errors=True)

    def _stages(self) -> list[Path]:
        return [path for path in self.root.iterdir() if path.is_dir()]

    def _path(self, stage: str, key: Mapping[str, str]) -> Path:
        digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        return self.root / f"{stage}-{digest[:40]}"


def user_cache() -> Cache:
    """The cache of the person who runs this.

    Raises:
        UsageError: EDGEKIT_CACHE_BYTES is not a number, or nothing names a folder and the person has no home.
    """
    root = os.environ.get("EDGEKIT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    limit = os.environ.get("EDGEKIT_CACHE_BYTES", str(int(DEFAULT_LIMIT)))
    if not limit.isdecimal():
        raise UsageError(f"EDGEKIT_CACHE_BYTES is '{limit}', not a number of bytes", hint="for example 20000000000")
    try:
        folder = Path(root) if root else Path(base).expanduser() / "edgekit"
    except RuntimeError as error:
        raise UsageError(
            f"there is no home folder for a cache in {base}", hint="set EDGEKIT_CACHE to a folder"
        ) from error
    return Cache(folder, Bytes(limit))


def folder_bytes(folder: Path) -> Bytes:
    """Size of all files below `folder`."""
    return Bytes(sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()))


def sync_tree(folder: Path) -> None:
    """Waits until every file below `folder` is on the disk, so that a rename never shows a half-written one."""
    for path in folder.rglob("*"):
        sync_folder(path) if path.is_dir() else _sync(path, os.O_RDONLY)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Waits until the entries of `folder` are on the disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        with writing(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def code_digest() -> str:
    """Digest of the installed package's own code: stages made by another edgekit are not found again."""
    package = Path(str(importlib.resources.files("edgekit")))
    digest = hashlib.sha256()
    for path in sorted(path for pattern in ("*.py", "*.so") for path in package.rglob(pattern)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{content}  {path.relative_to(package)}\n".encode())
    return digest.hexdigest()
