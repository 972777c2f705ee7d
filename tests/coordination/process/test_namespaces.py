"""Processes of other namespaces, and a /proc that is not of one's own: what cannot be judged is held."""

import os
import subprocess
from pathlib import Path

import pytest

from externalresource.coordination import lives
from externalresource.coordination.process import Observer, Process, gone, identify, observer
from externalresource.records import replace
from tests.support.processes import (
    NEW_PIDS,
    NEW_TIME,
    end,
    end_fork,
    in_child,
    in_namespaces,
    let_the_next_process_have,
    mount,
    paused_fork,
)


def test_process_in_another_pid_namespace_is_held(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    end(living)
    assert in_namespaces(lambda: lives(who), NEW_PIDS)


def test_process_in_an_unknown_pid_namespace_is_held() -> None:
    assert lives(Process(2**22 + 1, boot_id=observer().boot_id))
    assert not gone(Process(2**22 + 1), Observer(None, None, None, sees_own_pids=True))


def test_process_seen_from_another_time_namespace_is_held(living: subprocess.Popen[bytes]) -> None:
    def look() -> Process:
        return identify(living.pid)

    here = look()
    shifted = in_namespaces(look, NEW_TIME, own_proc=False, offset=86400)
    assert shifted.start_time != here.start_time
    assert lives(shifted)
    assert shifted != here
    end(living)
    assert not lives(shifted)


@pytest.mark.parametrize("apart", [-1, 1])
def test_start_that_was_seen_in_another_time_namespace_proves_nothing(
    apart: int, living: subprocess.Popen[bytes]
) -> None:
    who, here = identify(living.pid), replace(observer(), time_namespace=7)
    assert not gone(replace(who, start_time=1, time_namespace=7 + apart, pidfd_inode=None), here)


def test_container_with_a_boot_id_of_its_own_sees_and_is_seen_as_living(tmp_path: Path) -> None:
    # LXC and systemd-nspawn mount one for each container; that of a sibling on the same kernel differs.
    private = tmp_path / "boot_id"
    private.write_text("11111111-2222-3333-4444-555555555555\n", encoding="ascii")
    outside = identify(os.getpid())

    def look() -> tuple[Process, bool, bool]:
        mount(str(private), "/proc/sys/kernel/random/boot_id")
        inside = identify(os.getpid())
        return inside, lives(inside), lives(outside)

    inside, lives_to_itself, outside_lives = in_namespaces(look, NEW_PIDS)
    assert lives_to_itself
    assert outside_lives
    assert not gone(inside, replace(observer(), pid_namespace=1))  # to another container
    assert inside == replace(inside)


def test_without_a_proc_of_its_own_only_a_missing_process_is_gone() -> None:
    def look() -> tuple[bool, bool]:
        child, here = paused_fork(), observer()
        who = Process(child, start_time=1, boot_id=here.boot_id, pid_namespace=here.pid_namespace)
        living = gone(who, here)
        end_fork(child)
        return living, gone(who, here)

    def outer() -> tuple[bool, bool]:  # in whose /proc another process has the child's pid
        return in_namespaces(look, NEW_PIDS, own_proc=False)

    assert in_namespaces(outer, NEW_PIDS) == (False, True)


def test_outer_proc_is_not_ours_though_the_pid_is_the_same_in_both() -> None:
    def inner(ready: int, go: int) -> tuple[bool, bool]:
        let_the_next_process_have(500)
        os.write(ready, b".")
        os.read(go, 1)
        return in_child(lambda: (os.readlink("/proc/self") == str(os.getpid()), observer().sees_own_pids))

    def outer() -> tuple[bool, bool]:
        (ready, told), (go, tell) = os.pipe(), os.pipe()
        setter = os.fork()
        if setter == 0:
            os.read(ready, 1)
            let_the_next_process_have(500)
            os.write(tell, b".")
            os._exit(0)
        return in_namespaces(lambda: inner(told, go), NEW_PIDS, own_proc=False)

    assert in_namespaces(outer, NEW_PIDS) == (True, False)


@pytest.mark.parametrize("pid", [0, 999_999_999])
def test_proc_of_another_process_is_not_our_own(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert observer().sees_own_pids
    monkeypatch.setattr(os, "getpid", lambda: pid)
    assert not observer().sees_own_pids


def test_no_proc_at_all_proves_nothing(tmp_path: Path) -> None:
    def look() -> tuple[Observer, bool]:
        who = identify(1)
        mount("none", "/proc", "tmpfs")
        return observer(), gone(who, replace(observer(), pid_namespace=who.pid_namespace))

    here, is_it = in_namespaces(look, NEW_PIDS)
    assert here == Observer(None, None, None, sees_own_pids=False)
    assert not is_it


@pytest.mark.parametrize(("namespace", "is_it"), [(0xEFFFFFFC, False), (0xF0000001, True), (None, True)])
def test_whoever_is_not_in_the_first_pid_namespace_is_in_a_container(namespace: int | None, *, is_it: bool) -> None:
    assert Observer(None, namespace, None, sees_own_pids=True).in_container == is_it
