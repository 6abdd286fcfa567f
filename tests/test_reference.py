"""The float32 reference: its text, its tokens, and checkpoints whose tokenizer is not theirs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Damaged, Unsupported, UsageError
from edgekit.reference import (
    CALIBRATION_SEQUENCES,
    Calibration,
    probe_ids,
    probe_text,
    read_calibration,
    tokens_of,
)
from edgekit.testing import make_checkpoint

TEXT = "The ferry left the harbour a little before six, while the lamps along the quay were still burning."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", context=64)


def test_a_calibration_is_the_beginning_of_a_text_in_sequences_that_begin_as_a_text_does(checkpoint):
    checkpoint = open_checkpoint(checkpoint)
    text = TEXT * 200
    ids = tokens_of(checkpoint, text)
    found = read_calibration(checkpoint, text, length=20)
    assert len(found.sequences) == CALIBRATION_SEQUENCES == 128 and checkpoint.bos_id is None
    np.testing.assert_array_equal(np.concatenate(found.sequences), ids[: 128 * 20])
    begun = read_calibration(replace(checkpoint, bos_id=0), TEXT * 2, length=21)
    ids = tokens_of(checkpoint, TEXT * 2)
    assert [ids_of[0] for ids_of in begun.sequences] == [0] * (len(ids) // 20)
    np.testing.assert_array_equal(begun.sequences[1], [0, *ids[20:40]])
    assert read_calibration(checkpoint, None, length=20) is None


def test_a_calibration_shares_text_with_a_probe_if_32_tokens_in_a_row_are_in_a_sequence():
    ids = np.arange(100, dtype=np.uint32)
    calibration = Calibration((np.r_[np.uint32(0), ids[10:50]], np.r_[np.uint32(0), ids[50:81]]))
    assert calibration.shares_text(ids) and calibration.shares_text(ids[18:50])
    assert not calibration.shares_text(ids[19:81])  # 31 in the one and 31 in the other
    assert not calibration.shares_text(ids[::-1])
    assert calibration.shares_text(ids[11:14])
    assert not calibration.shares_text(ids[81:84])


def test_the_digest_of_a_calibration_tells_how_its_tokens_are_divided():
    first = [Calibration(tuple(np.array(ids, np.uint32) for ids in parts)) for parts in ([[1, 2, 3]], [[1, 2], [3]])]
    again = Calibration((np.array([1, 2, 3], np.uint32),))
    assert first[0].digest == again.digest != first[1].digest


def test_a_text_that_fills_no_sequence_is_refused(checkpoint):
    checkpoint = open_checkpoint(checkpoint)
    count = len(tokens_of(checkpoint, TEXT))
    assert len(read_calibration(checkpoint, TEXT, length=count).sequences) == 1
    with pytest.raises(UsageError, match=f"the calibration text has {count} tokens, and a sequence takes {count + 1}"):
        read_calibration(checkpoint, TEXT, length=count + 1)


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path):
    path = make_checkpoint(tmp_path / "tiny", tokenizer=False)
    with pytest.raises(Unsupported, match=r"holds no tokenizer.json"):
        probe_ids(open_checkpoint(path), TEXT)


def test_a_malformed_tokenizer_is_damaged(tmp_path):
    path = make_checkpoint(tmp_path / "tiny", context=64)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    del tokenizer["added_tokens"][0]["rstrip"]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(Damaged, match=r"tokenizer.json: 'rstrip' should be of type bool"):
        tokens_of(open_checkpoint(path), TEXT)


def test_what_the_tokenizers_package_cannot_read_is_damaged(tmp_path):
    path = make_checkpoint(tmp_path / "tiny", context=64)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["version"] = "9.0"
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(Damaged, match=r"tokenizer.json is not a tokenizer: "):
        tokens_of(open_checkpoint(path), TEXT)


def test_a_pattern_that_the_runner_does_not_know_is_not_run_here_either(tmp_path):
    path = make_checkpoint(tmp_path / "tiny", context=64)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    regex = {"Regex": "(x+x+)+y"}
    steps = [{"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}, tokenizer["pre_tokenizer"]]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(Unsupported, match=r"tokenizer.json: the tokenizer splits text by .*x\+x\+"):
        probe_ids(open_checkpoint(path), TEXT)


def test_truncation_in_the_tokenizers_file_is_left_out(tmp_path):
    path = make_checkpoint(tmp_path / "tiny", context=64)
    expected = tokens_of(open_checkpoint(path), TEXT).tolist()
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert len(expected) > 4 and tokens_of(open_checkpoint(path), TEXT).tolist() == expected


def test_tokens_that_the_model_does_not_have_are_damage(tmp_path):
    path = make_checkpoint(tmp_path / "tiny", context=64)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["T"] = 320
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(Damaged, match=r"tokenizer.json gives the token 320 and the model has 320"):
        tokens_of(open_checkpoint(path), TEXT)


def test_a_probe_text_of_one_token_is_refused(checkpoint):
    with pytest.raises(UsageError, match="the probe text has 1 tokens, too few to predict one"):
        probe_ids(open_checkpoint(checkpoint), "a")


def test_the_probe_text_is_two_to_three_kilobytes_of_varied_words():
    text = probe_text()
    words = text.lower().split()
    assert 2000 <= len(text) <= 3000
    assert len(set(words)) / len(words) > 0.5


def test_tokens_are_those_of_the_tokenizers_package(checkpoint):
    from tokenizers import Tokenizer

    expected = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(TEXT).ids
    assert tokens_of(open_checkpoint(checkpoint), TEXT).tolist() == expected
