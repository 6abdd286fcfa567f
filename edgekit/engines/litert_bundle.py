"""Pack a .tflite file and its tokenizer for LiteRT-LM: model.litertlm, which that runtime takes as one file."""

import contextlib
import io
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.disk import appearing
from edgekit.tokenizer_json import load_tokenizer

BUNDLE: Final = "model.litertlm"

_EPOCH: Final = "1970-01-01T00:00:00+00:00"


@dataclass(frozen=True, slots=True)
class Words:
    """The special tokens, and how a conversation becomes a text."""

    bos: int | None
    eos: tuple[int, ...]
    chat_template: str | None


def write_bundle(model: Path, tokenizer: Path, words: Words, *, context: int, made_from: str) -> Path:
    """Writes model.litertlm beside `model` and returns its path. Equal models give equal bytes."""
    from litert_lm_builder import litertlm_builder as builder
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    metadata = llm_metadata_pb2.LlmMetadata()
    # LiteRT-LM puts it before every prompt, which is right only if the tokenizer does.
    if words.bos is not None and load_tokenizer(tokenizer).encode("a").ids[:1] == [words.bos]:
        metadata.start_token.token_ids.ids.append(words.bos)
    for token in words.eos:
        metadata.stop_tokens.add().token_ids.ids.append(token)
    metadata.max_num_tokens = context
    metadata.llm_model_type.generic_model.SetInParent()
    if words.chat_template is not None:
        metadata.jinja_prompt_template = words.chat_template
    file = model.with_name(BUNDLE)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder, contextlib.redirect_stdout(io.StringIO()):
        described = Path(folder) / "metadata.pb"
        described.write_bytes(metadata.SerializeToString())
        made = builder.LitertLmFileBuilder()
        made.add_tflite_model(str(model), builder.TfLiteModelType.PREFILL_DECODE)
        made.add_hf_tokenizer(str(tokenizer))
        made.add_llm_metadata(str(described))
        with _same_each_time(builder, made_from), appearing(file) as stream:
            made.build(stream)
    return file


@contextlib.contextmanager
def _same_each_time(builder: Any, made_from: str) -> Iterator[None]:
    """While this lasts the builder writes no clock and no random name, which it else does whatever it is given."""
    populate = builder.populate_system_metadata

    def fixed(entries: list[Any]) -> list[Any]:
        name = str(uuid.uuid5(uuid.NAMESPACE_OID, made_from))
        added = {"uuid": name, "creation_timestamp": _EPOCH}
        return [*entries, *(builder.Metadata(key, value, builder.DType.STRING) for key, value in added.items())]

    builder.populate_system_metadata = fixed
    try:
        yield
    finally:
        builder.populate_system_metadata = populate
