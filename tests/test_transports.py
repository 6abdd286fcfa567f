"""Transports: what a device is given, what it may write, and how it is ended."""

import os
import select
import time
from pathlib import Path

import pytest

import edgekit
from edgekit.errors import DeviceUnavailable, TargetMissing, TimedOut, UsageError
from edgekit.transports import OUTPUT_LIMIT, checked_remote, connect, transport_names
from edgekit.transports.local import Local, _sensors, host_machine
from edgekit.transports.qemu import arm64_root as find_arm64_root
from edgekit.units import Bytes, Seconds


@pytest.fixture
def local():
    with connect("local", "") as transport:
        transport.put(Path("/bin/sh"), "sh")
        yield transport


def shell(transport, script, **options):
    return transport.run(["sh", "-c", script], timeout=Seconds(options.pop("timeout", 20)), **options)


def test_a_program_gives_back_its_output_and_its_exit_code(local):
    done = shell(local, "printf out; printf err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out", b"err")


def test_a_program_that_dies_of_a_signal_gives_its_negative_number(local):
    assert shell(local, "kill -ILL $$").returncode == -4


def test_output_is_handed_over_as_it_comes(local):
    seen = []
    shell(local, "printf one; sleep 0.2; printf two", on_stdout=lambda chunk: seen.append((chunk, time.monotonic())))
    assert [chunk for chunk, _ in seen] == [b"one", b"two"]
    assert seen[1][1] - seen[0][1] > 0.1


def test_arguments_are_never_read_by_a_shell(local):
    local.put(Path("/bin/echo"), "echo")
    done = local.run(["echo", "$HOME; exit 1 `id` '\"*"], timeout=Seconds(20))
    assert done.stdout == b"$HOME; exit 1 `id` '\"*\n"


def test_input_reaches_the_program(local):
    assert shell(local, "cat", stdin=b"a\0b" * 100_000).stdout == b"a\0b" * 100_000


def test_a_program_that_runs_too_long_is_ended_with_all_its_children(local, tmp_path):
    mark = tmp_path / "child"
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"sh was still running after 300 ms and was ended") as caught:
        shell(local, f"(sleep 30; touch {mark}) & echo $! > {tmp_path}/pid; wait", timeout=0.3)
    assert caught.value.exit_code == 8
    assert time.monotonic() - began < 10
    child = int((tmp_path / "pid").read_text())
    assert ends_soon(child)


def ends_soon(process):
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)


def test_a_program_that_closes_its_output_is_held_to_the_same_time(local):
    with pytest.raises(TimedOut):
        shell(local, "exec >&- 2>&-; sleep 30", timeout=0.3)


def test_a_program_that_floods_is_ended(local):
    with pytest.raises(DeviceUnavailable, match=r"wrote more than 16.0 MiB") as caught:
        shell(local, "while :; do printf '%65536s' ''; done")
    assert caught.value.exit_code == 6
    assert OUTPUT_LIMIT == 16 << 20


def test_an_interrupt_ends_the_program(local, tmp_path):
    def interrupt(chunk):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shell(local, f"echo $$ > {tmp_path}/pid; echo go; sleep 30", on_stdout=interrupt)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_file_that_cannot_be_executed_is_refused_in_a_sentence(local, tmp_path):
    (tmp_path / "text").write_text("not a program")
    local.put(tmp_path / "text", "text")
    with pytest.raises(DeviceUnavailable, match=r"cannot start text: Permission denied") as caught:
        local.run(["text"], timeout=Seconds(5))
    assert caught.value.hint == f"chmod +x {tmp_path}/text"
    (tmp_path / "text").write_bytes(b"\x7fELF")
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(DeviceUnavailable, match=r"cannot start text: Exec format error") as caught:
        local.run(["text"], timeout=Seconds(5))
    assert caught.value.hint == ""


def test_a_folder_put_on_the_device_can_be_read_there(local, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "file").write_text("content")
    local.put(tmp_path / "bundle", "there")
    assert shell(local, "cat there/file").stdout == b"content"


def test_what_is_written_can_be_read_or_run_there(local):
    local.write(b"content", "file")
    local.write(b"#!/bin/sh\necho ran $1\n", "program", executable=True)
    assert shell(local, "cat file").stdout == b"content"
    assert local.run(["program", "well"], timeout=Seconds(20)).stdout == b"ran well\n"


def test_writing_over_a_link_leaves_what_it_led_to_alone(local, tmp_path):
    (tmp_path / "mine").write_text("mine")
    local.put(tmp_path / "mine", "there")
    local.write(b"other", "there")
    assert (tmp_path / "mine").read_text() == "mine"
    assert shell(local, "cat there").stdout == b"other"


def test_a_file_the_device_wrote_is_fetched_up_to_a_limit(local, tmp_path):
    shell(local, "printf 12345 > made")
    local.get("made", tmp_path / "made", limit=Bytes(5))
    assert (tmp_path / "made").read_bytes() == b"12345"
    with pytest.raises(DeviceUnavailable, match=r"made on the device takes 5 B, at most 4 B were expected"):
        local.get("made", tmp_path / "made", limit=Bytes(4))
    with pytest.raises(DeviceUnavailable, match=r"the device has no file missing"):
        local.get("missing", tmp_path / "missing", limit=Bytes(4))


@pytest.mark.parametrize("remote", ["/etc/passwd", "../x", "a/../../x", "", "-rf", "a\nb", "a\0b", "\x1b[31m"])
def test_a_remote_path_that_leaves_the_folder_is_refused(remote):
    with pytest.raises(UsageError, match="is not a path inside the device's folder"):
        checked_remote(remote)


def test_the_folder_is_gone_after_the_connection():
    with connect("local", "") as transport:
        assert isinstance(transport, Local)
        folder = Path(shell_folder(transport))
        assert folder.is_dir()
    assert not folder.exists()


def shell_folder(transport):
    transport.put(Path("/bin/sh"), "sh")
    return transport.run(["sh", "-c", "pwd"], timeout=Seconds(20)).stdout.decode().strip()


def test_an_unknown_transport_names_the_known():
    with pytest.raises(UsageError) as caught:
        connect("carrier-pigeon", "")
    assert caught.value.message == "unknown kind of device 'carrier-pigeon'"
    assert caught.value.hint.startswith("one of: " + ", ".join(transport_names()))
    assert {"local", "qemu"} <= set(transport_names())


def test_the_local_device_takes_no_address():
    with pytest.raises(UsageError, match="takes no address"):
        connect("local", "there")


@pytest.mark.parametrize("address", ["", "-cpu", "a b", "cortex-a76,pmu=off"])
def test_an_address_that_is_no_cpu_is_refused(address):
    with pytest.raises(UsageError, match="is not the name of a CPU"):
        connect("qemu", address)


def test_a_missing_emulator_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TargetMissing) as caught:
        connect("qemu", "cortex-a76")
    assert caught.value.exit_code == 4
    assert "apt install qemu-user-static" in caught.value.hint


def test_python_imports_nothing_from_the_devices_folder(local):
    local.write(b"raise SystemExit(9)\n", "edgekit.py")
    local.put_python("python")
    done = local.run(["python", "-c", "import edgekit; print(edgekit.__file__)"], timeout=Seconds(60))
    assert done.stdout.decode().strip() == edgekit.__file__


@pytest.mark.emulator
def test_an_emulated_device_without_python_says_how_to_make_it(emulator, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEKIT_ARM64_ROOT", str(tmp_path))
    with connect("qemu", "cortex-a76") as transport, pytest.raises(TargetMissing) as caught:
        transport.put_python("python")
    assert caught.value.exit_code == 4
    assert str(tmp_path) in caught.value.message
    assert "python devices/setup/arm64_root.py" in caught.value.hint


def test_the_root_file_system_is_looked_for_among_the_persons_data(monkeypatch, tmp_path):
    root = tmp_path / "edgekit" / "arm64"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "bin" / "python3").write_bytes(b"")
    monkeypatch.delenv("EDGEKIT_ARM64_ROOT", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert find_arm64_root() == root


@pytest.mark.emulator
def test_emulated_python_is_no_part_of_this_machines(arm64_root, monkeypatch, tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    script = "import edgekit, numpy, platform, sys; print(platform.machine(), edgekit.__name__, *sys.path, sep='\\n')"
    with connect("qemu", "cortex-a76") as transport:
        transport.put_python("python")
        done = transport.run(["python", "-c", script], timeout=Seconds(60))
    machine, name, packages, *paths = done.stdout.decode().splitlines()
    assert (machine, name) == ("aarch64", "edgekit"), done.stderr
    assert packages.endswith("/packages")
    assert all(path.startswith(str(arm64_root)) for path in paths)


@pytest.mark.emulator
def test_an_emulated_device_says_that_its_time_means_nothing(emulator):
    with connect("qemu", "cortex-a76") as transport:
        assert transport.emulated
        assert transport.machine == "aarch64"
        assert transport.sensors() == {}


def test_the_sensors_of_this_machine_are_numbers_with_units(tmp_path):
    zone = tmp_path / "class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("48312\n")
    broken = tmp_path / "class/thermal/thermal_zone1"
    broken.mkdir()
    (broken / "temp").write_text("hot")
    clock = tmp_path / "devices/system/cpu/cpu3/cpufreq"
    clock.mkdir(parents=True)
    (clock / "scaling_cur_freq").write_text("2400000\n")
    assert _sensors(tmp_path) == {"thermal_zone0_celsius": 48.312, "cpu3_hertz": 2.4e9}


def test_the_machine_word_has_one_spelling(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert host_machine() == "x86_64"


def test_the_environment_of_the_host_reaches_the_program(local, monkeypatch):
    monkeypatch.setenv("EDGEKIT_ISA", "scalar")
    assert shell(local, 'printf %s "$EDGEKIT_ISA"').stdout == b"scalar"
