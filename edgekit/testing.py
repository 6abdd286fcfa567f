"""What tests need: small random checkpoints that are valid in every respect, a device that replays a recorded run."""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from edgekit.archs import find_decoder
from edgekit.device import Device
from edgekit.transports import Completed, checked_remote
from edgekit.units import Bytes, Seconds

_ARCHITECTURES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
END_OF_TEXT: Final = "<|endoftext|>"
# Joined on top of the 256 bytes; "Ġ" is a space.
_MERGES: Final = ("h e", "Ġ t", "i n", "Ġt he", "a n", "r e", "Ġ a", "e r", "o n", "Ġ w", "Ġa n", "Ġan d", "Ġw a")


def make_checkpoint(
    directory: Path,
    *,
    model_type: str = "llama",
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int = 96,
    vocab: int = 320,
    context: int = 256,
    dtype: str = "BF16",
    shards: int = 1,
    tied: bool = True,
    tokenizer: bool = True,
    config: Mapping[str, object] | None = None,
) -> Path:
    """`directory`, made into a Hugging Face checkpoint with random weights: the same bytes for the same arguments.

    Matrices have rows of length about one, so that activations neither vanish nor grow. `dtype` is BF16, F16 or F32.
    `config` adds to config.json or replaces what is there. The tokenizer is a byte-level BPE of 270 tokens whose
    token 0 ends a text, so it needs a `vocab` of at least that.
    """
    directory.mkdir(parents=True, exist_ok=True)
    table: dict[str, object] = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim if head_dim is not None else hidden // heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": tied,
    }
    if model_type == "mistral":
        table["sliding_window"] = None
    table |= config or {}
    _write_json(directory / "config.json", table)
    _write_json(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    if tokenizer:
        _write_json(directory / "tokenizer.json", _tokenizer())
        token = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        _write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | token)
    generator = np.random.default_rng(seed)
    tensors = {
        name: _stored(_random(generator, name, shape), dtype)
        for name, shape in find_decoder(table).tensor_shapes().items()
    }
    _write_shards(directory, tensors, dtype, shards)
    return directory


def write_safetensors(file: Path, tensors: Mapping[str, npt.NDArray[Any]], dtype: str) -> None:
    """Writes `tensors`, whose elements are stored as they are, to a safetensors file that calls them `dtype`."""
    header: dict[str, object] = {}
    offset = 0
    for name, values in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            stream.write(values.tobytes())


def _write_shards(directory: Path, tensors: Mapping[str, npt.NDArray[Any]], dtype: str, shards: int) -> None:
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        held = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        write_safetensors(directory / file, {name: tensors[name] for name in held}, dtype)
        weight_map |= dict.fromkeys(held, file)
    size = sum(values.nbytes for values in tensors.values())
    _write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map}
    )


def _random(generator: np.random.Generator, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    values = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) == 2:
        return values * np.float32(shape[1] ** -0.5)
    return values * np.float32(0.1) + np.float32(name.endswith("norm.weight"))


def _stored(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    if dtype == "BF16":
        # The upper half of a float32, cut off: any bf16 is as random as another.
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2")
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype])


def _tokenizer() -> dict[str, object]:
    """A tokenizer.json: END_OF_TEXT, every byte, and the results of _MERGES."""
    tokens = [END_OF_TEXT, *_byte_characters(), *(merge.replace(" ", "") for merge in _MERGES)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"id": 0, "content": END_OF_TEXT, "special": True, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in _MERGES],
        },
    }


def _byte_characters() -> list[str]:
    """What stands for each byte in byte-level BPE: its character in Latin-1 if that prints, else one from 256 on."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printing else chr(next(others)) for byte in range(256)]


def _write_json(file: Path, table: Mapping[str, object]) -> None:
    file.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a recorded device answers to one command, and the files it leaves."""

    command: str
    stdout: bytes = b""
    stderr: bytes = b""
    returncode: int = 0
    files: Mapping[str, bytes] = field(default_factory=dict)


class FakeTransport:
    """Replays replies in their order, and keeps what it was asked: `calls` and `put_files`."""

    def __init__(self, replies: Sequence[Reply], *, machine: str, emulated: bool) -> None:
        self.machine = machine
        self.emulated = emulated
        self.calls: list[list[str]] = []
        self.put_files: dict[str, bytes] = {}
        self._replies = list(replies)
        self._files: dict[str, bytes] = {}

    def put(self, local: Path, remote: str) -> None:
        self.put_files[str(checked_remote(remote))] = local.read_bytes()

    def write(self, content: bytes, remote: str, *, executable: bool = False) -> None:
        self.put_files[str(checked_remote(remote))] = content

    def put_python(self, remote: str) -> None:
        self.put_files[str(checked_remote(remote))] = b"python"

    def get(self, remote: str, local: Path, *, limit: Bytes) -> None:
        content = self._files[remote]
        assert len(content) <= limit
        local.write_bytes(content)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: Seconds,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], None] | None = None,
    ) -> Completed:
        self.calls.append(list(argv))
        reply = self._replies.pop(0)
        command = argv[3] if argv[1] == "-m" else argv[1]
        assert command == reply.command, f"{command} was run, the record goes on with {reply.command}"
        self._files |= reply.files
        if on_stdout is not None:
            # One byte at a time, as a slow device may send it: characters arrive in pieces.
            for byte in reply.stdout:
                on_stdout(bytes([byte]))
        return Completed(reply.returncode, reply.stdout, reply.stderr, Seconds(0))

    def sensors(self) -> dict[str, float]:
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert kind is not None or not self._replies, f"{self._replies[0].command} was never run"


class FakeDevice(Device):
    """A device that replays a recorded run, for tests without hardware."""

    def __init__(self, replies: Sequence[Reply], *, machine: str = "x86_64", emulated: bool = False) -> None:
        super().__init__("fake", FakeTransport(replies, machine=machine, emulated=emulated))


def make_program_header(file: Path, machine: int = 62) -> Path:
    """`file`, made into the beginning of a 64-bit ELF program for `machine`: 62 is x86-64, 183 is aarch64."""
    file.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(11) + machine.to_bytes(2, "little") + bytes(44))
    return file
