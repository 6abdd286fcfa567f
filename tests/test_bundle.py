import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import (
    _REQUIRED,
    Bundle,
    Contents,
    Draft,
    check_remembers,
    draft_bundle,
    find_runner,
    open_bundle,
    remember_calibration,
    verify_bundle,
)
from edgekit.errors import Damaged, DoesNotFit, EdgekitError, TargetMissing, Unsupported, UsageError

CONTENTS = Contents(
    target="rpi5",
    triple="aarch64-linux-musl",
    engine="native",
    engine_version=None,
    kernels="edgekit",
    recipe="q4g128",
    made_from="ab" * 32,
    calibrated_on="cd" * 32,
    context=256,
    kv="q8",
    required_features=("dotprod", "neon"),
    chat_template=None,
    bos="<s>",
    eos="</s>",
    bos_id=1,
    eos_ids=(2,),
    predicted={"decode_tokens_per_second": 12.5, "prefill_tokens_per_second": None},
    coherence={"kld_mean": 0.01, "verdict": "coherent"},
)


@pytest.fixture(autouse=True)
def runners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runners"
    (folder / "aarch64-linux-musl").mkdir(parents=True)
    (folder / "aarch64-linux-musl" / "edgekit-run").write_bytes(b"\x7fELF runner")
    monkeypatch.setenv("EDGEKIT_RUNNERS", str(folder))
    return folder


def fill(draft: Draft, program: bytes = b"program") -> None:
    draft.program.write_bytes(program)
    draft.add_runner("aarch64-linux-musl")


def write(path: Path, program: bytes = b"program", *, force: bool = False) -> Bundle:
    with draft_bundle(path, force=force) as draft:
        fill(draft, program)
        draft.add_tokenizer(b"{}")
        return draft.publish(CONTENTS)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write(tmp_path / "out")
    read = open_bundle(tmp_path / "out")
    assert read == written
    assert read.name == "out"
    assert {name: file.bytes for name, file in read.files.items()} == {
        "model.edge": 7, "edgekit-run": 11, "tokenizer.json": 2,
    }  # fmt: skip
    assert all(getattr(read, name) == value for name, value in asdict(CONTENTS).items())
    assert os.access(read.runner, os.X_OK)
    verify_bundle(read)


@pytest.mark.parametrize(("engine", "kv", "kernels"), [("native", "f16", "edgekit"), ("onnxruntime", "f32", "runtime")])
def test_a_manifest_that_does_not_say_how_keys_and_values_are_kept_is_an_older_one(
    tmp_path: Path, engine: str, kv: str, kernels: str
) -> None:
    file = write(tmp_path / "out").path / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["kv"], manifest["kernels"], manifest["engine_version"]
    manifest |= {"engine": engine, "files": dict.fromkeys(_REQUIRED[engine], manifest["files"]["model.edge"])}
    file.write_text(json.dumps(manifest))
    opened = open_bundle(tmp_path / "out")
    assert (opened.kv, opened.kernels, opened.engine_version) == (kv, kernels, None)


def test_a_manifest_that_does_not_name_a_calibration_is_an_older_one(tmp_path: Path) -> None:
    file = write(tmp_path / "out").path / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["calibrated_on"]
    file.write_text(json.dumps(manifest))
    assert open_bundle(tmp_path / "out").calibrated_on is None


def test_the_digest_of_a_file_is_that_of_sha256sum(tmp_path: Path) -> None:
    # printf program | sha256sum
    digest = "1310ca2c8932dbd118668bd97442558a3e1f546b5e15c69699dfbd6024f548d8"
    assert write(tmp_path / "out").files["model.edge"].sha256 == digest


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    assert contents(write(tmp_path / "one").path) == contents(write(tmp_path / "two").path)


def test_the_manifest_is_canonical_and_names_no_path(tmp_path: Path) -> None:
    text = (write(tmp_path / "out").path / "manifest.json").read_text()
    manifest = json.loads(text)
    assert text == json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    assert str(tmp_path) not in text


def test_nothing_remains_of_a_draft_that_fails(tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), draft_bundle(tmp_path / "out") as draft:
        fill(draft)
        raise KeyboardInterrupt
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_remains_of_a_draft_that_is_not_published(tmp_path: Path) -> None:
    with draft_bundle(tmp_path / "out") as draft:
        fill(draft)
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_not_replaced_unless_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with pytest.raises(UsageError, match="out exists") as caught:
        write(tmp_path / "out", b"other")
    assert caught.value.hint == "--force replaces it, -o chooses another place"
    replaced = write(tmp_path / "out", b"another", force=True)
    assert replaced.model.read_bytes() == b"another"
    verify_bundle(replaced)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runners"]


def test_a_replacement_that_fails_leaves_the_old_bundle(tmp_path: Path) -> None:
    old = contents(write(tmp_path / "out").path)
    with pytest.raises(RuntimeError), draft_bundle(tmp_path / "out", force=True) as draft:
        fill(draft, b"new")
        raise RuntimeError
    assert contents(tmp_path / "out") == old


def test_replacing_works_on_a_file_system_that_cannot_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out")
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    assert write(tmp_path / "out", b"other", force=True).model.read_bytes() == b"other"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runners"]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("mine"), lambda path: path.symlink_to("/")])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "out")
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        write(tmp_path / "out", force=True)


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_a_folder_that_appeared_meanwhile_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool, full: bool
) -> None:
    if not swaps:
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    with draft_bundle(tmp_path / "out") as draft:
        fill(draft)
        (tmp_path / "out").mkdir()
        if full:
            (tmp_path / "out" / "manifest.json").write_text("another's")
        with pytest.raises(UsageError, match="out exists"):
            draft.publish(CONTENTS)
    assert contents(tmp_path / "out") == ({"manifest.json": b"another's"} if full else {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runners"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_that_appears_in_the_last_moment_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    path = tmp_path / "out"

    def appear(folder: Path) -> None:
        path.mkdir()
        (path / "theirs").write_text("theirs")

    with draft_bundle(path) as draft:
        fill(draft)
        # Nothing is there when it is looked for; the rename itself has to find out.
        monkeypatch.setattr("edgekit.bundle.sync_tree", appear)
        monkeypatch.setattr("edgekit.bundle._check_place", lambda path, *, force: None)
        monkeypatch.setattr(Path, "exists", lambda path: False)
        with pytest.raises(UsageError, match="out exists"):
            draft.publish(CONTENTS)
    assert contents(path) == {"theirs": b"theirs"}


def test_a_folder_that_appeared_meanwhile_and_is_no_bundle_is_not_replaced_by_force(tmp_path: Path) -> None:
    with draft_bundle(tmp_path / "out", force=True) as draft:
        fill(draft)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        with pytest.raises(UsageError, match="exists and is not a bundle"):
            draft.publish(CONTENTS)
    assert contents(tmp_path / "out") == {"mine": b"mine"}


def test_a_full_disk_names_the_file_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, copy: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(copy))

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(OSError) as caught, draft_bundle(tmp_path / "out") as draft:
        draft.add_runner("aarch64-linux-musl")
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename).name == "edgekit-run"
    assert Path(caught.value.filename).parent.parent == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runners"]


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a bundle") as caught:
        open_bundle(tmp_path)
    assert caught.value.exit_code == 2


def test_a_missing_runner_is_named_with_those_there_are(runners: Path) -> None:
    with pytest.raises(TargetMissing, match="there is no edgekit-run for x86_64-linux-musl") as caught:
        find_runner("x86_64-linux-musl")
    assert caught.value.hint == "one of: aarch64-linux-musl"
    (runners / "aarch64-linux-musl" / "edgekit-run").unlink()
    with pytest.raises(TargetMissing) as caught:
        find_runner("aarch64-linux-musl")
    assert "install edgekit again" in caught.value.hint


def damage(path: Path, name: str, data: bytes) -> None:
    (path / name).write_bytes(data)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda path: damage(path, "model.edge", b"Program"),
            "model.edge of the bundle is not what its manifest.json says",
        ),
        (lambda path: damage(path, "model.edge", b"progra"), "model.edge of the bundle has 6 bytes and should have 7"),
        (lambda path: (path / "edgekit-run").unlink(), "edgekit-run of the bundle is missing"),
        (lambda path: damage(path, "more", b""), "more is in the bundle but not in its manifest.json"),
        (lambda path: (path / "folder").mkdir(), "folder is in the bundle but not in its manifest.json"),
        (
            lambda path: (path / "tokenizer.json").symlink_to((path / "tokenizer.json").rename(path.parent / "moved")),
            "tokenizer.json of the bundle is not a plain file",
        ),
    ],
)  # fmt: skip
def test_every_kind_of_damage_is_found_and_named(tmp_path: Path, act: Callable[[Path], Any], message: str) -> None:
    bundle = write(tmp_path / "out")
    act(bundle.path)
    with pytest.raises(Damaged) as caught:
        verify_bundle(bundle)
    assert caught.value.message == message
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("name", "is_litert"),
    [
        ("model.litertlm_1795465712_3227662.xnnpack_cache", True),
        ("model.litertlm.xnnpack_cache_1795465712_3227662", True),
        ("model.tflite.xnnpack_cache", True),
        ("model.litertlm_1_2_mldrift_program_cache.bin", True),
        ("model.tflite.bak", False),
        ("cache", False),
    ],
)
def test_weights_that_litert_packed_beside_its_model_are_refused_and_said_to_be_so(
    tmp_path: Path, name: str, is_litert: bool
) -> None:
    bundle = write(tmp_path / "out")
    damage(bundle.path, name, b"packed")
    with pytest.raises(Damaged, match=f"{name} is in the bundle but not in its manifest.json") as caught:
        verify_bundle(bundle)
    assert caught.value.hint.startswith("remove it")
    assert ("LiteRT-LM left it, and makes it again" in caught.value.hint) == is_litert
    (bundle.path / name).unlink()
    verify_bundle(bundle)


def test_a_bundle_remembers_its_last_calibration_and_nothing_else_changes(tmp_path: Path) -> None:
    bundle = write(tmp_path / "out")
    manifest = (bundle.path / "manifest.json").read_bytes()
    for content in (b"edgekit-calibration 1\n", b"another"):
        remember_calibration(bundle, content)
        assert (bundle.path / "model.edge.calibration").read_bytes() == content
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    verify_bundle(open_bundle(bundle.path))
    assert (bundle.path / "manifest.json").read_bytes() == manifest


def test_a_calibration_is_drafted_in_the_bundle_and_what_fails_there_is_told_of_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write(tmp_path / "out")
    remember_calibration(bundle, b"edgekit-calibration 1\n")
    before = contents(bundle.path)
    drafts: list[Path] = []

    def fail(draft: Path, place: Path) -> None:
        drafts.append(draft)
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(draft), None, str(place))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UsageError) as caught:
        remember_calibration(bundle, b"another")
    assert caught.value.message == f"cannot write {bundle.calibration}: Invalid cross-device link"
    assert caught.value.hint == "calibrate a copy of the bundle elsewhere"
    assert [draft.parent for draft in drafts] == [bundle.path]
    assert contents(bundle.path) == before


def test_a_calibration_that_a_full_disk_does_not_hold_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write(tmp_path / "out")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DoesNotFit, match=r"cannot write .*/out/model\.edge\.calibration: No space left on device"):
        remember_calibration(bundle, b"edgekit-calibration 1\n")
    verify_bundle(bundle)


def test_a_bundle_that_cannot_be_written_is_known_before_it_is_calibrated(tmp_path: Path) -> None:
    bundle = write(tmp_path / "out")
    before = contents(bundle.path)
    check_remembers(bundle)
    assert contents(bundle.path) == before
    with pytest.raises(UsageError, match=r"cannot write /proc/self/fdinfo/model\.edge\.calibration: "):
        check_remembers(replace(bundle, path=Path("/proc/self/fdinfo")))


def test_a_calibration_that_is_too_long_or_no_plain_file_is_refused(tmp_path: Path) -> None:
    bundle = write(tmp_path / "out")
    bundle.calibration.write_bytes(bytes(4097))
    with pytest.raises(Damaged, match=r"model\.edge\.calibration of the bundle is not a plain file of at most"):
        verify_bundle(bundle)
    bundle.calibration.unlink()
    bundle.calibration.symlink_to("/dev/zero")
    with pytest.raises(Damaged, match=r"model\.edge\.calibration of the bundle is not a plain file of at most"):
        verify_bundle(bundle)


def test_sizes_are_checked_before_any_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write(tmp_path / "out")
    damage(bundle.path, "tokenizer.json", b"longer")
    monkeypatch.setattr("edgekit.bundle._sha256", lambda path: pytest.fail(f"{path.name} was read"))
    with pytest.raises(Damaged, match=r"tokenizer\.json of the bundle has 6 bytes"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"context": 0}, Damaged, "context: 0 is less than the minimum of 1"),
        ({"context": "256"}, Damaged, "context: '256' is not of type 'integer'"),
        ({"kv": "q4"}, Damaged, "kv: 'q4' is not one of ['f16', 'q8', 'f32']"),
        ({"bos": 3}, Damaged, "bos: 3 is not of type 'string', 'null'"),
        ({"surprise": 1}, Damaged, "'surprise' was unexpected"),
        ({"schema": 2}, Unsupported, "has schema 2, this edgekit reads 1"),
        ({"schema": 0}, Damaged, "schema: 0 is not one of [1]"),
        ({"files": {}}, Damaged, "manifest.json does not list model.edge"),
        ({"files": {"../x": {"bytes": 1, "sha256": "a"}}}, Damaged, "lists a file with the name '../x'"),
        ({"files": {"a/b": {"bytes": 1, "sha256": "a"}}}, Damaged, "lists a file with the name 'a/b'"),
        ({"files": {"manifest.json": {"bytes": 1, "sha256": "a"}}}, Damaged, "the name 'manifest.json'"),
        ({"files": {"x": {"bytes": -1, "sha256": "a"}}}, Damaged, "files.x.bytes: -1 is less than the minimum of 0"),
    ],
)
def test_a_lying_manifest_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[EdgekitError], message: str
) -> None:
    path = write(tmp_path / "out").path
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(error) as caught:
        open_bundle(path)
    assert message in caught.value.message


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\0"])
def test_a_manifest_that_is_not_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "out").path
    (path / "manifest.json").write_text(text)
    with pytest.raises(Damaged):
        open_bundle(path)


def test_every_cut_of_a_manifest_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "out").path
    data = (path / "manifest.json").read_bytes()
    for length in range(0, len(data) - 2, 7):
        (path / "manifest.json").write_bytes(data[:length])
        with pytest.raises(Damaged):
            open_bundle(path)
