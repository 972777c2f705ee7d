import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from externalresource.coordination import process
from externalresource.coordination.process import Observer, Process, gone, identify, observer, pid_here, program_of
from externalresource.errors import CoordinationError
from externalresource.records import replace
from tests.support.processes import NEW_PIDS, NEW_TIME, as_another_user, in_child, in_namespaces, mount

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")  # of the writer's own pid namespace
TICKS = 0.03  # seconds after which another process of the same pid has another start time


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"])


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture
def living() -> Iterator[subprocess.Popen[bytes]]:
    process = sleeper()
    yield process
    end(process)


def is_gone(who: Process) -> bool:
    return gone(who, observer())


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def paused_fork() -> int:
    child = os.fork()
    if child == 0:
        signal.pause()
    return child


def ended(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_living_process_is_not_gone(living: subprocess.Popen[bytes]) -> None:
    assert not is_gone(identify(living.pid))


def test_this_process_is_not_gone() -> None:
    assert not is_gone(identify(os.getpid()))


def test_killed_process_is_gone(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    end(living)
    assert is_gone(who)


def test_process_that_ended_by_itself_is_gone(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    living.send_signal(signal.SIGTERM)
    living.wait()
    assert is_gone(who)


def test_identity_tells_what_it_saw(living: subprocess.Popen[bytes]) -> None:
    here = observer()
    who = identify(living.pid)
    assert {field: getattr(who, field) for field in who.__match_args__} == {
        "pid": living.pid,
        "start_time": who.start_time,
        "boot_id": here.boot_id,
        "pid_namespace": Path("/proc/self/ns/pid").stat().st_ino,
        "time_namespace": here.time_namespace,
        "uid": os.getuid(),
        "program": "sleep",
        "pidfd_inode": who.pidfd_inode,
    }
    assert who.start_time


def test_program_of_an_owner_is_what_it_runs_now_or_else_what_it_ran(living: subprocess.Popen[bytes]) -> None:
    claimed = replace(identify(living.pid), program="externalresourc")
    assert program_of(claimed, observer()) == "sleep"
    end(living)
    assert program_of(claimed, observer()) == "externalresourc"


def test_arguments_of_the_program_are_not_recorded() -> None:
    process = subprocess.Popen(["sleep", "600.4711"])
    try:
        assert "600.4711" not in repr(identify(process.pid))
    finally:
        end(process)


@pytest.mark.parametrize("name", ["a) Z 1 (b", "))))", "(", "two words", "new\nline"])
def test_program_of_any_name_is_read(name: str, tmp_path: Path) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "600"])
    try:
        wait_until(lambda: identify(process.pid).program == name)
        assert not is_gone(identify(process.pid))
    finally:
        end(process)


def recycle() -> tuple[bool, bool, bool]:
    first = paused_fork()
    who = identify(first)
    before = is_gone(who)
    ended(first)
    time.sleep(TICKS)
    LAST_PID.write_text(str(first - 1), encoding="ascii")
    second = paused_fork()
    assert second == first
    return before, is_gone(who), is_gone(identify(second))


def test_process_whose_pid_another_one_has_now_is_gone() -> None:
    assert in_namespaces(recycle, NEW_PIDS) == (False, True, False)


def test_process_of_an_unknown_start_is_held_by_whoever_has_its_pid_now(living: subprocess.Popen[bytes]) -> None:
    here = observer()
    assert not gone(Process(living.pid, pid_namespace=here.pid_namespace, time_namespace=here.time_namespace), here)
    assert not gone(Process(living.pid, pid_namespace=here.pid_namespace), here)


def test_claim_of_another_boot_is_gone(living: subprocess.Popen[bytes]) -> None:
    assert is_gone(replace(identify(living.pid), boot_id="another"))


def test_claim_of_another_boot_is_gone_whatever_its_namespace(living: subprocess.Popen[bytes]) -> None:
    assert is_gone(replace(identify(living.pid), boot_id="another", pid_namespace=1))


def test_unknown_boot_proves_nothing(living: subprocess.Popen[bytes]) -> None:
    who, here = identify(living.pid), observer()
    assert not gone(replace(who, boot_id=None), here)
    assert not gone(who, replace(here, boot_id=None))


def test_container_with_a_boot_id_of_its_own_sees_and_is_seen_as_living(tmp_path: Path) -> None:
    # LXC and systemd-nspawn mount one for each container; that of a sibling on the same kernel differs.
    private = tmp_path / "boot_id"
    private.write_text("11111111-2222-3333-4444-555555555555\n", encoding="ascii")
    outside = identify(os.getpid())

    def look() -> tuple[Process, bool, bool]:
        mount(str(private), "/proc/sys/kernel/random/boot_id")
        inside = identify(os.getpid())
        return inside, is_gone(inside), is_gone(outside)

    inside, gone_to_itself, outside_gone = in_namespaces(look, NEW_PIDS)
    assert not gone_to_itself
    assert not outside_gone
    assert not gone(inside, replace(observer(), pid_namespace=1))  # to another container
    assert inside == replace(inside)


def test_zombie_is_gone() -> None:
    child = paused_fork()
    who = identify(child)
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: state(child) == "Z")
    assert is_gone(who)
    os.waitpid(child, 0)


def test_zombie_cannot_become_an_owner() -> None:
    child = paused_fork()
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: state(child) == "Z")
    with pytest.raises(CoordinationError, match=f"process {child} cannot own devices: there is no such living process"):
        identify(child)
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
        assert not is_gone(who)
        assert identify(process.pid) == who
    finally:
        end(process)
    assert is_gone(who)


def test_process_of_another_user_is_not_gone(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    assert not as_another_user(lambda: is_gone(who))


def test_ended_process_of_another_user_is_gone(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    end(living)
    assert as_another_user(lambda: is_gone(who))


def test_recycled_pid_of_another_user_is_gone(living: subprocess.Popen[bytes]) -> None:
    assert as_another_user(lambda: is_gone(replace(identify(living.pid), start_time=1)))


def hidden(who: Process) -> tuple[bool, bool]:
    mount("proc", "/proc", "proc", "hidepid=2")
    with pytest.raises(CoordinationError, match="no such living process"):
        as_another_user(lambda: identify(who.pid))
    return as_another_user(lambda: is_gone(who)), is_gone(who)


def test_process_that_proc_hides_is_held() -> None:
    def first() -> tuple[bool, bool]:
        child = paused_fork()
        return hidden(replace(identify(child), start_time=1))

    assert in_namespaces(first, NEW_PIDS) == (False, True)


def test_process_stays_the_same_when_it_becomes_another_program() -> None:
    process = subprocess.Popen(["sh", "-c", "read line; exec sleep 600"], stdin=subprocess.PIPE)
    try:
        before = identify(process.pid)
        assert process.stdin
        process.stdin.close()
        wait_until(lambda: identify(process.pid).program == "sleep")
        assert identify(process.pid) == before
        assert not is_gone(before)
    finally:
        end(process)


def test_process_stays_the_same_when_it_is_renamed() -> None:
    def renamed() -> tuple[Process, Process]:
        before = identify(os.getpid())
        Path("/proc/self/comm").write_text("other", encoding="ascii")
        return before, identify(os.getpid())

    before, after = in_child(renamed)
    assert after.program == "other"
    assert after == before


def test_fork_is_another_process() -> None:
    assert in_child(lambda: identify(os.getpid())) != identify(os.getpid())


@pytest.mark.parametrize(
    "change", [{"pid": 7}, {"start_time": 7}, {"pid_namespace": 7}, {"boot_id": "7"}, {"time_namespace": 7}], ids=str
)
def test_processes_that_differ_in_one_of_these_are_two(change: dict[str, Any]) -> None:
    who = identify(os.getpid())
    other = replace(who, **change)
    assert who == replace(who)
    assert who != other
    assert other != who


@pytest.mark.parametrize("unknown", [{"start_time": None}, {"pid_namespace": None}], ids=str)
def test_process_of_which_too_little_is_known_is_not_one_that_is_known(unknown: dict[str, Any]) -> None:
    who = identify(os.getpid())
    assert replace(who, **unknown) != who


def test_program_user_and_pidfd_of_a_process_are_no_part_of_which_it_is() -> None:
    who = identify(os.getpid())
    assert replace(who, program="another", uid=None, pidfd_inode=None) == who


def test_process_in_another_pid_namespace_is_held(living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    end(living)
    assert not in_namespaces(lambda: is_gone(who), NEW_PIDS)


def test_process_in_an_unknown_pid_namespace_is_held() -> None:
    assert not is_gone(Process(2**22 + 1, boot_id=observer().boot_id))
    assert not gone(Process(2**22 + 1), Observer(None, None, None, sees_own_pids=True))


def test_process_seen_from_another_time_namespace_is_held(living: subprocess.Popen[bytes]) -> None:
    def look() -> Process:
        return identify(living.pid)

    here = look()
    shifted = in_namespaces(look, NEW_TIME, own_proc=False, offset=86400)
    assert shifted.start_time != here.start_time
    assert not is_gone(shifted)
    assert shifted != here
    end(living)
    assert is_gone(shifted)


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


def test_without_a_proc_of_its_own_a_process_owns_nothing() -> None:
    with pytest.raises(CoordinationError, match="/proc does not show this process's pid namespace; mount it there"):
        in_namespaces(lambda: identify(os.getpid()), NEW_PIDS, own_proc=False)


def test_without_a_proc_of_its_own_only_a_missing_process_is_gone() -> None:
    def look() -> tuple[bool, bool]:
        child, here = paused_fork(), observer()
        who = Process(child, start_time=1, boot_id=here.boot_id, pid_namespace=here.pid_namespace)
        living = gone(who, here)
        ended(child)
        return living, gone(who, here)

    def outer() -> tuple[bool, bool]:  # in whose /proc another process has the child's pid
        return in_namespaces(look, NEW_PIDS, own_proc=False)

    assert in_namespaces(outer, NEW_PIDS) == (False, True)


def test_outer_proc_is_not_ours_though_the_pid_is_the_same_in_both() -> None:
    def inner(ready: int, go: int) -> tuple[bool, bool]:
        LAST_PID.write_text("499", encoding="ascii")
        os.write(ready, b".")
        os.read(go, 1)
        return in_child(lambda: (os.readlink("/proc/self") == str(os.getpid()), observer().sees_own_pids))

    def outer() -> tuple[bool, bool]:
        (ready, told), (go, tell) = os.pipe(), os.pipe()
        setter = os.fork()
        if setter == 0:
            os.read(ready, 1)
            LAST_PID.write_text("499", encoding="ascii")
            os.write(tell, b".")
            os._exit(0)
        return in_namespaces(lambda: inner(told, go), NEW_PIDS, own_proc=False)

    assert in_namespaces(outer, NEW_PIDS) == (True, False)


def test_no_proc_at_all_proves_nothing(tmp_path: Path) -> None:
    def look() -> tuple[Observer, bool]:
        who = identify(1)
        mount("none", "/proc", "tmpfs")
        return observer(), gone(who, replace(observer(), pid_namespace=who.pid_namespace))

    here, is_it = in_namespaces(look, NEW_PIDS)
    assert here == Observer(None, None, None, sees_own_pids=False)
    assert not is_it


def test_looking_at_a_process_does_not_signal_it() -> None:
    def signalled(number: int, frame: object) -> None:
        pytest.fail(f"signal {number}")

    earlier = {number: signal.signal(number, signalled) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        assert not is_gone(identify(os.getpid()))
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


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


@pytest.mark.parametrize("other", ["", "zzzz"], ids=["before", "behind"])
def test_claim_of_another_boot_is_gone_whichever_was_first(other: str, living: subprocess.Popen[bytes]) -> None:
    assert is_gone(replace(identify(living.pid), boot_id=other))


@pytest.mark.parametrize("ticks", [-1, 1])
def test_pid_of_a_process_that_started_at_another_time_is_gone(ticks: int, living: subprocess.Popen[bytes]) -> None:
    who = identify(living.pid)
    assert is_gone(replace(who, start_time=(who.start_time or 0) + ticks))


@pytest.mark.parametrize("apart", [-1, 1])
def test_start_that_was_seen_in_another_time_namespace_proves_nothing(
    apart: int, living: subprocess.Popen[bytes]
) -> None:
    who, here = identify(living.pid), replace(observer(), time_namespace=7)
    assert not gone(replace(who, start_time=1, time_namespace=7 + apart, pidfd_inode=None), here)


@pytest.mark.parametrize(("now", "is_it"), [(6, True), (7, False), (8, True), (None, False)])
def test_pid_that_was_used_again_within_one_tick_is_told_by_its_pidfd(
    now: int | None, living: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, *, is_it: bool
) -> None:
    who = replace(identify(living.pid), pidfd_inode=7)
    monkeypatch.setattr("externalresource.coordination.process._pidfd_inode", lambda pid: now)
    assert is_gone(who) == is_it


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
    assert process._pidfd_inode(2**22 + 1) is None


@pytest.mark.parametrize("pid", [0, 999_999_999])
def test_proc_of_another_process_is_not_our_own(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert observer().sees_own_pids
    monkeypatch.setattr(os, "getpid", lambda: pid)
    assert not observer().sees_own_pids


@pytest.mark.parametrize(("namespace", "is_it"), [(0xEFFFFFFC, False), (0xF0000001, True), (None, True)])
def test_whoever_is_not_in_the_first_pid_namespace_is_in_a_container(namespace: int | None, *, is_it: bool) -> None:
    assert Observer(None, namespace, None, sees_own_pids=True).in_container == is_it


def test_process_is_seen_by_its_own_pid_in_its_own_namespace(living: subprocess.Popen[bytes]) -> None:
    who, here = identify(living.pid), observer()
    assert pid_here(who, here) == living.pid
    assert pid_here(replace(who, pid_namespace=None), here) is None
    assert pid_here(replace(who, start_time=1), here) is None


# A container as the host sees it

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


def test_process_that_may_not_be_signalled_is_there(
    living: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    who = identify(living.pid)
    monkeypatch.setattr(os, "kill", refuse)
    assert not is_gone(who)
    assert is_gone(replace(who, start_time=1))


def test_process_that_may_not_be_looked_at_may_be_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: str) -> None:
        raise PermissionError

    here = host()
    monkeypatch.setattr("externalresource.coordination.process.open", refuse, raising=False)
    assert process._may_be(Process(7), "7", here)


def test_process_of_the_host_is_none_of_a_container_though_the_pid_is_the_same() -> None:
    mine = Process(os.getpid(), pid_namespace=1)
    assert not process._may_be(mine, str(os.getpid()), host())
    assert gone(mine, host())


def test_process_that_ends_while_it_is_looked_at_is_not_the_one() -> None:
    assert not process._may_be(Process(7), str(2**22 + 1), host())


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
