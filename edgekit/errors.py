"""Every error a person can meet: what went wrong, what to do about it, and the exit code it gives.

The codes are an interface (README, "Exit codes"): scripts branch on them, so a code never changes its meaning.
"""

from collections.abc import Iterable


class EdgekitError(Exception):
    """Something the person can put right. `hint` says how; `exit_code` is what the command returns."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgekitError):
    """An option or argument that makes no sense as given."""

    exit_code = 2


class Diverged(UsageError):
    """A training whose loss is no longer a number."""


class Unsupported(EdgekitError):
    """A model, scheme or operator that edgekit does not handle."""

    exit_code = 3


class TargetMissing(EdgekitError):
    """An unknown target, or a tool the target needs that is not installed."""

    exit_code = 4


class GateFailed(EdgekitError):
    """A measurement outside the bound that was asked for, or a self-test that did not agree."""

    exit_code = 5


class DeviceUnavailable(EdgekitError):
    """A device that does not answer or is in use."""

    exit_code = 6


class Damaged(EdgekitError):
    """A file that is truncated, altered, or contradicts itself."""

    exit_code = 7


class TimedOut(EdgekitError):
    """A command on a device that ran past its limit."""

    exit_code = 8


class DoesNotFit(EdgekitError):
    """A model that needs more memory than the target or the budget allows."""

    exit_code = 9


INTERRUPTED = 130


def one_of(known: Iterable[object]) -> str:
    """The allowed values as a hint: "one of: a, b, c"."""
    return "one of: " + ", ".join(str(value) for value in known)
