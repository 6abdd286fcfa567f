"""What the build made for each triple: the static program for the board, and the operators for ONNX Runtime."""

import importlib.resources
import os
from pathlib import Path
from typing import Final

from edgekit.errors import TargetMissing, one_of

RUNNER: Final = "edgekit-run"
OPERATORS: Final = "libedgekit_onnxruntime.so"


def find_built(name: str, triple: str) -> Path:
    """The file `name` for `triple`: in the folder EDGEKIT_RUNNERS, or in the installed package.

    Raises:
        TargetMissing: there is none.
    """
    chosen = os.environ.get("EDGEKIT_RUNNERS")
    folder = Path(chosen) if chosen else Path(str(importlib.resources.files("edgekit"))) / "runners"
    file = folder / triple / name
    if not file.is_file():
        built = sorted(path.parent.name for path in folder.glob(f"*/{name}"))
        hint = one_of(built) if built else "install edgekit again, or set EDGEKIT_RUNNERS to a folder of runners"
        raise TargetMissing(f"there is no {name} for {triple} in {folder}", hint=hint)
    return file
