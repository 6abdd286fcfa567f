"""What is shipped: one folder with the program, its runner, the tokenizer, and a manifest of every byte.

A bundle appears whole or not at all: it is written beside its place, brought to the disk, and renamed. The manifest is
canonical JSON (sorted keys, two spaces, shortest numbers) without times or paths, so equal compiles give equal bytes.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import edgekit
from edgekit.cache import sync_folder, sync_tree
from edgekit.disk import NO_SPACE, make_hidden, told_as, writing
from edgekit.engines import ARTIFACTS
from edgekit.engines.built import OPERATORS, RUNNER, find_built
from edgekit.engines.written import DESCRIPTION, PROBE, TOKENIZER
from edgekit.errors import Damaged, DoesNotFit, Unsupported, UsageError, one_of
from edgekit.schema import problems
from edgekit.units import Bytes

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
PROGRAM: Final = ARTIFACTS["native"]
# What a bundle remembers of the machine it was calibrated on: beside the others, in no manifest.
CALIBRATION: Final = PROGRAM + ".calibration"
CALIBRATION_LIMIT: Final = Bytes(4096)

# What must be in a bundle of each engine.
_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    engine: (artifact, RUNNER) if engine == "native" else (artifact, DESCRIPTION, PROBE, TOKENIZER)
    for engine, artifact in ARTIFACTS.items()
}
_MOST_MANIFEST_BYTES: Final = 16 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_LITERT_CACHE: Final = re.compile(r"model\.(litertlm|tflite)[._].*cache.*")
_LEFT_BY_LITERT: Final = "remove it: LiteRT-LM left it, and makes it again; its option cache_dir names another folder"
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_MANIFEST_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "schema", "edgekit", "target", "triple", "engine", "recipe", "made_from", "context", "required_features",
        "chat_template", "bos", "eos", "bos_id", "eos_ids", "predicted", "coherence", "files",
    ],
    "properties": {
        "schema": {"type": "integer", "enum": [SCHEMA]},
        "edgekit": _TEXT,
        "target": _TEXT,
        "triple": _TEXT,
        "engine": _TEXT,
        "engine_version": _TEXT_OR_NULL,
        "kernels": {"type": "string", "enum": ["edgekit", "runtime"]},
        "recipe": _TEXT,
        "made_from": _TEXT,
        "calibrated_on": _TEXT_OR_NULL,
        "context": {"type": "integer", "minimum": 1},
        "kv": {"type": "string", "enum": ["f16", "q8", "f32"]},
        "required_features": {"type": "array", "items": _TEXT},
        "chat_template": _TEXT_OR_NULL,
        "bos": _TEXT_OR_NULL,
        "eos": _TEXT_OR_NULL,
        "bos_id": {"type": ["integer", "null"], "minimum": 0},
        "eos_ids": {"type": "array", "items": _COUNT},
        "predicted": {"type": "object"},
        "coherence": {"type": "object"},
        "files": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["bytes", "sha256"],
                "properties": {"bytes": _COUNT, "sha256": _TEXT},
            },
        },
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class File:
    """A file of a bundle as its manifest gives it."""

    bytes: Bytes
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a bundle's manifest says besides its files. `predicted` and `coherence` are figures by name.

    `engine_version` is the runtime's that wrote and tried it, None for native; `kernels` says whose matrix products it
    runs, "edgekit" or "runtime". `made_from` is a digest of checkpoint, recipe and calibration, `calibrated_on` one of
    the tokens that the inputs of the linear layers were measured on, None if they were not. `kv` says how keys and
    values are kept; `bos` and `eos` are the special tokens' texts, for chat templates.
    """

    target: str
    triple: str
    engine: str
    engine_version: str | None
    kernels: str
    recipe: str
    made_from: str
    calibrated_on: str | None
    context: int
    kv: str
    required_features: tuple[str, ...]
    chat_template: str | None
    bos: str | None
    eos: str | None
    bos_id: int | None
    eos_ids: tuple[int, ...]
    predicted: Mapping[str, Any]
    coherence: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle(Contents):
    """A bundle's folder and its manifest; the files are not checked before `verify_bundle`."""

    path: Path
    edgekit: str
    files: Mapping[str, File]

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def model(self) -> Path:
        """The file that the bundle's engine runs."""
        return self.path / ARTIFACTS[self.engine]

    @property
    def runner(self) -> Path:
        """The static program that runs the model; only native bundles have one."""
        return self.path / RUNNER

    @property
    def calibration(self) -> Path:
        """Where the numbers of threads are that were found best, if they were sought (`bench --calibrate`)."""
        return self.path / CALIBRATION


class Draft:
    """A bundle being written, in a folder of its own beside the place it will have."""

    def __init__(self, folder: Path, path: Path, *, force: bool) -> None:
        self.folder = folder
        self._path = path
        self._force = force

    @property
    def program(self) -> Path:
        """Where the program file has to be written."""
        return self.folder / PROGRAM

    @property
    def runner(self) -> Path:
        return self.folder / RUNNER

    def add_runner(self, triple: str) -> None:
        """Copies the runner for `triple` into the bundle."""
        _copy(find_runner(triple), self.runner)
        self.runner.chmod(0o755)

    def add_operators(self, triple: str) -> None:
        """Copies the operators for ONNX Runtime on `triple` into the bundle."""
        _copy(find_built(OPERATORS, triple), self.folder / OPERATORS)

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER

    def add_tokenizer(self, content: bytes) -> None:
        """Writes tokenizer.json."""
        with writing(self.tokenizer):
            self.tokenizer.write_bytes(content)

    def publish(self, contents: Contents) -> Bundle:
        """Writes the manifest and gives the bundle its place, taking that of an older one in the same moment.

        Raises:
            UsageError: something is there by now that is not to be replaced.
        """
        files = {file.name: File(Bytes(file.stat().st_size), _sha256(file)) for file in sorted(self.folder.iterdir())}
        assert files.keys() >= {*_REQUIRED[contents.engine]} and MANIFEST not in files
        manifest = {"schema": SCHEMA, "edgekit": edgekit.__version__, **asdict(contents)}
        manifest["files"] = {name: asdict(file) for name, file in files.items()}
        with writing(self.folder / MANIFEST):
            (self.folder / MANIFEST).write_bytes(_canonical(manifest))
        self.folder.chmod(0o755)
        sync_tree(self.folder)
        _check_place(self._path, force=self._force)
        if self._path.exists():
            _exchange(self.folder, self._path)
        else:
            _appear(self.folder, self._path)
        sync_folder(self._path.parent)
        return open_bundle(self._path)


@contextlib.contextmanager
def draft_bundle(path: Path, *, force: bool = False) -> Iterator[Draft]:
    """A draft that becomes the bundle `path` when published; without that nothing remains of it.

    Raises:
        UsageError: `path` exists and is not to be replaced (`force`), or is no bundle.
    """
    _check_place(path, force=force)
    folder = make_hidden(f".{path.name}-", path.parent)
    try:
        with told_as(folder, path):
            yield Draft(folder, path, force=force)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_runner(triple: str) -> Path:
    """The static edgekit-run for `triple`.

    Raises:
        TargetMissing: there is none.
    """
    return find_built(RUNNER, triple)


def open_bundle(path: Path) -> Bundle:
    """The bundle in the folder `path`. Checks its manifest, not its files.

    Raises:
        UsageError: `path` is not a bundle.
        Damaged: the manifest is not what edgekit writes.
        Unsupported: a manifest of a later version.
    """
    file = path / MANIFEST
    if not path.is_dir() or not file.is_file():
        raise UsageError(
            f"{path} is not a bundle", hint=f"give a folder that `edgekit compile` wrote, with a {MANIFEST}"
        )
    manifest = _read_manifest(file)
    files = {name: File(Bytes(entry["bytes"]), entry["sha256"]) for name, entry in manifest["files"].items()}
    for name in files:
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise Damaged(f"{MANIFEST} lists a file with the name {name!r}", hint="compile again")
    if manifest["engine"] not in _REQUIRED:
        raise Unsupported(f"{MANIFEST} names the engine {manifest['engine']!r}", hint=one_of(_REQUIRED))
    for name in _REQUIRED[manifest["engine"]]:
        if name not in files:
            raise Damaged(f"{MANIFEST} does not list {name}", hint="compile again")
    # A manifest from before keys and values had a choice, methods a calibration, and engines a choice of kernels.
    kv, kernels = ("f16", "edgekit") if manifest["engine"] == "native" else ("f32", "runtime")
    manifest = {"kv": kv, "calibrated_on": None, "engine_version": None, "kernels": kernels, **manifest}
    given = {field.name: manifest[field.name] for field in fields(Contents)}
    given |= {name: tuple(manifest[name]) for name in ("required_features", "eos_ids")}
    return Bundle(path=path, edgekit=manifest["edgekit"], files=files, **given)


def check_remembers(bundle: Bundle) -> None:
    """Nothing, if a calibration can be put into the bundle: a file without a name can.

    Raises:
        UsageError, DoesNotFit: it cannot.
    """
    with _writing_calibration(bundle), tempfile.TemporaryFile(dir=bundle.path) as stream:
        stream.write(bytes(CALIBRATION_LIMIT))


def remember_calibration(bundle: Bundle, content: bytes) -> None:
    """Puts a calibration beside the bundle's program, whole or not at all.

    Raises:
        UsageError, DoesNotFit: the bundle cannot be written.
    """
    draft = bundle.path / f".{CALIBRATION}-{os.getpid()}"
    with _writing_calibration(bundle):
        try:
            with draft.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(bundle.calibration)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(bundle.path)


@contextlib.contextmanager
def _writing_calibration(bundle: Bundle) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = DoesNotFit if error.errno in NO_SPACE else UsageError
        raise kind(
            f"cannot write {bundle.calibration}: {error.strerror}", hint="calibrate a copy of the bundle elsewhere"
        ) from error


def verify_bundle(bundle: Bundle) -> None:
    """Checks that the folder holds the files of the manifest and no others: every size, then every digest.

    A calibration may be there too: it is of the machine, and whoever reads it believes nothing of it unchecked. Not so
    the weights that LiteRT packs beside its model: it runs what lies there.

    Raises:
        Damaged: a file that is missing, altered, not a plain file, or not in the manifest.
    """
    hint = "copy the bundle again, or compile again"
    for entry in sorted(os.scandir(bundle.path), key=lambda entry: entry.name):
        if entry.name == CALIBRATION and entry.name not in bundle.files:
            _check_calibration(bundle.calibration)
        elif entry.name != MANIFEST and entry.name not in bundle.files:
            raise Damaged(
                f"{entry.name} is in the bundle but not in its {MANIFEST}",
                hint=_LEFT_BY_LITERT if _LITERT_CACHE.fullmatch(entry.name) else "remove it",
            )
    for name, file in bundle.files.items():
        path = bundle.path / name
        try:
            found = path.lstat()
        except OSError as error:
            raise Damaged(f"{name} of the bundle is missing", hint=hint) from error
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{name} of the bundle is not a plain file", hint=hint)
        if found.st_size != file.bytes:
            raise Damaged(
                f"{name} of the bundle has {found.st_size} bytes and should have {int(file.bytes)}", hint=hint
            )
    for name, file in bundle.files.items():
        if _sha256(bundle.path / name) != file.sha256:
            raise Damaged(f"{name} of the bundle is not what its {MANIFEST} says", hint=hint)


def _check_calibration(file: Path) -> None:
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > CALIBRATION_LIMIT:
        raise Damaged(f"{file.name} of the bundle is not a plain file of at most {CALIBRATION_LIMIT}", hint="remove it")


def _read_manifest(file: Path) -> dict[str, Any]:
    if file.is_symlink() or file.stat().st_size > _MOST_MANIFEST_BYTES:
        raise Damaged(f"{file} is not a plain file of a sensible size", hint="compile again")
    data = file.read_bytes()
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{file} is not JSON: {error}", hint="compile again") from error
    version = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise Unsupported(f"{file} has schema {version}, this edgekit reads {SCHEMA}", hint="use a newer edgekit")
    for problem in problems(manifest, _MANIFEST_SCHEMA):
        raise Damaged(f"{file}: {problem}", hint="compile again")
    checked: dict[str, Any] = manifest
    return checked


def _canonical(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _copy(source: Path, copy: Path) -> None:
    with writing(copy):
        shutil.copyfile(source, copy)


def _check_place(path: Path, *, force: bool) -> None:
    """Refuses a place where something is that may not be replaced."""
    if path.is_symlink() or path.exists():
        if path.is_symlink() or not (path / MANIFEST).is_file():
            raise UsageError(f"{path} exists and is not a bundle", hint="choose another place with -o")
        if not force:
            raise _exists(path)


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} exists", hint="--force replaces it, -o chooses another place")


def _appear(new: Path, path: Path) -> None:
    """Renames a folder to `path`, unless something has come to be there."""
    try:
        # A plain rename replaces no file and no folder that holds anything, but an empty one.
        if not _renameat2(new, path, _RENAME_NOREPLACE):
            new.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise _exists(path) from error
        raise


def _exchange(new: Path, old: Path) -> None:
    """Swaps two folders. At no moment is there none at `old`, if the file system can do that."""
    if _renameat2(new, old, _RENAME_EXCHANGE):
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}-", dir=old.parent)) / "old"
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside.parent, ignore_errors=True)


def _renameat2(old: Path, new: Path, flags: int) -> bool:
    """Renames as the flags say. False if the C library, the kernel or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(new))
    return False
