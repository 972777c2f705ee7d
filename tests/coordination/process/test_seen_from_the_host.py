"""A container's processes as the host sees them."""

import contextlib
import os
import pickle
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from externalresource.coordination import process
from externalresource.coordination.process import Observer, Process, gone, identify, observer, pid_here
from externalresource.records import replace
from tests.support.processes import (
    NEW_PIDS,
    as_another_user,
    end,
    in_namespaces,
    mount,
    paused_fork,
    state,
    wait_until,
)

HOST = 0xEFFFFFFC  # the pid namespace of whoever is on the host


@dataclass(frozen=True)
class Container:
    """What a container's first process says of itself and of its child."""

    first: Process
    child: Process


@contextlib.contextmanager
def container() -> Iterator[Container]:
    """Start a process in a pid namespace of its own, with a child; its end is that of all."""
    (told, tell), (ended_, keep) = os.pipe(), os.pipe()

    def live() -> None:
        child = paused_fork()
        os.write(tell, pickle.dumps((identify(os.getpid()), identify(child))))
        os.read(ended_, 1)

    runner = os.fork()
    if runner == 0:
        os.close(keep)
        with contextlib.suppress(BaseException):
            in_namespaces(live, NEW_PIDS)
        os._exit(0)
    os.close(tell)
    os.close(ended_)
    said = os.read(told, 1 << 16)
    os.close(told)
    try:
        if not said:
            pytest.skip("this system grants no pid namespaces")
        yield Container(*pickle.loads(said))
    finally:
        os.close(keep)
        os.waitpid(runner, 0)


def pid_namespace(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    return None


def host() -> Observer:
    return replace(observer(), pid_namespace=HOST)


def test_process_is_seen_by_its_own_pid_in_its_own_namespace(living: subprocess.Popen[bytes]) -> None:
    who, here = identify(living.pid), observer()
    assert pid_here(who, here) == living.pid
    assert pid_here(replace(who, pid_namespace=None), here) is None
    assert pid_here(replace(who, start_time=1), here) is None


def test_host_sees_that_a_process_of_a_container_lives() -> None:
    with container() as inside:
        assert not gone(inside.first, host())
        assert not gone(inside.child, host())
        for who in (inside.first, inside.child):
            seen = pid_here(who, host())
            assert seen is not None
            assert pid_namespace(seen) == who.pid_namespace
            assert Path(f"/proc/{seen}/status").read_text(encoding="utf-8").count(f"\t{seen}\t{who.pid}\n") > 0


def test_host_sees_that_a_process_of_a_container_is_gone() -> None:
    with container() as inside:
        seen = pid_here(inside.child, host())
        assert seen is not None
        os.kill(seen, signal.SIGKILL)  # nobody there reaps it
        wait_until(lambda: state(seen) == "Z")
        assert gone(inside.child, host())
        assert pid_here(inside.child, host()) is None
        assert not gone(inside.first, host())
    assert gone(inside.first, host())
    assert gone(inside.child, host())


@pytest.mark.parametrize("ticks", [-1, 1])
def test_host_tells_processes_of_containers_with_one_pid_by_their_start(ticks: int) -> None:
    with container() as inside:
        other = replace(inside.first, start_time=(inside.first.start_time or 0) + ticks)
        assert gone(other, host())
        assert not gone(replace(inside.first, start_time=None), host())


@pytest.mark.parametrize("apart", [-1, 1])
def test_host_holds_what_was_seen_in_another_time_namespace(apart: int) -> None:
    here = host()
    with container() as inside:
        other = replace(inside.first, time_namespace=(here.time_namespace or 0) + apart, start_time=1)
        assert not gone(other, here)


@pytest.mark.parametrize("apart", [-1, 1])
def test_container_judges_no_other(apart: int, living: subprocess.Popen[bytes]) -> None:
    here = replace(observer(), pid_namespace=HOST + 7)
    who = replace(identify(living.pid), pid_namespace=HOST + 7 + apart)
    end(living)
    assert not gone(who, here)
    assert pid_here(who, here) is None
    assert gone(replace(who, pid_namespace=HOST + 7), here)


@pytest.mark.parametrize("hidepid", [1, 2])
def test_host_that_may_not_look_at_all_processes_holds(hidepid: int) -> None:
    def look() -> tuple[bool, bool]:
        mount("proc", "/proc", "proc", f"hidepid={hidepid}")
        here = observer()
        who = Process(
            2**22 + 1, start_time=1, boot_id=here.boot_id, pid_namespace=1, time_namespace=here.time_namespace
        )
        seen = replace(here, pid_namespace=HOST)
        return as_another_user(lambda: gone(who, seen)), gone(who, seen)

    assert in_namespaces(look, NEW_PIDS) == (False, True)


@pytest.mark.parametrize("hidepid", [1, 2])
def test_process_that_may_not_be_looked_at_may_be_the_one(hidepid: int) -> None:
    def look() -> tuple[bool, bool]:
        mount("proc", "/proc", "proc", f"hidepid={hidepid}")
        here, mine = host(), str(os.getpid())
        return as_another_user(lambda: process._may_be(Process(7), mine, here)), process._may_be(Process(7), mine, here)

    assert in_namespaces(look, NEW_PIDS) == (True, False)


def test_process_of_the_host_is_none_of_a_container_though_the_pid_is_the_same() -> None:
    mine = Process(os.getpid(), pid_namespace=1)
    assert not process._may_be(mine, str(os.getpid()), host())
    assert gone(mine, host())


def test_process_that_ends_while_it_is_looked_at_is_not_the_one() -> None:
    assert not process._may_be(Process(7), str(2**22 + 1), host())
