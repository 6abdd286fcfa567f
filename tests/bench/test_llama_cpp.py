import json

import pytest
from evidence.llama_cpp import check_type, read_rows
from evidence.progress import ToolFailed


def printed(*rows):
    return json.dumps(
        [dict(zip(("n_prompt", "n_gen", "n_depth", "avg_ts", "model_type"), row, strict=True)) for row in rows]
    )


def test_rows_are_found_by_test_and_depth_and_the_faster_setting_counts():
    text = printed((256, 0, 0, 10.0, ""), (0, 64, 0, 5.0, ""), (0, 64, 4096, 2.0, ""), (0, 64, 4096, 3.0, ""))
    assert read_rows(text) == {("pp256", 0): 10.0, ("tg64", 0): 5.0, ("tg64", 4096): 3.0}


def test_a_model_whose_blocks_are_others_than_were_written_is_refused():
    text = printed((0, 1, 0, 1.0, "llama 1B Q2_K - Medium"))
    check_type(text, "1.1b-Q2_K.gguf", "Q2_K")
    with pytest.raises(ToolFailed, match=r"^1.1b-TQ2_0.gguf was read as llama 1B Q2_K - Medium, not as TQ2_0$"):
        check_type(text, "1.1b-TQ2_0.gguf", "TQ2_0")
