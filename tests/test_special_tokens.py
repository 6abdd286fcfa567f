"""The tokens that begin and end a text are found in every place that names them, and not believed unchecked."""

import json
import time
from pathlib import Path

import pytest
from tokenizers_zoo import LLAMA_DECODER, byte_level, metaspace, pieces_base, sequence, template
from transformers import AutoTokenizer

from edgekit.checkpoint import open_checkpoint
from edgekit.errors import Damaged, EdgekitError, Unsupported
from edgekit.reference import probe_ids, tokens_of
from edgekit.special_tokens import bos_id, eos_ids
from edgekit.testing import END_OF_TEXT, make_checkpoint
from edgekit.tokenizer_json import read_tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def edit(file: Path, **changes: object) -> None:
    """Changes keys of a JSON file; None removes one."""
    table = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def refusal(directory: Path, kind: type[EdgekitError] = Damaged) -> EdgekitError:
    with pytest.raises(EdgekitError) as caught:
        open_checkpoint(directory)
    assert type(caught.value) is kind, caught.value.message
    assert caught.value.hint
    return caught.value


def test_every_source_of_end_of_text_ids_counts(directory):
    special = [{"id": i, "content": content, "special": True} for i, content in ((0, END_OF_TEXT), (5, "e"), (6, "f"))]
    edit(directory / "tokenizer.json", added_tokens=special)
    edit(directory / "config.json", eos_token_id=5)
    edit(directory / "generation_config.json", eos_token_id=[6, 5])
    assert open_checkpoint(directory).eos_ids == (0, 5, 6)


def test_a_checkpoint_without_a_tokenizer_has_the_ids_of_its_configs(tmp_path):
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, tokenizer=False))
    assert checkpoint.tokenizer_file is None
    assert checkpoint.eos_ids == (0,)
    assert checkpoint.bos_id is None


def test_a_model_may_have_no_end_of_text(directory):
    edit(directory / "config.json", eos_token_id=None)
    (directory / "generation_config.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    assert open_checkpoint(directory).eos_ids == ()


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_of_text_that_is_an_ordinary_token_is_damage(directory, file):
    edit(directory / file, eos_token_id=[0, 7])
    error = refusal(directory)
    assert error.message.startswith(f"eos_token_id 7 in {file} is not a special token of tokenizer.json")
    assert f"0 ({END_OF_TEXT})" in error.hint


@pytest.mark.parametrize("token", [-1, 320, 10**30])
def test_an_end_of_text_outside_the_vocabulary_is_damage(directory, token):
    edit(directory / "generation_config.json", eos_token_id=token)
    assert (
        refusal(directory).message == f"eos_token_id {token} in generation_config.json is outside the vocabulary of 320"
    )


@pytest.mark.parametrize("token", ["0", True, 1.5, [[0]], {"id": 0}])
def test_an_end_of_text_that_is_no_id_is_damage(directory, token):
    edit(directory / "generation_config.json", eos_token_id=token)
    assert refusal(directory).message.startswith("eos_token_id in generation_config.json is ")


def test_an_eos_token_the_tokenizer_does_not_have_is_damage(directory):
    edit(directory / "tokenizer_config.json", eos_token="<|im_end|>")
    assert refusal(directory).message == (
        "eos_token '<|im_end|>' in tokenizer_config.json is not a special token of tokenizer.json"
    )


def test_an_eos_token_may_be_a_table(directory):
    edit(directory / "tokenizer_config.json", eos_token={"content": END_OF_TEXT, "lstrip": False})
    assert open_checkpoint(directory).eos_ids == (0,)


def test_more_end_of_text_ids_than_a_program_holds_are_unsupported(directory):
    edit(
        directory / "tokenizer.json",
        added_tokens=[{"id": i, "content": f"<{i}>" if i else END_OF_TEXT, "special": True} for i in range(9)],
    )
    edit(directory / "config.json", eos_token_id=list(range(9)))
    assert refusal(directory, Unsupported).message == "the model has 9 end-of-text ids"


TEMPLATE = template([(END_OF_TEXT, 0)], [])
BYTE_LEVEL = byte_level(use_regex=True)
BOTH = sequence("processors", BYTE_LEVEL, TEMPLATE)


def test_a_text_begins_with_what_the_post_processor_puts_before_it(directory):
    assert open_checkpoint(directory).bos_id is None
    for processor in (TEMPLATE, BOTH):
        edit(directory / "tokenizer.json", post_processor=processor)
        assert open_checkpoint(directory).bos_id == 0


@pytest.mark.parametrize("processor", [None, BYTE_LEVEL, TEMPLATE, BOTH], ids=["none", "bytes", "template", "both"])
@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("name", [None, "PreTrainedTokenizerFast", "LlamaTokenizerFast", "GPT2Tokenizer"])
def test_probe_eval_runner_and_transformers_begin_a_text_alike(directory, processor, flag, name):
    edit(directory / "tokenizer.json", post_processor=processor)
    edit(directory / "tokenizer_config.json", add_bos_token=flag, tokenizer_class=name)
    checkpoint = open_checkpoint(directory)
    begin = [] if checkpoint.bos_id is None else [checkpoint.bos_id]
    of_eval = tokens_of(checkpoint, "he was", special=True).tolist()
    assert [*begin, *probe_ids(checkpoint, "he was").tolist()] == of_eval
    assert read_tokenizer(directory / "tokenizer.json").before == begin
    assert AutoTokenizer.from_pretrained(directory)("he was").input_ids == of_eval
    assert begin == ([0] if processor in (TEMPLATE, BOTH) else [])


@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("has_template", [True, False])
def test_a_llama_tokenizer_begins_a_text_as_its_post_processor_says(directory, flag, has_template):
    content = pieces_base(metaspace("first", split=False), None, LLAMA_DECODER, byte_fallback=True)
    content |= {} if has_template else {"post_processor": None}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    edit(
        directory / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizerFast",
        add_bos_token=flag,
        bos_token="<s>",
        eos_token="</s>",
    )
    theirs = AutoTokenizer.from_pretrained(directory)
    assert type(theirs).__name__ == "LlamaTokenizer"
    begins = theirs("he was").input_ids[0] == 1
    assert bos_id(content) == (1 if begins else None)
    assert read_tokenizer(directory / "tokenizer.json").before == ([1] if begins else [])
    assert begins == has_template


def test_a_begin_of_text_outside_the_vocabulary_is_damage(directory):
    special_tokens = {END_OF_TEXT: {"ids": [320]}}
    edit(directory / "tokenizer.json", post_processor=TEMPLATE | {"special_tokens": special_tokens})
    assert refusal(directory).message == "the token 320 that begins a text is outside the vocabulary of 320"


@pytest.mark.parametrize("special_tokens", [{}, {END_OF_TEXT: {"ids": ["0"]}}, {END_OF_TEXT: 0}, 7])
def test_a_malformed_post_processor_is_damage(directory, special_tokens):
    edit(directory / "tokenizer.json", post_processor=TEMPLATE | {"special_tokens": special_tokens})
    assert refusal(directory).message == "tokenizer.json has a malformed TemplateProcessing"


def test_two_tokens_before_a_text_are_unsupported(directory):
    special_tokens = {END_OF_TEXT: {"ids": [0, 0]}}
    edit(directory / "tokenizer.json", post_processor=TEMPLATE | {"special_tokens": special_tokens})
    assert refusal(directory, Unsupported).message == "the tokenizer puts 2 tokens before a text"


def test_many_end_of_text_ids_are_looked_up_and_not_searched_for():
    special = {f"<{token}>": token for token in range(30_000)}
    began = time.process_time()
    with pytest.raises(Unsupported, match="the model has 30000 end-of-text ids"):
        eos_ids({"eos_token_id": list(special.values())}, {}, {}, len(special), special)
    # Some hundredths of a second; comparing each with all others takes ten.
    assert time.process_time() - began < 2
