"""A portable bundle as onnxruntime-genai sees it: the same graph, told positions in another way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.engines.onnxruntime import open_model, write_model
from edgekit.engines.written import read_written
from edgekit.graph import build_graph, session_options
from edgekit.onnx_files import load_model
from edgekit.quantize import quantize
from edgekit.scheme import parse_recipe
from edgekit.testing import make_checkpoint

CONTEXT = 48
IDS = [5, 9, 200, 17, 33, 80, 4, 7]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("checkpoint"), context=64, vocab=512))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    quant = quantize(build_graph(checkpoint, context=CONTEXT), checkpoint, parse_recipe("q4g32"))
    write_model(quant, folder, probe=b"", bos=1, eos=(0, 2))
    assert checkpoint.tokenizer_file is not None
    (folder / "tokenizer.json").write_bytes(checkpoint.tokenizer_file.read_bytes())
    return folder / "model.onnx"


def config(model: Path) -> Any:
    return json.loads(model.with_name("genai_config.json").read_text())["model"]


def run(model: Path, cache: dict[str, Any], ids: list[int], position: int) -> npt.NDArray[np.float32]:
    """Logits [s, vocab] as onnxruntime-genai asks for them; the cache becomes what the graph gives back."""
    decoder = config(model)["decoder"]
    options = session_options(1, prepack=True)
    options.log_severity_level = 3  # the cache is not bound in place here
    session = onnxruntime.InferenceSession(model.with_name(decoder["filename"]), options)
    layers = range(decoder["num_hidden_layers"])
    names = {
        decoder["inputs"][f"past_{what}_names"] % i: decoder["outputs"][f"present_{what}_names"] % i
        for what in ("key", "value")
        for i in layers
    }
    shape = [1, decoder["num_key_value_heads"], CONTEXT, decoder["head_size"]]
    feeds = {name: cache.get(name, np.zeros(shape, np.float32)) for name in names}
    feeds[decoder["inputs"]["input_ids"]] = np.array([ids])
    feeds[decoder["inputs"]["position_ids"]] = np.arange(position, position + len(ids))[None]
    assert feeds.keys() == {value.name for value in session.get_inputs()}
    logits, *given = session.run([decoder["outputs"]["logits"], *names.values()], feeds)
    cache |= zip(names, given, strict=True)
    found: npt.NDArray[np.float32] = logits[0]
    return found


def test_the_graph_computes_what_the_portable_one_does(model: Path) -> None:
    session = open_model(read_written(model), threads=1)
    expected = session.prefill(IDS)
    cache: dict[str, Any] = {}
    np.testing.assert_array_equal(run(model, cache, IDS[:5], 0), expected[:5])
    session.reset(5)
    for i in range(5, 8):
        np.testing.assert_array_equal(run(model, cache, IDS[i : i + 1], i)[0], session.decode(IDS[i]))


def test_the_graph_has_no_data_of_its_own(model: Path) -> None:
    assert len(load_model(model.with_name("genai.onnx"), data=model.with_name("model.onnx.data")).graph.inputs) == 6
    assert not model.with_name("genai.onnx.data").exists()


def test_the_config_has_the_sizes_and_tokens_of_the_model(model: Path, checkpoint: Checkpoint) -> None:
    found, decoder = config(model), checkpoint.decoder
    assert (found["vocab_size"], found["context_length"]) == (512, CONTEXT)
    assert (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"]) == (1, [0, 2], 0)
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    expected = [decoder.head_dim, decoder.hidden, decoder.heads, decoder.kv_heads, decoder.layers]
    assert [found["decoder"][key] for key in sizes] == expected


def test_onnxruntime_genai_continues_a_text_as_the_engine_does(model: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    loaded = genai.Model(str(model.parent))
    parameters = genai.GeneratorParams(loaded)
    parameters.set_search_options(max_length=20)
    generator = genai.Generator(loaded, parameters)
    generator.append_tokens(genai.Tokenizer(loaded).encode("hello"))
    found = [int(token) for token in generator.get_sequence(0)]
    session = open_model(read_written(model), threads=1)
    expected = list(found)
    logits = session.prefill(found)[-1]
    while not generator.is_done():
        generator.generate_next_token()
        expected.append(int(logits.argmax()))
        logits = session.decode(expected[-1])
    found = [int(token) for token in generator.get_sequence(0)]
    assert found == expected
    assert len(found) == 20 or found[-1] in (0, 2)
