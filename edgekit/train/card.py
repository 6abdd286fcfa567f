"""The model card of a training, made of what recipe.json and training.json hold, so that it is true."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgekit.units import Seconds, rounded

Table = Mapping[str, Any]


def model_card(name: str, recipe: Table, record: Table) -> str:
    """README.md in Markdown, with the front matter of Hugging Face; the license is the person's to add."""
    return (
        "\n\n".join(
            [
                _front_matter(recipe),
                f"# {name}",
                _summary(recipe, record),
                "## Compile and run\n\n```sh\nedgekit compile . --target rpi5 --recipe q4g64 -o bundle\n```\n\n"
                "See `edgekit targets` for other machines, and the table below for what fewer bits leave.",
                "## Training\n\n" + _pairs(_training(recipe, record)),
                "## Condensation\n\nHow alike the token vectors of a sequence are after each layer, on held-out"
                " text; the last layer's as the last block gives them, before the final norm.\n\n"
                + _condensation(record["condensation"]),
                f"## At few bits\n\nOver {record['sweep_tokens']:,} held-out tokens, beside the float one, in windows"
                f" of {recipe['text']['context']} tokens that begin where the text is cut; KLD in nats a token; rep4 of"
                f" greedy continuations by {record['sweep'][0]['continued_tokens']} tokens.\n\n"
                + _sweep(record["sweep"]),
            ]
        )
        + "\n"
    )


def _front_matter(recipe: Table) -> str:
    tags = ["edgekit", *(name for name in ("dispersion", "rounding") if recipe["losses"][name])]
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _summary(recipe: Table, record: Table) -> str:
    origin = (
        "trained from scratch" if recipe["checkpoint"] is None else f"trained further from `{recipe['checkpoint']}`"
    )
    return (
        f"A language model of {record['parameters']:,} parameters, {origin} on {record['tokens']:,} tokens by edgekit."
        f" Held-out loss {rounded(record['held_out_loss'])} nats a token, perplexity"
        f" {rounded(record['held_out_perplexity'])}."
    )


def _training(recipe: Table, record: Table) -> Iterable[tuple[str, object]]:
    text, training = recipe["text"], recipe["training"]
    yield "trained on", ", ".join(text["train"])
    yield "held out", ", ".join(text["held_out"])
    yield "tokens seen", f"{record['tokens']:,}, {rounded(record['tokens'] / record['text_tokens'], 3)} times the text"
    yield "steps", record["steps"]
    yield "seconds", f"{record['seconds']:.0f} ({Seconds(record['seconds'])})"
    yield "held-out loss before", rounded(record["held_out_loss_before"])
    yield "context", text["context"]
    yield from ((name, value) for name, value in training.items() if name != "tokens")
    for name in ("dispersion", "rounding"):
        yield (
            name,
            ", ".join(f"{key} {_value(key, value)}" for key, value in (recipe["losses"][name] or {}).items()) or "none",
        )
    if record.get("dispersion_cost") is not None:
        yield (
            "forward and backward with dispersion",
            f"{rounded(record['dispersion_cost'], 3)} times as long as without; the optimizer's time is not counted",
        )


def _value(key: str, value: object) -> str:
    if value is None:
        return "all" if key == "layers" else "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _condensation(layers: Sequence[Table]) -> str:
    figures = [name for name in layers[0] if name != "layer"]
    rows = ([layer["layer"], *(rounded(layer[name]) for name in figures)] for layer in layers)
    return _table(["layer", *(name.replace("_", " ") for name in figures)], rows)


def _sweep(found: Sequence[Table]) -> str:
    first = found[0]  # each has the float model's figures over the same tokens
    alone = [
        "float",
        "",
        "",
        rounded(first["reference_perplexity"]),
        "0",
        "100.0%",
        rounded(first["reference_rep4"]),
        "",
    ]
    rows = (
        [
            row["recipe"],
            row["method"],
            rounded(row["bits_per_weight"], 3),
            rounded(row["perplexity"]),
            rounded(row["kld_mean"]),
            f"{row['same_top']:.1%}",
            rounded(row["rep4"]),
            row["verdict"],
        ]
        for row in found
    )
    headings = ["recipe", "method", "bits a weight", "perplexity", "KLD", "same top", "rep4", "verdict"]
    return _table(headings, [alone, *rows])


def _pairs(pairs: Iterable[tuple[str, object]]) -> str:
    return _table(["", ""], ([name.replace("_", " "), str(value)] for name, value in pairs))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
