"""A safetensors file is read only if every promise of the format holds."""

import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.errors import Damaged, EdgekitError, Unsupported
from edgekit.safetensors import parse_json, read_header

# Two tensors of 8 and 12 bytes.
ENTRIES: dict[str, object] = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},
}


def write(file: Path, header: object, data: bytes = bytes(20), *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def refusal(file: Path) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
        read_header(file, "model.safetensors")
    assert "model.safetensors" in caught.value.message
    return caught.value


def test_offsets_count_from_the_start_of_the_file(tmp_path):
    file = write(tmp_path / "x", ENTRIES)
    start = 8 + len(json.dumps(ENTRIES))
    a, b = read_header(file, "x").values()
    assert (a.name, a.shape, a.dtype, a.offset, a.bytes) == ("a", (2,), "F32", start, 8)
    assert (b.name, b.shape, b.dtype, b.offset, b.bytes) == ("b", (2, 3), "BF16", start + 8, 12)


def test_a_file_of_the_safetensors_package_is_read(tmp_path):
    tensors = {
        "half": np.ones((3, 5), np.float16),
        "scalar": np.array(2, np.float32),
        "empty": np.ones((0, 4), np.int64),
        "flags": np.ones(7, np.bool_),
    }
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    header = read_header(tmp_path / "x", "x")
    assert {name: info.shape for name, info in header.items()} == {name: t.shape for name, t in tensors.items()}
    assert {name: info.bytes for name, info in header.items()} == {name: t.nbytes for name, t in tensors.items()}


def test_tensors_may_be_listed_in_any_order(tmp_path):
    write(tmp_path / "x", dict(reversed(ENTRIES.items())))
    assert list(read_header(tmp_path / "x", "x")) == ["a", "b"]


def entry(**changes: object) -> dict[str, object]:
    return ENTRIES | {"b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]} | changes}


LIES = {
    "more bytes than the shape needs": (entry(data_offsets=[8, 22]), "has 14 bytes, its shape and dtype say otherwise"),
    "a larger shape": (entry(shape=[3, 3]), "has 12 bytes, its shape and dtype say otherwise"),
    "a shape whose product overflows 64 bits": (entry(shape=[2**40, 2**40]), "its shape and dtype say otherwise"),
    "a shape whose product wraps to the right size": (entry(shape=[2**61 + 3, 2]), "its shape and dtype say otherwise"),
    "a negative size": (entry(shape=[-2, -3]), "the shape of 'b' is not a list"),
    "a fraction for a size": (entry(shape=[2.0, 3]), "the shape of 'b' is not a list"),
    "true for a size": (entry(shape=[True, 6]), "the shape of 'b' is not a list"),
    "no list for a shape": (entry(shape=6), "the shape of 'b' is not a list"),
    "too many dimensions": (entry(shape=[1] * 15 + [2, 3]), "at most 16 sizes"),
    "offsets in reverse": (entry(data_offsets=[20, 8]), "the data_offsets of 'b' are not a start and an end"),
    "three offsets": (entry(data_offsets=[8, 20, 32]), "the data_offsets of 'b' are not a start and an end"),
    "a negative offset": (entry(data_offsets=[-4, 8]), "the data_offsets of 'b' are not a start and an end"),
    "a hole": (entry(data_offsets=[9, 21]), "the tensor 'b' leaves a hole before it"),
    "an overlap": (entry(data_offsets=[4, 16]), "the tensor 'b' overlaps the one before it"),
    "bytes that belong to no tensor": ({"a": ENTRIES["a"]}, r"its tensors end at byte \d+, the file at \d+"),
    "a tensor past the end": (ENTRIES | {"c": entry(data_offsets=[20, 32])["b"]}, r"its tensors end at byte"),
    "a dtype that is no string": (entry(dtype=16), "the dtype of 'b' is not a string"),
    "an unknown key": (entry(device="cpu"), "the entry of 'b' is not dtype, shape and data_offsets"),
    "a missing key": (ENTRIES | {"b": {"dtype": "BF16"}}, "the entry of 'b' is not dtype, shape and data_offsets"),
    "an entry that is no table": (ENTRIES | {"b": [1]}, "the entry of 'b' is not dtype, shape and data_offsets"),
    "metadata that is no table": (ENTRIES | {"__metadata__": []}, "its __metadata__ is not a table of strings"),
    "metadata of numbers": (ENTRIES | {"__metadata__": {"a": 1}}, "its __metadata__ is not a table of strings"),
    "a list for a header": ([], "the header of model.safetensors is not a JSON object"),
    "no JSON": (b"{", "the header of model.safetensors is not valid JSON"),
    "no UTF-8": (b'{"\xff": 1}', "the header of model.safetensors is not valid JSON: 'utf-8'"),
    "a name twice": (b'{"a": 1, "a": 2}', "the key 'a' appears twice"),
    "an infinite number": (b'{"a": Infinity}', "Infinity is not JSON"),
    "brackets without end": (b'{"a": ' + b"[" * 100_000, "it is nested too deeply"),
    "a number without end": (b'{"a": ' + b"9" * 5_000 + b"}", "is not valid JSON"),
}


@pytest.mark.parametrize(("header", "message"), LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_damage(tmp_path, header, message):
    error = refusal(write(tmp_path / "x", header))
    assert isinstance(error, Damaged)
    with pytest.raises(Damaged, match=message):
        raise error


def test_a_dtype_the_format_does_not_have_is_unsupported(tmp_path):
    error = refusal(write(tmp_path / "x", entry(dtype="BF17")))
    assert isinstance(error, Unsupported)
    assert "unknown dtype 'BF17'" in error.message
    assert error.hint == "edgekit reads BF16, F16 and F32"


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 10_000])
def test_a_header_longer_than_the_file_or_the_limit_is_not_read(tmp_path, length):
    assert f"its header would take {length} bytes" in refusal(write(tmp_path / "x", ENTRIES, length=length)).message


def test_a_file_cut_anywhere_is_damaged(tmp_path):
    whole = write(tmp_path / "whole", ENTRIES).read_bytes()
    for end in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:end])
        assert refusal(tmp_path / "x").exit_code == 7


def test_a_flipped_bit_of_the_header_is_refused_or_gives_tensors_within_the_file(tmp_path):
    whole = write(tmp_path / "whole", ENTRIES).read_bytes()
    file = tmp_path / "x"
    refused = 0
    for position in range(len(whole) - 20):
        for bit in range(8):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            file.write_bytes(changed)
            try:
                tensors = read_header(file, "model.safetensors")
            except EdgekitError as error:
                refused += 1
                assert error.exit_code in (3, 7)
                assert error.message.isprintable()
            else:
                assert all(t.offset >= 0 and t.offset + t.bytes <= len(whole) for t in tensors.values())
    # What survives is another name, or another dtype of the same width.
    assert refused > 0.9 * 8 * (len(whole) - 20)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    assert "is not a regular file" in refusal(tmp_path / "x").message


def test_a_name_is_shown_without_its_control_characters(tmp_path):
    header = {"\x1b[31m" + "x" * 200: {"dtype": "F32", "shape": [6], "data_offsets": [0, 20]}}
    message = refusal(write(tmp_path / "x", header)).message
    assert message.isprintable()
    assert len(message) < 250


def test_json_that_is_no_object_is_damage():
    with pytest.raises(Damaged, match="x is not a JSON object"):
        parse_json(b"[1]", "x")


def test_a_key_that_comes_twice_among_many_is_found_in_one_pass():
    keys = [f'"k{index}": 0' for index in range(50_000)]
    began = time.process_time()
    with pytest.raises(Damaged, match="the key 'k49999' appears twice"):
        parse_json(f"{{{', '.join([*keys, keys[-1]])}}}".encode(), "x")
    # Some hundredths of a second; comparing each key with all others takes a minute.
    assert time.process_time() - began < 5
