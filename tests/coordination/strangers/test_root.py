"""Root uses the file of a user, who goes on after it: nothing that it writes, or makes beside that, locks him out."""

import ctypes
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from externalresource.coordination import Coordination, Grants
from externalresource.coordination.life_lock import LifeLock
from externalresource.errors import CoordinationError
from tests.support.claiming import content, error_of, gpus, held, tokens
from tests.support.processes import Running, Start, in_child, wait_until

R = TypeVar("R")

# Whoever started the tests as another user cannot become these.
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")

ANN, BOB, GROUP = 64_001, 64_002, 64_100
_CAPABILITIES = 0x20080522  # version 3 of capget(2)
_CHOWN = 1 << 0


def by(user: int, function: Callable[[], R], *groups: int) -> Callable[[], R]:
    """Return the function as that user runs it, in a child of its own."""

    def as_user() -> R:
        os.setgroups(list(groups))
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        return function()

    return as_user


def claim(path: str, wait: float = 0) -> list[str]:
    """Claim one of two devices as a driver does, for a process that is about to end."""
    return tokens(Grants(Coordination(path, "gpu")).claim(gpus(2), 1, wait=wait))


def refusal(path: str) -> str:
    return error_of(CoordinationError, lambda: claim(path))


def files(path: str) -> dict[str, tuple[int, int, str]]:
    """Return owner, group and mode of the file and of what is beside it."""
    folder = Path(path).parent
    found = {file.name: file.lstat() for file in folder.iterdir()}
    return {name: (each.st_uid, each.st_gid, f"{stat.S_IMODE(each.st_mode):o}") for name, each in found.items()}


@pytest.fixture
def sticky(path: str) -> str:
    """Return a coordination file that is not there yet, in a folder like /var/tmp."""
    os.chmod(os.path.dirname(path), 0o1777)
    return path


@pytest.fixture
def anns(sticky: str) -> str:
    """Return Ann's coordination file in it."""
    in_child(by(ANN, lambda: claim(sticky)))
    return sticky


def test_ledger_keeps_owner_group_and_mode_when_root_replaces_it(anns: str) -> None:
    os.chown(anns, ANN, GROUP)
    os.chmod(anns, 0o640)
    assert in_child(lambda: claim(anns)) == ["0"]
    assert files(anns) == {"gpus": (ANN, GROUP, "640"), "gpus.lock": (ANN, ANN, "644")}
    assert in_child(by(ANN, lambda: claim(anns), GROUP)) == ["0"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666])
def test_ledger_keeps_its_mode_and_group_when_its_user_replaces_it(mode: int, anns: str) -> None:
    os.chown(anns, ANN, GROUP)
    os.chmod(anns, mode)
    before = os.stat(anns).st_ino
    assert in_child(by(ANN, lambda: claim(anns), GROUP)) == ["0"]
    assert files(anns)["gpus"] == (ANN, GROUP, f"{mode:o}")
    assert os.stat(anns).st_ino != before


def test_ledger_that_a_group_shares_stays_readable_for_it_whoever_of_it_writes(path: str) -> None:
    os.chmod(os.path.dirname(path), 0o777)  # not sticky, and without the bit that gives each new file its group
    in_child(by(ANN, lambda: claim(path)))
    os.chown(path, ANN, GROUP)
    os.chmod(path, 0o640)
    assert in_child(by(BOB, lambda: claim(path), GROUP)) == ["0"]
    assert files(path)["gpus"] == (BOB, GROUP, "640")
    assert in_child(by(ANN, lambda: claim(path), GROUP)) == ["0"]


def test_user_who_cannot_keep_the_group_that_may_read_the_ledger_writes_nothing(anns: str) -> None:
    os.chown(anns, ANN, GROUP)
    os.chmod(anns, 0o640)
    before = content(anns)
    assert in_child(by(ANN, lambda: refusal(anns))) == (
        f"cannot write {anns}: its group {GROUP} has other rights than all others, and this process cannot keep it; "
        f"nothing was written; put its user into the group (usermod -aG {GROUP} USER), or let all read the file "
        f"(chmod 644 {anns})"
    )
    assert (content(anns), sorted(files(anns))) == (before, ["gpus", "gpus.lock"])
    os.chmod(anns, 0o644)
    assert in_child(by(ANN, lambda: claim(anns))) == ["0"]


def without_chown(function: Callable[[], R]) -> R:
    """Run it as a root that containers have which drop this capability."""

    libc = ctypes.CDLL(None)
    this, sets = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(this, sets) == 0
    sets[0] &= ~_CHOWN  # the effective ones
    assert libc.capset(this, sets) == 0
    return function()


def test_root_that_may_not_give_files_away_writes_nothing_where_that_locks_the_owner_out(anns: str) -> None:
    before = content(anns), files(anns)
    assert in_child(lambda: without_chown(lambda: refusal(anns))) == (
        f"cannot write {anns}: its owner, uid {ANN}, could not replace it, as its folder is sticky; nothing was "
        f"written; give this process CAP_CHOWN, or run it as that user "
        f"(setpriv --reuid {ANN} --clear-groups ...)"
    )
    assert (content(anns), files(anns)) == before


def test_root_that_may_not_give_files_away_writes_no_queue_that_locks_the_owner_out(anns: str, start: Start) -> None:
    holder = start(by(ANN, lambda: Grants(Coordination(anns, "gpu")).claim(gpus(2), 2)))
    holder.result()
    message = in_child(lambda: without_chown(lambda: error_of(CoordinationError, lambda: claim(anns, wait=60))))
    assert message.startswith(f"cannot write {anns}.queue: its owner, uid {ANN}, could not replace it, ")
    assert sorted(files(anns)) == ["gpus", "gpus.lock"]


def test_root_that_may_not_give_files_away_leaves_no_file_that_its_owner_cannot_read(anns: str) -> None:
    os.chmod(os.path.dirname(anns), 0o777)
    assert in_child(lambda: without_chown(lambda: claim(anns))) == ["0"]
    os.chown(anns, ANN, ANN)
    os.chmod(anns, 0o600)
    message = in_child(lambda: without_chown(lambda: refusal(anns)))
    assert message.startswith(f"cannot write {anns}: its owner, uid {ANN}, could not read it; nothing was written; ")
    assert files(anns)["gpus"] == (ANN, ANN, "600")


def test_owner_of_a_sticky_folder_does_not_lock_out_whose_ledger_is_in_it(anns: str) -> None:
    folder = os.path.dirname(anns)
    os.chown(folder, BOB, BOB)
    assert in_child(by(BOB, lambda: refusal(anns))) == (
        f"cannot write {anns}: its owner, uid {ANN}, could not replace it, as its folder is sticky; nothing was "
        "written; to share devices between users, once none are held, let all use one file in a new folder that they "
        "may write and that is not sticky (install -d -g GROUP -m 2770 FOLDER)"
    )
    assert in_child(by(ANN, lambda: claim(anns))) == ["0"]
    os.chmod(folder, 0o777)
    assert in_child(by(BOB, lambda: claim(anns))) == ["0"]
    assert in_child(by(ANN, lambda: claim(anns))) == ["0"]


def test_lock_file_that_root_makes_belongs_to_the_owner_of_the_ledger(anns: str) -> None:
    os.unlink(f"{anns}.lock")
    assert in_child(lambda: claim(anns)) == ["0"]
    assert set(files(anns).values()) == {(ANN, ANN, "644")}


def test_queue_and_life_locks_of_root_belong_to_the_owner_of_the_ledger(anns: str, start: Start) -> None:
    holder = start(by(ANN, lambda: Grants(Coordination(anns, "gpu")).claim(gpus(2), 2)))
    holder.result()
    waiting = start(lambda: claim(anns, wait=60))
    wait_until(lambda: os.path.exists(f"{anns}.queue"))
    assert len(files(anns)) == 4
    assert set(files(anns).values()) == {(ANN, ANN, "644")}
    waiting.kill()
    holder.kill()
    assert in_child(by(ANN, lambda: claim(anns))) == ["0"]
    assert sorted(files(anns)) == ["gpus", "gpus.lock"]


def test_user_removes_the_life_lock_of_a_root_that_was_killed(anns: str, start: Start) -> None:
    root = start(lambda: LifeLock(anns).name)
    name = f"gpus.witness-{root.result()}"
    root.kill()
    assert files(anns)[name] == (ANN, ANN, "644")

    def claim_in_a_container() -> None:
        Grants(Coordination(anns, "gpu", in_container=lambda: True)).claim(gpus(2), 1)

    in_child(by(ANN, claim_in_a_container))
    assert name not in files(anns)


def test_user_is_told_how_to_get_rid_of_what_a_killed_root_left_where_his_ledger_is_written(anns: str) -> None:
    Path(f"{anns}.new").touch()
    message = in_child(by(ANN, lambda: refusal(anns)))
    assert message.startswith(f"cannot write {anns}.new: Operation not permitted; it belongs to root, ")
    assert f" by: chown {ANN} {anns}.new; " in message
    os.chown(f"{anns}.new", ANN, -1)
    assert in_child(by(ANN, lambda: claim(anns))) == ["0"]


def test_user_after_root_is_told_how_to_get_the_file_and_root_uses_it_afterwards_all_the_same(sticky: str) -> None:
    root = Running(lambda: claim(sticky))
    assert root.result() == ["0"]
    message = in_child(by(ANN, lambda: refusal(sticky)))
    assert message.startswith(
        f"cannot write {sticky}: Operation not permitted; it belongs to root, and its folder is sticky; "
        f"root lets this user have it, and uses it all the same, by: chown {ANN} {sticky}; "
    )
    os.chown(sticky, ANN, -1)
    assert in_child(by(ANN, lambda: claim(sticky))) == ["1"]
    assert in_child(lambda: claim(sticky)) == ["1"]
    assert in_child(by(ANN, lambda: claim(sticky))) == ["1"]
    root.kill()
    assert len(held(sticky)) == 2
