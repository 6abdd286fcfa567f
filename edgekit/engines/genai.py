"""What onnxruntime-genai needs beside a portable model, so that it generates text with it: three small files.

genai.onnx             the same graph over the same model.onnx.data, told positions as onnxruntime-genai tells them: of
                       every token, position_ids [1, s], instead of the first, position [1]
genai_config.json      names, sizes and special tokens
tokenizer_config.json  says that tokenizer.json is all there is

onnxruntime-genai finds by itself that the cache has a fixed size, and binds it in place.
"""

import json
from pathlib import Path
from typing import Final

import onnx_ir as ir

from edgekit.archs import Decoder
from edgekit.disk import writing
from edgekit.onnx_files import load_model, write_graph

GRAPH: Final = "genai.onnx"
CONFIG: Final = "genai_config.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"


def add_genai(model: Path, decoder: Decoder, *, context: int, bos: int | None, eos: tuple[int, ...]) -> None:
    """Writes the three files beside the portable graph `model`."""
    graph = load_model(model)
    _take_position_ids(graph.graph)
    write_graph(graph, model.with_name(GRAPH))
    config = _config(decoder, context=context, bos=bos, eos=eos)
    for name, content in ((CONFIG, config), (TOKENIZER_CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast"})):
        with writing(model.with_name(name)):
            model.with_name(name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _take_position_ids(graph: ir.Graph) -> None:
    """Makes the first of position_ids the position of the first token."""
    (index,) = [i for i, value in enumerate(graph.inputs) if value.name == "position"]
    position = graph.inputs[index]
    ids = ir.Value(name="position_ids", shape=ir.Shape([1, "s"]), type=position.type)
    zero = ir.Value(name="position_ids.first", shape=ir.Shape([]), type=position.type)
    zero.const_value = ir.tensor(0, dtype=ir.DataType.INT64, name=zero.name)
    first = ir.node("Gather", [ids, zero], {"axis": 1}, name="position_ids.gather")
    first.outputs[0].shape, first.outputs[0].type = position.shape, position.type
    graph.inputs[index] = ids
    position.replace_all_uses_with(first.outputs[0])
    first.outputs[0].name = "position"
    graph.register_initializer(zero)
    graph.insert_before(graph[0], first)


def _config(decoder: Decoder, *, context: int, bos: int | None, eos: tuple[int, ...]) -> dict[str, object]:
    names = {
        f"{which}_{what}_names": f"{which}_{what}_%d" for which in ("past", "present") for what in ("key", "value")
    }
    model: dict[str, object] = {
        "type": "llama",  # whatever the architecture: the graph asks for nothing special
        "vocab_size": decoder.vocab,
        "context_length": context,
        "eos_token_id": list(eos),
        "pad_token_id": eos[0] if eos else 0,
        "decoder": {
            "filename": GRAPH,
            "head_size": decoder.head_dim,
            "hidden_size": decoder.hidden,
            "num_attention_heads": decoder.heads,
            "num_key_value_heads": decoder.kv_heads,
            "num_hidden_layers": decoder.layers,
            # The rounding of edgekit's own sessions (graph.session_options).
            "session_options": {"session.qdq_matmulnbits_accuracy_level": "4"},
            "inputs": {
                "input_ids": "input_ids",
                "position_ids": "position_ids",
                **{key: name for key, name in names.items() if key.startswith("past")},
            },
            "outputs": {"logits": "logits", **{key: name for key, name in names.items() if key.startswith("present")}},
        },
    }
    if bos is not None:
        model["bos_token_id"] = bos
    return {"model": model, "search": {"max_length": context, "past_present_share_buffer": True}}
