"""Who provably is no more. Of whoever else it is unknown: their devices are held."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from externalresource.coordination import lives, process
from externalresource.coordination.process import Process, gone, identify, observer
from externalresource.errors import CoordinationError
from externalresource.records import replace
from tests.support.processes import (
    NEW_PIDS,
    as_another_user,
    end,
    end_fork,
    in_child,
    in_namespaces,
    let_the_next_process_have,
    mount,
    paused_fork,
    state,
    wait_until,
)


def test_living_process_is_not_gone(living: subprocess.Popen[bytes]) -> None:
    assert lives(identify(living.pid))


def test_this_process_is_not_gone() -> None:
    assert lives(identify(os.getpid()))


def test_killed_process_is_gone(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    end(living)
    assert not lives(who)


def test_process_that_ended_by_itself_is_gone(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    living.send_signal(signal.SIGTERM)
    living.wait()
    assert not lives(who)


MISSING = 2**22 + 1  # a pid that no process ever has
TICKS = 0.03  # seconds after which another process of the same pid has another start time


def recycle() -> tuple[bool, bool, bool]:
    first = paused_fork()
    who = identify(first)
    before = lives(who)
    end_fork(first)
    time.sleep(TICKS)
    let_the_next_process_have(first)
    second = paused_fork()
    assert second == first
    return before, lives(who), lives(identify(second))


def test_process_whose_pid_another_one_has_now_is_gone() -> None:
    assert in_namespaces(recycle, NEW_PIDS) == (True, False, True)


def test_process_of_an_unknown_start_is_held_by_whoever_has_its_pid_now(living: subprocess.Popen[bytes]) -> None:
    here = observer()
    assert not gone(Process(living.pid, pid_namespace=here.pid_namespace, time_namespace=here.time_namespace), here)
    assert not gone(Process(living.pid, pid_namespace=here.pid_namespace), here)


@pytest.mark.parametrize("ticks", [-1, 1])
def test_pid_of_a_process_that_started_at_another_time_is_gone(ticks: int, living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    assert not lives(replace(who, start_time=(who.start_time or 0) + ticks))


@pytest.mark.parametrize("apart", [-1, 0, 1])
def test_pid_that_was_used_again_within_one_tick_is_told_by_its_pidfd(
    apart: int, living: subprocess.Popen[bytes]
) -> None:
    who = identify(living.pid)
    kernel_tells = who.pidfd_inode is not None
    assert lives(replace(who, pidfd_inode=(who.pidfd_inode or 7) + apart)) == (apart == 0 or not kernel_tells)


def test_process_whose_pidfd_is_not_to_be_had_may_be_the_one(living: subprocess.Popen[bytes]) -> None:
    here, who, stat = observer(), identify(living.pid), process.look_at(living.pid)
    assert stat is not None
    assert not process._recycled(replace(who, pid=MISSING, pidfd_inode=7), stat, here)


@pytest.mark.parametrize(("apart", "known"), [(-1, True), (0, False), (1, True)])
def test_pidfds_that_share_an_inode_tell_no_processes_apart(
    apart: int, monkeypatch: pytest.MonkeyPatch, *, known: bool
) -> None:
    descriptor = os.pidfd_open(os.getpid())
    status = os.fstat(descriptor)
    os.close(descriptor)
    monkeypatch.setattr("externalresource.coordination.process._anonymous_device", lambda: status.st_dev + apart)
    assert process._pidfd_inode(os.getpid()) == (status.st_ino if known else None)


def test_process_that_has_ended_has_no_pidfd() -> None:
    assert process._pidfd_inode(MISSING) is None


@pytest.mark.parametrize("other", ["", "another", "zzzz"])  # before ours and behind it, too
def test_claim_of_another_boot_is_gone(other: str, living: subprocess.Popen[bytes]) -> None:
    assert not lives(replace(identify(living.pid), boot_id=other))


def test_claim_of_another_boot_is_gone_whatever_its_namespace(living: subprocess.Popen[bytes]) -> None:
    assert not lives(replace(identify(living.pid), boot_id="another", pid_namespace=1))


def test_unknown_boot_proves_nothing(living: subprocess.Popen[bytes]) -> None:
    who, here = identify(living.pid), observer()
    assert not gone(replace(who, boot_id=None), here)
    assert not gone(who, replace(here, boot_id=None))


def test_zombie_is_gone() -> None:
    child = paused_fork()
    who = identify(child)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: state(child) == "Z")
    assert not lives(who)
    os.waitpid(child, 0)


def test_process_whose_first_thread_ended_before_the_others_lives() -> None:
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=[600]).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    process = subprocess.Popen([sys.executable, "-SEc", code])
    try:
        who = identify(process.pid)
        wait_until(lambda: state(process.pid) == "Z")
        assert lives(who)
        assert identify(process.pid) == who
    finally:
        end(process)
    assert not lives(who)


def test_process_of_another_user_is_not_gone(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    assert as_another_user(lambda: lives(who))


def test_ended_process_of_another_user_is_gone(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    end(living)
    assert not as_another_user(lambda: lives(who))


def test_recycled_pid_of_another_user_is_gone(living: subprocess.Popen[bytes]) -> None:
    assert not as_another_user(lambda: lives(replace(identify(living.pid), start_time=1)))


def hidden(who: Process) -> tuple[bool, bool]:
    mount("proc", "/proc", "proc", "hidepid=2")
    with pytest.raises(CoordinationError, match="no such living process"):
        as_another_user(lambda: identify(who.pid))
    return as_another_user(lambda: lives(who)), lives(who)


def test_process_that_proc_hides_is_held() -> None:
    def first() -> tuple[bool, bool]:
        child = paused_fork()
        return hidden(replace(identify(child), start_time=1))

    assert in_namespaces(first, NEW_PIDS) == (True, False)


def test_looking_at_a_process_does_not_signal_it() -> None:
    def signalled(number: int, frame: object) -> None:
        pytest.fail(f"signal {number}")

    earlier = {number: signal.signal(number, signalled) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        assert lives(identify(os.getpid()))
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def test_process_that_nobody_can_look_at_for_want_of_descriptors_is_not_gone() -> None:
    before_it = replace(identify(os.getpid()), start_time=1)
    here = observer()
    assert gone(before_it, here)

    def without_descriptors() -> bool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        return gone(before_it, here)

    assert not in_child(without_descriptors)
