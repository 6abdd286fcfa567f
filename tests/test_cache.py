"""The cache of finished stages: whole or absent, found by what went in, bounded in size."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from edgekit.cache import DEFAULT_LIMIT, Cache, user_cache
from edgekit.errors import UsageError
from edgekit.units import Bytes


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", Bytes(1000))


def filled(cache, stage, key, *, size=1, age=0):
    with cache.fill(stage, key) as folder:
        (folder / "file").write_bytes(b"x" * size)
    path = cache.find(stage, key)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_a_finished_stage_is_found_by_the_same_key_and_no_other(cache):
    path = filled(cache, "probe", {"model": "a", "text": "b"})
    assert cache.find("probe", {"text": "b", "model": "a"}) == path
    assert (path / "file").read_bytes() == b"x"
    assert cache.find("probe", {"model": "a", "text": "c"}) is None
    assert cache.find("quantize", {"model": "a", "text": "b"}) is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stage_that_failed_or_was_interrupted_leaves_nothing(cache, error):
    with pytest.raises(error), cache.fill("probe", {}) as folder:
        (folder / "half").write_text("half")
        raise error
    assert cache.find("probe", {}) is None
    assert list(cache.root.iterdir()) == []


def test_two_compiles_that_finish_the_same_stage_both_find_it(cache):
    with cache.fill("probe", {}) as first, cache.fill("probe", {}) as second:
        (first / "file").write_text("same")
        (second / "file").write_text("same")
    assert (cache.find("probe", {}) / "file").read_text() == "same"
    assert [path.name for path in cache.root.iterdir()] == [cache.find("probe", {}).name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_stage_that_cannot_be_put_in_its_place_is_an_error(cache, monkeypatch, number):
    def fail(path, target):
        raise OSError(number, os.strerror(number), str(path), None, str(target))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError) as caught, cache.fill("probe", {}):
        pass
    assert caught.value.errno == number
    assert list(cache.root.iterdir()) == []


def test_the_stages_not_used_for_longest_make_room(cache):
    oldest = filled(cache, "a", {}, size=400, age=30)
    middle = filled(cache, "b", {}, size=400, age=20)
    newest = filled(cache, "c", {}, size=400, age=10)
    with cache.in_use():
        pass
    assert (oldest.exists(), middle.exists(), newest.exists()) == (False, True, True)


def test_finding_a_stage_makes_it_the_one_used_last(cache):
    first = filled(cache, "a", {}, size=600, age=30)
    second = filled(cache, "b", {}, size=600, age=20)
    cache.find("a", {})
    with cache.in_use():
        pass
    assert (first.exists(), second.exists()) == (True, False)


def test_nothing_is_removed_while_a_compile_uses_the_cache(cache):
    path = filled(cache, "a", {}, size=2000)
    with (cache.root / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        cache.make_room()
        assert path.exists()
    cache.make_room()
    assert not path.exists()


def test_what_a_dead_compile_left_a_day_ago_is_removed(cache):
    cache.root.mkdir()
    left = cache.root / ".unfinished-abc"
    left.mkdir()
    cache.make_room()
    assert left.exists()
    os.utime(left, (1e9, 1e9))
    cache.make_room()
    assert not left.exists()


def test_the_folder_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", "/there")
    assert user_cache().root == Path("/there")
    monkeypatch.delenv("EDGEKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert user_cache().root == Path("/xdg/edgekit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache().root == Path("~/.cache/edgekit").expanduser()


def test_without_a_home_the_environment_must_name_the_folder(monkeypatch):
    for name in ("EDGEKIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2_000_000_000)  # of nobody in passwd, as in a container
    with pytest.raises(UsageError, match=r"there is no home folder for a cache in ~/\.cache") as refusal:
        user_cache()
    assert refusal.value.hint == "set EDGEKIT_CACHE to a folder"
    monkeypatch.setenv("EDGEKIT_CACHE", "/there")
    assert user_cache().root == Path("/there")


def test_the_size_limit_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("EDGEKIT_CACHE_BYTES", raising=False)
    assert user_cache().limit == DEFAULT_LIMIT == 20 * 2**30
    monkeypatch.setenv("EDGEKIT_CACHE_BYTES", "5000")
    assert user_cache().limit == 5000
    monkeypatch.setenv("EDGEKIT_CACHE_BYTES", "lots")
    with pytest.raises(UsageError, match="EDGEKIT_CACHE_BYTES is 'lots', not a number of bytes"):
        user_cache()
