"""Schemes and recipes: what is understood, which rule a tensor gets, and what is refused."""

from pathlib import Path

import pytest

from edgekit.errors import Unsupported, UsageError
from edgekit.scheme import GROUPS, Scheme, find_recipe, parse_recipe, parse_scheme

FORMATS = ("q8", "q4", "q3", "q2", "t2")
DOWN = "model.layers.3.mlp.down_proj.weight"
UP = "model.layers.3.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_scheme_is_written_as_it_is_read(format: str, group: int) -> None:
    assert parse_scheme(f"{format}g{group}") == Scheme(format, group)
    assert str(Scheme(format, group)) == f"{format}g{group}"


def test_float_schemes_have_no_group() -> None:
    assert [str(parse_scheme(name)) for name in ("f16", "f32")] == ["f16", "f32"]
    assert parse_scheme("f16").is_float and parse_scheme("f16").bits == 16


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [("q8", -127.0, 127.0), ("q4", -8.0, 7.0), ("q3", -4.0, 3.0), ("q2", -1.5, 1.5), ("t2", -1.0, 1.0)],
)
def test_levels_are_those_of_the_design(name: str, lowest: float, highest: float) -> None:
    scheme = parse_scheme(f"{name}g64")
    assert tuple(code + scheme.offset for code in scheme.code_range) == (lowest, highest)


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_fits_in_the_bits_it_takes(name: str) -> None:
    scheme = parse_scheme(f"{name}g32")
    lowest, highest = scheme.code_range
    assert highest - lowest + 1 <= 2**scheme.bits


@pytest.mark.parametrize(("k", "groups"), [(1, 1), (63, 1), (64, 1), (65, 2), (2048, 32)])
def test_a_last_partial_group_counts_as_a_group(k: int, groups: int) -> None:
    assert parse_scheme("q4g64").groups(k) == groups


@pytest.mark.parametrize("text", ["", "q4", "q5g64", "q4g48", "q4g064 ", "q4g0", "Q4g64", "f64", "q4g99999", "t3g32"])
def test_an_unknown_scheme_is_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(Unsupported, match="unknown scheme") as refusal:
        parse_scheme(text)
    assert "q8, q4, q3, q2, t2" in refusal.value.hint and "32, 64, 128" in refusal.value.hint
    assert refusal.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ("q8g32", "q8g32"),
        ("q4g128", "q4g128"),
        ("q3g64", "q4g64"),
        ("q2g128", "q4g128"),
        ("t2g32", "q4g32"),
        ("f16", "f16"),
        ("q4g64,head=q2g32", "q2g32"),
    ],
)
def test_the_head_never_gets_fewer_than_four_bits_unless_told_so(text: str, head: str) -> None:
    recipe = parse_recipe(text)
    assert str(recipe.rule_for(EMBEDDING).scheme) == head
    assert str(recipe.rule_for("lm_head.weight").scheme) == head
    assert str(recipe.rule_for(UP).scheme) == text.split(",", maxsplit=1)[0]


def test_the_first_matching_pattern_wins_then_the_head_then_the_default() -> None:
    recipe = parse_recipe("q2g64, head=q8g64, model.layers.3.*=q3g64, *.down_proj=q4g64, *embed*=f16")
    assert str(recipe.rule_for(DOWN).scheme) == "q3g64"
    assert str(recipe.rule_for(DOWN.replace(".3.", ".4.")).scheme) == "q4g64"
    assert str(recipe.rule_for(UP.replace(".3.", ".4.")).scheme) == "q2g64"
    assert str(recipe.rule_for("lm_head.weight").scheme) == "q8g64"
    assert str(recipe.rule_for(EMBEDDING).scheme) == "f16"


def test_a_pattern_may_be_written_with_the_weight_suffix() -> None:
    assert str(parse_recipe("q2g64,*.down_proj.weight=q8g32").rule_for(DOWN).scheme) == "q8g32"


def test_a_recipe_is_written_as_it_is_read() -> None:
    text = "q2g64,head=q4g64,*.down_proj=q4g64"
    assert str(parse_recipe(text)) == text
    assert parse_recipe(str(parse_recipe("q3g32"))) == parse_recipe("q3g32")


def test_the_method_is_part_of_the_text_unless_it_is_rtn() -> None:
    recipe = parse_recipe("q2g64,*.up_proj=q4g64,method=gptq")
    assert recipe.method == "gptq" and str(recipe) == "q2g64,head=q4g64,method=gptq,*.up_proj=q4g64"
    assert parse_recipe(str(recipe)) == recipe
    assert str(parse_recipe("q4g64,method=rtn")) == "q4g64,head=q4g64"
    with pytest.raises(UsageError, match="names 'method' twice"):
        parse_recipe("q4g64,method=rtn,method=gptq")


def test_a_recipe_file_says_the_same_as_the_string(tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text('scheme = "q2g64"\nmethod = "rtn"\nhead = "q4g64"\n[tensors]\n"*.down_proj" = "q4g64"\n')
    assert find_recipe(str(file)) == parse_recipe("q2g64,head=q4g64,*.down_proj=q4g64")
    file.write_text('scheme = "q2g64"\nmethod = "gptq"\n')
    assert find_recipe(str(file)) == parse_recipe("q2g64,method=gptq")


@pytest.mark.parametrize("text", ["q4g64,head", "q4g64,=q4g64", "q4g64,head=", "q4g64,"])
def test_a_part_that_is_not_pattern_equals_scheme_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not PATTERN=SCHEME"):
        parse_recipe(text)


def test_a_head_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="names 'head' twice"):
        parse_recipe("q4g64,head=q4g64,head=q8g64")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("scheme = [", "is not TOML"),
        ('head = "q4g64"', "has no scheme"),
        ("scheme = 4", "has no scheme"),
        ('scheme = "q4g64"\ngroup = 3', "unknown keys: group"),
        ('scheme = "q4g64"\ntensors = 3', "is not a table"),
        ('scheme = "q4g64"\nhead = 3', "'head' .* is not a string"),
        ('scheme = "q4g64"\nmethod = 3', "'method' .* is not a string"),
        ('scheme = "q4g64"\n[tensors]\n"*" = 1', r"'\*' .* is not a string"),
    ],
)
def test_a_recipe_file_that_makes_no_sense_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=message):
        find_recipe(str(file))


@pytest.mark.parametrize("pattern", ["a,b", "a=b", " a", "a ", "", ".weight", "a,head=q2g32", "method"])
def test_a_pattern_that_the_text_of_the_recipe_could_not_hold_is_refused(tmp_path: Path, pattern: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(f'scheme = "q4g64"\n[tensors]\n"{pattern}" = "q4g64"\n')
    with pytest.raises(UsageError, match="in the recipe is not a pattern"):
        find_recipe(str(file))


def test_a_pattern_named_twice_is_refused_also_by_the_weights_name() -> None:
    with pytest.raises(UsageError, match="names 'x' twice"):
        parse_recipe("q4g64,x=q4g64,x.weight=q8g64")


@pytest.mark.parametrize("patterns", [["*.down_proj.weight", "*.up_proj"], ["head"], ["model.layers.[01].*", "é"]])
def test_the_text_of_a_recipe_from_a_file_is_read_as_the_same(tmp_path: Path, patterns: list[str]) -> None:
    file = tmp_path / "some.toml"
    file.write_text('scheme = "q2g64"\n[tensors]\n' + "".join(f'"{pattern}" = "q8g32"\n' for pattern in patterns))
    recipe = find_recipe(str(file))
    assert parse_recipe(str(recipe)) == recipe


def test_the_text_of_a_recipe_never_opens_a_file(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('scheme = "q2g64"\n')
    with pytest.raises(Unsupported, match="unknown scheme"):
        parse_recipe(str(file))


def test_a_recipe_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        find_recipe(str(file))


def test_a_missing_recipe_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"cannot read the recipe nowhere/r\.toml: No such file"):
        find_recipe("nowhere/r.toml")
