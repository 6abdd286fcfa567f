"""A text and a recipe so small that training takes a second."""

import random
from pathlib import Path

RECIPE = """\
[model]
hidden = 32
intermediate = 48
layers = 2
heads = 2
kv_heads = 1
[text]
train = ["train.txt"]
held_out = ["held-out.txt"]
context = 16
vocab = 300
separator = "---"
[training]
tokens = 384
batch = 4
learning_rate = 1e-2
evaluations = 2
[dispersion]
tokens = 8
[rounding]
recipes = ["q3g32", "q2g32"]
[sweep]
recipes = ["q4g32"]
tokens = 64
calibration = 64
"""
WORDS = (
    "the",
    "wind",
    "a",
    "tree",
    "was",
    "old",
    "and",
    "by",
    "sea",
    "who",
    "went",
    "to",
    "find",
    "his",
    "boat",
    "said",
)


def sentences(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return "".join(" ".join(draw.choices(WORDS, k=8)) + ".\n" for _ in range(count))


def write_recipe(folder: Path) -> Path:
    """Six steps of 64 tokens, evaluated and saved after the third and the last."""
    (folder / "train.txt").write_text(sentences(0, 120))
    (folder / "held-out.txt").write_text(sentences(1, 12))
    file = folder / "toy.toml"
    file.write_text(RECIPE)
    return file
