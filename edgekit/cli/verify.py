"""`edgekit verify`: every byte of a bundle is what its manifest says."""

from pathlib import Path

import click

from edgekit.bundle import open_bundle, verify_bundle
from edgekit.cli import _options
from edgekit.cli._console import show_json
from edgekit.units import Bytes


@click.command
@_options.bundle
@_options.as_json
def command(bundle: Path, as_json: bool) -> None:
    """Check sizes and SHA-256 digests of all files of BUNDLE."""
    opened = open_bundle(bundle)
    verify_bundle(opened)
    total = Bytes(sum(entry.bytes for entry in opened.files.values()))
    if as_json:
        files = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in opened.files.items()}
        show_json({"verified": True, "bytes": total, "files": files})
    else:
        click.echo(f"{len(opened.files)} files, {total}: all as the manifest says")
