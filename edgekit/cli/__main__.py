"""`python -m edgekit.cli`: the command line without the installed script."""

from edgekit.cli import main

if __name__ == "__main__":
    main(prog_name="edgekit")
