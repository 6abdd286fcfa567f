"""What a device answers: refusals with their code, and programs known by their header."""

import pytest

from edgekit import errors
from edgekit.errors import Damaged, TimedOut
from edgekit.replies import elf_machine, refusal
from edgekit.testing import make_program_header
from edgekit.transports import Completed
from edgekit.units import Seconds


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n" * 9, b"\x7fELF\x01" + bytes(40)])
def test_a_runner_that_is_no_program_is_damaged(tmp_path, content):
    (tmp_path / "edgekit-run").write_bytes(content)
    with pytest.raises(Damaged, match="edgekit-run in the bundle is not a program for x86_64 or aarch64"):
        elf_machine(tmp_path / "edgekit-run")


def test_an_arm_program_is_known_by_its_header(tmp_path):
    assert elf_machine(make_program_header(tmp_path / "edgekit-run", 183)) == "aarch64"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, errors.EdgekitError),
        (2, errors.UsageError),
        (3, errors.Unsupported),
        (4, errors.TargetMissing),
        (5, errors.GateFailed),
        (6, errors.DeviceUnavailable),
        (7, errors.Damaged),
        (8, TimedOut),
        (9, errors.DoesNotFit),
    ],
)
def test_the_runners_exit_code_sentence_and_hint_become_the_error(code, kind):
    done = Completed(code, b"", b"edgekit-run: the file is \x1b]0;odd\x07\nhint: copy it again\n", Seconds(0))
    error = refusal(done)
    assert type(error) is kind
    assert error.exit_code == code
    assert (error.message, error.hint) == ("the file is ]0;odd", "copy it again")


def test_what_a_library_said_before_is_not_the_reason():
    done = Completed(7, b"", b"xbyak: no sysfs\nedgekit-run: it is damaged\nhint: compile again\n", Seconds(0))
    assert (refusal(done).message, refusal(done).hint) == ("it is damaged", "compile again")


def test_a_fault_of_the_host_is_told_by_the_last_line_of_its_traceback():
    said = b'Traceback (most recent call last):\n  File "host.py", line 1, in <module>\nRuntimeError: it broke\n'
    error = refusal(Completed(1, b"", said, Seconds(0)))
    assert (type(error), error.exit_code, error.message) == (errors.EdgekitError, 1, "RuntimeError: it broke")
    assert refusal(Completed(1, b"", b"", Seconds(0))).message == "edgekit-run ended with code 1"


def test_a_runner_that_dies_of_a_signal_is_the_devices_fault():
    error = refusal(Completed(-4, b"", b"", Seconds(0)))
    assert (error.exit_code, error.message) == (6, "edgekit-run was ended by signal 4")


def test_an_unknown_code_and_a_long_sentence_are_bounded():
    error = refusal(Completed(99, b"", b"x" * 10_000, Seconds(0)))
    assert (error.exit_code, len(error.message)) == (6, 400)
    assert refusal(Completed(99, b"", b"", Seconds(0))).message == "edgekit-run ended with code 99"
