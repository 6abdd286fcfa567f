"""What a training run is made of, from a TOML file.

    [model]     a new Llama-architecture model: hidden, intermediate, layers, heads, kv_heads, tied
    from        instead of [model]: a checkpoint folder to train further, with its own tokenizer
    [text]      train, held_out: files (.txt or .md, plain, .gz, .bz2 or .xz; wildcards), relative to the recipe;
                context: tokens a sequence; vocab: of the tokenizer trained for a new model
    [training]  tokens seen in all, sequences a batch, learning_rate, schedule, warmup (share of the steps), ...
    [dispersion] and [rounding]  the additional losses; absent: none
    [sweep]     what the result is quantized to afterwards
    [arms.NAME] for twins: runs that differ in nothing but these tables; seeds: each is run with every one (0, 1, 2)

Quantization recipes, in [rounding] and [sweep], are those of `compile --recipe` without a method.

A relative path is looked up beside the recipe, one of a text in the folder that `--text` names, if it does.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError
from edgekit.methods import find_method
from edgekit.schema import problems
from edgekit.scheme import parse_recipe


@dataclass(frozen=True, slots=True)
class NewModel:
    """Dimensions of a Llama-architecture decoder to be trained from nothing."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool = True


@dataclass(frozen=True, slots=True)
class Text:
    """Files of text, `context` tokens a sequence, and the size of the vocabulary for a new model.

    Lines that `separator`, a regular expression, matches from their start stand between documents, and are left out.
    """

    train: tuple[Path, ...]
    held_out: tuple[Path, ...]
    context: int
    vocab: int = 4096
    separator: str | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """AdamW over `tokens` tokens, `batch` x `accumulate` sequences a step and process."""

    tokens: int
    batch: int
    learning_rate: float
    accumulate: int = 1
    schedule: str = "cosine"
    warmup: float = 0.02
    weight_decay: float = 0.1
    beta2: float = 0.95
    dtype: str = "float32"
    seed: int = 0
    evaluations: int = 10


@dataclass(frozen=True, slots=True)
class Dispersion:
    """Arguments of `DispersionLoss` and its weight beside the cross entropy."""

    variant: str = "angular"
    weight: float = 0.1
    temperature: float = 1.0
    clamp: float = 0.1
    tokens: int = 256
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class RoundingTerm:
    """Arguments of `Rounding`: quantization recipes, one drawn a step from the share `start` of the steps on."""

    recipes: tuple[str, ...]
    weight: float = 1.0
    start: float = 0.0
    grid: str | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """Quantization recipes and methods that the trained model is measured with, over `tokens` held-out tokens.

    Methods that measure what the matrices multiply do so on `calibration` tokens of the training text.
    """

    recipes: tuple[str, ...] = ("q4g64", "q3g64", "q2g64")
    methods: tuple[str, ...] = ("rtn",)
    tokens: int = 16384
    calibration: int = 32768


@dataclass(frozen=True, slots=True)
class Arm:
    """The losses of one of several runs that are otherwise the same."""

    dispersion: Dispersion | None = None
    rounding: RoundingTerm | None = None


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """A training run. Exactly one of `model` and `checkpoint` is given."""

    text: Text
    training: Training
    model: NewModel | None = None
    checkpoint: Path | None = None
    losses: Arm = field(default_factory=Arm)
    sweep: Sweep = field(default_factory=Sweep)
    arms: Mapping[str, Arm] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    def for_arm(self, name: str, *, seed: int) -> "TrainingRecipe":
        """The run of one arm with one seed."""
        return replace(self, losses=self.arms[name], arms={}, seeds=(), training=replace(self.training, seed=seed))

    def as_json(self) -> dict[str, Any]:
        """Every value, defaults too; of files and folders the names alone, wherever they lie."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self), default=_name))
        return found


def _name(path: Path) -> str:
    return path.resolve().name


def read_recipe(path: Path, *, texts: Path | None = None) -> TrainingRecipe:
    """The recipe in the TOML file `path`, every value checked; its texts are looked up in the folder `texts`.

    Raises:
        UsageError: it cannot be read, or a value is missing, unknown or out of range; the message names all.
    """
    schema = json.loads(files("edgekit.train").joinpath("recipe.schema.json").read_text("utf-8"))
    try:
        document = tomllib.loads(path.read_text("utf-8"))
        found = list(problems(document, schema))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # also of bytes that are no text, and numbers of thousands of digits
        raise UsageError(f"{path} is not a TOML file: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path} is not a training recipe: it is nested too deep") from error
    if found:
        raise UsageError(
            f"{path} is not a training recipe: {'; '.join(found[:5])}",
            hint='it needs [text], [training] and either [model] or from = "CHECKPOINT"',
        )
    recipe = _made(document, path.parent, texts or path.parent)
    _check(recipe)
    return recipe


def _made(document: dict[str, Any], folder: Path, texts: Path) -> TrainingRecipe:
    text = document["text"]
    listed = {part: _matching(text[part], texts, part) for part in ("train", "held_out")}
    return TrainingRecipe(
        text=Text(**text | listed),
        training=Training(**document["training"]),
        model=NewModel(**document["model"]) if "model" in document else None,
        checkpoint=folder / document["from"] if "from" in document else None,
        losses=_arm(document),
        sweep=Sweep(**_tuples(document.get("sweep", {}))),
        arms={name: _arm(arm) for name, arm in document.get("arms", {}).items()},
        seeds=tuple(document.get("seeds", (0, 1, 2) if "arms" in document else ())),
    )


def _arm(table: dict[str, Any]) -> Arm:
    dispersion, rounding = table.get("dispersion"), table.get("rounding")
    return Arm(
        None if dispersion is None else Dispersion(**_tuples(dispersion)),
        None if rounding is None else RoundingTerm(**_tuples(rounding)),
    )


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}


def _matching(patterns: list[str], folder: Path, part: str) -> tuple[Path, ...]:
    """The files that the patterns name, each pattern's in order of name."""
    found: list[Path] = []
    for pattern in patterns:
        path = folder / pattern
        anchor = Path(path.anchor)
        try:
            matches = sorted(anchor.glob(str(path.relative_to(anchor))) if path.anchor else folder.glob(pattern))
        except (ValueError, IndexError) as error:  # "**x", a zero byte; "."
            raise UsageError(
                f"text.{part}: {pattern!r} does not name files", hint="for example books/*.txt, or books/**/*.txt"
            ) from error
        if not matches:
            raise UsageError(
                f"text.{part}: there is no file {path}", hint="paths are relative to the recipe, or to --text"
            )
        found += matches
    return tuple(found)


def _check(recipe: TrainingRecipe) -> None:
    model = recipe.model
    if model is not None and (model.hidden % (2 * model.heads) or model.heads % model.kv_heads):
        raise UsageError(
            f"model: hidden {model.hidden} is not an even number for each of {model.heads} heads, or these are not"
            f" a multiple of kv_heads {model.kv_heads}",
            hint="hidden a multiple of 2 * heads, heads one of kv_heads",
        )
    try:
        re.compile(recipe.text.separator or "")
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"text.separator '{recipe.text.separator}' is not a regular expression: {error}",
            hint="a backslash before what stands for itself",
        ) from error
    if recipe.arms and recipe.losses != Arm():
        raise UsageError("[dispersion] and [rounding] stand beside [arms]", hint="move them into an arm")
    if recipe.seeds and not recipe.arms:
        raise UsageError("seeds are those of [arms], and there are none", hint="one run's is training.seed")
    for arm in (recipe.losses, *recipe.arms.values()):
        for name in (*arm.rounding.recipes, arm.rounding.grid) if arm.rounding else ():
            if name is not None:
                _check_schemes(name, hint="leave it out: weights are rounded to nearest")
        if model is not None:
            check_layers(arm, model.layers)
    for name in recipe.sweep.recipes:
        _check_schemes(name, hint="write it into sweep.methods")
    for name in recipe.sweep.methods:
        find_method(name)


def _check_schemes(text: str, *, hint: str) -> None:
    """Refuses what is no quantization recipe, and one that names a method, which would not be followed."""
    parse_recipe(text)
    if any(part.partition("=")[0].strip() == "method" for part in text.split(",")):
        raise UsageError(f"the recipe '{text}' names a method", hint=hint)


def check_layers(arm: Arm, layers: int) -> None:
    """Refuses a dispersion of layers that a model of so many blocks does not have.

    Raises:
        UsageError: it names such a layer.
    """
    for layer in (arm.dispersion and arm.dispersion.layers) or ():
        if not -layers <= layer < layers:
            raise UsageError(
                f"dispersion.layers: there is no layer {layer}", hint=f"from 0 to {layers - 1}, or -1 for the last"
            )
