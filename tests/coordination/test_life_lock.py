"""The lock by which those who cannot see an owner's pid know that it lives: as it is, and beside real owners."""

import contextlib
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from externalresource.coordination import Coordination, Holder, identify, life_lock, unshielded
from externalresource.coordination.life_lock import LifeLock, nobody_is_left, stands
from externalresource.errors import CoordinationError
from tests.support.processes import (
    NEW_PIDS,
    end_fork,
    in_child,
    in_mounts,
    in_namespaces,
    mount,
    paused_fork,
    wait_until,
)
from tests.support.taskmanager import (
    MODULE,
    Folder,
    TaskManager,
    containers_are_permitted,
    granted,
    is_refused,
)

contained = pytest.mark.skipif(not containers_are_permitted(), reason="this system grants no pid namespaces")

SOMEBODY = 54321  # a user of whom no process runs


class Gpu:
    token, uuid, parent_uuid, parent_token = "0", "GPU-0", None, None


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def owner() -> Iterator[TaskManager]:
    with TaskManager(container=True) as process:
        yield process


@pytest.fixture
def asker() -> Iterator[TaskManager]:
    with TaskManager(container=True) as process:
        yield process


@pytest.fixture
def held(folder: Folder) -> Iterator[LifeLock]:
    with contextlib.closing(LifeLock(folder.file)) as lock:
        yield lock


def guards(container: TaskManager) -> list[int]:
    """Return the watchers beside an owner that is alone in its container."""
    return [pid for pid in container.processes() if pid != container.pid]


# The lock


def test_life_lock_stands_until_it_is_closed(folder: Folder) -> None:
    lock = LifeLock(folder.file)
    assert stands(folder.file, lock.name)
    lock.close()
    assert not stands(folder.file, lock.name, missing=False)
    assert folder.files() == []


def test_life_lock_that_nobody_holds_does_not_stand(folder: Folder) -> None:
    name = in_child(lambda: LifeLock(folder.file).name)  # which ends without closing it
    assert not stands(folder.file, name)


def test_missing_life_lock_stands(folder: Folder) -> None:
    assert stands(folder.file, "0123456789abcdef")
    assert not stands(folder.file, "0123456789abcdef", missing=False)


def test_two_that_look_at_a_life_lock_do_not_take_each_other_for_its_holder(folder: Folder) -> None:
    name = in_child(lambda: LifeLock(folder.file).name)
    with open(folder.witnesses()[0]) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not stands(folder.file, name)


def test_life_lock_is_never_the_same_and_records_nothing(folder: Folder, held: LifeLock) -> None:
    with contextlib.closing(LifeLock(folder.file)) as other:
        assert other.name != held.name
    assert [path.read_bytes() for path in folder.witnesses()] == [b""]


def test_life_lock_can_be_tried_by_all_users_whatever_the_umask(folder: Folder) -> None:
    before = os.umask(0o077)
    try:
        with contextlib.closing(LifeLock(folder.file)):
            assert folder.witnesses()[0].stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


PLANTED: dict[str, Callable[[str, str], None]] = {
    "symbolic link": os.symlink,
    "hard link": os.link,
    "FIFO": lambda _, path: os.mkfifo(path),
    "folder": lambda _, path: os.mkdir(path),
    "loop": lambda _, path: os.symlink(path, path),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_was_planted_in_the_place_of_a_life_lock_stands(folder: Folder, what: str) -> None:
    (folder.path / "free").touch()
    PLANTED[what](str(folder.path / "free"), f"{folder.file}.witness-planted")
    assert stands(folder.file, "planted")
    assert stands(folder.file, "planted", missing=False)


NO_NAMES = ["x/../victim", "../victim", "", ".", "a\0b", "\ud800", "ä", "x" * 5000]


@pytest.mark.parametrize("name", NO_NAMES)
def test_name_that_no_life_lock_has_stands_and_nothing_is_removed_by_it(folder: Folder, name: str) -> None:
    (folder.path / "ledger.witness-x").mkdir()
    (folder.path / "ledger.witness-..").mkdir()
    (folder.path / "ledger.witness-").touch()
    victim = folder.path / "victim"
    victim.touch()
    assert stands(folder.file, name)
    life_lock.remove(folder.file, name)
    assert victim.exists()
    assert (folder.path / "ledger.witness-").exists()


def test_claim_of_the_dead_cannot_have_another_file_removed(folder: Folder) -> None:
    (folder.path / "ledger.witness-x").mkdir()
    victim = folder.path / "victim"
    victim.touch()
    details = {"uuid": Gpu.uuid, "boot_id": "another", "witness": "x/../victim"}
    Path(folder.file).write_text(f"0 1 {json.dumps(details)}\n")
    Coordination(folder.file, "gpu").claim([Gpu()], 1, Holder(identify(os.getpid())))
    assert victim.exists()


def test_fork_has_left_the_lock_and_its_close_does_nothing(folder: Folder, held: LifeLock) -> None:
    def fork() -> int | None:
        held.close()
        return held.descriptor

    assert in_child(fork) is None
    assert stands(folder.file, held.name, missing=False)


# Two processes beside an owner


def test_watchers_hold_for_their_owner_and_not_for_whoever_started_them(folder: Folder) -> None:
    with (
        subprocess.Popen(["sleep", "600"]) as beside,
        contextlib.closing(LifeLock(folder.file)) as lock,
    ):
        try:
            lock.post(identify(beside.pid))
            assert stands(folder.file, lock.name)
        finally:
            beside.kill()
        wait_until(lambda: not stands(folder.file, lock.name))


@contained
def test_two_watchers_stand_beside_an_owner_that_had_a_script_claim(folder: Folder, owner: TaskManager) -> None:
    granted(owner.tell("script", *folder.script()))
    assert len(guards(owner)) == 2
    assert len(folder.witnesses()) == 1


@contained
def test_watchers_keep_nothing_of_the_caller_open(folder: Folder, owner: TaskManager) -> None:
    command = " ".join([*MODULE, *folder.script()])
    owner.tell("shell", f"exec 7<{__file__} 9>{folder.path}/open; flock 9; exec {command}")
    assert len(guards(owner)) == 2
    lock = str(folder.witnesses()[0])
    for pid in guards(owner):
        kept = sorted(os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
        assert kept == sorted(["/dev/null"] * 3 + ["anon_inode:[pidfd]", lock]), kept
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) not in (os.getsid(owner.pid), 0)


@contained
def test_script_in_a_substitution_returns_though_its_watchers_stay(folder: Folder, owner: TaskManager) -> None:
    command = " ".join([*MODULE, *folder.script(), "--owner-pid", "1"])
    assert owner.tell("shell", f'device=$({command} 2>&1); echo "<$device>"') == "<0>\n"
    assert len(guards(owner)) == 2


@contained
@pytest.mark.parametrize("which", [0, 1])
def test_killing_one_watcher_frees_nothing(folder: Folder, owner: TaskManager, asker: TaskManager, which: int) -> None:
    granted(owner.tell("script", *folder.script()))
    os.kill(guards(owner)[which], signal.SIGKILL)
    wait_until(lambda: len(guards(owner)) == 1)
    assert is_refused(asker.tell("script", *folder.script()))
    owner.kill()
    wait_until(lambda: not is_refused(asker.tell("script", *folder.script())))


@contained
def test_host_and_the_own_container_need_no_life_lock(folder: Folder, owner: TaskManager) -> None:
    granted(owner.tell("script", *folder.script()))
    for pid in guards(owner):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: guards(owner) == [])
    assert folder.states() == ["living"]
    assert is_refused(owner.tell("script", *folder.script()))
    with TaskManager(container=False) as host:
        assert is_refused(host.tell("script", *folder.script()))


@contained
def test_watchers_outlast_every_signal_but_the_one_that_kills(
    folder: Folder, owner: TaskManager, asker: TaskManager
) -> None:
    granted(owner.tell("script", *folder.script()))
    before = guards(owner)
    for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}):
        for pid in before:
            os.kill(pid, number)
    assert is_refused(asker.tell("script", *folder.script()))
    assert guards(owner) == before
    owner.kill()
    wait_until(lambda: not is_refused(asker.tell("script", *folder.script())))


@contained
def test_watchers_outlast_the_end_of_the_scripts_process_group(
    folder: Folder, owner: TaskManager, asker: TaskManager
) -> None:
    script = owner.tell("overwhelmed_script", *folder.script())
    wait_until(lambda: len(folder.status()) == 1)
    owner.tell("kill_group", script)
    assert len(guards(owner)) == 2
    assert is_refused(asker.tell("script", *folder.script()))
    owner.kill()
    wait_until(lambda: not is_refused(asker.tell("script", *folder.script())))


@contained
def test_missing_file_of_a_life_lock_holds_for_containers_and_not_for_the_host(
    folder: Folder, owner: TaskManager, asker: TaskManager
) -> None:
    granted(owner.tell("script", *folder.script()))
    folder.witnesses()[0].unlink()
    owner.kill()
    assert is_refused(asker.tell("script", *folder.script()))
    assert folder.states() == ["dead"]


@contained
def test_watchers_end_when_the_claim_is_released_though_the_owner_lives(folder: Folder, owner: TaskManager) -> None:
    granted(owner.tell("script", *folder.script()))
    Coordination(folder.file, "gpu").drop(lambda _claim, _holder: True)
    assert folder.witnesses() == []
    wait_until(lambda: guards(owner) == [])


@contained
def test_scripts_that_are_refused_leave_no_zombies_to_an_owner_that_reaps_none(
    folder: Folder, owner: TaskManager, asker: TaskManager
) -> None:
    # As a JVM does: it waits for the children that it has started, and for no others.
    Path(f"{folder.file}.new").mkdir()  # so that the claim fails when its watchers stand
    assert owner.tell("script", *folder.script())[0] == 1
    assert guards(owner) == []
    assert owner.tell("shell", "ps -eo stat= | grep -c Z || true") == "0\n"


def claim_for_parent(path: str, processes: int) -> str:
    def claim() -> str:
        os.setgroups([])
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
        os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)
        try:
            Coordination(path, "gpu", run=unshielded).claim([Gpu()], 1, Holder(identify(os.getppid())))
        except CoordinationError as error:
            return str(error)
        return "claimed"

    return in_child(claim)


@contained
@pytest.mark.parametrize("processes", [1, 2])
def test_watcher_that_cannot_be_started_is_an_error_and_grants_nothing(processes: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o777)
        folder = Folder(Path(path))
        refusal = in_namespaces(lambda: claim_for_parent(folder.file, processes), NEW_PIDS)
        assert re.match(r"no watcher can be started beside pid 1: ", refusal)
        assert folder.status() == []
        assert folder.witnesses() == []
        assert in_namespaces(lambda: claim_for_parent(folder.file, 3), NEW_PIDS) == "claimed"


# What ends while a script runs


def waits_for_its_driver(machine: str) -> bool:
    """Whether the script that was told of this machine sleeps until its driver, a child process, says something."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if machine.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                return "poll" in (process / "wchan").read_text()
    return False


@contained
def test_owner_that_ends_while_its_script_runs_is_granted_nothing(folder: Folder, owner: TaskManager) -> None:
    gate = folder.path / "gpus.yaml"
    os.mkfifo(gate)
    asking = owner.tell("child_that_asks", *folder.script(1, str(gate), "--log-file", str(folder.path / "log")))
    gate.write_text("gpus: [{}]\ndriver: {slow: 3}")
    wait_until(lambda: waits_for_its_driver(str(gate)))  # it has looked at its owner
    owner.tell("end", asking)
    wait_until(lambda: guards(owner) == [])
    assert "has ended: nothing is granted" in (folder.path / "log").read_text()
    assert folder.status() == []
    assert folder.witnesses() == []


@contained
def test_next_claim_removes_what_those_left_who_were_killed_before_they_had_one(
    folder: Folder, owner: TaskManager, held: LifeLock
) -> None:
    stray = in_child(lambda: LifeLock(folder.file).name)
    granted(owner.tell("script", *folder.script()))
    names = [path.name.partition("-")[2] for path in folder.witnesses()]
    assert stray not in names
    assert held.name in names
    assert len(names) == 2


def test_life_lock_that_is_just_made_is_not_taken_for_one_that_the_dead_left(folder: Folder) -> None:
    sweeper = os.fork()
    if sweeper == 0:
        while True:
            life_lock.sweep(folder.file, [])
    try:
        for _ in range(2000):
            with contextlib.closing(LifeLock(folder.file)) as lock:
                assert stands(folder.file, lock.name, missing=False)
    finally:
        os.kill(sweeper, signal.SIGKILL)
        os.waitpid(sweeper, 0)


def test_watchers_say_that_nobody_is_left_as_soon_as_the_disk_has_room_for_it(tmp_path: Path) -> None:
    def fill_and_make_room() -> bool:
        mount("none", str(tmp_path), "tmpfs", "size=32k")
        file = f"{tmp_path}/ledger"
        Path(file).touch()
        lock, owner = LifeLock(file), paused_fork()
        lock.post_apart(identify(owner), lambda: None)
        with contextlib.suppress(OSError):
            Path(f"{tmp_path}/full").write_bytes(bytes(1 << 20))
        end_fork(owner)
        time.sleep(0.5)
        before = nobody_is_left(file, lock.name)
        os.unlink(f"{tmp_path}/full")
        wait_until(lambda: nobody_is_left(file, lock.name))
        return before

    assert not in_mounts(fill_and_make_room)
