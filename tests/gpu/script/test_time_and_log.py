"""The discovery script as a real process: how long it takes, and what it leaves in a log file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.discovery_host import COORDINATED, Host
from tests.support.gpu_drivers import ended

# ---- time -----------------------------------------------------------------------------------------


def test_hanging_nvidia_smi_is_killed_and_named(host: Host) -> None:
    host.hold_nvidia_smi()
    reason = host.ask("1", *COORDINATED, "--timeout=2").reason
    assert reason.startswith("nvidia-smi did not answer within")
    assert ended(int(host.began.read_text()))
    assert not host.ledger.exists()


def test_lock_that_is_held_is_named_and_nothing_is_recorded_later(host: Host) -> None:
    with host.locked():
        reason = host.ask("1", *COORDINATED, "--timeout=1").reason
        assert reason.startswith(f"timed out waiting for the lock {host.ledger}.lock, ")
    assert host.claims() == []


def test_driver_and_lock_share_one_timeout(host: Host) -> None:
    with host.locked() as lock:
        holder = subprocess.Popen(["sleep", "3"], pass_fds=[lock])
    with holder:
        answer = host.ask("1", "--timeout=5", command=[sys.executable, "-P", "-c", LATE])
        holder.kill()
    # Its time was over before it came to the lock: that this becomes free helps no more.
    assert answer.reason.startswith(f"timed out waiting for the lock {host.ledger}.lock, ")


# A backend whose answer comes when the time is over.
LATE = """
import os, sys, time
from externalresource.errors import ExternalResourceError
from externalresource_gpu.script import main
from externalresource_gpu.device import Device
from externalresource_gpu.script.options import Options

class Late:
    name = "late"
    def devices(self, deadline):
        return [Device(0)]
    def links(self, deadline):
        return {}

options = Options(sys.argv[1:], os.environ)
question = main.Question(options)
question._backend = Late()
try:
    main._coordinated(options, os.getppid(), question, time.monotonic() - 1)
except ExternalResourceError as error:
    main._complain(str(error))
    sys.exit(1)
"""


def test_claim_that_came_too_late_is_taken_back(host: Host) -> None:
    answer = host.ask("1", "--timeout=5", command=[sys.executable, "-P", "-c", LATE])
    assert answer.reason == "it took longer than the 5 s of --timeout: nothing is granted"
    assert host.claims() == []
    assert host.ledger.exists()  # it was claimed


# ---- the log file ---------------------------------------------------------------------------------


def test_each_decision_is_one_line_of_the_log_file(host: Host) -> None:
    log = f"--log-file={host.log}"
    host.ask("1", *COORDINATED, log)
    host.ask("3", *COORDINATED, log)
    host.ask("2", "--backend=nvidia-smi", log)
    host.ask("--list", "--simulate=0", log)
    host.ask("0", log)
    program = Path("/proc/self/comm").read_text().strip()
    assert host.logged() == [
        f"asked by pid {os.getpid()}: granted 0 as nvidia-smi sees them to pid {os.getpid()} ({program})",
        f"asked by pid {os.getpid()}: refused: 3 wanted, this host has 2",
        f"asked by pid {os.getpid()}: named 0,1 as nvidia-smi sees them, without coordination",
        f"asked by pid {os.getpid()}: listed all devices as simulated sees them",
        f"asked by pid {os.getpid()}: 0 wanted, none granted",
    ]


@pytest.mark.parametrize("place", ["missing/log", ".", "pipe", "missing/\udcff"])
def test_log_file_that_cannot_be_written_does_not_fail_the_grant(host: Host, place: str) -> None:
    os.mkfifo(host.path / "pipe")  # that nobody reads
    answer = host.ask("1", *COORDINATED, f"--log-file={host.path}/{place}")
    assert (answer.status, answer.out, len(host.claims())) == (0, "0\n", 1)
    assert answer.err.startswith("nvidia-gpu-discovery: cannot write to the log file ")
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("name", ["no\nsuch\r\nfolder", "\udcff", "\x1b[2J\x9b\u202e"])
def test_strange_path_is_said_in_one_plain_line_on_stderr_and_in_the_log(host: Host, name: str) -> None:
    words = ["--enable-coordination-mode", f"--coordination-file={host.path}/{name}/ledger", f"--log-file={host.log}"]
    reason = host.ask("1", "--simulate=1", *words).reason
    assert reason.startswith("cannot lock")
    assert reason.isprintable()
    [logged] = host.logged()
    assert logged.isprintable()
