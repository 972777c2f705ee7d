"""In a sticky folder a file serves one user. Another one is told so, leaves nothing beside it and keeps nobody out."""

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from externalresource.coordination import Coordination, Grants, life_lock as life_locks, queue
from externalresource.coordination.life_lock import LifeLock
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.claiming import content, gpus, me, tokens
from tests.support.processes import NEW_PIDS, Running, in_child, in_namespaces

R = TypeVar("R")

# Whoever started the tests as another user cannot become these.
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")

ANN, BOB = 64_001, 64_002
Start = Callable[[Callable[[], object]], Running[object]]
_CREATED = 0x100  # inotify(7)
REFUSED = (
    "cannot write {}: Operation not permitted; it belongs to uid {}, and its folder is sticky; to share devices "
    "between users, once none are held, let all use one file in a new folder that they may write and that is not "
    "sticky "
    "(install -d -g GROUP -m 2770 FOLDER)"
)


def by(user: int, function: Callable[[], R]) -> Callable[[], R]:
    """Return the function as that user runs it, in a child of its own."""

    def as_user() -> R:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        return function()

    return as_user


def claim(path: str, wait: float = 0, **options: bool) -> list[str]:
    """Claim the one device as a driver does."""
    return tokens(Grants(Coordination(path, "gpu")).claim(gpus(1), 1, wait=wait, **options))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CoordinationError) as caught:
        action()
    return str(caught.value)


def not_enough(path: str, wait: float) -> str:
    with pytest.raises(NotEnoughDevicesError) as caught:
        claim(path, wait=wait)
    return str(caught.value)


def wait_until_queued(path: str) -> None:
    deadline = time.monotonic() + 60
    while not os.path.exists(f"{path}.queue"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


@pytest.fixture
def sticky(path: str) -> str:
    """Return a coordination file of Ann's in a sticky folder, with no claims."""
    os.chmod(os.path.dirname(path), 0o1777)
    in_child(by(ANN, lambda: Coordination(path, "gpu").claim(gpus(1), 1, me())))
    in_child(by(ANN, lambda: Coordination(path, "gpu").drop(lambda _claim, _holder: True)))
    assert (content(path), files(path)) == ("", ["gpus", "gpus.lock"])
    return path


ASKED: dict[str, Callable[[str], object]] = {
    "waits": lambda path: claim(path, wait=60),
    "does not wait": claim,
    "waits, as a command of `run`": lambda path: claim(path, wait=60, marked=True),
    "waits in a container": lambda path: in_child(
        lambda: in_namespaces(by(BOB, lambda: claim(path, wait=60)), NEW_PIDS)
    ),
}


class Folder:
    """Tells whether anything was ever made in it."""

    def __init__(self, path: str) -> None:
        libc = ctypes.CDLL(None)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._inotify, os.path.dirname(path).encode(), _CREATED) >= 0

    def made(self) -> bool:
        try:
            return bool(os.read(self._inotify, 65536))
        except BlockingIOError:
            return False


@pytest.mark.parametrize("taken", [True, False], ids=["it is held", "it is free"])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_second_user_is_refused_and_makes_nothing_at_any_moment(
    asked: Callable[[str], object], sticky: str, start: Start, *, taken: bool
) -> None:
    holder = start(by(ANN, lambda: claim(sticky)))
    assert holder.result() == ["0"]
    if not taken:
        holder.kill()
    folder = Folder(sticky)
    user = (lambda function: function) if asked is ASKED["waits in a container"] else lambda f: by(BOB, f)
    if taken and asked is claim:
        with pytest.raises(Exception, match="0 of 1 free"):
            in_child(user(lambda: claim(sticky)))
    else:
        assert in_child(user(lambda: refusal(lambda: asked(sticky)))) == REFUSED.format(sticky, ANN)
    assert not folder.made()
    holder.kill()


def test_first_user_waits_and_gets_the_device_whatever_the_second_one_tries(sticky: str, start: Start) -> None:
    holder = start(by(ANN, lambda: claim(sticky)))
    holder.result()
    second = start(by(BOB, lambda: refusal(lambda: claim(sticky, wait=60))))
    assert second.result() == REFUSED.format(sticky, ANN)
    waiting = start(by(ANN, lambda: claim(sticky, wait=60)))
    wait_until_queued(sticky)
    second.kill()
    holder.kill()
    assert waiting.result() == ["0"]
    waiting.kill()
    assert files(sticky) == ["gpus", "gpus.lock"]


def test_second_user_makes_no_lock_file_beside_the_ledger(sticky: str) -> None:
    os.unlink(f"{sticky}.lock")
    assert in_child(by(BOB, lambda: refusal(lambda: claim(sticky)))) == REFUSED.format(sticky, ANN)
    assert files(sticky) == ["gpus"]


def test_user_who_may_not_write_the_folder_is_told_the_ledger_that_he_cannot_write(sticky: str, start: Start) -> None:
    folder = os.path.dirname(sticky)
    os.chown(folder, ANN, ANN)
    os.chmod(folder, 0o755)
    holder = start(by(ANN, lambda: claim(sticky)))
    holder.result()
    message = in_child(by(BOB, lambda: refusal(lambda: claim(sticky, wait=60))))
    assert message.startswith(f"cannot write {sticky}: Permission denied; to share devices between users")
    holder.kill()


def left_by_bob(path: str) -> str:
    """Leave a place in a queue of Bob's, as an earlier version of this program did when it was killed."""

    def wait() -> str:
        other = f"{path}-other"
        lock = LifeLock(other)
        name = f"{path}.witness-{lock.name}"
        os.rename(f"{other}.witness-{lock.name}", name)
        place = queue.place(lock.name, 1, gpus(1))
        Path(f"{path}.queue").write_text(f"{place.life_lock} 1 GPU-0\n", encoding="ascii")
        return lock.name

    return in_child(by(BOB, wait))


def test_queue_that_cannot_be_removed_is_an_error_in_one_line(sticky: str) -> None:
    name = left_by_bob(sticky)
    assert not life_locks.stands(sticky, name)
    message = in_child(by(ANN, lambda: refusal(lambda: claim(sticky))))
    assert message == REFUSED.format(f"{sticky}.queue", BOB).replace("write", "remove", 1)
    os.unlink(f"{sticky}.queue")
    assert in_child(by(ANN, lambda: claim(sticky))) == ["0"]


def test_root_uses_the_file_of_another_user_and_keeps_him_not_out(sticky: str) -> None:
    assert in_child(lambda: claim(sticky, wait=60)) == ["0"]
    assert (os.stat(sticky).st_uid, os.stat(sticky).st_gid) == (ANN, ANN)
    assert in_child(by(ANN, lambda: claim(sticky))) == ["0"]


def test_root_that_waits_and_is_killed_keeps_the_first_user_not_out(sticky: str, start: Start) -> None:
    holder = start(by(ANN, lambda: claim(sticky)))
    holder.result()
    waiting = start(lambda: claim(sticky, wait=60))
    wait_until_queued(sticky)
    assert "0 of 1 free" in in_child(by(ANN, lambda: not_enough(sticky, 0.3)))
    waiting.kill()
    holder.kill()
    assert in_child(by(ANN, lambda: claim(sticky))) == ["0"]


def test_folder_in_place_of_the_ledger_is_not_removed(path: str) -> None:
    os.mkdir(path)
    assert "it is a folder" in refusal(lambda: claim(path, wait=1))
    assert refusal(lambda: claim(path, marked=True))
    assert os.path.isdir(path)
