from pathlib import Path

import pytest

import edgekit.train
from edgekit.errors import Unsupported, UsageError
from edgekit.train.recipe import Arm, Dispersion, RoundingTerm, read_recipe


def changed(file, before, after):
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    return file


def test_every_value_is_read_and_paths_lie_beside_the_recipe(recipe_file):
    recipe = read_recipe(recipe_file)
    assert recipe.text.train == (recipe_file.parent / "train.txt",)
    assert (recipe.model.hidden, recipe.model.layers, recipe.model.tied) == (32, 2, True)
    assert (recipe.training.tokens, recipe.training.batch, recipe.training.learning_rate) == (384, 4, 1e-2)
    assert recipe.losses == Arm(Dispersion(tokens=8), RoundingTerm(("q3g32", "q2g32")))
    assert (recipe.sweep.recipes, recipe.sweep.methods, recipe.sweep.tokens) == (("q4g32",), ("rtn",), 64)


def test_wildcards_name_files_in_the_order_of_their_names(recipe_file):
    for name in ("b.txt", "a.txt"):
        (recipe_file.parent / name).write_text("text")
    changed(recipe_file, '"train.txt"', '"[ab].txt", "train.txt"')
    assert [file.name for file in read_recipe(recipe_file).text.train] == ["a.txt", "b.txt", "train.txt"]
    absolute = changed(recipe_file, '"[ab].txt"', f'"{recipe_file.parent}/?.txt"')
    assert [file.name for file in read_recipe(absolute).text.train] == ["a.txt", "b.txt", "train.txt"]


def test_the_resolved_recipe_names_files_but_not_where_they_lie(recipe_file, tmp_path):
    found = read_recipe(recipe_file).as_json()
    assert found["text"]["train"] == ["train.txt"] and found["training"]["beta2"] == 0.95
    assert str(tmp_path) not in str(found)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("hidden = 32", "hidden = 30", "hidden 30 is not an even number for each of 2 heads"),
        ("heads = 2", "heads = 3", "for each of 3 heads"),
        ("hidden = 32", "hidden = -32", "$.model.hidden: -32 is less than the minimum of 1"),
        ("hidden = 32", "hidden = 32.0", "$.model.hidden: 32.0 is not of type 'integer'"),
        ("hidden = 32", "hidden = true", "$.model.hidden: True is not of type 'integer'"),
        ("hidden = 32", "hiden = 32", "'hiden' was unexpected"),
        ("learning_rate = 1e-2", "learning_rate = nan", "$.training.learning_rate: nan is not of type 'number'"),
        ("learning_rate = 1e-2", "learning_rate = inf", "$.training.learning_rate: inf is not of type 'number'"),
        ("learning_rate = 1e-2", "learning_rate = 0", "0 is less than or equal to the minimum of 0"),
        ("learning_rate = 1e-2", "", "'learning_rate' is a required property"),
        ("batch = 4", 'batch = 4\nschedule = "none"', "'none' is not one of ['cosine'"),
        ("batch = 4", "batch = 4\nseed = -1", "$.training.seed: -1 is less than the minimum of 0"),
        ("vocab = 300", "vocab = 100", "$.text.vocab: 100 is less than the minimum of 260"),
        ("context = 16", "context = 2", "$.text.context: 2 is less than the minimum of 8"),
        ('["train.txt"]', "[]", "$.text.train: [] should be non-empty"),
        ('["train.txt"]', '["other.txt"]', "text.train: there is no file "),
        ('"---"', '"("', "text.separator '(' is not a regular expression: missing )"),
        ("tokens = 8", "tokens = 1", "$.dispersion.tokens: 1 is less than the minimum of 2"),
        ("tokens = 8", "clamp = 1.0", "1.0 is greater than or equal to the maximum of 1"),
        ("tokens = 8", "layers = [0, 2]", "dispersion.layers: there is no layer 2"),
        ("tokens = 8", "layers = [-3]", "dispersion.layers: there is no layer -3"),
        ("tokens = 8", 'variant = "other"', "$.dispersion.variant: 'other' is not one of"),
        ("[model]", 'from = "x"\n[model]', "$: it may have one of several forms, and has two at once"),
        ("[model]", "[modl]", "('modl' was unexpected); $: 'model' is a required property, or 'from' is a required"),
        ("[dispersion]", "[arms.a]\n[arms.b]\n[dispersion]", "[dispersion] and [rounding] stand beside [arms]"),
        ("[dispersion]", "[dispersion", "is not a TOML file: "),
        ("tokens = 384", f"tokens = {'9' * 5000}", "is not a TOML file: "),
        ('"---"', "[" * 3000 + "]" * 3000, "it is nested too deep"),
        ('"---"', f"'{'(' * 3000}'", "is not a regular expression"),
        ('"---"', '"a{99999999999}"', "is not a regular expression"),
        ('["train.txt"]', '["**x"]', "text.train: '**x' does not name files"),
        ('["train.txt"]', '["/"]', "text.train: '/' does not name files"),
        ("[model]", "seeds = [1]\n[model]", "seeds are those of [arms]"),
        ('"q2g32"', '"q2g32, method = gptq"', "the recipe 'q2g32, method = gptq' names a method"),
        ('"q2g32"]', '"q2g32"]\ngrid = "q4g32,method=rtn"', "the recipe 'q4g32,method=rtn' names a method"),
        ('["q4g32"]', '["q4g32,method=gptq"]', "the recipe 'q4g32,method=gptq' names a method"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(recipe_file, before, after, sentence):
    with pytest.raises(UsageError) as caught:
        read_recipe(changed(recipe_file, before, after))
    assert sentence in caught.value.message


def test_the_folder_itself_is_no_text(recipe_file, monkeypatch):
    monkeypatch.chdir(recipe_file.parent)
    with pytest.raises(UsageError, match=r"text\.train: '\.' does not name files"):
        read_recipe(changed(Path(recipe_file.name), '["train.txt"]', '["."]'))


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ('["q4g32"]', '["q5g7"]', "unknown scheme 'q5g7'"),
        ('["q4g32"]', '["q4g32"]\nmethods = ["magic"]', "unknown quantization method 'magic'"),
        ("q3g32", "q3g33", "unknown scheme 'q3g33'"),
    ],
)
def test_schemes_and_methods_that_do_not_exist_are_refused(recipe_file, before, after, sentence):
    with pytest.raises(Unsupported, match=sentence):
        read_recipe(changed(recipe_file, before, after))


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none\.toml: No such file"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_recipe(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not a TOML file"):
        read_recipe(tmp_path / "binary.toml")


def test_arms_are_runs_that_differ_in_their_losses(recipe_file):
    text = recipe_file.read_text().partition("[dispersion]")[0]
    recipe_file.write_text(text + "[arms.plain]\n[arms.spread]\ndispersion = {weight = 0.5}\n")
    recipe = read_recipe(recipe_file)
    plain, spread = recipe.for_arm("plain", seed=3), recipe.for_arm("spread", seed=3)
    assert (plain.losses, spread.losses) == (Arm(), Arm(Dispersion(weight=0.5)))
    assert plain.training == spread.training and plain.training.seed == 3 and not plain.arms


@pytest.mark.parametrize("name", ["dense", "small", "tales", "tales-settle", "variants"])
def test_recipes_that_come_with_edgekit_are_read(name, tmp_path):
    for part in ("train-0", "train-1", "valid"):
        (tmp_path / f"books-{part}.txt.xz").touch()
    recipe = read_recipe(Path(edgekit.train.__file__).parent / "recipes" / f"{name}.toml", texts=tmp_path)
    assert [len(recipe.text.train), len(recipe.text.held_out)] == [2, 1]
    assert bool(recipe.arms) == (name in ("dense", "small", "variants"))
