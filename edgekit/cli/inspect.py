"""`edgekit inspect`: what a checkpoint or a bundle holds."""

from pathlib import Path

import click

from edgekit.bundle import MANIFEST, Bundle, open_bundle
from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.cli import _condensation, _options
from edgekit.cli._console import Stages, parse_counts, read_text, show_json, show_pairs
from edgekit.errors import UsageError
from edgekit.reference import probe_text
from edgekit.scheme import parse_scheme
from edgekit.units import Bytes, rounded

_BITS = "4,3,2"


@click.command
@click.argument("path", type=click.Path(path_type=Path), metavar="MODEL_OR_BUNDLE")
@click.option("--condensation", is_flag=True, help="Run a checkpoint and show how each layer bears rounding.")
@click.option("--text", type=click.Path(path_type=Path), help="UTF-8 text to run it on, instead of the probe.")
@click.option(
    "--tokens",
    type=click.IntRange(2, _condensation.MOST_TOKENS),
    metavar="N",
    help="Tokens of the text to use. Default: 512, fewer for a large model.",
)
@click.option("--bits", metavar="LIST", help=f"Bits to round to, in groups of 64. Default: {_BITS}.")
@_options.as_json
def command(
    *, path: Path, condensation: bool, text: Path | None, tokens: int | None, bits: str | None, as_json: bool
) -> None:
    """Describe a checkpoint or a bundle, from its headers.

    A checkpoint is a folder or a GGUF file.

    With --condensation a checkpoint is run in float32 on a text. Of each layer's output, before any norm, it shows the
    mean cosine of two tokens' vectors, their effective rank, and the share of their mean, what is the same for all
    tokens; of its weights the kurtosis; and, measured, the KLD of the model's predictions when the weights of that
    layer alone are rounded to nearest. A tied head is rounded with the embedding. Weights are in memory a layer at a
    time; time grows with --tokens, the number of --bits, and the square of the number of layers.
    """
    given = {"--text": text, "--tokens": tokens, "--bits": bits}
    for option, value in given.items():
        if value is not None and not condensation:
            raise UsageError(f"{option} needs --condensation", hint="without it, only headers are read")
    is_bundle = (path / MANIFEST).exists()
    if condensation:
        if is_bundle:
            raise UsageError(
                f"{path} is a bundle, and --condensation needs a checkpoint",
                hint="give the checkpoint folder it was compiled from",
            )
        schemes = [
            parse_scheme(f"q{count}g64")
            for count in dict.fromkeys(
                parse_counts(_BITS if bits is None else bits, option="--bits", lowest=2, highest=4)
            )
        ]
        checkpoint = open_checkpoint(path)
        held_out = probe_text() if text is None else read_text(text)
        with Stages() as stages:
            measured = _condensation.measure(checkpoint, held_out, schemes, tokens=tokens, stages=stages)
        if as_json:
            show_json(measured)
        else:
            _condensation.show_measured(measured)
        return
    found = describe_bundle(open_bundle(path)) if is_bundle else describe_checkpoint(open_checkpoint(path))
    if as_json:
        show_json(found)
    else:
        show_pairs([(name.replace("_", " "), _text(name, value)) for name, value in found.items()])


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, object]:
    """What the checkpoint's configs and headers say."""
    decoder = checkpoint.decoder
    names = decoder.tensor_shapes()
    return {
        "kind": "checkpoint",
        "model_type": decoder.model_type,
        "parameters": checkpoint.parameters,
        "layers": decoder.layers,
        "hidden": decoder.hidden,
        "heads": decoder.heads,
        "kv_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "intermediate": decoder.intermediate,
        "vocab": decoder.vocab,
        "context": decoder.context,
        "tied_head": decoder.tied,
        "dtypes": sorted({checkpoint.tensors[name].dtype for name in names}),
        "weights_bytes": Bytes(sum(checkpoint.tensors[name].bytes for name in names)),
        "tokenizer": checkpoint.tokenizer_file is not None,
        "chat_template": checkpoint.chat_template is not None,
        "bos_id": checkpoint.bos_id,
        "eos_ids": list(checkpoint.eos_ids),
        "files": [file.name for file in checkpoint.files],
    }


def describe_bundle(bundle: Bundle) -> dict[str, object]:
    """What the bundle's manifest says."""
    return {
        "kind": "bundle",
        "name": bundle.name,
        "edgekit": bundle.edgekit,
        "target": bundle.target,
        "triple": bundle.triple,
        "engine": bundle.engine,
        "engine_version": bundle.engine_version,
        "kernels": bundle.kernels,
        "recipe": bundle.recipe,
        "context": bundle.context,
        "kv": bundle.kv,
        "required_features": list(bundle.required_features),
        "chat_template": bundle.chat_template is not None,
        "bos_id": bundle.bos_id,
        "eos_ids": list(bundle.eos_ids),
        "made_from": bundle.made_from,
        "calibrated_on": bundle.calibrated_on,
        "predicted": dict(bundle.predicted),
        "coherence": dict(bundle.coherence),
        "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in bundle.files.items()},
    }


def _text(name: str, value: object) -> str:
    if isinstance(value, Bytes):
        return str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        if name == "files":
            return ", ".join(f"{file} ({Bytes(entry['bytes'])})" for file, entry in value.items())
        known = [f"{key} {_figure(key, figure)}" for key, figure in value.items() if figure is not None]
        return ", ".join(known) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _figure(name: str, value: object) -> str:
    if isinstance(value, int) and "bytes" in name:
        return str(Bytes(value))
    return rounded(value) if isinstance(value, float) else str(value)
