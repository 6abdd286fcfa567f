"""The command line: each file in this folder is one command, which parses, calls one function, and prints.

Exit codes: 0 ok; 1 internal; 2 usage; 3 unsupported; 4 target or toolchain missing; 5 a gate failed; 6 device
unreachable; 7 integrity; 8 timeout; 9 does not fit; 130 interrupted.
"""

import importlib
import pkgutil
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

import edgekit
from edgekit.cli._console import say
from edgekit.disk import NO_SPACE
from edgekit.errors import INTERRUPTED, DoesNotFit, EdgekitError, UsageError


class Commands(click.Group):
    """Commands found by file name. Errors a person can put right end in a sentence, a hint and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, but for the way it ends; `standalone_mode=False` leaves errors to the caller."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        sys.exit(self._exit_code(args, prog_name, complete_var, extra))

    def _exit_code(
        self, args: Sequence[str] | None, prog_name: str | None, complete_var: str | None, extra: Mapping[str, Any]
    ) -> int:
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except EdgekitError as error:
            return _refuse(error)
        except click.ClickException as error:
            return _refuse(UsageError(error.format_message(), hint=_usage_hint(error)))
        except (click.Abort, KeyboardInterrupt):
            say("edgekit: interrupted")
            return INTERRUPTED
        except SystemExit:
            # So click answers a reader of the output that has enough of it (EPIPE): no error of anyone.
            return 0
        except OSError as error:
            return _refuse(_file_error(error))
        except MemoryError:
            return _refuse(DoesNotFit("edgekit ran out of memory", hint="close programs, or use a larger machine"))
        finally:
            signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _refuse(error: EdgekitError) -> int:
    say(f"edgekit: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")
    return error.exit_code


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else "edgekit --help"


def _file_error(error: OSError) -> EdgekitError:
    """What the operating system refused, as a sentence; an error without a file is ours, and stays as it is."""
    if error.errno in NO_SPACE:
        return DoesNotFit(
            f"no space left to write {error.filename or 'a file'}",
            hint="free some, set EDGEKIT_CACHE, or choose another place with -o",
        )
    if error.filename is None:
        raise error
    return UsageError(f"{error.filename}: {error.strerror}")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgekit.__version__, prog_name="edgekit")
def main() -> None:
    """Compile small language models for boards and phones, run them there, and measure how well they survive."""


for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    if not _module.name.startswith("_"):
        main.add_command(importlib.import_module(f"{__name__}.{_module.name}").command, _module.name)
