"""`edgekit inspect`: what a checkpoint or a bundle holds."""

from pathlib import Path

import click

from edgekit.bundle import MANIFEST, Bundle, open_bundle
from edgekit.checkpoint import Checkpoint, open_checkpoint
from edgekit.cli import _options
from edgekit.cli._console import show_json, show_pairs
from edgekit.units import Bytes, rounded


@click.command
@click.argument("path", type=click.Path(path_type=Path), metavar="MODEL_OR_BUNDLE")
@_options.as_json
def command(path: Path, as_json: bool) -> None:
    """Describe a checkpoint folder or a bundle, from its headers."""
    found = (
        describe_bundle(open_bundle(path)) if (path / MANIFEST).exists() else describe_checkpoint(open_checkpoint(path))
    )
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
        "recipe": bundle.recipe,
        "context": bundle.context,
        "kv": bundle.kv,
        "required_features": list(bundle.required_features),
        "chat_template": bundle.chat_template is not None,
        "bos_id": bundle.bos_id,
        "eos_ids": list(bundle.eos_ids),
        "made_from": bundle.made_from,
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
