import json

import peers
import pytest
from click.testing import CliRunner
from evidence.progress import ToolFailed
from evidence.samples import Comparison

OLD = "".join(f"<!-- begin {part} -->\nold {part}\n<!-- end {part} -->\n" for part in peers.PARTS)


class NoPeers:
    def __init__(self, work, threads):
        self.programs = None

    def prepare(self, parts):
        pass


def rows_of(part, *_):
    yield Comparison(part, "135m", "tg32", "a", "b", "x", (4.0,), (2.0,))
    if part == "executorch":
        raise ToolFailed("it stopped in the middle")


@pytest.fixture
def run(tmp_path, monkeypatch):
    results = tmp_path / "RESULTS.md"
    results.write_text(OLD)
    monkeypatch.setattr(peers, "RESULTS", results)
    monkeypatch.setattr(peers.models, "Peers", NoPeers)
    monkeypatch.setattr(peers, "measure", rows_of)

    def invoke(*words):
        done = CliRunner().invoke(peers.main, ["--work", str(tmp_path), *words])
        return done, results.read_text()

    return invoke


def test_a_part_is_written_to_its_own_place_and_no_other(run):
    done, document = run("--only", "depth", "--write")
    assert done.exit_code == 0
    assert [part for part in peers.PARTS if f"old {part}" not in document] == ["depth"]
    assert "| 135m | tg32 | a | b | x | 4 | 2 | 2 |" in document


def test_a_part_that_fails_is_left_as_it_was_and_the_others_are_written(run):
    done, document = run("--only", "onnxruntime", "--only", "executorch", "--write")
    assert done.exit_code == 1
    assert "left out: executorch: it stopped in the middle" in done.output
    assert "old executorch" in document and "old onnxruntime" not in document


def test_without_write_nothing_is_written_and_json_has_every_row(run):
    done, document = run("--only", "busy", "-o", "json")
    assert document == OLD
    assert [row["part"] for row in json.loads(done.stdout)["comparisons"]] == ["busy"]


def test_every_part_has_a_title_a_note_and_a_place():
    document = peers.RESULTS.read_text("utf-8")
    for part in peers.PARTS:
        assert peers._TITLES[part] and peers._NOTES[part]
        assert document.count(f"<!-- begin {part} -->") == 1
