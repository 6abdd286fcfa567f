"""The graph computes what transformers computes, however the tokens are fed to it."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.errors import Damaged, UsageError
from edgekit.graph import Graph, Session, build_graph, load_graph, save_graph, with_biases
from edgekit.onnx_decoder import rotation
from edgekit.testing import make_checkpoint

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Each is a variant of a decoder; odd sizes are for the rows that fill no vector.
VARIANTS = {
    "llama": {},
    "llama, untied, in float16 shards": {"tied": False, "dtype": "F16", "shards": 3},
    "llama, no shared heads": {"kv_heads": 4},
    "llama, heads of 6, odd rows": {"hidden": 51, "heads": 3, "kv_heads": 1, "head_dim": 6, "intermediate": 77},
    "llama, llama3 rotation": {"config": {"rope_scaling": LLAMA3}},
    "llama, linear rotation": {"config": {"rope_scaling": {"type": "linear", "factor": 2.0}}},
    "llama, biases": {"config": {"attention_bias": True, "mlp_bias": True}},
    "llama, rope_parameters": {"config": {"rope_theta": None, "rope_parameters": LLAMA3 | {"rope_theta": 500000.0}}},
    "mistral": {"model_type": "mistral", "tied": False},
    "mistral, window of 7": {"model_type": "mistral", "config": {"sliding_window": 7}},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, window of 5": {
        "model_type": "qwen2",
        "config": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 24, "tied": False, "dtype": "F32"},
    "qwen3, biases": {"model_type": "qwen3", "config": {"attention_bias": True}},
}
# Float32 sums of at most 96 terms of about one in two layers; transformers adds in another order.
TOLERANCE = 1e-4
CONTEXT = 64


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), **request.param)


@pytest.fixture(scope="module")
def reference(directory: Path) -> transformers.PreTrainedModel:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def session(directory: Path) -> Iterator[Session]:
    with Session(build_graph(open_checkpoint(directory), context=CONTEXT)) as session:
        yield session


def reference_logits(reference: transformers.PreTrainedModel, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return reference(torch.tensor([ids])).logits[0].numpy()


def random_ids(count: int, vocab: int = 320) -> list[int]:
    return [int(token) for token in np.random.default_rng(1).integers(0, vocab, count)]


def test_a_prefill_gives_the_logits_of_transformers(reference, session):
    ids = random_ids(50)
    np.testing.assert_allclose(session.logits(ids), reference_logits(reference, ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 7, 49])
def test_a_chunked_prefill_gives_the_logits_of_transformers(reference, session, chunk):
    ids = random_ids(50)
    logits = session.logits(ids, chunk=chunk)
    np.testing.assert_allclose(logits, reference_logits(reference, ids), rtol=0, atol=TOLERANCE)


def test_decoding_after_a_prefill_gives_the_logits_of_transformers(reference, session):
    ids = random_ids(40)
    session.reset()
    logits = [*session.prefill(ids[:25]), *(session.decode(token) for token in ids[25:])]
    np.testing.assert_allclose(logits, reference_logits(reference, ids), rtol=0, atol=TOLERANCE)


def test_the_greedy_text_is_that_of_transformers(reference, session):
    prompt = random_ids(8)
    expected = reference.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=32, min_new_tokens=32, pad_token_id=0
    )
    logits = session.logits(prompt)[-1]
    text = []
    for _ in range(32):
        logits[0] = -np.inf  # as min_new_tokens does with the token that ends a text
        text.append(int(logits.argmax()))
        logits = session.decode(text[-1])
    assert text == expected[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("checkpoint"), tied=False))


@pytest.fixture(scope="module")
def graph(checkpoint: Checkpoint) -> Graph:
    return build_graph(checkpoint, context=CONTEXT)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_graph_is_valid_standard_onnx(tmp_path, model_type):
    directory = make_checkpoint(tmp_path / "checkpoint", model_type=model_type)
    graph = build_graph(open_checkpoint(directory), context=CONTEXT)
    assert {node.domain for node in graph.model.graph} == {""}
    assert graph.model.opset_imports[""] == 24
    onnx.checker.check_model(save_graph(graph, tmp_path / "graph"), full_check=True)


def test_building_a_graph_reads_no_weights(tmp_path):
    directory = make_checkpoint(tmp_path)
    checkpoint = open_checkpoint(directory)
    (directory / "model.safetensors").unlink()
    assert "lm_head" in {node.name for node in build_graph(checkpoint, context=CONTEXT).model.graph}


def test_a_matrix_is_stored_transposed_and_feeds_the_product_that_bears_its_name(checkpoint, graph):
    (product,) = [node for node in graph.model.graph if node.name == "model.layers.1.mlp.down_proj"]
    weight = product.inputs[1]
    assert product.op_type == "MatMul"
    assert weight.name == "model.layers.1.mlp.down_proj.weight"
    assert list(weight.shape) == [96, 64]
    np.testing.assert_array_equal(weight.const_value.numpy(), checkpoint.read(weight.name).T)


def test_every_tensor_of_the_decoder_is_in_the_graph_once(checkpoint, graph):
    weights = [name for name in graph.model.graph.initializers if name.endswith((".weight", ".bias"))]
    assert sorted(weights) == sorted(checkpoint.decoder.tensor_shapes())


def test_a_tied_head_is_the_embedding_transposed(tmp_path):
    graph = build_graph(open_checkpoint(make_checkpoint(tmp_path)), context=CONTEXT)
    (head,) = [node for node in graph.model.graph if node.name == "lm_head"]
    assert head.inputs[1].producer().op_type == "Transpose"
    assert head.inputs[1].producer().inputs[0].name == "model.embed_tokens.weight"


def test_angles_are_products_in_float32_and_their_cosines_are_of_double_precision(checkpoint):
    frequency = np.float32(0.1)
    angle = np.float32(63) * frequency  # 6.3000002, not 6.3
    decoder = dataclasses.replace(checkpoint.decoder, inv_freq=(float(frequency),))
    cos, sin = rotation(decoder, 64)
    assert cos[63, 0] == np.float32(math.cos(float(angle)))
    assert sin[63, 0] == np.float32(math.sin(float(angle)))
    assert cos[0, 0] == 1


@pytest.mark.parametrize("context", [0, 257])
def test_a_context_that_the_model_was_not_made_for_is_refused(checkpoint, context):
    with pytest.raises(UsageError, match=rf"a context of {context} tokens is outside the model's") as refusal:
        build_graph(checkpoint, context=context)
    assert refusal.value.hint == "from 1 to 256 tokens"


def test_a_saved_graph_is_loaded_as_it_was(tmp_path, checkpoint, graph):
    save_graph(graph, tmp_path)
    loaded = load_graph(tmp_path)
    assert loaded.decoder == graph.decoder
    assert loaded.context == graph.context
    assert loaded.made_from == graph.made_from == checkpoint.digest
    ids = random_ids(20)
    with Session(loaded) as session, Session(tmp_path / "model.onnx") as from_file, Session(graph) as original:
        expected = original.logits(ids)
        np.testing.assert_array_equal(session.logits(ids), expected)
        np.testing.assert_array_equal(from_file.logits(ids), expected)


def test_the_same_graph_is_saved_to_the_same_bytes(tmp_path, checkpoint):
    for name in ("a", "b"):
        save_graph(build_graph(checkpoint, context=CONTEXT), tmp_path / name)
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_biases_of_zeros_change_nothing_and_those_of_the_checkpoint_stay(tmp_path, model_type):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "checkpoint", model_type=model_type))
    plain = build_graph(checkpoint, context=CONTEXT)
    biased = with_biases(plain)
    onnx.checker.check_model(save_graph(biased, tmp_path / "graph"), full_check=True)
    names = {name for name in biased.model.graph.initializers if name.endswith(".bias")}
    assert names == {name for name in biased.decoder.tensor_shapes() if name.endswith(".bias")} and len(names) == 14
    for name in names:
        expected = checkpoint.read(name) if name in checkpoint.tensors else np.zeros(plain_rows(biased, name))
        np.testing.assert_array_equal(biased.model.graph.initializers[name].const_value.numpy(), expected)
    assert with_biases(biased).model.graph.num_nodes() == biased.model.graph.num_nodes()
    with Session(biased) as session, Session(plain) as without:
        np.testing.assert_allclose(session.logits(random_ids(20)), without.logits(random_ids(20)), rtol=0, atol=1e-6)


def plain_rows(graph: Graph, bias: str) -> int:
    return graph.decoder.tensor_shapes()[bias.replace(".bias", ".weight")][0]


def test_an_interrupted_save_leaves_nothing(tmp_path, graph):
    def interrupt(done: int, total: int) -> None:
        assert 0 < done < total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_graph(graph, tmp_path, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_save_that_is_interrupted_over_an_older_one_leaves_no_model(tmp_path, graph):
    save_graph(graph, tmp_path)
    calls = itertools.count()

    def interrupt(done: int, total: int) -> None:
        if next(calls):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_graph(graph, tmp_path, progress=interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx.data"]


def test_progress_ends_at_the_total(tmp_path, graph):
    calls = []
    save_graph(graph, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]
    assert calls == sorted(calls)


def test_a_graph_whose_data_is_cut_short_is_damaged(tmp_path, graph):
    save_graph(graph, tmp_path)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(Damaged, match=r"does not lie within model.onnx.data"):
        load_graph(tmp_path)


def test_a_graph_that_reads_from_another_file_is_damaged(tmp_path, graph):
    file = save_graph(graph, tmp_path)
    model = onnx.load(file, load_external_data=False)
    (external,) = [t for t in model.graph.initializer if t.name == "lm_head.weight"]
    external.external_data[0].value = "../secret"
    file.write_bytes(model.SerializeToString())
    with pytest.raises(Damaged, match=r"'lm_head.weight' of .*model.onnx does not lie within"):
        load_graph(tmp_path)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_graph_whose_data_is_a_link_is_damaged(tmp_path, graph, link):
    save_graph(graph, tmp_path)
    data = tmp_path / "model.onnx.data"
    data.rename(tmp_path / "elsewhere")
    link(data, tmp_path / "elsewhere")
    with pytest.raises(Damaged, match=r"model.onnx.data is a link"):
        load_graph(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100], ids=["empty", "noise"])
def test_a_file_that_is_no_graph_is_damaged(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(Damaged, match=r"model.onnx"):
        load_graph(tmp_path)


def test_a_model_that_onnx_runtime_does_not_load_is_damaged(tmp_path, graph):
    file = save_graph(graph, tmp_path)
    file.write_bytes(file.read_bytes().replace(b"RMSNormalization", b"RMSNormalisation"))
    with pytest.raises(Damaged, match=r"ONNX Runtime cannot load .*INVALID_GRAPH.*RMSNormalisation"):
        Session(file)


def test_a_missing_graph_is_damaged(tmp_path):
    with pytest.raises(Damaged, match=r"No such file"):
        load_graph(tmp_path)


def test_a_session_that_is_set_back_continues_from_there(graph):
    first, second = random_ids(30), random_ids(10)[::-1]
    with Session(graph) as session:
        session.prefill(first)
        session.reset(12)
        continued = session.prefill(second)
        np.testing.assert_allclose(continued, session.logits(first[:12] + second)[12:], rtol=0, atol=1e-5)


def test_the_last_row_alone_is_that_of_all(graph):
    ids = random_ids(30)
    with Session(graph) as session:
        last = session.prefill(ids, chunk=7, last_only=True)
        assert session.position == 30
        np.testing.assert_array_equal(last, session.logits(ids, chunk=7)[-1:])


def test_a_session_uses_one_cache_for_past_and_present(graph):
    with Session(graph) as session:
        caches = {name: cache.data_ptr() for name, cache in session._caches.items()}
        session.prefill(random_ids(5))
        assert {name: cache.data_ptr() for name, cache in session._caches.items()} == caches
        key = session._caches["past_key_1"].numpy()
    assert np.abs(key[:, :, :5]).min() > 0
    assert not key[:, :, 5:].any()


@pytest.mark.parametrize("token", [-1, 320])
def test_a_token_outside_the_vocabulary_is_refused(graph, token):
    with Session(graph) as session, pytest.raises(UsageError, match=f"the token {token} is outside the vocabulary"):
        session.decode(token)


def test_more_tokens_than_the_context_holds_are_refused(graph):
    with Session(graph) as session:
        session.prefill(random_ids(CONTEXT))
        with pytest.raises(UsageError, match="65 tokens do not fit the context") as refusal:
            session.decode(1)
    assert refusal.value.hint == "it holds 64"


def test_a_closed_session_leaves_no_files(graph, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Session(graph):
        assert list(tmp_path.glob("edgekit-*/model.onnx"))
    assert not list(tmp_path.iterdir())


PROSE = (
    "The ferry left at noon, and nobody on the quay had seen the boy go aboard. He stood behind the ropes with his "
    "father's coat over his arm and watched the town grow small. First he could tell the windows from the doors, then "
    "only the church from the hill, and at last there was a grey line that might have been a cloud. He was not sorry. "
    "An old woman sat down beside him, took an apple out of her bag, cut it in two, and gave him the larger half."
)


def test_the_embedded_model_is_as_surprised_by_prose_as_in_transformers():
    directory = Path(__file__).parents[1] / "edgekit" / "models" / "tales"
    checkpoint = open_checkpoint(directory)
    ids = Tokenizer.from_file(str(checkpoint.tokenizer_file)).encode(PROSE).ids
    reference = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with Session(build_graph(checkpoint, context=256)) as session:
        perplexity = _perplexity(session.logits(ids), ids)
    assert perplexity == pytest.approx(_perplexity(reference_logits(reference, ids), ids), rel=1e-5)
    assert 10 < perplexity < 200


def _perplexity(logits: np.ndarray, ids: list[int]) -> float:
    wide = torch.tensor(logits[:-1], dtype=torch.float64)
    return math.exp(torch.nn.functional.cross_entropy(wide, torch.tensor(ids[1:])).item())
