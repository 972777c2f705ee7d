"""What a simulated driver does: a bad one leads to the errors of a real one, and none leaves a process behind."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from externalresource.errors import DiscoveryError
from externalresource_gpu.backends.nvidia_smi.backend import NvidiaSmi
from externalresource_gpu.backends.simulated import machine_file, made_up
from externalresource_gpu.backends.simulated.backend import Simulated
from tests.support.backends import Written

LONG = 60.0


def refusal(backend: Simulated | NvidiaSmi, seconds: float = LONG) -> str:
    with pytest.raises(DiscoveryError) as error:
        backend.devices(time.monotonic() + seconds)
    return re.sub(r"\d+\.\d s", "# s", str(error.value))


def children() -> list[int]:
    """Return the pids of this process's children."""
    found = Path("/proc/self/task").glob("*/children")
    return [int(pid) for file in found for pid in file.read_text().split()]


def eventually(happens: Callable[[], object]) -> bool:
    end = time.monotonic() + LONG
    while not happens() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(happens())


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("driver", "program"),
    [
        ("hangs", "sleep 60"),
        ("{slow: 60}", "sleep 60"),
        ("crashes", "kill -SEGV $$"),
        ("{crashes: SIGBUS}", "kill -BUS $$"),
        ("{fails: 4}", "echo Failed to initialize NVML: Insufficient Permissions; exit 4"),
        ("{fails: 18}", "echo Failed to initialize NVML: Driver/library version mismatch; exit 18"),
        ("{fails: 255}", "echo Failed to initialize NVML: Unknown Error; exit 255"),
        ("{fails: 9, says: it is 100 % 'broken'}", "echo \"it is 100 % 'broken'\"; exit 9"),
        ("{slow: 0.01, fails: 15, says: GPU is lost}", "echo GPU is lost; exit 15"),
        ("{slow: 0.01, crashes: SIGABRT}", "kill -ABRT $$"),
    ],
)
def test_bad_driver_is_the_error_that_nvidia_smi_leads_to(
    written: Written, tmp_path: Path, driver: str, program: str
) -> None:
    real = tmp_path / "nvidia-smi"
    real.write_text(f"#!/bin/sh\nulimit -c 0\n{program}\n")
    real.chmod(0o755)
    seconds = 0.3 if "60" in program else LONG
    expected = refusal(NvidiaSmi(str(real)), seconds)
    assert refusal(Simulated(written(f"gpus: [{{}}]\ndriver: {driver}")), seconds) == expected


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ("driver-crashes", "nvidia-smi was ended by SIGSEGV"),
        ("driver-hangs", "nvidia-smi did not answer within"),
        ("driver-mismatch", "nvidia-smi failed (exit 18): Failed to initialize NVML: Driver/library version mismatch"),
        ("driver-no-permission", "nvidia-smi failed (exit 4): Failed to initialize NVML: Insufficient Permissions"),
        ("driver-not-loaded", "nvidia-smi failed (exit 9): NVIDIA-SMI has failed because it couldn't communicate"),
        ("driver-slow", "nvidia-smi did not answer within"),
    ],
)
def test_machine_with_a_bad_driver_fails(machine: str, reason: str) -> None:
    seconds = 0.3 if machine in ("driver-hangs", "driver-slow") else LONG
    assert refusal(Simulated(machine), seconds).startswith(reason)
    assert len(machine_file.read(made_up.path(machine), machine).devices) == 2


@pytest.mark.parametrize("driver", ["healthy", "{slow: 0.05}"])
def test_driver_that_answers_in_time_lists_its_gpus(written: Written, driver: str) -> None:
    backend = Simulated(written(f"gpus: [{{}}, {{}}]\ndriver: {driver}\nlinks: SYS"), topology=True)
    assert len(backend.devices(time.monotonic() + LONG)) == 2
    assert backend.links(time.monotonic()) == {(0, 1): "SYS"}


def test_healthy_driver_is_asked_without_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_spawnp")
    assert len(Simulated("dgx-1").devices(time.monotonic())) == 8


def test_start_begins_to_ask_and_the_deadline_ends_it() -> None:
    backend = Simulated("driver-hangs")
    before = set(children())
    backend.start()
    [asked] = set(children()) - before
    refusal(backend, 0)
    assert asked not in children()


def test_driver_is_asked_anew_at_each_look() -> None:
    backend = Simulated("driver-mismatch")
    backend.start()
    assert refusal(backend) == refusal(backend)


def test_child_of_a_driver_that_hangs_ends_with_whoever_asked() -> None:
    code = """
import os
from externalresource_gpu.backends import create
backend = create("simulated", "driver-hangs")
backend.start()
print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
os._exit(0)
"""
    asked = subprocess.run([sys.executable, "-Pc", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    assert eventually(lambda: ended(int(asked)))
