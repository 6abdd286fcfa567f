"""A decoder run block by block computes what the whole graph does."""

import numpy as np
import pytest

from edgekit.blocks import EMBEDDING, as_right_operand, embedded, open_block, open_head, weights_of
from edgekit.checkpoint import open_checkpoint
from edgekit.graph import Session, build_graph
from edgekit.testing import make_checkpoint

IDS = np.array([5, 300, 5, 17, 0, 44, 44, 8, 1, 9], np.uint32)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"tied": False, "shards": 3},
        {"config": {"attention_bias": True, "mlp_bias": True}},
        {"model_type": "mistral", "config": {"sliding_window": 3}},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "head_dim": 24},
    ],
    ids=["tied", "untied", "biases", "window", "qwen2", "qwen3"],
)
def test_embedding_blocks_and_head_one_by_one_give_the_logits_of_the_graph(variant, tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, layers=3, **variant))
    graph = build_graph(checkpoint, context=16)
    block, head = open_block(graph), open_head(graph)
    tied = checkpoint.decoder.tied
    table = checkpoint.read(EMBEDDING) if tied else as_right_operand(checkpoint.read("lm_head.weight"))
    top = {"model.norm.weight": checkpoint.read("model.norm.weight")}
    top[EMBEDDING if tied else "lm_head.weight"] = table
    # A text does not see the one that ran before it.
    for ids in (IDS, IDS[::-1][:7]):
        states = embedded(checkpoint, ids)
        for layer in range(3):
            states = block.run(states, weights_of(checkpoint, layer))
        with Session(graph) as session:
            # The same kernels on the same values.
            np.testing.assert_allclose(head.run(states, top), session.logits(ids), rtol=1e-5, atol=1e-5)


def test_the_rows_of_the_embedding_come_in_the_order_of_the_ids(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path))
    np.testing.assert_array_equal(embedded(checkpoint, IDS), checkpoint.read(EMBEDDING)[IDS])


def test_a_part_names_the_weights_that_it_takes(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, model_type="qwen3", tied=False))
    graph = build_graph(checkpoint, context=16)
    names = {name.removeprefix("model.layers.0.") for name in open_block(graph).weights}
    assert names == weights_of(checkpoint, 1).keys()
    assert set(open_head(graph).weights) == {"model.norm.weight", "lm_head.weight"}
