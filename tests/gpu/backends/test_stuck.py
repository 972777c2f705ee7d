"""A driver in which its callers hang so deeply that nothing ends them: nobody waits for them, and nobody follows."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from externalresource_gpu.backends import stuck
from externalresource_gpu.backends.auto import Auto
from externalresource_gpu.backends.stuck import DriverStuckError
from externalresource_gpu.choosing.topology import Links
from externalresource_gpu.device import Device
from tests.support.processes import state, wait_until

SILENT = Path(__file__).parents[2] / "support" / "file_systems" / "silent.py"
SCRIPT = [sys.executable, "-P", "-m", "externalresource_gpu.script.main", "1", "--backend=nvidia-smi"]

HERE = os.stat("/proc/self/ns/pid").st_ino

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse, to hang in the kernel"
)


class Driver:
    """A driver that hangs, and what asks it."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "silent"
        self.mount.mkdir()
        self.ledger = folder / "gpus"
        self.memory = folder / "gpus.stuck"
        self.asked = folder / "asked"
        nvidia_smi = folder / "nvidia-smi"
        nvidia_smi.write_text(f"#!/bin/sh\necho $$ >> {self.asked}\nexec cat {self.mount}/x\n")
        nvidia_smi.chmod(0o755)
        self.environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
        self._server = subprocess.Popen([sys.executable, SILENT, self.mount], stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "mounted\n"

    def ask(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*SCRIPT, f"--coordination-file={self.ledger}", *words],
            env=self.environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def callers(self) -> list[int]:
        """Return who has asked the driver so far."""
        return [int(line) for line in self.asked.read_text().splitlines()]

    def let_go(self) -> None:
        self._server.kill()
        self._server.wait()
        if self._server.stdout is not None:
            self._server.stdout.close()
        subprocess.run(["umount", "-l", self.mount], check=False, capture_output=True)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    hanging = Driver(tmp_path)
    yield hanging
    hanging.let_go()


@pytest.mark.parametrize("words", [(), ("--enable-coordination-mode",), ("--list",)])
def test_driver_that_nothing_wakes_is_an_error_by_the_deadline_and_is_not_asked_again(
    words: tuple[str, ...], driver: Driver
) -> None:
    began = time.monotonic()
    first = driver.ask("--timeout=1", *words)
    assert time.monotonic() - began < 30  # not for ever, as it is for whoever waits for the child
    [caller] = driver.callers()
    assert state(caller) == "D"
    assert (first.returncode, first.stdout) == (1, "")
    assert first.stderr.startswith("nvidia-gpu-discovery: nvidia-smi did not answer within 1.")
    assert first.stderr.endswith(f"its process {caller} was killed and does not end\n")
    again = driver.ask("--timeout=1", *words)
    assert (again.returncode, again.stdout, driver.callers()) == (1, "", [caller])
    assert again.stderr.startswith(f"nvidia-gpu-discovery: the NVIDIA driver is stuck: pid {caller} asked it")
    assert str(driver.memory) in again.stderr


def test_driver_that_lets_go_is_asked_again(driver: Driver) -> None:
    driver.ask("--timeout=1")
    [caller] = driver.callers()
    driver.let_go()
    wait_until(lambda: state(caller) in ("gone", "Z"))
    again = driver.ask("--timeout=20")  # of the file that cat cannot find now
    assert "nvidia-smi failed (exit 1)" in again.stderr
    assert len(driver.callers()) == 2
    assert not driver.memory.exists()


class Stuck:
    name = "nvml"

    def start(self) -> None:
        raise NotImplementedError

    def devices(self, deadline: float) -> list[Device]:
        raise DriverStuckError("NVML hangs", 17)

    def links(self, deadline: float) -> Links:
        raise NotImplementedError


def test_auto_does_not_ask_nvidia_smi_what_nvml_hung_at() -> None:
    both = Auto([Stuck(), Stuck()])
    with pytest.raises(DriverStuckError, match="NVML hangs"):
        both.devices(time.monotonic() + 60)


# ---- what is written down is believed only as far as the kernel confirms it -----------------------


@pytest.mark.parametrize(
    "text", ["", "none", "-1", "0", pytest.param(f"{os.getpid()}", id="own"), "1", "4194304", "9" * 5000, "\0"]
)
@pytest.mark.parametrize(
    "namespace", ["", " x", pytest.param(f" {HERE}", id="here"), pytest.param(f" {HERE} 1", id="here and more")]
)
def test_what_names_no_killed_process_is_no_verdict(text: str, namespace: str, tmp_path: Path) -> None:
    (tmp_path / "gpus.stuck").write_text(f"{text}{namespace}\n")
    stuck.check(str(tmp_path / "gpus"))


def test_killed_process_that_waits_to_be_reaped_is_gone(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    child.kill()
    wait_until(lambda: state(child.pid) == "Z")
    stuck.remember(str(tmp_path / "gpus"), child.pid)
    stuck.check(str(tmp_path / "gpus"))
    child.wait()


def test_planted_link_is_neither_written_through_nor_read(tmp_path: Path, driver: Driver) -> None:
    driver.ask("--timeout=1")
    [caller] = driver.callers()
    victim, link = tmp_path / "victim", tmp_path / "other.stuck"
    victim.write_text(f"{caller} {HERE}\n")
    link.symlink_to(victim)
    stuck.check(str(tmp_path / "other"))
    link.unlink(missing_ok=True)
    link.symlink_to(victim)
    stuck.remember(str(tmp_path / "other"), caller)
    assert victim.read_text() == f"{caller} {HERE}\n"
    assert not link.is_symlink()
    with pytest.raises(DriverStuckError):
        stuck.check(str(tmp_path / "other"))


def test_verdict_of_another_container_is_neither_believed_nor_forgotten(tmp_path: Path, driver: Driver) -> None:
    driver.ask("--timeout=1")
    [caller] = driver.callers()
    (tmp_path / "other.stuck").write_text(f"{caller} {HERE + 1}\n")
    stuck.check(str(tmp_path / "other"))
    assert (tmp_path / "other.stuck").exists()


def test_place_that_cannot_be_written_remembers_nothing(tmp_path: Path) -> None:
    stuck.remember(str(tmp_path / "missing" / "gpus"), 1)
    (tmp_path / "gpus.stuck").mkdir()
    stuck.remember(str(tmp_path / "gpus"), 1)
    stuck.check(str(tmp_path / "gpus"))
