import pytest
from evidence.samples import Bar, Comparison
from evidence.tables import NoSuchPlace, comparison_table, markdown_table, replace_place

DOCUMENT = "before\n<!-- begin arm -->\nold\n<!-- end arm -->\nafter\n"


def test_a_place_is_replaced_and_nothing_else():
    assert replace_place(DOCUMENT, "arm", "new \\1\n") == DOCUMENT.replace("old", "new \\1")


@pytest.mark.parametrize("document", ["", DOCUMENT * 2, "<!-- end arm -->\n<!-- begin arm -->\n"])
def test_a_document_without_exactly_one_place_is_refused(document):
    with pytest.raises(NoSuchPlace, match="<!-- begin arm -->"):
        replace_place(document, "arm", "new")


def test_columns_that_no_row_has_are_left_out():
    plain = Comparison("kept", "135m", "tg32", "a", "b", "tokens/s", (4.0,), (2.0,))
    assert comparison_table([plain]).splitlines()[2] == "| 135m | tg32 | a | b | tokens/s | 4 | 2 | 2 |"
    judged = Comparison("kept", "135m", "tg32", "a", "b", "x", (4.0,), (2.0,), bars=(Bar("ratio", 3.0),))
    assert comparison_table([plain, judged]).splitlines()[3].endswith("| ratio >= 3: NOT met |")


def test_a_table_is_markdown():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
