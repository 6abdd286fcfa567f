"""Forecasts: from headers alone, the same on any machine, and refused when they do not fit."""

import shutil
from dataclasses import replace

import pytest

from edgekit import forecast as module
from edgekit.errors import DoesNotFit
from edgekit.forecast import check_fit, forecast
from edgekit.scheme import parse_recipe
from edgekit.target import Rate
from edgekit.testing import make_checkpoint
from edgekit.units import Bytes


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", context=64)


def test_a_model_too_large_for_its_target_is_refused(checkpoint, tmp_path):
    found = forecast(checkpoint, "rpi-zero2w", parse_recipe("q4g32"), context=None)
    assert found.fits
    small = replace(found, target=replace(found.target, memory=Bytes(1000)))
    with pytest.raises(DoesNotFit, match=r"the model takes .* and rpi-zero2w has 1000 B"):
        check_fit(small, None, tmp_path)


def test_a_full_disk_is_noticed_before_it_starts(checkpoint, tmp_path, monkeypatch):
    found = forecast(checkpoint, "host", parse_recipe("q4g32"), context=None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(DoesNotFit, match=r"and 1 B are free"):
        check_fit(found, None, tmp_path)


def test_a_forecast_reads_no_weights(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    weights = copy / "model.safetensors"
    length = int.from_bytes(weights.read_bytes()[:8], "little")
    size = weights.stat().st_size
    with weights.open("r+b") as stream:
        stream.truncate(8 + length)
        stream.truncate(size)  # every weight is now zero
    found, expected = (forecast(path, "rpi5", parse_recipe("q4g32"), context=32) for path in (copy, checkpoint))
    assert found.plan == expected.plan
    assert found.device_bytes == found.plan.device_bytes


def test_the_plan_of_the_host_does_not_depend_on_what_is_measured(checkpoint, monkeypatch):
    def at(rate):
        monkeypatch.setattr(
            module, "measured", lambda host: replace(host, dram=(Rate(1, rate, "measured here", "a test"),))
        )
        return forecast(checkpoint, "host", parse_recipe("q4g32"), context=32)

    slow, fast = at(1e6), at(1e12)
    assert slow.plan == fast.plan
    assert slow.plan.decode_tokens_per_second is None
    assert slow.predicted.decode_tokens_per_second is not None
