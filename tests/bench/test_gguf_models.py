import gguf
import numpy as np
import pytest
from evidence.gguf_models import BLOCKS, bytes_per_token, random_blocks, used_format
from evidence.shapes import Shape

# One layer: q and o 256 x 256, k and v 128 x 256, gate and up 512 x 256, down 256 x 512; head 1024 x 256.
SHAPE = Shape(1, 256, 512, 4, 2, 1024, tied=True)
WEIGHTS = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256 + 1024 * 256


@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4.5), ("Q2_K", 2.625), ("Q3_K", 3.4375), ("TQ2_0", 2.0625)])
def test_a_token_reads_every_weight_once(name, bits):
    assert bytes_per_token(SHAPE, name) == WEIGHTS * bits / 8


def test_the_embedding_is_read_only_where_it_is_the_head():
    untied = Shape(1, 256, 512, 4, 2, 1024, tied=False)
    assert bytes_per_token(untied, "Q4_0") == bytes_per_token(SHAPE, "Q4_0")


def test_rows_that_blocks_do_not_divide_are_q4_0():
    assert used_format("Q2_K", 576) == "Q4_0"
    assert used_format("Q2_K", 512) == "Q2_K"


@pytest.mark.parametrize("name", BLOCKS)
def test_random_weights_are_finite_and_of_a_normal_size(name):
    kind = gguf.GGMLQuantizationType[name]
    data = random_blocks(np.random.default_rng(0), BLOCKS[name], 4, 512)
    values = gguf.dequantize(data, kind)
    assert values.shape == (4, 512)
    assert np.isfinite(values).all()
    assert 1e-4 < np.abs(values).mean() < 1
