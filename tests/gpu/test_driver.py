"""The GPU driver in this process, on simulated GPUs."""

import logging
import os
import threading
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from externalresource.api import DeviceInfo, ExternalResourceInfo
from externalresource.drivers.loading import create_driver
from externalresource.errors import CoordinationError
from externalresource_gpu.driver import GPUDriver, GPUDriverFactory
from tests.support.gpu_drivers import (
    COORDINATED,
    INSTALLED,
    claimed,
    created,
    failure,
    in_a_forked_child,
    mine,
    retrieved,
    values,
)

pytestmark = pytest.mark.usefixtures("ledger")
CHECKOUT = Path(__file__).parents[2]


def test_driver_says_all_that_is_known() -> None:
    infos = created({"simulate": "dgx-a100"}).retrieve_resource_info(2)
    assert values(infos) == ["0", "1"]
    assert values(infos, "name") == ["NVIDIA A100-SXM4-40GB"] * 2
    assert values(infos, "memory.total") == ["40960"] * 2
    assert values(infos, "pci.bus_id") == ["00000000:07:00.0", "00000000:0F:00.0"]
    assert all(str(uuid).startswith("GPU-") for uuid in values(infos, "uuid"))


@pytest.mark.parametrize("names", [("gpu",), ("org.apache.flink.externalresource.gpu.GPUDriverFactory",)])
def test_plugin_is_found_by_its_name_and_by_flinks(names: tuple[str]) -> None:
    assert len(create_driver(*names, {"simulate": "2"}).retrieve_resource_info(2)) == 2


def test_factory_makes_a_driver_of_its_options() -> None:
    driver = GPUDriverFactory().create_external_resource_driver({"simulate": "1"})
    assert retrieved(driver, 1) == ["0"]


def test_arguments_are_split_as_a_shell_would_and_options_win_over_them(tmp_path: Path) -> None:
    other = tmp_path / "with blank"
    args = f"--simulate 2 --enable-coordination --coordination-file '{other}' null"
    driver = created({"discovery-script.args": args, "simulate": "4"})
    assert retrieved(driver, 3) == ["0", "1", "2"]
    assert claimed(other) == mine("0", "1", "2")


def test_environment_serves_where_no_option_is_given(monkeypatch: pytest.MonkeyPatch, ledger: Path) -> None:
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_SIMULATE", "3")
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_ENABLE_COORDINATION", "true")
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_FORMAT", "spark")
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_AMOUNT", "1")
    assert retrieved(created({}), 2) == ["0", "1"]
    assert claimed(ledger) == mine("0", "1")
    assert retrieved(created({"enable-coordination-mode": "false"}), 3) == ["0", "1", "2"]


def test_owner_is_this_process_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch, ledger: Path) -> None:
    monkeypatch.setenv("EXTERNALRESOURCE_GPU_OWNER_PID", str(os.getppid()))
    driver = created(COORDINATED)
    assert retrieved(driver, 1) == ["0"]
    assert claimed(ledger) == mine("0")


@pytest.mark.parametrize("place", ["installed", "link", "checkout"])
def test_path_of_our_own_script_is_ours(tmp_path: Path, place: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(INSTALLED)
    path = {"installed": INSTALLED, "link": link, "checkout": CHECKOUT / "scripts/nvidia-gpu-discovery"}[place]
    driver = created(COORDINATED | {"discovery-script.path": str(path)})
    assert isinstance(driver, GPUDriver)
    assert retrieved(driver, 1) == ["0"]
    driver.close()


def test_refusal_says_what_is_here_and_who_holds_it(ledger: Path) -> None:
    driver = created(COORDINATED)
    assert failure(driver, 5) == "5 wanted, this host has 4"
    assert retrieved(driver, 3) == ["0", "1", "2"]
    assert failure(driver, 2).startswith(f"2 wanted, 1 of 4 free; held by pid {os.getpid()}")
    assert failure(created({"simulate": "no.yaml"}), 1) == "no.yaml cannot be read: No such file or directory"
    assert claimed(ledger) == mine("0", "1", "2")


def test_all_devices_are_shown_whoever_holds_them(ledger: Path) -> None:
    driver = created({"simulate": "one-lost", "enable-coordination-mode": "true"})
    driver.retrieve_resource_info(2)
    shown = driver.devices()
    assert values(shown) == list("01234567")
    assert [info.get_property("index") for info in shown if info.get_property("unusable")] == ["3"]
    assert claimed(ledger) == mine("0", "1")


def test_claims_are_of_this_process_and_close_gives_them_back(ledger: Path) -> None:
    driver = created(COORDINATED)
    assert [retrieved(driver, 2), retrieved(driver, 1)] == [["0", "1"], ["2"]]
    assert claimed(ledger) == mine("0", "1", "2")
    held = driver.held()
    assert [(claim.token, claim.holders[0].process.pid, claim.living) for claim in held] == [
        (token, os.getpid(), True) for token in "012"
    ]
    driver.close()
    assert (claimed(ledger), list(driver.held())) == ([], [])


def test_close_gives_back_exactly_its_own(ledger: Path) -> None:
    first, second = created(COORDINATED), created(COORDINATED)
    assert [retrieved(driver, 1) for driver in (first, second, first)] == [["0"], ["1"], ["2"]]
    first.close()
    assert claimed(ledger) == mine("1")
    assert retrieved(second, 1) == ["0"]
    first.close()
    assert claimed(ledger) == mine("1", "0")
    second.close()
    assert claimed(ledger) == []


def test_close_tells_devices_apart_that_have_one_index(ledger: Path) -> None:
    # Two containers, say, that each count their GPUs from 0.
    first, second = (created(COORDINATED | {"simulate": machine}) for machine in ("dgx-1", "dgx-a100"))
    assert [retrieved(first, 1), retrieved(second, 1)] == [["0"], ["0"]]
    second.close()
    assert claimed(ledger) == mine("0")
    first.close()
    assert claimed(ledger) == []


def test_closed_driver_can_retrieve_again(ledger: Path) -> None:
    driver = created(COORDINATED)
    for _ in range(2):
        assert retrieved(driver, 4) == list("0123")
        driver.close()
    assert claimed(ledger) == []


def test_close_that_failed_can_be_repeated(ledger: Path) -> None:
    driver = created(COORDINATED)
    driver.retrieve_resource_info(1)
    content = ledger.read_text()
    ledger.write_text("what is this\n")
    with pytest.raises(CoordinationError):
        driver.close()
    ledger.write_text(content)
    driver.close()
    assert claimed(ledger) == []


def test_without_coordination_nothing_is_held_and_nothing_given_back(ledger: Path) -> None:
    driver = created({"simulate": "2"})
    assert retrieved(driver, 2) == ["0", "1"]
    assert list(driver.held()) == []
    driver.close()
    assert not ledger.exists()
    assert not Path(f"{ledger}.lock").exists()


def test_forked_child_gives_nothing_back(ledger: Path) -> None:
    driver = created(COORDINATED)
    driver.retrieve_resource_info(2)
    assert in_a_forked_child(driver.close) == 0
    assert claimed(ledger) == mine("0", "1")
    driver.close()
    assert claimed(ledger) == []


def test_forked_child_gives_back_what_it_retrieved_itself(ledger: Path) -> None:
    driver = created(COORDINATED)
    driver.retrieve_resource_info(2)

    def child() -> None:
        assert retrieved(driver, 1) == ["2"]
        assert [pid == os.getpid() for _, pid in claimed(ledger)] == [False, False, True]
        driver.close()

    assert in_a_forked_child(child) == 0
    assert claimed(ledger) == mine("0", "1")


def infos(*indices: str, uuid: str = "") -> Collection[ExternalResourceInfo]:
    gpus = [{"index": index} | ({"uuid": uuid + index} if uuid else {}) for index in indices]
    return [DeviceInfo(gpu) for gpu in gpus]


@pytest.mark.parametrize(
    ("given", "mask"),
    [
        (infos("10", "9", "0", uuid="GPU-"), "GPU-0,GPU-9,GPU-10"),
        (infos("10", "9"), "9,10"),
        (infos("GPU-b", "7", "GPU-a", "1²"), "7,1²,GPU-a,GPU-b"),
        ([], ""),
    ],
)
def test_mask_holds_uuids_where_they_are_known_in_the_order_of_indices(
    given: Collection[ExternalResourceInfo], mask: str
) -> None:
    assert created({}).environment(given) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": mask,
        "NVIDIA_VISIBLE_DEVICES": mask or "void",
    }


# ---- waiting, and what is written of it -----------------------------------------------------------


def test_driver_that_waits_says_for_whom_once(ledger: Path, caplog: pytest.LogCaptureFixture) -> None:
    holder, driver = created(COORDINATED), created(COORDINATED | {"wait": "60"})
    holder.retrieve_resource_info(4)
    threading.Timer(1, holder.close).start()
    assert retrieved(driver, 1) == ["0"]
    [(logger, level, said)] = caplog.record_tuples
    assert (logger, level) == ("externalresource", logging.WARNING)
    assert said.startswith("waiting for gpu: 1 wanted, 0 of 4 free; held by")
    assert claimed(ledger) == mine("0")


def test_whoever_made_the_driver_may_be_told_instead(caplog: pytest.LogCaptureFixture) -> None:
    holder, driver = created(COORDINATED), created(COORDINATED | {"wait": "60"})
    holder.retrieve_resource_info(4)
    heard: list[str] = []
    driver.on_wait = heard.append
    threading.Timer(0.6, holder.close).start()
    assert retrieved(driver, 1) == ["0"]
    assert len(heard) > 1
    assert all(reason.startswith("1 wanted, 0 of 4 free; held by") for reason in heard)
    assert caplog.records == []


def test_device_that_breaks_while_it_is_waited_for_is_not_handed_out(tmp_path: Path) -> None:
    machine = tmp_path / "machine.yaml"
    machine.write_text("gpus: [{uuid: GPU-a}, {uuid: GPU-b}]")
    options = COORDINATED | {"simulate": str(machine)}
    holder, driver = created(options), created(options | {"wait": "60"})
    holder.retrieve_resource_info(2)

    def give_back() -> None:
        machine.write_text("gpus: [{uuid: GPU-a, unusable: GPU is lost}, {uuid: GPU-b}]")
        time.sleep(2.5)  # an answer counts for 2 s
        holder.close()

    threading.Timer(0.1, give_back).start()
    assert retrieved(driver, 1) == ["1"]


def test_each_decision_is_a_line_of_the_log_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    driver = created(COORDINATED | {"log-file": str(log)})
    driver.retrieve_resource_info(2)
    failure(driver, 5)
    created({"simulate": "2", "log-file": str(log)}).retrieve_resource_info(1)
    granted, refused, named = (line.partition(" ")[2] for line in log.read_text().splitlines())
    asker = f"asked by pid {os.getpid()}: "
    assert granted.startswith(f"{asker}granted 0,1 as simulated sees them to pid {os.getpid()} (")
    assert refused == f"{asker}refused: 5 wanted, this host has 4"
    assert named == f"{asker}named 0 as simulated sees them, without coordination"


def test_log_file_that_cannot_be_written_does_not_fail_the_grant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert retrieved(created({"simulate": "2", "log-file": str(tmp_path)}), 1) == ["0"]
    assert caplog.messages == [f"cannot write to the log file {tmp_path}: Is a directory"]
