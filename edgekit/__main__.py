"""`edgekit`, and `python -m edgekit`: the command line, which may be interrupted from the first moment on."""

import sys

from edgekit.errors import INTERRUPTED


def main() -> None:
    """Imports and runs the command line. Importing takes a second or two, in which nothing is there to clean up."""
    try:
        from edgekit.cli import main as command_line

        command_line(prog_name="edgekit")
    except KeyboardInterrupt:
        sys.stderr.write("edgekit: interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
