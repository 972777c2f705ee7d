"""The lock of a coordination file: who waits for it, what is refused as one, what it costs."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import externalresource
from externalresource.coordination import Claim, Coordination, flock
from externalresource.coordination.lock import by_filelock
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.claiming import claim, content, error_of, gpus, locked, me, no_wait, tokens
from tests.support.devices import Device
from tests.support.processes import Start, as_another_user


def test_lock_that_another_process_holds_until_the_deadline_is_an_error(path: str) -> None:
    shared = Coordination(path, "gpu")
    claimed = shared.claim(gpus(2), 1, me())
    before = content(path)
    with locked(f"{path}.lock"):
        for action in (
            lambda: shared.claim(gpus(2), 1, me(), deadline=time.monotonic() + 0.05),
            lambda: shared.release(claimed, me(), deadline=no_wait()),
        ):
            assert error_of(CoordinationError, action) == (
                f"timed out waiting for the lock {path}.lock, which is held by pid {os.getpid()} "
                f"({me().process.program}); nothing was changed"
            )
    assert content(path) == before


def test_lock_that_is_free_is_taken_though_the_deadline_has_passed(path: str) -> None:
    assert Coordination(path, "gpu").claim(gpus(1), 1, me(), deadline=no_wait() - 10)


def test_lock_is_waited_for(path: str, start: Start) -> None:
    with locked(f"{path}.lock"):
        asker = start(lambda: claim(path, 1, gpus(1)))
        time.sleep(0.05)
        assert not os.path.exists(path)
    assert tokens(asker.result()) == ["0"]


def test_lock_file_that_is_removed_while_one_waits_is_made_anew(path: str, start: Start) -> None:
    with locked(f"{path}.lock"):
        asker = start(lambda: claim(path, 1, gpus(1)))
        time.sleep(0.05)
        os.unlink(f"{path}.lock")
        assert tokens(asker.result()) == ["0"]


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "replaced"])
def test_lock_on_a_file_that_is_no_longer_at_its_place_is_none(path: str, *, removed: bool) -> None:
    calls: list[int] = []

    def at_the_worst_moment(descriptor: int) -> bool:
        if not calls:
            Path(f"{path}.other").touch()
            os.replace(f"{path}.other", f"{path}.lock")
            if removed:
                os.unlink(f"{path}.lock")
        calls.append(descriptor)
        return flock(descriptor)

    def choose(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        with open(f"{path}.lock", "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return free[:amount]

    assert Coordination(path, "gpu", lock=at_the_worst_moment).claim(gpus(1), 1, me(), choose=choose)
    assert len(calls) == 4  # the lock file twice, the ledger, and the one that is put in its place


def test_file_system_without_locks_is_an_error_with_its_remedy(path: str) -> None:
    def no_locks(descriptor: int) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = os.listdir("/proc/self/fd")
    coordination = Coordination(path, "gpu", lock=no_locks)
    message = error_of(CoordinationError, lambda: coordination.claim(gpus(1), 1, me()))
    assert message == f"cannot lock {path}: No locks available; choose a file on a local file system"
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_lock_is_freed_though_a_fork_of_that_moment_lives_on(path: str) -> None:
    forks = []

    def fork(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        child = os.fork()
        if child == 0:
            signal.pause()
        forks.append(child)
        return free[:amount]

    Coordination(path, "gpu").claim(gpus(2), 1, me(), choose=fork)
    try:
        assert Coordination(path, "gpu").claim(gpus(2), 1, me(), deadline=no_wait())
    finally:
        os.kill(forks[0], signal.SIGKILL)
        os.waitpid(forks[0], 0)


def test_lock_of_a_killed_process_is_free(path: str, start: Start) -> None:
    (reader, writer) = os.pipe()

    def hold(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        os.write(writer, b".")
        signal.pause()
        return []

    holder = start(lambda: Coordination(path, "gpu").claim(gpus(1), 1, me(), choose=hold))
    os.read(reader, 1)
    with pytest.raises(CoordinationError, match="timed out waiting for the lock"):
        Coordination(path, "gpu").claim(gpus(1), 1, me(), deadline=no_wait())
    holder.kill()
    assert Coordination(path, "gpu").claim(gpus(1), 1, me(), deadline=no_wait())
    os.close(reader)
    os.close(writer)


def test_lock_file_is_neither_written_nor_replaced_nor_removed(path: str) -> None:
    Path(f"{path}.lock").write_text("somebody's", encoding="ascii")
    before = os.stat(f"{path}.lock")
    shared = Coordination(path, "gpu")
    shared.release(shared.claim(gpus(1), 1, me()), me())
    assert os.path.samestat(os.stat(f"{path}.lock"), before)
    assert content(f"{path}.lock") == "somebody's"


@pytest.mark.parametrize("plant", ["fifo", "folder", "symbolic link", "dangling link", "hard link"])
def test_lock_that_is_no_plain_file_is_an_error(plant: str, path: str) -> None:
    lock, target = f"{path}.lock", f"{path}.target"
    Path(target).touch()
    match plant:
        case "fifo":
            os.mkfifo(lock)
        case "folder":
            os.mkdir(lock)
        case "symbolic link":
            os.symlink(target, lock)
        case "dangling link":
            os.symlink(f"{path}.missing", lock)
        case _:
            os.link(target, lock)
    message = error_of(CoordinationError, lambda: claim(path, 1, gpus(1)))
    assert re.match(rf"cannot (lock|use) {re.escape(lock)}: it (is|has) .*; move it to another place", message)
    assert not os.path.exists(path)
    assert not os.path.exists(f"{path}.missing")


def test_missing_folder_is_an_error_with_its_remedy(path: str) -> None:
    message = error_of(CoordinationError, lambda: claim(f"{path}/missing/gpus", 1, gpus(1)))
    assert message == (
        f"cannot lock {path}/missing/gpus.lock: No such file or directory; create its folder, or choose another file"
    )


def test_no_descriptor_is_left_open(path: str) -> None:
    before = os.listdir("/proc/self/fd")
    shared = Coordination(path, "gpu")
    shared.release(shared.claim(gpus(1), 1, me()), me())
    with locked(f"{path}.lock"), pytest.raises(CoordinationError):
        shared.claim(gpus(1), 1, me(), deadline=no_wait())
    with pytest.raises(NotEnoughDevicesError):
        shared.claim(gpus(1), 2, me())
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_users_divide_the_devices_in_a_folder_that_all_may_write(shared: Path, umask: int) -> None:
    path = str(shared / "gpus")
    earlier = os.umask(umask)
    try:
        assert tokens(claim(path, 1, gpus(2))) == ["0"]
        assert tokens(as_another_user(lambda: claim(path, 1, gpus(2)))) == ["1"]
        assert tokens(claim(path, 1, gpus(3))) in (["1"], ["2"])
    finally:
        os.umask(earlier)
    assert {os.stat(file).st_mode & 0o777 for file in (path, f"{path}.lock")} == {0o644}


def test_file_of_another_user_in_a_sticky_folder_grants_nothing(shared: Path) -> None:
    path = str(shared / "gpus")
    shared.chmod(0o1777)
    claim(path, 1, gpus(2))
    before = content(path)
    message = as_another_user(lambda: error_of(CoordinationError, lambda: claim(path, 1, gpus(2))))
    assert message.startswith(f"cannot write {path}: Operation not permitted; it belongs to root, ")
    assert content(path) == before


def test_folder_that_may_not_be_written_grants_nothing(shared: Path) -> None:
    shared.chmod(0o755)
    path = str(shared / "gpus")
    message = as_another_user(lambda: error_of(CoordinationError, lambda: claim(path, 1, gpus(2))))
    assert message.startswith(f"cannot write {path}: Permission denied; to share devices between users")


HOLD = """
import sys
from externalresource.coordination.lock import Lock, by_filelock, flock
def hold(_locked):
    print(flush=True)
    sys.stdin.read()
Lock(sys.argv[1], {lock}).during(hold, 0)
"""


@pytest.mark.parametrize("asker", [flock, by_filelock])
@pytest.mark.parametrize("holder", ["flock", "by_filelock"])
def test_system_call_and_filelock_exclude_each_other(path: str, holder: str, asker: Callable[[int], bool]) -> None:
    command = [sys.executable, "-P", "-c", HOLD.format(lock=holder), path]
    asking = Coordination(path, "gpu", lock=asker)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        message = error_of(CoordinationError, lambda: asking.claim(gpus(1), 1, me(), deadline=no_wait()))
        assert f"which is held by pid {process.pid} (python" in message
        process.communicate()
    assert asking.claim(gpus(1), 1, me(), deadline=no_wait())


CLAIM = """
import os, sys
from externalresource.coordination import Coordination, Holder, flock, identify, new_grant, runs_around
class Device:
    token = uuid = "GPU-0"
    parent_uuid = parent_token = None
owner = Holder(identify(os.getppid()), new_grant())
coordination = Coordination(sys.argv[1], "gpu", lock=flock)
coordination.release(coordination.claim([Device()], 1, owner), owner)
print(*sys.modules)
"""
COSTLY = {
    *("typing", "dataclasses", "inspect", "contextlib", "filelock", "pluggy", "logging", "pathlib", "subprocess"),
    *("urllib", "urllib.parse", "secrets", "importlib.metadata", "signal", "random", "hashlib", "tempfile"),
}


def test_claim_of_the_discovery_script_imports_nothing_that_costs(path: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-P", "-S", "-c", CLAIM, path]
    environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(externalresource.__file__))
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "externalresource.coordination.claims" in said.split()
    assert COSTLY & set(said.split()) == set()
