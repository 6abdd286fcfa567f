"""The self-test: its tolerance, worked by hand, and which machine runs the program."""

import math
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import TargetMissing
from edgekit.scheme import parse_scheme
from edgekit.selftest import Trial, native_trial, relative_error, tolerance
from edgekit.target import load_target


def test_a_shift_of_all_logits_is_no_error():
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    assert relative_error(logits, logits + np.float32(4)) < 1e-6


def test_the_error_is_the_share_of_the_spread():
    expected = np.array([[1.0, -1.0]], np.float32)
    assert relative_error(expected, expected * np.float32(1.25)) == pytest.approx(0.25)
    assert relative_error(expected, -expected) == pytest.approx(2.0)


def test_logits_without_spread_agree_with_nothing():
    assert relative_error(np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)) == math.inf


def test_one_rounding_in_groups_of_64_is_worked_by_hand():
    # 8 / (127 * 3.4641) = 0.018184.
    assert tolerance([parse_scheme("q4g64"), parse_scheme("f32")], 1, compares_rounded=True) == pytest.approx(
        0.018184, rel=1e-4
    )


def test_all_roundings_of_two_layers_are_nine():
    one = tolerance([parse_scheme("q4g32")], 2, compares_rounded=True)
    assert tolerance([parse_scheme("q4g32")], 2, compares_rounded=False) == pytest.approx(3 * one)


def test_the_largest_group_decides():
    schemes = [parse_scheme("q4g32"), parse_scheme("q8g128")]
    assert tolerance(schemes, 3, compares_rounded=True) == tolerance(schemes[1:], 3, compares_rounded=True)


def test_float_weights_leave_the_rounding_of_the_cache():
    assert tolerance([parse_scheme("f32")], 8, compares_rounded=True) == 4 * 2**-12


def test_a_cache_of_another_engine_in_int8_rounds_twice_a_layer():
    # 8 / (127 * 3.4641) = 0.018184 once, and 4 / (127 * 3.4641) = 0.009092 for keys and values of two layers.
    found = tolerance([parse_scheme("q4g64")], 2, compares_rounded=True, cached=16)
    assert found == pytest.approx(math.sqrt(0.018184**2 + 4 * 0.009092**2), rel=1e-4)
    assert tolerance([parse_scheme("f32")], 2, compares_rounded=True, cached=16) == pytest.approx(0.018190, rel=1e-4)


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """This machine's runner, as find_runner finds it."""
    path = tmp_path / load_target("host").triple / "edgekit-run"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setenv("EDGEKIT_RUNNERS", str(tmp_path))
    return path


@pytest.fixture
def on_x86():
    if load_target("host").architecture == "aarch64":
        pytest.skip("this machine runs Arm programs itself")


MODEL, THEIRS = Path("model.edge"), Path("edgekit-run")


def test_a_target_of_this_machines_kind_runs_here(ours):
    assert native_trial(load_target("host"), MODEL, THEIRS) == Trial(MODEL, "local", THEIRS, ours)


@pytest.mark.emulator
def test_an_arm_target_is_emulated_with_its_own_runner(emulator, ours, on_x86):
    assert native_trial(load_target("rpi4"), MODEL, THEIRS) == Trial(MODEL, "qemu:rpi4", THEIRS, ours)


def test_without_an_emulator_our_runner_computes_the_same_bits(ours, on_x86, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert native_trial(load_target("rpi5"), MODEL, THEIRS) == Trial(MODEL, "local", ours, ours)


def test_without_our_runner_the_refusal_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_RUNNERS", str(tmp_path))
    with pytest.raises(TargetMissing, match="there is no edgekit-run for"):
        native_trial(load_target("host"), MODEL, THEIRS)
