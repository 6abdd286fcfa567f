"""The command line: each file in this folder is one command, which parses, calls one function, and prints.

Exit codes: 0 ok; 1 internal; 2 usage; 3 unsupported; 4 target or toolchain missing; 5 a gate failed; 6 device
unreachable; 7 integrity; 8 timeout; 9 does not fit; 130 interrupted.
"""

import contextlib
import errno
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

import edgekit
from edgekit.cache import user_cache
from edgekit.cli._console import say
from edgekit.disk import NO_SPACE
from edgekit.errors import INTERRUPTED, DoesNotFit, EdgekitError, UsageError

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# How names of temporary folders begin; hidden ones are beside a result or in the cache, and are told as those.
_TEMPORARY = "edgekit-"


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
        # One that is ignored stays so: nohup means it.
        heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, _interrupt) for number in heard}
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
            for number, handler in before.items():
                signal.signal(number, handler)


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
            f"no space left to write {error.filename or 'a file'}", hint=f"free some, or {_other_place(error)}"
        )
    if _has_no_temporary(error):
        return UsageError("there is no folder for temporary files", hint="set TMPDIR to a folder you may write")
    if error.filename is None:
        raise error
    hint = f"look at its permissions, or {_other_place(error)}" if error.errno in _REFUSED else _other_place(error)
    return UsageError(f"cannot read or write {error.filename}: {error.strerror}", hint=hint)


def _has_no_temporary(error: OSError) -> bool:
    """True for what tempfile raises, which names no file."""
    return error.filename is None and str(error.strerror).startswith("No usable temporary directory")


def _other_place(error: OSError) -> str:
    """How the person moves what was to be written: the cache, temporary files, or the result."""
    file = Path(os.fsdecode(error.filename or ""))
    with contextlib.suppress(EdgekitError):
        root = user_cache().root.absolute()
        if file.absolute() == root or root in file.absolute().parents:
            return "set EDGEKIT_CACHE to another folder"
    if any(part.startswith(_TEMPORARY) for part in file.parts):
        return "set TMPDIR to another folder"
    return "choose another place (-o)"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(edgekit.__version__, prog_name="edgekit")
def main() -> None:
    """Compile small language models for boards and phones, run them there, and measure how well they survive."""


for _module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    if not _module.name.startswith("_"):
        main.add_command(importlib.import_module(f"{__name__}.{_module.name}").command, _module.name)
