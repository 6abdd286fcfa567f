"""Pack a tokenizer into the program file, and render chat templates.

The section is described in kernels/tokenizer/format.h. The runner reads it in place, so it holds what encoding looks up
in the order in which it is looked up: merges by pair, added tokens and whole words by their bytes.
"""

import importlib.util
import json
import struct
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.chat_template import MAX_SECONDS
from edgekit.errors import Damaged, TargetMissing, Unsupported
from edgekit.tokenizer_json import (
    MARKER,
    MAX_ADDED_BYTES,
    MAX_TOKEN_BYTES,
    NFC,
    PREPEND_MARKER,
    AddedToken,
    TokenizerSpec,
    about,
    byte_value,
    bytes_of,
    read_tokenizer,
    utf8,
)

MAX_SECTION_BYTES = 1 << 28
MAGIC, VERSION, NONE = 0x6B6F7465, 1, 0xFFFFFFFF
BYTE_LEVEL, BYTE_FALLBACK, FUSE_UNKNOWN, IGNORE_MERGES = 1, 2, 4, 8
SPECIAL, BYTE_TOKEN, HOLE = 1, 2, 4

Array = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def pack_tokenizer(tokenizer_json: Path) -> bytes:
    """The tokenizer section of a program file.

    Raises:
        Damaged: the file is not a tokenizer.json, or contradicts itself.
        Unsupported: it asks for something the runner would not do exactly as the `tokenizers` package does.
    """
    spec = read_tokenizer(tokenizer_json)
    with about(tokenizer_json):
        return pack(spec)


def pack(spec: TokenizerSpec) -> bytes:
    """The tokenizer section of a program file, from a tokenizer that was read."""
    tokens, attributes, words = _tokens(spec)
    merges = np.array([(*pair, *spec.merges[pair]) for pair in sorted(spec.merges)], np.uint32).reshape(-1, 4)
    added, added_text, raw_added = _added(spec.added, spec.normalizers)
    characters = sorted((ord(text), token) for text, token in spec.vocab.items() if len(text) == 1)
    flags = (
        BYTE_LEVEL * spec.byte_level
        | BYTE_FALLBACK * (spec.byte_fallback and not spec.byte_level)
        | FUSE_UNKNOWN * spec.fuse_unknown
        | IGNORE_MERGES * spec.ignore_merges
    )
    byte_ids = [spec.byte_token(byte) for byte in range(256)]
    fields = (
        flags,
        spec.id_count,
        NONE if spec.unknown is None else spec.unknown,
        spec.decoder.kind,
        spec.decoder.strip_left,
        raw_added,
        0,
    )
    arrays: list[Array] = [
        np.cumsum([len(token) for token in tokens]).astype(np.uint32),
        np.frombuffer(b"".join(tokens), np.uint8),
        attributes,
        np.array([NONE if token is None else token for token in byte_ids], np.uint32),
        np.array([] if spec.byte_level else characters, np.uint32).reshape(-1, 2),
        np.array([token for _, token in sorted(words)] if spec.ignore_merges else [], np.uint32),
        np.searchsorted(merges[:, 0], np.arange(spec.id_count), side="right").astype(np.uint32),
        merges[:, 1:],
        added,
        np.frombuffer(added_text, np.uint8),
        np.array(spec.normalizers, np.uint32),
        np.array(spec.steps, np.uint32).reshape(-1, 2),
        np.array(spec.before, np.uint32),
        np.array(spec.after, np.uint32),
    ]
    return _laid_out(fields, arrays)


def _tokens(spec: TokenizerSpec) -> tuple[list[bytes], npt.NDArray[np.uint16], list[tuple[bytes, int]]]:
    """The bytes and attributes of each id, and the (bytes, id) that a whole word can be equal to."""
    tokens = [b""] * spec.id_count
    attributes = np.full(spec.id_count, HOLE, np.uint16)
    words: list[tuple[bytes, int]] = []
    texts = {token: text for text, token in spec.vocab.items()}
    # An added token decodes to what it looks like in a normalized text, even if the vocabulary has it as it is.
    texts |= {
        entry.id: _normal(entry.content, spec.normalizers) if entry.normalized else entry.content
        for entry in spec.added
    }
    for token, text in texts.items():
        raw = utf8(text)
        spelled = bytes_of(text) if spec.byte_level else raw
        # A token outside the alphabet never comes out of merging, and decodes to its own text.
        tokens[token] = raw if spelled is None else spelled
        if len(raw) > MAX_TOKEN_BYTES:
            raise Unsupported(f"token {token} has {len(raw)} bytes", hint=f"at most {MAX_TOKEN_BYTES}")
        value = byte_value(text) if spec.decoder.byte_tokens else None
        attributes[token] = 0 if value is None else BYTE_TOKEN | value << 8
        if spelled is not None and spec.vocab.get(text) == token:
            words.append((spelled, token))
    for entry in spec.added:
        attributes[entry.id] |= SPECIAL * entry.special
        if spec.ignore_merges and entry.content in spec.vocab and texts[entry.id] != entry.content:
            raise Unsupported(f"the added token {entry.content!r:.40} is also a word", hint="mark it normalized: false")
    return tokens, attributes, words


def _added(added: Sequence[AddedToken], normalizers: Sequence[int]) -> tuple[npt.NDArray[np.uint32], bytes, int]:
    """The table of added tokens, their text, and how many are looked for before normalization."""
    raw = {utf8(token.content): token for token in added if not token.normalized}
    normal = {utf8(_normal(token.content, normalizers)): token for token in added if token.normalized}
    if len(raw) + len(normal) != len(added):
        raise Unsupported("two added tokens are the same text once normalized", hint="remove one of them")
    rows, texts = [], [*sorted(raw), *sorted(normal)]
    offset = 0
    for text, token in [*sorted(raw.items()), *sorted(normal.items())]:
        if len(text) > MAX_ADDED_BYTES:
            raise Unsupported(f"the added token {token.content!r:.40} is long", hint=f"at most {MAX_ADDED_BYTES} bytes")
        rows.append((token.id, token.flags, offset, len(text)))
        offset += len(text)
    return np.array(rows, np.uint32).reshape(-1, 4), b"".join(texts), len(raw)


def _normal(text: str, normalizers: Sequence[int]) -> str:
    for kind in normalizers:
        if kind == NFC:
            # Composition differs between versions of Unicode, but not for characters of its first versions.
            if not unicodedata.ucd_3_2_0.is_normalized("NFC", text):
                raise Unsupported(f"the added token {text!r:.40} is not in NFC", hint="mark it normalized: false")
        elif kind == PREPEND_MARKER:
            text = MARKER + text
        else:
            text = text.replace(" ", MARKER)
    return text


def _laid_out(fields: Sequence[int], arrays: Sequence[Array]) -> bytes:
    """The header and then the arrays, each at a multiple of 4."""
    header = struct.Struct("<10I" + "2I" * len(arrays))
    spans: list[int] = []
    body = bytearray()
    for array in arrays:
        spans += (header.size + len(body), len(array))
        content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        body += content + bytes(-len(content) % 4)
    size = header.size + len(body)
    if size > MAX_SECTION_BYTES:
        raise Unsupported(f"the tokenizer takes {size} bytes packed", hint=f"at most {MAX_SECTION_BYTES}")
    return header.pack(MAGIC, VERSION, size, *fields, *spans) + bytes(body)


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, object]],
    *,
    bos: str | None = None,
    eos: str | None = None,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, object]] | None = None,
    **variables: object,
) -> str:
    """The prompt that a chat template makes of a conversation, as `apply_chat_template` of `transformers` does.

    `messages` are mappings with `role` and `content`; other `variables` go to the template as they are. The template
    runs in a process of its own (edgekit/chat_template.py). The prompt usually contains the start of text already.

    Raises:
        Damaged: the template takes more time, memory or text than a conversation can need.
        Unsupported: the template fails, or says that it does not take these messages.
        TargetMissing: jinja2 is not installed, or not whole.
    """
    known = {
        "messages": list(messages),
        "add_generation_prompt": add_generation_prompt,
        "tools": tools and list(tools),
        "documents": None,
        "bos_token": bos,
        "eos_token": eos,
        **variables,
    }
    # A token that the tokenizer lacks is undefined in a template, not the text "None".
    given = {name: value for name, value in known.items() if value is not None or not name.endswith("_token")}
    program = Path(__file__).with_name("chat_template.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(program), *_folders_of("jinja2", "markupsafe")],
            input=json.dumps({"template": template, "variables": given}).encode(),
            capture_output=True,
            check=False,
            timeout=3 * MAX_SECONDS,  # of a busy machine; MAX_SECONDS of its own it has
        )
    except subprocess.TimeoutExpired:
        raise Damaged("the chat template does not finish", hint="give the prompt without a template") from None
    if done.returncode == 0:
        return done.stdout.decode()
    reason = "".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:])
    if done.returncode < 0 or reason.startswith("MemoryError"):
        raise Damaged("the chat template takes too much time or memory", hint="give the prompt without a template")
    if reason.startswith(("ModuleNotFoundError", "ImportError")):
        raise _no_jinja(reason)
    raise Unsupported(
        f"the chat template does not take these messages: {reason.removeprefix('jinja2.exceptions.')[:300]}",
        hint="change the messages, or give the prompt without a template",
    )


def _folders_of(*modules: str) -> list[str]:
    """The folders that the modules were, or would be, imported from."""
    folders: dict[str, None] = {}
    for module in modules:
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise _no_jinja(f"no module named {module}")
        folders[str(Path(found.origin).absolute().parents[1])] = None
    return list(folders)


def _no_jinja(reason: str) -> TargetMissing:
    return TargetMissing(f"jinja2, which renders chat templates, cannot be used: {reason}", hint="pip install jinja2")
