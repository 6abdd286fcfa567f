"""GGUF files, written by the package gguf: values, codes, row order and tokenizer; and what is refused."""

import itertools
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Tokenizer
from tokenizers_zoo import ZOO

from edgekit.bundle import open_bundle
from edgekit.cache import Cache
from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import Damaged, EdgekitError, Unsupported, UsageError
from edgekit.forecast import forecast
from edgekit.gguf import read_gguf
from edgekit.graph import Session, build_graph
from edgekit.kept import default_recipe
from edgekit.packed import Packed
from edgekit.pipeline import Order, build, is_made_from
from edgekit.quantize import quantize
from edgekit.reference import tokens_of
from edgekit.testing import END_OF_TEXT, make_checkpoint
from edgekit.units import Bytes

KIND = gguf.GGMLQuantizationType
TEXT = "The ferry left the harbour a little before six, while the lamps along the quay were still burning."
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Array = npt.NDArray[Any]


def their_name(name: str) -> str:
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outer or name == "lm_head.weight":
        return outer.get(name, "output.weight")
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{PARTS[part]}.weight"


def permuted(weights: Array, heads: int) -> Array:
    """As LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py defines it."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def bytes_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], pre: str, size: int) -> None:
    """A byte-level tokenizer.json as llama.cpp's converter writes it, filled up to `size` tokens."""
    model = tokenizer["model"]
    tokens = {index: token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([kinds.get(index, UNUSED) for index in range(size)])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])


def write(
    file: Path,
    source: Checkpoint,
    kind: gguf.GGMLQuantizationType,
    *,
    meta: Callable[[gguf.GGUFWriter], object] | None = None,
    tokenizer: Callable[[gguf.GGUFWriter], object] | None = None,
    extra: dict[str, Array] | None = None,
    heads: bool = True,
) -> Path:
    decoder = source.decoder
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(decoder.layers)
    writer.add_context_length(decoder.context)
    writer.add_embedding_length(decoder.hidden)
    writer.add_feed_forward_length(decoder.intermediate)
    writer.add_head_count(decoder.heads)
    writer.add_head_count_kv(decoder.kv_heads)
    writer.add_layer_norm_rms_eps(decoder.norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(decoder.head_dim)
    writer.add_vocab_size(decoder.vocab)
    if tokenizer is None:
        content = json.loads((source.path / "tokenizer.json").read_text())
        bytes_tokenizer(writer, content, "gpt-2", decoder.vocab)
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(0)
    else:
        tokenizer(writer)
    if meta is not None:
        meta(writer)
    for name in decoder.tensor_shapes():
        values = source.read(name)
        if heads and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = permuted(values, decoder.heads if "q_proj" in name else decoder.kv_heads)
        used = kind if values.ndim == 2 else KIND.F32
        data = gguf.quantize(values, used)
        writer.add_tensor(their_name(name), data, raw_dtype=used)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("gguf") / "float", dtype="F32", context=64))


@pytest.fixture(scope="module")
def q4(source: Checkpoint) -> Path:
    return write(source.path.parent / "tiny-q4.gguf", source, KIND.Q4_0)


@pytest.mark.parametrize("kind", [KIND.F32, KIND.F16, KIND.BF16, KIND.Q8_0, KIND.Q4_0])
def test_values_are_what_the_package_makes_of_them_in_hugging_face_order(
    tmp_path: Path, source: Checkpoint, kind: gguf.GGMLQuantizationType
) -> None:
    found = open_checkpoint(write(tmp_path / "x.gguf", source, kind))
    # The norm's epsilon is an f32 in the file.
    assert replace(found.decoder, norm_eps=source.decoder.norm_eps) == source.decoder
    assert found.decoder.norm_eps == np.float32(source.decoder.norm_eps)
    assert found.tensors.keys() == source.decoder.tensor_shapes().keys()
    for name, shape in source.decoder.tensor_shapes().items():
        values = source.read(name)
        # Blocks lie along a row, so rows are rounded alike in any order.
        expected = gguf.dequantize(gguf.quantize(values, kind), kind) if len(shape) == 2 else values
        np.testing.assert_array_equal(found.read(name), expected)
        if len(shape) == 2:
            np.testing.assert_array_equal(found.read_rows(name, 5, 23), expected[5:23])


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        (KIND.Q4_0, "q4g32,head=q4g32,method=kept"),
        (KIND.Q8_0, "q8g32,head=q8g32,method=kept"),
    ],
)
def test_codes_are_those_of_the_file(
    tmp_path: Path, source: Checkpoint, kind: gguf.GGMLQuantizationType, recipe: str
) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", source, kind))
    assert str(default_recipe(checkpoint)) == recipe
    quant = quantize(build_graph(checkpoint, context=16), checkpoint, default_recipe(checkpoint))
    for name, tensor in quant.tensors.items():
        blocks = gguf.quantize(source.read(name), kind).reshape(-1, 2 + (16 if kind == KIND.Q4_0 else 32))
        stored = blocks[:, 2:]
        if kind == KIND.Q4_0:
            codes = np.concatenate([stored & 15, stored >> 4], axis=1).astype(np.int8) - 8
        else:
            codes = stored.view(np.int8)
        np.testing.assert_array_equal(tensor.codes, codes.reshape(tensor.shape))
        assert quant.errors[name] <= 2**-16  # squared


def test_floats_get_four_bits(tmp_path: Path, source: Checkpoint) -> None:
    found = forecast(write(tmp_path / "x.gguf", source, KIND.F16), "rpi5", None, context=None)
    assert (str(found.quant.recipe), found.quant.notes) == ("q4g128,head=q4g128", ())


def test_a_bundle_computes_what_the_values_of_the_file_do(tmp_path: Path, q4: Path) -> None:
    order = Order(q4, "host", None, tmp_path / "out", probe_text=TEXT)
    outcome = build(order, Cache(tmp_path / "cache", Bytes(1 << 30)), lambda *_: None, lambda _: None)
    bundle = open_bundle(order.output)
    assert bundle.eos_ids == (0,)
    assert is_made_from(open_checkpoint(q4), bundle)
    assert outcome.measurement.coherence["kld_mean"] < 1e-3
    assert outcome.measurement.coherence["same_top"] > 0.95


def test_the_float_graph_is_that_of_the_hugging_face_checkpoint(tmp_path: Path, source: Checkpoint) -> None:
    found = open_checkpoint(write(tmp_path / "x.gguf", source, KIND.F32))
    ids = np.arange(1, 40)
    with Session(build_graph(found, context=64)) as ours, Session(build_graph(source, context=64)) as theirs:
        np.testing.assert_array_equal(ours.logits(ids), theirs.logits(ids))


def test_rotary_factors_divide_the_frequencies(tmp_path: Path, source: Checkpoint) -> None:
    factors = np.array([1, 1, 2, 2, 4, 4, 8, 8], np.float32)
    file = write(tmp_path / "x.gguf", source, KIND.F16, extra={"rope_freqs.weight": factors})
    expected = np.array(source.decoder.inv_freq, np.float32) / factors
    np.testing.assert_array_equal(np.array(open_checkpoint(file).decoder.inv_freq, np.float32), expected)


def test_an_untied_head_is_one(tmp_path: Path) -> None:
    untied = open_checkpoint(make_checkpoint(tmp_path / "m", dtype="F32", tied=False))
    assert not open_checkpoint(write(tmp_path / "x.gguf", untied, KIND.Q8_0)).decoder.tied


# Tokenizers


@pytest.mark.parametrize(("name", "pre"), [("smollm2", "smollm"), ("llama3", "llama-bpe"), ("qwen2", "qwen2")])
def test_a_byte_level_tokenizer_is_the_one_it_was_made_from(
    tmp_path: Path, source: Checkpoint, name: str, pre: str
) -> None:
    content = ZOO[name]()
    end = next(token["id"] for token in content["added_tokens"] if token["special"]) if content["added_tokens"] else 0
    size = 1 + max([*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])])
    roomy = open_checkpoint(make_checkpoint(tmp_path / "m", dtype="F32", vocab=size + 3, context=64))

    def tokenizer(writer: gguf.GGUFWriter) -> None:
        bytes_tokenizer(writer, content, pre, size + 3)
        writer.add_bos_token_id(end)

    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", roomy, KIND.F16, tokenizer=tokenizer))
    expected = Tokenizer.from_str(json.dumps(content))
    specials = "".join(token["content"] for token in content["added_tokens"][:3])
    for text in (TEXT, "don't 1234567 \n\n  x\t\u00e9\u0301 \u4f60\u597d", specials, ""):
        ids = tokens_of(checkpoint, text, special=True)
        assert ids.tolist() == expected.encode(text).ids
    assert checkpoint.bos_id == (end if name == "llama3" else None)


def sentencepiece(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE: again and again the neighbours whose union has the best score, the first of equals."""
    pieces = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        joined = [(scores.get(a + b, -np.inf), -at) for at, (a, b) in enumerate(itertools.pairwise(pieces))]
        best, at = max(joined, default=(-np.inf, 0))
        if best == -np.inf:
            return pieces
        pieces[-at : 2 - at] = [pieces[-at] + pieces[1 - at]]


def test_merges_of_sentencepiece_are_found_from_its_scores(tmp_path: Path, source: Checkpoint) -> None:
    words = ["th", "\u2581t", "\u2581th", "\u2581the", "he", "er", "re", "ere", "the", "in", "ing", "an", "\u2581an"]
    scores = {word: -float(index) for index, word in enumerate(words)}
    letters = sorted({*"thefrylboaumpsqwniginkdcv,.T", "\u2581"})
    pieces = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    pieces |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    pieces |= dict.fromkeys([*words, *letters], NORMAL)
    roomy = open_checkpoint(make_checkpoint(tmp_path / "m", dtype="F32", vocab=len(pieces), context=64))

    def tokenizer(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(list(pieces))
        writer.add_token_scores([scores.get(piece, -1000.0) for piece in pieces])
        writer.add_token_types(list(pieces.values()))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    checkpoint = open_checkpoint(write(tmp_path / "x.gguf", roomy, KIND.F16, tokenizer=tokenizer))
    assert (checkpoint.bos_id, checkpoint.eos_ids, checkpoint.bos_text) == (1, (2,), "<s>")
    index = {piece: at for at, piece in enumerate(pieces)}
    generator = np.random.default_rng(0)
    for _ in range(50):
        text = "".join(generator.choice(["th", "e", "re", " ", "the", "in", "g", "an", "er"], 12)).strip() or "the"
        assert tokens_of(checkpoint, text).tolist() == [index[piece] for piece in sentencepiece(text, scores)]
    assert tokens_of(checkpoint, "\u00e9").tolist() == [index[piece] for piece in ("\u2581", "<0xC3>", "<0xA9>")]
    assert tokens_of(checkpoint, "the", special=True).tolist() == [1, index["\u2581the"]]


def test_without_a_tokenizer_there_is_none(tmp_path: Path, source: Checkpoint) -> None:
    file = write(tmp_path / "x.gguf", source, KIND.F16, tokenizer=lambda writer: None)
    assert open_checkpoint(file).tokenizer_file is None


def test_the_chat_template_and_ends_come_along(tmp_path: Path, source: Checkpoint) -> None:
    def meta(writer: gguf.GGUFWriter) -> None:
        writer.add_chat_template("{{ messages }}")

    found = open_checkpoint(write(tmp_path / "x.gguf", source, KIND.F16, meta=meta))
    assert (found.chat_template, found.eos_text, found.eos_ids) == ("{{ messages }}", END_OF_TEXT, (0,))


# Refusals


@pytest.mark.parametrize(
    ("meta", "kind", "message"),
    [
        (lambda w: w.add_expert_count(8), Unsupported, "has 'llama.expert_count'"),
        (lambda w: w.add_attention_scale(0.5), Unsupported, "has 'llama.attention.scale'"),
        (lambda w: w.add_key_length(8), Unsupported, "rope.dimension_count in the metadata of x.gguf is not 8"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), Unsupported, "scaling.type 'yarn'"),
        (lambda w: w.add_uint16("split.count", 2), Unsupported, "one of several parts"),
        (lambda w: w.add_bool("tokenizer.ggml.add_bos_token", True), None, ""),
        (lambda w: w.add_string("tokenizer.ggml.add_bos_token", "yes"), Damaged, "add_bos_token in the metadata"),
        (lambda w: w.add_eot_token_id(5), Damaged, "is not a special token"),
        (lambda w: w.add_eot_token_id(1 << 20), Damaged, "outside the vocabulary"),
    ],
)
def test_metadata_is_checked(
    tmp_path: Path,
    source: Checkpoint,
    meta: Callable[[gguf.GGUFWriter], object],
    kind: type[EdgekitError] | None,
    message: str,
) -> None:
    file = write(tmp_path / "x.gguf", source, KIND.F16, meta=meta)
    if kind is None:
        assert open_checkpoint(file).bos_id == 0
        return
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(file)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("model", "pre", "message"),
    [("gpt2", "default", "tokenizer.ggml.pre 'default'"), ("bert", "gpt-2", "tokenizer.ggml.model 'bert'")],
)
def test_a_tokenizer_that_is_only_nearly_known_is_refused(
    tmp_path: Path, source: Checkpoint, model: str, pre: str, message: str
) -> None:
    def tokenizer(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(["a"])
        writer.add_token_types([NORMAL])

    with pytest.raises(Unsupported, match=message):
        open_checkpoint(write(tmp_path / "x.gguf", source, KIND.F16, tokenizer=tokenizer))


def test_k_quants_and_others_are_refused_by_name(tmp_path: Path, q4: Path) -> None:
    data = q4.read_bytes()
    entry = data.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 16
    assert data[entry : entry + 4] == struct.pack("<I", KIND.Q4_0)
    for kind, name in ((KIND.Q6_K, "Q6_K"), (KIND.Q4_1, "Q4_1"), (KIND.IQ4_NL, "of kind 20")):
        (tmp_path / "x.gguf").write_bytes(data[:entry] + struct.pack("<I", kind) + data[entry + 4 :])
        with pytest.raises(Unsupported, match=f"'blk.0.ffn_up.weight' in x.gguf is {name}, which no scheme") as caught:
            open_checkpoint(tmp_path / "x.gguf")
        assert "llama-quantize --pure" in caught.value.hint


def test_a_code_that_no_quantizer_writes_is_refused_where_it_would_be_kept(tmp_path: Path, source: Checkpoint) -> None:
    file = write(tmp_path / "x.gguf", source, KIND.Q8_0)
    with file.open("r+b") as stream:
        stream.seek(read_gguf(file, "x.gguf").tensors["blk.1.ffn_up.weight"].offset + 2)
        stream.write(b"\x80")
    packed = open_checkpoint(file).tensors[UP]
    assert isinstance(packed, Packed)
    assert packed.values(0, 1).shape == (1, 64)
    with pytest.raises(Unsupported, match=r"has codes from -128 to 1[0-9]+, and q8 holds -127 to 127"):
        packed.kept(packed.natural, 0, 1)


def test_a_folder_of_gguf_files_is_told_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no config\.json") as caught:
        open_checkpoint(tmp_path)
    assert ".gguf file" in caught.value.hint


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda d: b"GGML" + d[4:], Damaged, "does not begin with 'GGUF'"),
        (lambda d: changed(d, 4, struct.pack("<I", 2)), Unsupported, "GGUF version 2"),
        (lambda d: changed(d, 4, struct.pack(">I", 3)), Unsupported, "big-endian"),
        (lambda d: changed(d, 8, struct.pack("<Q", 1 << 60)), Damaged, "tensors would take more"),
        (lambda d: changed(d, 16, struct.pack("<Q", 1 << 60)), Damaged, "entries of metadata would take more"),
        (lambda d: changed(d, 24, struct.pack("<Q", 1 << 60)), Damaged, "a string would take"),
        (lambda d: changed(d, 32, b"\xff"), Damaged, "not UTF-8"),
        (lambda d: d[:-4000], Damaged, "ends at byte"),
        (lambda d: d[:100], Damaged, "damaged"),
        (lambda d: d[:10], Damaged, "its header goes past"),
        (lambda d: d + bytes(64), Damaged, "its tensors end at"),
        (lambda d: d.replace(b"blk.0.ffn_up.weight", b"blk.1.ffn_up.weight"), Damaged, "appears twice"),
        (lambda d: d.replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xp.weight"), Unsupported, "which no Llama has"),
        (lambda d: d.replace(b"llama.block_count", b"llama.block_coun_"), Unsupported, "has 'llama.block_coun_'"),
    ],
)
def test_a_file_that_breaks_the_format_is_refused(
    tmp_path: Path, q4: Path, change: Callable[[bytes], bytes], kind: type[EdgekitError], message: str
) -> None:
    (tmp_path / "x.gguf").write_bytes(change(q4.read_bytes()))
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(tmp_path / "x.gguf")
    assert caught.value.hint
    assert len(caught.value.message) < 300


def test_no_byte_of_a_header_can_do_more_than_be_refused(tmp_path: Path, q4: Path) -> None:
    data = q4.read_bytes()
    header = min(tensor.offset for tensor in read_gguf(q4, "x").tensors.values())
    generator = np.random.default_rng(0)
    refused = 0
    for at in generator.integers(0, header, 250):
        length = int(generator.choice([1, 4, 8]))
        new = generator.choice([bytes(length), b"\xff" * length, generator.bytes(length)])
        file = tmp_path / "x.gguf"
        file.write_bytes(changed(data, int(at), bytes(new)))
        try:
            checkpoint = open_checkpoint(file)
            assert checkpoint.read(Q).shape == (64, 64)
        except EdgekitError as error:
            refused += 1
            assert error.exit_code in (3, 7), error.message
    assert 0 < refused < 250
