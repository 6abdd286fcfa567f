"""The float32 reference: its text, its tokens, and checkpoints whose tokenizer is not theirs."""

import json

import pytest

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Damaged, Unsupported, UsageError
from edgekit.reference import probe_ids, probe_text, tokens_of
from edgekit.testing import make_checkpoint

TEXT = "The ferry left the harbour a little before six, while the lamps along the quay were still burning."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", context=64)


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
