"""A Hugging Face directory is read if it is whole and consistent, and refused in one sentence if not."""

import hashlib
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Damaged, EdgekitError, Unsupported, UsageError
from edgekit.testing import make_checkpoint

Change = Callable[[Path], None]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def edit(file: Path, **changes: object) -> None:
    """Changes keys of a JSON file; None removes one, and a missing file is begun."""
    table = json.loads(file.read_text()) if file.exists() else {}
    table |= changes
    file.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def refusal(directory: Path, kind: type[EdgekitError] = Damaged) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
        open_checkpoint(directory)
    assert type(caught.value) is kind, caught.value.message
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_are_read_as_the_float32_values_they_stand_for(directory, dtype):
    file = directory / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    checkpoint = open_checkpoint(directory)
    for name, expected in load_file(file).items():
        values = checkpoint.read(name)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected.float().numpy())


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_infinities_nan_and_subnormals_survive(directory, dtype):
    file = directory / "model.safetensors"
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    tensors = {name: tensor.to(kind) for name, tensor in load_file(file).items()}
    special = tensors["model.norm.weight"]
    special[:4] = torch.tensor([float("inf"), float("-inf"), float("nan"), torch.finfo(kind).tiny / 4], dtype=kind)
    save_file(tensors, file)
    values = open_checkpoint(directory).read("model.norm.weight")
    np.testing.assert_array_equal(values, special.float().numpy())


def test_shards_hold_what_one_file_holds(tmp_path, directory):
    whole, parts = open_checkpoint(directory), open_checkpoint(make_checkpoint(tmp_path / "shards", shards=3))
    assert whole.tensors.keys() == parts.tensors.keys()
    assert len({info.file for info in parts.tensors.values()}) == 3
    for name in whole.tensors:
        np.testing.assert_array_equal(parts.read(name), whole.read(name))


def test_rows_are_read_without_the_others(directory):
    checkpoint = open_checkpoint(directory)
    whole = checkpoint.read("model.layers.0.mlp.up_proj.weight")
    assert whole.shape == (96, 64)
    np.testing.assert_array_equal(checkpoint.read_rows("model.layers.0.mlp.up_proj.weight", 5, 8), whole[5:8])
    # 7 rows of 64 floats are 1792 bytes: 13 blocks of 7 and one of 5.
    blocks = list(checkpoint.read_blocks("model.layers.0.mlp.up_proj.weight", block_bytes=1800))
    assert [(start, len(rows)) for start, rows in blocks][-2:] == [(84, 7), (91, 5)]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), whole)


def test_a_tied_head_may_be_stored_as_well(directory):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    assert open_checkpoint(directory).decoder.tied


def test_stored_rotary_frequencies_are_ignored(directory):
    file = directory / "model.safetensors"
    save_file(load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, file)
    assert open_checkpoint(directory).decoder.layers == 2


def test_parameters_count_a_tied_head_once(directory):
    # Embedding, two layers of q, k, v, o, gate, up, down and two norms, and the last norm.
    layer = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64 + 2 * 64
    assert open_checkpoint(directory).parameters == 320 * 64 + 2 * layer + 64


def test_the_digest_is_that_of_what_sha256sum_prints(directory):
    lines = subprocess.run(
        ["sha256sum", *sorted(file.name for file in directory.iterdir())],
        cwd=directory,
        capture_output=True,
        check=True,
    )
    assert open_checkpoint(directory).digest == hashlib.sha256(lines.stdout).hexdigest()


def test_the_digest_depends_on_every_file_that_is_used_and_on_no_other(tmp_path, directory):
    digest = open_checkpoint(directory).digest
    assert open_checkpoint(make_checkpoint(tmp_path / "elsewhere")).digest == digest
    (directory / "README.md").write_text("A model.")
    assert open_checkpoint(directory).digest == digest
    digests = {digest}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((directory / name).read_bytes() + b"\n")
        digests.add(open_checkpoint(directory).digest)
    data = bytearray((directory / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (directory / "model.safetensors").write_bytes(data)
    digests.add(open_checkpoint(directory).digest)
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    digests.add(open_checkpoint(directory).digest)
    assert len(digests) == 7


def test_a_checkpoint_is_made_to_the_same_bytes_twice(tmp_path):
    digests = {open_checkpoint(make_checkpoint(tmp_path / name, shards=2)).digest for name in ("a", "b")}
    assert len(digests) == 1


# Chat template


def test_the_chat_template_comes_from_its_own_file_first(directory):
    assert open_checkpoint(directory).chat_template is None
    edit(directory / "tokenizer_config.json", chat_template="in the config")
    assert open_checkpoint(directory).chat_template == "in the config"
    (directory / "chat_template.jinja").write_text("in a file: ä")
    assert open_checkpoint(directory).chat_template == "in a file: ä"


def test_of_several_chat_templates_the_default_is_taken(directory):
    templates = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    edit(directory / "tokenizer_config.json", chat_template=templates)
    assert open_checkpoint(directory).chat_template == "b"
    edit(directory / "tokenizer_config.json", chat_template=templates[:1])
    assert open_checkpoint(directory).chat_template == "a"


@pytest.mark.parametrize("template", [7, ["x"], [{"template": "x"}], [{"name": "default", "template": 7}]])
def test_a_chat_template_that_is_no_text_is_damage(directory, template):
    edit(directory / "tokenizer_config.json", chat_template=template)
    assert refusal(directory).message.startswith("chat_template in tokenizer_config.json")


def test_a_chat_template_that_is_not_utf_8_is_damage(directory):
    (directory / "chat_template.jinja").write_bytes(b"\xff")
    assert refusal(directory).message == "chat_template.jinja is not UTF-8"


def test_a_chat_template_of_two_megabytes_is_damage(directory):
    (directory / "chat_template.jinja").write_text("x" * (2 << 20))
    assert refusal(directory).message == "the chat template has more than 1048576 characters"


# Directories that are refused


def test_a_path_that_is_no_directory_is_a_usage_error(tmp_path):
    assert "is not a directory" in refusal(tmp_path / "nowhere", UsageError).message


def test_an_empty_directory_holds_no_checkpoint(tmp_path):
    found = refusal(tmp_path, UsageError)
    assert found.message == f"{tmp_path} is not a checkpoint folder: it holds no config.json"
    assert "with config.json, model.safetensors and tokenizer.json" in found.hint


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pth", "model.gguf"])
def test_weights_that_are_not_safetensors_are_unsupported(directory, file):
    (directory / "model.safetensors").rename(directory / file)
    error = refusal(directory, Unsupported)
    assert f"are not safetensors: {file}" in error.message
    assert "save_pretrained" in error.hint


def test_a_directory_without_weights_is_damaged(directory):
    (directory / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refusal(directory).message


def test_a_tensor_that_the_config_calls_for_must_be_there(directory):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file)
    assert "no tensor 'model.layers.1.mlp.up_proj.weight'" in refusal(directory).message


def test_a_tensor_has_the_shape_that_the_config_makes_it(directory):
    edit(directory / "config.json", intermediate_size=97)
    assert refusal(directory).message == (
        "the tensor 'model.layers.0.mlp.gate_proj.weight' has the shape 96 x 64, config.json makes it 97 x 64"
    )


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_hidden_layers": 1}, "'model.layers.1.input_layernorm.weight' and 8 more"),
        ({"model_type": "llama", "attention_bias": None}, "'model.layers.0.self_attn.k_proj.bias' and 5 more"),
    ],
)
def test_a_tensor_that_would_be_left_out_is_refused(tmp_path, changes, name):
    directory = make_checkpoint(tmp_path, model_type="qwen2" if "model_type" in changes else "llama")
    edit(directory / "config.json", **changes)
    assert f"the weights hold {name}, which a llama of this config.json does not use" in (
        refusal(directory, Unsupported).message
    )


def test_an_integer_tensor_is_unsupported(directory):
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, file)
    error = refusal(directory, Unsupported)
    assert error.message == "the tensor 'model.norm.weight' has the dtype I8"
    assert error.hint == "edgekit reads BF16, F16, F32"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"", "config.json is not valid JSON"),
        ("config.json", b"[]", "config.json is not a JSON object"),
        ("config.json", b'{"a": NaN}', "config.json is not valid JSON: NaN is not JSON"),
        ("config.json", b" " * (17 << 20), "config.json has more than 16777216 bytes"),
        ("generation_config.json", b"{", "generation_config.json is not valid JSON"),
        ("tokenizer_config.json", b"\xff", "tokenizer_config.json is not valid JSON"),
        ("tokenizer.json", b"[" * 50_000, "tokenizer.json is not valid JSON: it is nested too deeply"),
        ("tokenizer.json", b'{"added_tokens": 7}', "tokenizer.json has a malformed list of added_tokens"),
        ("tokenizer.json", b'{"added_tokens": [{"id": 0}]}', "tokenizer.json has a malformed list of added_tokens"),
    ],
)
def test_a_malformed_text_file_is_damage(directory, file, content, message):
    (directory / file).write_bytes(content)
    assert refusal(directory).message.startswith(message)


# Links and shards


def test_a_link_that_leads_out_of_the_directory_is_refused(tmp_path, directory):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        outside = tmp_path / "outside"
        (directory / name).rename(outside)
        (directory / name).symlink_to(outside)
        assert refusal(directory).message.startswith(f"{name} is a link that leads out of ")
        outside.replace(directory / name)
    assert open_checkpoint(directory)


def test_a_link_within_the_directory_is_followed(directory):
    (directory / "weights").mkdir()
    (directory / "model.safetensors").rename(directory / "weights" / "a")
    (directory / "model.safetensors").symlink_to("weights/a")
    checkpoint = open_checkpoint(directory)
    assert checkpoint.read("model.norm.weight").shape == (64,)


def test_the_cache_of_hugging_face_is_read(tmp_path):
    model = make_checkpoint(tmp_path / "plain")
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "0123", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(model.iterdir()):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert open_checkpoint(snapshot).digest == open_checkpoint(model).digest


def test_a_broken_link_is_damage(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to("nowhere")
    assert refusal(directory).message == "cannot read model.safetensors: No such file or directory"


def test_a_folder_in_the_place_of_a_file_is_damage(directory):
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").mkdir()
    assert "is not a regular file" in refusal(directory).message


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "a\0.safetensors", "..", 7, "x.bin"],
)
def test_a_shard_is_named_by_a_plain_file_name(tmp_path, name):
    directory = make_checkpoint(tmp_path, shards=2)
    index = directory / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=weight_map | {"model.norm.weight": name})
    assert refusal(directory).message.startswith("model.safetensors.index.json names the shard ")


def _without(name: str) -> Change:
    def change(directory: Path) -> None:
        index = directory / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        del weight_map[name]
        edit(index, weight_map=weight_map)

    return change


def _placed(name: str, shard: int) -> Change:
    def change(directory: Path) -> None:
        index = directory / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        edit(index, weight_map=weight_map | {name: f"model-{shard:05}-of-00002.safetensors"})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("model.norm.weight"), "holds the tensor 'model.norm.weight', but .*index.json does not list it"),
        (_placed("model.norm.weight", 1), "holds the tensor 'model.norm.weight', but .* places it in model-00001"),
        (_placed("model.other.weight", 1), "model-00001.* does not hold the tensor 'model.other.weight'"),
        (_placed("model.other.weight", 3), "cannot read model-00003-of-00002.safetensors: No such file"),
        (lambda d: (d / "model-00002-of-00002.safetensors").unlink(), "cannot read model-00002-of-00002.safetensors"),
        (lambda d: edit(d / "model.safetensors.index.json", weight_map=[]), "index.json has no weight_map"),
        (lambda d: edit(d / "model.safetensors.index.json", weight_map=None), "index.json has no weight_map"),
    ],
)
def test_index_and_shards_must_agree(tmp_path, change, message):
    directory = make_checkpoint(tmp_path, shards=2)
    change(directory)
    with pytest.raises(Damaged, match=message):
        raise refusal(directory)


def test_weights_cut_anywhere_are_damaged(directory):
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    for end in (0, 1, 7, 8, 9, 7 + header, 8 + header, 9 + header, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:end])
        assert refusal(directory).exit_code == 7
    file.write_bytes(whole + b"\0")
    assert "its tensors end at byte" in refusal(directory).message


def test_no_flipped_bit_of_the_header_is_read_as_something_else(directory):
    """A bit of a name, a size, an offset or a dtype: refused, or it was a bit that means nothing."""
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    healthy = {name: (info.shape, info.dtype, info.offset) for name, info in open_checkpoint(directory).tensors.items()}
    for position in range(0, 8 + header, 3):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        try:
            checkpoint = open_checkpoint(directory)
        except EdgekitError as error:
            assert error.exit_code in (3, 7)
            assert error.message.isprintable()
        else:
            found = {name: (info.shape, info.dtype, info.offset) for name, info in checkpoint.tensors.items()}
            assert found == healthy


def test_a_file_that_shrinks_after_it_was_opened_is_damage(directory):
    checkpoint = open_checkpoint(directory)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])
    last = max(checkpoint.tensors.values(), key=lambda info: info.offset)
    with pytest.raises(Damaged, match=r"model.safetensors became shorter while it was read"):
        checkpoint.read(last.name)
