import pytest
from evidence.progress import ToolFailed, require, run


def test_everything_that_is_missing_is_named_at_once_with_how_it_is_had():
    with pytest.raises(ToolFailed) as refused:
        require(["json", "no_such_package"], {"sh": "apt install dash", "no-such-program": "apt install it"})
    assert str(refused.value) == ("missing: no_such_package: pip install '.[test]'; no-such-program: apt install it")
    require(["json"], {"sh": "apt install dash"})


def test_a_program_that_fails_is_told_with_its_last_words():
    with pytest.raises(ToolFailed, match=r"sh -c echo why >&2; exit 3 failed with 3:\nwhy"):
        run(["sh", "-c", "echo why >&2; exit 3"])
