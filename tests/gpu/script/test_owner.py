"""The discovery script as a real process: whose the devices are that it claims, and who must be there to get them."""

import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.discovery_host import (
    COORDINATED,
    INITIAL_PID_NAMESPACE,
    MODULE,
    Answer,
    Host,
    waits_for_nvidia_smi,
    waits_for_the_lock,
)
from tests.support.gpu_drivers import ended, eventually


def test_owner_is_the_process_that_started_the_script(host: Host) -> None:
    assert host.ask("2", *COORDINATED).devices == "0,1"
    assert host.claims() == [("0", os.getpid()), ("1", os.getpid())]


def test_owner_is_whom_the_caller_names(host: Host, sleeper: "subprocess.Popen[bytes]") -> None:
    assert host.ask("1", *COORDINATED, "--owner-pid", str(sleeper.pid)).devices == "0"
    assert host.claims() == [("0", sleeper.pid)]


def test_owner_that_exists_no_more_is_refused(host: Host) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    reason = host.ask("1", *COORDINATED, f"--owner-pid={process.pid}").reason
    assert reason == f"process {process.pid} cannot own devices: there is no such living process here"
    assert not host.ledger.exists()


def test_init_is_refused_where_it_is_that_of_the_machine(host: Host) -> None:
    refused = host.ask("1", "--simulate=2", "--enable-coordination-mode", "--owner-pid=1").status == 1
    assert refused == (os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE)
    assert (host.claims() == []) == refused


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_owner_that_ends_while_nvidia_smi_runs_gets_nothing(
    host: Host, sleeper: "subprocess.Popen[bytes]", *, reaped: bool
) -> None:
    host.hold_nvidia_smi()
    script = host.start("1", *COORDINATED, f"--owner-pid={sleeper.pid}", "--timeout=60")
    assert eventually(lambda: waits_for_nvidia_smi(script.pid))
    sleeper.kill()
    assert eventually(lambda: ended(sleeper.pid))
    if reaped:
        sleeper.wait()
    host.go.touch()
    assert Answer(script).reason == f"the owner (pid {sleeper.pid}) has ended: nothing is granted"
    assert not host.ledger.exists()


def test_owner_that_ends_while_the_lock_is_waited_for_keeps_nothing(
    host: Host, sleeper: "subprocess.Popen[bytes]"
) -> None:
    with host.locked():
        script = host.start("1", *COORDINATED, f"--owner-pid={sleeper.pid}", "--timeout=60")
        assert eventually(lambda: waits_for_the_lock(script.pid))
        sleeper.kill()
        sleeper.wait()
    assert Answer(script).reason == f"the owner (pid {sleeper.pid}) has ended: nothing is granted"
    assert host.claims() == []


@contextlib.contextmanager
def parent_of_script(host: Host, *words: str) -> Iterator[tuple[int, int]]:
    """Start the script as the child of a shell, and kill the shell in the end; the result is the pid of both."""
    known = host.path / "script"
    start = f'"$@" > {host.path}/out & echo $! > {known}.new; mv {known}.new {known}; wait'
    asked = [*MODULE, "1", *COORDINATED, "--timeout=60", f"--log-file={host.log}", *words]
    with subprocess.Popen(["/bin/sh", "-c", start, "sh", *asked], env=host.environment) as parent:
        assert eventually(known.exists)
        yield parent.pid, int(known.read_text())
        parent.kill()


def was_refused_for_its_parent(host: Host, parent: int) -> bool:
    assert eventually(lambda: host.log.exists() and host.log.read_text())
    expected = f"the process that started this script (pid {parent}) has ended: nothing is granted"
    assert host.logged() == [f"asked by pid {parent}: refused: {expected}"]
    return (host.path / "out").read_text() == ""


whoever_owns = pytest.mark.parametrize(
    "words", [[], [f"--owner-pid={os.getpid()}"]], ids=["the parent owns", "another owns"]
)


@whoever_owns
def test_parent_that_ends_while_nvidia_smi_runs_gets_nothing(host: Host, words: list[str]) -> None:
    host.hold_nvidia_smi()
    with parent_of_script(host, *words) as (parent, script):
        assert eventually(lambda: waits_for_nvidia_smi(script))
    host.go.touch()
    assert was_refused_for_its_parent(host, parent)
    assert not host.ledger.exists()


@whoever_owns
def test_parent_that_ends_while_the_lock_is_waited_for_keeps_nothing(host: Host, words: list[str]) -> None:
    with host.locked(), parent_of_script(host, *words) as (parent, script):
        assert eventually(lambda: waits_for_the_lock(script))
    assert was_refused_for_its_parent(host, parent)
    assert host.ledger.exists()  # it was claimed
    assert host.claims() == []
