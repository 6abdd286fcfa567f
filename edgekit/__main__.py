"""`edgekit`, and `python -m edgekit`: the command line, which may be interrupted from the first moment on."""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from edgekit.errors import INTERRUPTED, TargetMissing

_NOT_INSTALLED = f"""\
edgekit: {Path(__file__).parent} is the source of edgekit, without its compiled kernels
hint: install it (pip install .), then run `edgekit`, or `python -P -m edgekit`, or python from another folder
"""


def _end_at_once(number: int, frame: FrameType | None) -> None:
    # Not an exception: raised while a compiled module is imported, it would come out as another one, or not at all.
    os.write(sys.stderr.fileno(), b"edgekit: interrupted\n")
    os._exit(INTERRUPTED)


def main() -> None:
    """Imports and runs the command line. Importing takes a second or two, in which nothing is there to clean up."""
    is_heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # as it is in a script's background
    if is_heard:
        signal.signal(signal.SIGINT, _end_at_once)
    if importlib.util.find_spec("edgekit._kernels") is None:
        sys.stderr.write(_NOT_INSTALLED)
        sys.exit(TargetMissing.exit_code)
    try:
        from edgekit.cli import main as command_line

        if is_heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command_line(prog_name="edgekit")
    except KeyboardInterrupt:
        sys.stderr.write("edgekit: interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
