"""What happens to a coordination file and its lock as others remove, fill, inherit and lock them."""

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from externalresource.coordination import Claim, Coordination, Grants, safe_files
from externalresource.errors import CoordinationError
from tests.support.claiming import claim, error_of, gpus, me, no_wait, tokens
from tests.support.devices import Device
from tests.support.processes import Start, in_child

Choose = Callable[[Sequence[Device], Sequence[Claim], int], Sequence[Device]]


class Stopped:
    """Whoever chooses by this stops under the lock, until it is told to go on."""

    def __init__(self) -> None:
        self._inside, self._is_inside = os.pipe()
        self._goes, self._go = os.pipe()

    def choose(self, free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        os.write(self._is_inside, b".")
        os.read(self._goes, 1)
        return free[:amount]

    def wait(self) -> None:
        os.read(self._inside, 1)

    def go_on(self) -> None:
        os.write(self._go, b".")


def test_removal_of_the_lock_file_lets_nobody_in_beside_a_claim_in_progress(path: str, start: Start) -> None:
    stopped = Stopped()
    first = start(lambda: Coordination(path, "gpu").claim(gpus(2), 1, me(), choose=stopped.choose))
    stopped.wait()
    os.unlink(f"{path}.lock")
    second = Coordination(path, "gpu")
    message = error_of(CoordinationError, lambda: second.claim(gpus(2), 1, me(), deadline=no_wait() + 0.1))
    assert message.startswith(f"timed out waiting for the lock {path}, which is held by pid {first.pid} ")
    stopped.go_on()
    assert tokens(first.result()) == ["0"]
    assert tokens(second.claim(gpus(2), 1, me())) == ["1"]


def test_removal_of_the_lock_file_lets_nobody_in_before_the_end_of_a_claim_that_is_written(path: str) -> None:
    asked: list[str] = []

    class Asking(Coordination):
        def _write(self, locked: object, before: Sequence[Claim], after: Sequence[Claim]) -> None:
            super()._write(locked, before, after)  # type: ignore[arg-type]
            os.unlink(f"{path}.lock")
            other = Coordination(path, "gpu")
            asked.append(error_of(CoordinationError, lambda: other.claim(gpus(2), 1, me(), deadline=no_wait())))

    Asking(path, "gpu").claim(gpus(2), 1, me())
    assert [message.partition(",")[0] for message in asked] == [f"timed out waiting for the lock {path}"]


def test_lock_file_is_made_young_by_each_claim(path: str) -> None:
    claim(path, 1, gpus(2))
    os.utime(f"{path}.lock", (0, 0))
    claim(path, 1, gpus(2))
    assert os.stat(f"{path}.lock").st_mtime > 0


def claim_without_room(path: str) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    return error_of(CoordinationError, lambda: claim(path, 1, gpus(1)))


def test_first_claim_on_a_full_disk_leaves_no_lock_file_without_its_content(path: str) -> None:
    assert in_child(lambda: claim_without_room(path)) == f"cannot write {path}.lock: File too large"
    assert not os.path.exists(f"{path}.lock")
    claim(path, 1, gpus(1))
    os.unlink(path)
    assert "was removed while its lock file remained" in error_of(CoordinationError, lambda: claim(path, 1, gpus(1)))


def close_without_room(path: str) -> list[str]:
    """Return the error of a close, and what is held after another one for which there is room."""
    grants = Grants(Coordination(path, "gpu"))
    claim(path, 1, gpus(2))
    grants.claim(gpus(2), 1)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
    message = error_of(CoordinationError, grants.close)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    grants.close()
    return [message, *(claim.token for claim in Coordination(path, "gpu").held())]


def test_close_for_which_there_was_no_room_can_be_repeated(path: str) -> None:
    assert in_child(lambda: close_without_room(path)) == [f"cannot write {path}: File too large", "0"]


def test_fork_of_another_thread_does_not_keep_the_lock(path: str, start: Start) -> None:
    stopped, (reader, writer) = Stopped(), os.pipe()

    def claim_and_fork() -> list[Device]:
        claiming = Coordination(path, "gpu")
        threading.Thread(target=lambda: claiming.claim(gpus(1), 1, me(), choose=stopped.choose)).start()
        stopped.wait()
        child = os.fork()
        if child == 0:
            signal.pause()
        os.write(writer, str(child).encode())
        signal.pause()
        return []

    parent = start(claim_and_fork)
    child = int(os.read(reader, 20))
    try:
        parent.kill()
        assert claim(path, 1, gpus(1))
    finally:
        os.kill(child, signal.SIGKILL)


def test_forks_while_another_thread_claims_again_and_again_have_no_descriptor_of_its_lock(path: str) -> None:
    def claim_all_the_time() -> None:
        shared = Coordination(path, "gpu")
        while not done:
            shared.release(shared.claim(gpus(1), 1, me()), me())

    done: list[bool] = []
    claiming = threading.Thread(target=claim_all_the_time)
    claiming.start()
    try:
        kept = [in_child(locked_files) for _ in range(100)]
    finally:
        done.append(True)
        claiming.join()
    assert kept == [[]] * 100


def test_fork_while_a_descriptor_is_opened_waits_until_it_is_known(path: str) -> None:
    opened: list[int] = []
    forked: list[bool] = []

    def is_left() -> bool:
        try:
            os.fstat(opened[0])
        except OSError:
            return True
        return False

    def open_slowly() -> int:
        opened.append(os.open(path, os.O_CREAT))
        forking.start()
        time.sleep(0.2)
        return opened[0]

    forking = threading.Thread(target=lambda: forked.append(in_child(is_left)))
    descriptors = safe_files.Descriptors()
    descriptors.take(open_slowly)
    forking.join()
    descriptors.close()
    assert forked == [True]


def locked_files() -> list[str]:
    """Return the descriptors of this process that hold a lock."""
    found = []
    for name in os.listdir("/proc/self/fdinfo"):
        try:
            text = Path(f"/proc/self/fdinfo/{name}").read_text(encoding="ascii")
        except FileNotFoundError:  # the one that listed them
            continue
        if "FLOCK" in text:
            found.append(name)
    return found


LIFE_LOCK = """
import sys
from externalresource.coordination.life_lock import LifeLock
from externalresource.errors import CoordinationError
try:
    LifeLock(sys.argv[1])
except CoordinationError as error:
    print(error)
"""


def test_user_who_locks_each_new_life_lock_holds_nobody_up(path: str) -> None:
    begin = time.monotonic()
    others = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=flock:error=EAGAIN"]
    command = [*others, sys.executable, "-P", "-c", LIFE_LOCK, path]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout
    assert said.startswith(f"cannot keep {path}.witness-")
    assert said.endswith(" locked: somebody locks each file that is made there\n")
    assert time.monotonic() - begin < 60
    assert os.listdir(Path(path).parent) == []


@pytest.mark.parametrize("missing", ["", ".lock"], ids=["ledger", "lock file"])
def test_file_that_vanishes_while_the_lock_is_taken_is_no_traceback(path: str, missing: str) -> None:
    def vanish(descriptor: int) -> bool:
        if os.path.exists(path + missing) and os.path.samestat(os.fstat(descriptor), os.stat(path + missing)):
            os.unlink(path + missing)
        return True

    message = error_of(
        CoordinationError, lambda: Coordination(path, "gpu", lock=vanish).claim(gpus(1), 1, me(), deadline=no_wait())
    )
    assert message.startswith(("timed out waiting for the lock", f"coordination file {path} was removed"))


def test_list_of_devices_that_its_caller_empties_gives_nothing_back(path: str) -> None:
    grants = Grants(Coordination(path, "gpu"))
    list_of_the_caller = grants.claim(gpus(1), 1)
    assert isinstance(list_of_the_caller, list)
    list_of_the_caller.clear()
    del grants
    gc.collect()
    assert len(Coordination(path, "gpu").held()) == 1


def test_queue_that_cannot_be_read_keeps_nobody_from_giving_back(path: str) -> None:
    contained = Coordination(path, "gpu", in_container=lambda: True)
    claimed = contained.claim(gpus(1), 1, me())
    Path(f"{path}.queue").write_text("no queue\n", encoding="ascii")
    assert contained.release(claimed, me()) == 1
    assert contained.held() == []
