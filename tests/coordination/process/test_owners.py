"""Which processes may own devices: living ones that outlive their claim, and can be seen."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from externalresource.coordination import process
from externalresource.coordination.process import identify, observer
from externalresource.errors import CoordinationError
from tests.support.processes import (
    NEW_PIDS,
    in_namespaces,
    paused_fork,
    state,
    wait_until,
)


def test_init_of_the_machine_owns_nothing() -> None:
    if observer().pid_namespace != process._INITIAL_PID_NAMESPACE:
        pytest.skip("not in the machine's own pid namespace")
    with pytest.raises(CoordinationError, match=r"init cannot own devices: .* see --owner-pid"):
        identify(1)


def test_first_process_of_a_container_may_own_devices() -> None:
    who = in_namespaces(lambda: identify(1), NEW_PIDS)
    assert who.pid == 1
    assert who.start_time


def test_pid_0_owns_nothing() -> None:
    with pytest.raises(CoordinationError, match="outside this pid namespace cannot own devices; see --owner-pid"):
        identify(0)


@pytest.mark.parametrize("pid", [-1, 2**22 + 1])
def test_process_that_does_not_exist_owns_nothing(pid: int) -> None:
    with pytest.raises(CoordinationError, match=f"process {pid} cannot own devices: there is no such living process"):
        identify(pid)


def test_zombie_cannot_become_an_owner() -> None:
    child = paused_fork()
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: state(child) == "Z")
    with pytest.raises(CoordinationError, match=f"process {child} cannot own devices: there is no such living process"):
        identify(child)
    os.waitpid(child, 0)


def test_thread_owns_nothing() -> None:
    begun, go = threading.Event(), threading.Event()

    def run() -> None:
        begun.set()
        go.wait()

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    try:
        with pytest.raises(CoordinationError, match=f"^{thread.native_id} cannot own devices: it is a thread, which"):
            identify(thread.native_id or 0)
    finally:
        go.set()
        thread.join()
    assert not process._is_thread(os.getpid())
    assert not process._is_thread(2**22 + 1)


def test_without_a_proc_of_its_own_a_process_owns_nothing() -> None:
    with pytest.raises(CoordinationError, match="/proc does not show this process's pid namespace; mount it there"):
        in_namespaces(lambda: identify(os.getpid()), NEW_PIDS, own_proc=False)


def test_process_that_ends_while_its_file_is_opened_is_an_error_or_held(living: subprocess.Popen[bytes]) -> None:
    code = (
        "from externalresource.coordination import identify, lives\n"
        "from externalresource.errors import CoordinationError\n"
        f"known = identify({living.pid})\n"  # the first time that its file is opened
        f"print(lives(known))\ntry: identify({living.pid})\nexcept CoordinationError as error: print(error)"
    )
    ends = [
        "strace",
        "-qq",
        "-o",
        "/dev/null",
        "-P",
        f"/proc/{living.pid}/stat",
        "-e",
        "inject=openat:error=ESRCH:when=2+",
    ]
    done = subprocess.run([*ends, sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "True",
        f"process {living.pid} cannot own devices: there is no such living process here",
    ]
