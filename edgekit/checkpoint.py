"""A trained model as it was published: a Hugging Face directory, its tensors read only when asked for.

Only safetensors are read: pickled weights can run code when they are loaded. Everything in the directory comes from
strangers, so it is checked here once and trusted after.
"""

import atexit
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgekit.archs import Decoder, find_decoder
from edgekit.archs.config import Config
from edgekit.errors import Damaged, Unsupported, UsageError
from edgekit.gguf import read_gguf
from edgekit.gguf_model import hugging_face_tensors, read_config, scaled_frequencies
from edgekit.gguf_tokenizer import end_ids, read_tokenizer_of
from edgekit.packed import Stored
from edgekit.packings import with_packed
from edgekit.safetensors import TensorInfo, parse_json, read_header
from edgekit.special_tokens import bos_id, eos_ids, special_tokens, token_content
from edgekit.tensor_files import FLOATS, inside, read_floats

Float32 = npt.NDArray[np.float32]

_MOST_CONFIG_BYTES: Final = 16 << 20
_MOST_TOKENIZER_BYTES: Final = 256 << 20  # the largest published one has 33 MiB
_MOST_TEMPLATE_CHARACTERS: Final = 1 << 20
_HASHED_AT_ONCE: Final = 8 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checked Hugging Face directory or GGUF file. Holds where tensors lie, never their values."""

    path: Path
    config: Mapping[str, object]
    decoder: Decoder
    tensors: Mapping[str, TensorInfo | Stored]
    tokenizer_file: Path | None
    chat_template: str | None
    bos_id: int | None  # what the tokenizer puts before a text; None: nothing
    bos_text: str | None  # how chat templates are given the token that begins a text, and the one that ends it
    eos_text: str | None
    eos_ids: tuple[int, ...]  # each ends a generated text; special tokens all, in rising order
    files: tuple[Path, ...]  # every file that anything above or any tensor comes from

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, over names and contents of `files`. Reads all of them, so it takes seconds a gigabyte.

        The digest of the lines that `sha256sum` prints for the files in the order of their names.
        """
        lines = [f"{_sha256(inside(file.parent, file.name))}  {file.name}\n" for file in sorted(self.files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def parameters(self) -> int:
        """Weights in the model; a tied head counts once."""
        return sum(int(np.prod(self.tensors[name].shape)) for name in self.decoder.tensor_shapes())

    def read(self, name: str) -> Float32:
        """The tensor `name`, in float32."""
        info = self.tensors[name]
        if isinstance(info, Stored):
            return info.values(0, info.shape[0])
        return read_floats(info, info.offset, info.bytes).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> Float32:
        """Rows `start` to `stop` of the matrix `name`, in float32."""
        info = self.tensors[name]
        assert 0 <= start < stop <= info.shape[0]
        if isinstance(info, Stored):
            return info.values(start, stop)
        row_bytes = info.bytes // info.shape[0]
        values = read_floats(info, info.offset + start * row_bytes, (stop - start) * row_bytes)
        return values.reshape(stop - start, *info.shape[1:])

    def read_blocks(self, name: str, *, block_bytes: int = 32 << 20) -> Iterator[tuple[int, Float32]]:
        """The matrix `name` as (first row, rows), in blocks of at most `block_bytes` of float32 (one row at least)."""
        rows, width = self.tensors[name].shape
        step = max(1, block_bytes // (4 * width))
        for start in range(0, rows, step):
            yield start, self.read_rows(name, start, min(start + step, rows))


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in the directory or GGUF file `path`. Reads the headers of the weights, not the weights.

    Raises:
        UsageError: `path` is neither.
        Damaged: a file is missing, malformed, or contradicts another.
        Unsupported: an architecture, weight format or variant that edgekit does not handle.
    """
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(path)
    if not path.is_dir():
        raise UsageError(
            f"{path} is not a directory", hint="give the directory that holds config.json, or a .gguf file"
        )
    texts = _Texts(path)
    config = texts.table("config.json")
    if config is None:
        raise UsageError(
            f"{path} is not a checkpoint folder: it holds no config.json",
            hint="give the folder of a Hugging Face checkpoint, with config.json, model.safetensors and tokenizer.json,"
            " or a .gguf file",
        )
    decoder = find_decoder(config)
    weight_files, stored = _find_tensors(path, texts)
    tensors = with_packed(_quantization(config, texts, stored), stored, decoder.tensor_shapes())
    tokenizer = texts.table("tokenizer.json", limit=_MOST_TOKENIZER_BYTES)
    tokenizer_config = texts.table("tokenizer_config.json") or {}
    generation_config = texts.table("generation_config.json") or {}
    template = texts.read("chat_template.jinja")
    return _checked(
        path,
        config,
        decoder,
        tensors,
        tokenizer,
        path / "tokenizer.json",
        tokenizer_config,
        generation_config,
        _chat_template(template, tokenizer_config),
        (*texts.used, *weight_files),
    )


def _open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in a GGUF file. Its tokenizer.json is written to a folder that goes when this process ends."""
    gguf = read_gguf(inside(path.parent, path.name), path.name)
    gguf = dataclasses.replace(gguf, file=path)
    metadata = Config(gguf.metadata, f"the metadata of {path.name}")
    config = read_config(gguf) | {"eos_token_id": end_ids(metadata)}
    decoder = find_decoder(config)
    decoder = dataclasses.replace(decoder, inv_freq=scaled_frequencies(gguf, decoder.inv_freq))
    tokenizer, tokenizer_config = read_tokenizer_of(metadata) or (None, {})
    file = None
    if tokenizer is not None:
        folder = Path(tempfile.mkdtemp(prefix="edgekit-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        file = folder / "tokenizer.json"
        file.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    tensors = hugging_face_tensors(gguf, decoder.head_dim)
    template = _chat_template(None, tokenizer_config)
    return _checked(path, config, decoder, tensors, tokenizer, file, tokenizer_config, {}, template, (path,))


def _checked(
    path: Path,
    config: Mapping[str, object],
    decoder: Decoder,
    tensors: Mapping[str, TensorInfo | Stored],
    tokenizer: Mapping[str, object] | None,
    tokenizer_file: Path | None,
    tokenizer_config: Mapping[str, object],
    generation_config: Mapping[str, object],
    chat_template: str | None,
    files: tuple[Path, ...],
) -> Checkpoint:
    """The checkpoint of these parts, which agree with each other."""
    _check_shapes(decoder, tensors)
    eos = eos_ids(config, generation_config, tokenizer_config, decoder.vocab, special_tokens(tokenizer))
    bos = bos_id(tokenizer)
    if bos is not None and bos >= decoder.vocab:
        raise Damaged(
            f"the token {bos} that begins a text is outside the vocabulary of {decoder.vocab}",
            hint="tokenizer.json and config.json belong to different models",
        )
    return Checkpoint(
        path=path,
        config=config,
        decoder=decoder,
        tensors=tensors,
        tokenizer_file=tokenizer_file if tokenizer is not None else None,
        chat_template=chat_template,
        bos_id=bos,
        bos_text=token_content(tokenizer_config, "bos_token"),
        eos_text=token_content(tokenizer_config, "eos_token"),
        eos_ids=eos,
        files=files,
    )


def _quantization(config: Mapping[str, object], texts: "_Texts", tensors: Mapping[str, TensorInfo]) -> Config | None:
    """How the checkpoint says it was quantized: in config.json, or beside it as AutoGPTQ wrote it at first."""
    values = Config(config)
    if values.has("quantization_config"):
        return values.table("quantization_config")
    name = "quantize_config.json"
    table = texts.table(name) if any(tensor.endswith(".qweight") for tensor in tensors) else None
    return None if table is None else Config(table, name)


class _Texts:
    """The small files of a checkpoint directory, and which of them were used."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.used: list[Path] = []

    def read(self, name: str, *, limit: int = _MOST_CONFIG_BYTES) -> bytes | None:
        """The file `name`, None if there is none."""
        if not os.path.lexists(self.directory / name):
            return None
        file = inside(self.directory, name)
        try:
            with file.open("rb") as stream:
                text = stream.read(limit + 1)
        except OSError as error:
            raise Damaged(f"cannot read {name}: {error.strerror}", hint="download it again") from error
        if len(text) > limit:
            raise Damaged(f"{name} has more than {limit} bytes", hint="no published model has one as large")
        self.used.append(self.directory / name)
        return text

    def table(self, name: str, *, limit: int = _MOST_CONFIG_BYTES) -> dict[str, object] | None:
        """The JSON object in the file `name`, None if there is no file."""
        text = self.read(name, limit=limit)
        return None if text is None else parse_json(text, name)


def _find_tensors(directory: Path, texts: _Texts) -> tuple[list[Path], dict[str, TensorInfo]]:
    """The files with weights and what is in them: one file, or the shards that an index names."""
    single = "model.safetensors"
    if os.path.lexists(directory / single):
        return [directory / single], _read_header(directory, single)
    index = texts.table("model.safetensors.index.json")
    if index is None:
        others = sorted(
            file.name for suffix in ("bin", "pth", "pt", "gguf", "onnx", "h5") for file in directory.glob(f"*.{suffix}")
        )
        if others:
            raise Unsupported(
                f"the weights in {directory} are not safetensors: {', '.join(others[:3])}",
                hint="edgekit reads model.safetensors, or shards with model.safetensors.index.json;"
                " transformers' save_pretrained writes them",
            )
        raise Damaged(f"{directory} holds no model.safetensors", hint="download the checkpoint again")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Damaged("model.safetensors.index.json has no weight_map", hint="download it again")
    tensors: dict[str, TensorInfo] = {}
    shards = sorted({_shard_name(shard) for shard in weight_map.values()})
    for shard in shards:
        for name, info in _read_header(directory, shard).items():
            if weight_map.get(name) != shard:
                listed = "does not list it" if name not in weight_map else f"places it in {weight_map[name]}"
                raise Damaged(
                    f"{shard} holds the tensor '{name}', but model.safetensors.index.json {listed}",
                    hint="index and shards are of different versions: download both again",
                )
            tensors[name] = info
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise Damaged(
            f"{weight_map[missing[0]]} does not hold the tensor '{missing[0]}' that model.safetensors.index.json"
            " places there",
            hint="index and shards are of different versions: download both again",
        )
    return [directory / shard for shard in shards], tensors


def _shard_name(name: object) -> str:
    is_plain = isinstance(name, str) and name.endswith(".safetensors") and name == Path(name).name
    if not isinstance(name, str) or not is_plain or any(mark in name for mark in ("/", "\\", "..", "\0")):
        raise Damaged(
            f"model.safetensors.index.json names the shard {name!r:.80}", hint="a shard is a file name without folders"
        )
    return name


def _read_header(directory: Path, name: str) -> dict[str, TensorInfo]:
    """The header of the file `name`, its tensors located by the path in `directory` and not by where a link leads."""
    located = read_header(inside(directory, name), name)
    return {tensor.name: dataclasses.replace(tensor, file=directory / name) for tensor in located.values()}


def _check_shapes(decoder: Decoder, tensors: Mapping[str, TensorInfo | Stored]) -> None:
    """Every tensor the decoder needs is there, in its shape and a dtype we read, and no other would change it."""
    expected = decoder.tensor_shapes()
    for name, shape in expected.items():
        info = tensors.get(name)
        if info is None:
            raise Damaged(
                f"the weights hold no tensor '{name}', which config.json calls for",
                hint="config.json and the weights belong to different models, or a file is missing",
            )
        if info.shape != shape:
            raise Damaged(
                f"the tensor '{name}' has the shape {_sizes(info.shape)}, config.json makes it {_sizes(shape)}",
                hint="config.json and the weights belong to different models",
            )
        if info.dtype not in FLOATS and not isinstance(info, Stored):
            raise Unsupported(
                f"the tensor '{name}' has the dtype {info.dtype}", hint=f"edgekit reads {', '.join(sorted(FLOATS))}"
            )
    # Old checkpoints store the rotary frequencies; a tied head may be stored as well. Both are ignored, as by
    # transformers. Anything else would be a part of the model that is silently left out.
    extra = sorted(
        name
        for name in tensors.keys() - expected.keys()
        if not name.endswith(".rotary_emb.inv_freq") and name != "lm_head.weight"
    )
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise Unsupported(
            f"the weights hold '{extra[0]}'{more}, which a {decoder.model_type} of this config.json does not use",
            hint="config.json may belong to another model, or the model is a variant that edgekit does not handle",
        )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "of a scalar"


def _chat_template(file: bytes | None, tokenizer_config: Mapping[str, object]) -> str | None:
    """The Jinja template of a conversation: `file`, chat_template.jinja, else the default of tokenizer_config.json."""
    if file is not None:
        try:
            template: object = file.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged("chat_template.jinja is not UTF-8", hint="download it again") from error
    else:
        template = tokenizer_config.get("chat_template")
        if isinstance(template, list):
            template = _default_template(template)
    if template is not None and not isinstance(template, str):
        raise Damaged("chat_template in tokenizer_config.json is not a string", hint="download it again")
    if template is not None and len(template) > _MOST_TEMPLATE_CHARACTERS:
        raise Damaged(
            f"the chat template has more than {_MOST_TEMPLATE_CHARACTERS} characters",
            hint="no published model has one as long",
        )
    return template


def _default_template(templates: list[object]) -> object:
    """The template called "default" of a list of named ones; a lone one whatever its name; else None."""
    named: dict[object, object] = {}
    for entry in templates:
        if not (isinstance(entry, dict) and isinstance(entry.get("name"), str)):
            raise Damaged(
                "chat_template in tokenizer_config.json has an entry without a name", hint="download it again"
            )
        named[entry["name"]] = entry.get("template")
    return next(iter(named.values())) if len(named) == 1 else named.get("default")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(_HASHED_AT_ONCE):
                digest.update(block)
    except OSError as error:
        raise Damaged(f"cannot read {file.name}: {error.strerror}", hint="download it again") from error
    return digest.hexdigest()
