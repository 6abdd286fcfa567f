import bz2
import gzip
import lzma

import numpy as np
import pytest

from edgekit.errors import Damaged, UsageError
from edgekit.train.text import END_OF_TEXT, Sequences, kept_tokenizer, read_parts, tokenize, train_tokenizer

WORDS = "the cat and the hat sat on the mat, and that was that. "


def write(tmp_path, text, name="text.txt"):
    file = tmp_path / name
    file.write_text(text, "utf-8")
    return file


def test_a_document_begins_with_a_file_and_after_separators_which_are_left_out(tmp_path):
    first = write(tmp_path, "\none\n\nmore\n=== 1\n=== 2\ntwo\n", "a.txt")
    second = write(tmp_path, "three", "b.txt")
    assert list(read_parts([first, second], "=+ ")) == [("one\n\nmore\n", True), ("two\n", True), ("three", True)]


def test_a_long_document_comes_in_parts_of_which_the_first_begins_it(tmp_path):
    line = "x" * 999 + "\n"
    parts = list(read_parts([write(tmp_path, line * 2500)]))
    assert "".join(part for part, _ in parts) == line * 2500
    assert [begins for _, begins in parts] == [True, False, False]


def test_a_line_without_an_end_is_read_in_parts_and_separates_only_where_it_begins(tmp_path):
    part = 1 << 20
    text = "x" * part + "---" + "y" * 3 * part + "\n---" + "z" * 2 * part + "\nnext\n"
    packed = tmp_path / "text.xz"
    packed.write_bytes(lzma.compress(text.encode(), preset=0))
    parts = list(read_parts([packed], "---"))
    assert max(len(part) for part, _ in parts) <= 2 * part
    assert "".join(part for part, _ in parts) == "x" * part + "---" + "y" * 3 * part + "\nnext\n"
    assert [part for part, begins in parts if begins] == [parts[0][0], "next\n"]


@pytest.mark.parametrize(("opener", "suffix"), [(lzma.open, ".xz"), (gzip.open, ".gz"), (bz2.open, ".bz2")])
def test_packed_texts_are_read_and_damaged_ones_refused(tmp_path, opener, suffix):
    file = tmp_path / f"text{suffix}"
    with opener(file, "wt", encoding="utf-8") as stream:
        stream.write("Grüße\n" * 5000)
    assert list(read_parts([file])) == [("Grüße\n" * 5000, True)]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Damaged, match="cannot unpack the text"):
        list(read_parts([file]))
    file.write_bytes(b"not packed at all")
    with pytest.raises(Damaged, match="cannot unpack the text"):
        list(read_parts([file]))


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(UsageError, match="is not a text in UTF-8"):
        list(read_parts([tmp_path / "latin.txt"]))
    with pytest.raises(UsageError, match="No such file"):
        list(read_parts([tmp_path / "none.txt"]))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        list(read_parts([tmp_path / "folder.txt"]))


def test_tokens_are_the_texts_with_a_token_before_each_document(tmp_path):
    file = write(tmp_path, f"{WORDS}\n---\n{WORDS}\n")
    tokenizer = train_tokenizer([file], 280, "---")
    assert tokenizer.token_to_id(END_OF_TEXT) == 0 and tokenizer.get_vocab_size() == 280
    found = tokenize([file], tokenizer, tmp_path, separator="---", begin=0)
    one = tokenizer.encode(f"{WORDS}\n").ids
    assert found.dtype == np.uint16 and found.tolist() == [0, *one, 0, *one]


def test_tokens_are_made_once_and_anew_when_the_text_changes(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    file = write(tmp_path, WORDS * 20)
    tokenizer = kept_tokenizer([file], 270, work)
    first = tokenize([file], tokenizer, work).tolist()
    made = sorted(work.iterdir())
    assert len(made) == 2
    moved = file.rename(tmp_path / "moved.txt")  # the same text in another place
    assert tokenize([moved], kept_tokenizer([moved], 270, work), work).tolist() == first
    assert sorted(work.iterdir()) == made
    other = write(tmp_path, "mat " * 100)
    assert tokenize([other], tokenizer, work).tolist() == tokenizer.encode("mat " * 100).ids


def test_tokens_of_another_tokenizers_are_not_taken(tmp_path, monkeypatch):
    file = write(tmp_path, WORDS * 20)
    kept_tokenizer([file], 270, tmp_path)
    monkeypatch.setattr("tokenizers.__version__", "0.0.0")
    kept_tokenizer([file], 270, tmp_path)
    first, second = sorted(tmp_path.glob("tokenizer-*.json"))
    assert first.name != second.name and first.read_bytes() == second.read_bytes()


def test_tokens_that_could_not_be_finished_leave_nothing(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    good, bad = write(tmp_path, WORDS, "a.txt"), tmp_path / "b.xz"
    bad.write_bytes(lzma.compress(WORDS.encode() * 99)[:-20])
    with pytest.raises(Damaged):
        tokenize([good, bad], train_tokenizer([good], 270), work)
    assert list(work.iterdir()) == []


def test_a_text_without_enough_words_for_the_vocabulary_is_refused(tmp_path):
    file = write(tmp_path, "ab ab ab")
    with pytest.raises(UsageError, match=r"a vocabulary of 2\d\d tokens, text.vocab asks for 4096"):
        kept_tokenizer([file], 4096, tmp_path)


def test_an_empty_text_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"there is no text in .*empty\.txt"):
        tokenize([write(tmp_path, "\n\n", "empty.txt")], train_tokenizer([], 257), tmp_path)


def test_sequences_are_disjoint_and_a_rest_is_left_out():
    found = Sequences(np.arange(11, dtype=np.uint16), 4)
    assert [found[i]["input_ids"].tolist() for i in range(len(found))] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found[1]["labels"].tolist() == [4, 5, 6, 7]
