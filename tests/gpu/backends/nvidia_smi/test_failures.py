"""How nvidia-smi fails."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends import create, reasons
from externalresource_gpu.backends.nvidia_smi.backend import FIELDS, NvidiaSmi
from tests.support.backends import message, soon
from tests.support.nvidia_smi import StandIn, row, table


@pytest.mark.parametrize(
    ("status", "said", "todo"),
    [
        (4, "Failed to initialize NVML: Insufficient Permissions", "SELinux"),
        (
            6,
            "Unable to determine the device handle for GPU0: 0000:01:00.0: Unknown Error\\nNo devices were found",
            "Xid",
        ),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "modprobe nvidia"),
        (12, "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.", "--gpus"),
        (15, "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system", "reboot"),
        (17, "Failed to initialize NVML: GPU access blocked by the operating system", "WSL"),
        (18, "Failed to initialize NVML: Driver/library version mismatch\\nNVML library version: 535.161", "reload"),
        (255, "Failed to initialize NVML: Unknown Error", "recreated"),
        (77, "Something new", "dmesg"),
    ],
)
def test_failure_tells_its_exit_its_words_and_a_remedy(stand_in: StandIn, status: int, said: str, todo: str) -> None:
    with pytest.raises(DiscoveryError) as error:
        stand_in(f'print("""{said}"""); sys.exit({status})').devices(soon())
    text = message(error)
    assert f"exit {status}" in text
    assert " ".join(said.partition("\\n")[0].split()) in text
    assert todo in text


def test_each_failure_has_a_remedy_of_its_own() -> None:
    codes = [4, 6, 9, 12, 15, 16, 17, 18, 999, 77]
    assert len({reasons.advice(code) for code in codes}) == len(codes)


def test_message_on_stderr_is_told_where_stdout_is_silent(stand_in: StandIn) -> None:
    with pytest.raises(DiscoveryError, match=r"exit 3.*cannot open shared object file"):
        stand_in("sys.stderr.write('libx.so: cannot open shared object file'); sys.exit(3)").devices(soon())


@pytest.mark.parametrize("status", [0, 1])
def test_silence_is_an_error(stand_in: StandIn, status: int) -> None:
    with pytest.raises(DiscoveryError, match=rf"gave no reason \(exit {status}\)"):
        stand_in(f"sys.exit({status})").devices(soon())


def test_corrupted_inforom_is_a_warning(stand_in: StandIn) -> None:
    code = f'print("""{row()}\nWARNING: infoROM is corrupted at gpu 0008:00:00.0"""); sys.exit(14)'
    assert [device.index for device in stand_in(code).devices(soon())] == [0]


def test_lost_gpu_hides_no_other_whatever_the_exit(stand_in: StandIn) -> None:
    lost = "Unable to determine the device handle for GPU1: 0000:0F:00.0: GPU is lost"
    devices = stand_in(f'print("""{lost}\n{row()}\n{row(index="2")}"""); sys.exit(15)').devices(soon())
    assert [device.unusable for device in devices] == [None, "GPU is lost", None]


# An old driver: it lists nothing if a GPU is lost, but single GPUs if it is asked for them.
OLD_DRIVER = """
lost = "Unable to determine the device handle for GPU 0000:0F:00.0: GPU is lost.  Reboot the system"
rows = {rows!r}
if not argv[0].startswith("--id="):
    print(lost); sys.exit(15)
row = rows[argv[0].partition("=")[2]]
if row is None:
    print(lost); sys.exit(15)
exec(row[1:]) if row.startswith("!") else print(row)
"""
FIRST, THIRD = row(index="0", pci__bus_id="00000000:07:00.0"), row(index="2", pci__bus_id="00000000:47:00.0")


@pytest.mark.parametrize(
    ("third", "reason"),
    [
        (THIRD, None),
        (row(index="2", temperature__gpu="[Unknown Error]"), "Unknown Error"),
        ("!print('Driver Not Loaded'); sys.exit(9)", "nvidia-smi failed (exit 9): Driver Not Loaded"),
        ("!os.kill(os.getpid(), 11)", "nvidia-smi was ended by SIGSEGV"),
        ("No devices were found", "nvidia-smi does not list it"),
    ],
)
def test_driver_that_gives_up_at_a_lost_gpu_is_asked_for_each(
    stand_in: StandIn, bound: Path, third: str, reason: str | None
) -> None:
    rows = {"0000:07:00.0": FIRST, "0000:0f:00.0": None, "0000:47:00.0": third}
    for bus_id in rows:
        (bound / bus_id).mkdir(parents=True)
    found = stand_in(OLD_DRIVER.format(rows=rows)).devices(soon())
    assert [(gpu.index, gpu.uuid) for gpu in found[:2]] == [(0, "GPU-0"), (1, None)]
    assert (found[1].pci_bus_id, found[1].unusable) == ("00000000:0F:00.0", "GPU is lost")
    assert (found[2].index, found[0].unusable) == (2, None)
    assert (found[2].unusable or "").startswith(reason or "")
    assert (found[2].unusable is None) == (reason is None)


def test_driver_that_gives_up_at_a_lost_gpu_whatever_it_is_asked_fails(stand_in: StandIn, bound: Path) -> None:
    rows = {"0000:07:00.0": None, "0000:0f:00.0": None}
    for bus_id in rows:
        (bound / bus_id).mkdir(parents=True)
    with pytest.raises(DiscoveryError, match=r"exit 15.*GPU is lost.*reboot the machine"):
        stand_in(OLD_DRIVER.format(rows=rows)).devices(soon())


def test_rows_before_an_unexplained_failure_are_not_trusted(stand_in: StandIn) -> None:
    with pytest.raises(DiscoveryError, match="exit 255"):
        stand_in(f'print("{row()}"); sys.exit(255)').devices(soon())


def test_rows_before_a_crash_are_not_trusted(stand_in: StandIn) -> None:
    code = f'print("{row()}", flush=True); os.kill(os.getpid(), 11)'
    with pytest.raises(DiscoveryError, match="nvidia-smi was ended by SIGSEGV"):
        stand_in(code).devices(soon())


def test_hang_ends_at_the_deadline_and_says_after_how_long(stand_in: StandIn) -> None:
    with pytest.raises(DiscoveryError, match=r"nvidia-smi did not answer within \d+\.\d s: the driver hangs"):
        stand_in("time.sleep(600)").devices(soon(0.3))


@pytest.fixture
def nobodys_status() -> Iterator[None]:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # now the kernel collects whoever ends
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("nobodys_status")
def test_complete_answer_counts_where_the_status_is_lost(stand_in: StandIn) -> None:
    assert len(stand_in(f'print("{row()}")').devices(soon())) == 1


@pytest.mark.usefixtures("nobodys_status")
def test_answer_without_its_end_is_an_error_where_the_status_is_lost(stand_in: StandIn) -> None:
    with pytest.raises(DiscoveryError, match="nvidia-smi ended, and how is unknown"):
        stand_in(f'print("{row()}", end="")').devices(soon())


def test_second_query_is_under_the_same_deadline(stand_in: StandIn) -> None:
    code = """
if "mig" in argv[0]:
    print('Field "mig.mode.current" is not a valid field to query.'); sys.exit(2)
time.sleep(600)
"""
    with pytest.raises(DiscoveryError, match="did not answer"):
        stand_in(code).devices(soon(1.5))


def test_flood_on_both_streams_is_no_hang_and_is_quoted_short(stand_in: StandIn) -> None:
    with pytest.raises(DiscoveryError) as error:
        stand_in("sys.stderr.write('e' * 1_000_000); print('o' * 1_000_000); sys.exit(1)").devices(soon())
    assert len(message(error)) < 1000


def test_missing_program_is_an_error_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    backend = create("nvidia-smi")
    backend.start()
    with pytest.raises(DiscoveryError, match="nvidia-smi was not found on PATH"):
        backend.devices(soon())


def test_program_that_may_not_be_executed_is_an_error(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(DiscoveryError, match=r"nvidia-smi: '.*/nvidia-smi' cannot be run: Permission denied"):
        NvidiaSmi(str(program)).devices(soon())


def test_program_is_found_on_the_path(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(table(tmp_path, FIELDS, row()))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(create("nvidia-smi").devices(soon())) == 1


def test_host_without_gpus_has_none(stand_in: StandIn) -> None:
    assert stand_in("print('No devices were found'); sys.exit(6)").devices(soon()) == []


def test_gpu_that_only_the_driver_knows_is_not_no_gpu(stand_in: StandIn, bound: Path) -> None:
    (bound / "0000:01:00.0").mkdir(parents=True)
    with pytest.raises(DiscoveryError, match=r"finds no GPU, but the driver is bound to 1 \(0000:01:00.0\)"):
        stand_in("print('No devices were found'); sys.exit(6)").devices(soon())


def test_each_query_is_a_new_one(stand_in: StandIn, tmp_path: Path) -> None:
    backend = stand_in(f'print("{row()}")')
    backend.start()
    assert len(backend.devices(soon())) == 1
    stand_in(f'print("""{row()}\n{row(index="1")}""")')
    assert len(backend.devices(soon())) == 2


@pytest.mark.parametrize(
    "broken",
    [
        f"Unable to determine the device handle for GPU1: 0000:0F:00.0: GPU is lost\n{row()}",
        f"{row()}\n{row(index='1', temperature__gpu='[GPU requires reset]', memory__used='0')}",
        f"{row()}\n{row(index='1', uuid='[Insufficient Permissions]')}",
        f"{row()}\n{row(index='1', memory__total='[Unknown Error]')}",
        f"{row()}\n{row(index='[Unknown Error]')}",
    ],
)
def test_gpu_is_healthy_again_when_a_later_look_says_so(stand_in: StandIn, broken: str) -> None:
    backend = stand_in(f'print("""{broken}""")')
    assert [(device.index, device.unusable is None) for device in backend.devices(soon())] == [(0, True), (1, False)]
    stand_in(f'print("""{row()}\n{row(index="1")}""")')
    assert [(device.index, device.unusable) for device in backend.devices(soon())] == [(0, None), (1, None)]
