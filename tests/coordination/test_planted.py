"""What somebody planted in the places of our files is never followed, written to or waited for."""

import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from externalresource.coordination import Coordination, ledger, safe_files
from externalresource.errors import CoordinationError
from tests.support.claiming import (
    LONG,
    THREE,
    ask,
    both_refuse,
    claim,
    error_of,
    held,
    me,
    numbered,
    tokens,
)
from tests.support.processes import Running

CONTENT = "0 7\n"  # which would be a ledger


@pytest.fixture
def target(path: str) -> str:
    """Return a file of somebody else."""
    Path(f"{path}-target").write_text(CONTENT)
    return f"{path}-target"


def link(place: str, target: str) -> None:
    os.symlink(target, place)


def dangling_link(place: str, target: str) -> None:
    os.symlink(f"{target}.missing", place)


def hard_link(place: str, target: str) -> None:
    os.link(target, place)


def fifo(place: str, target: str) -> None:
    os.mkfifo(place)


def folder(place: str, target: str) -> None:
    os.mkdir(place)


def bound_socket(place: str, target: str) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(place)


def device(place: str, target: str) -> None:
    try:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device")


Plant = Callable[[str, str], None]
A_LINK = (
    "it is a symbolic link, which is never followed",
    "name the file that it leads to, if devices are held by that, else another one",
)
NO_FILE = "it is not a regular file", "name another one"
ELSEWHERE = "move it to another place"  # what is ours alone
#: What is said of it, and for a ledger, which may be what its user meant, what to do.
PLANTS: dict[Plant, tuple[str, str]] = {
    link: A_LINK,
    dangling_link: A_LINK,
    hard_link: ("it has 2 names (hard links)", "make it a file of its own: cp -p {0} {0}.own && mv {0}.own {0}"),
    fifo: NO_FILE,
    folder: ("it is a folder", "name a file in it, as {0}/coordination"),
    bound_socket: ("No such device or address", ""),
    device: NO_FILE,
}


def said_of(plant: Plant, path: str, place: str = "") -> str:
    what, remedy = PLANTS[plant]
    said = [what, ELSEWHERE if place and remedy else remedy.format(path)]
    return f"{path}{place}: {'; '.join(filter(None, said))}"


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_CREAT], ids=["opened", "created"])
def test_what_is_no_plain_file_is_not_opened(plant: Plant, flags: int, path: str, target: str) -> None:
    plant(path, target)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises((CoordinationError, OSError)):
        safe_files.open_plain(path, flags)
    assert set(os.listdir("/proc/self/fd")) == before
    assert not os.path.exists(f"{target}.missing")


@pytest.mark.parametrize("used", [False, True], ids=["first use", "in use"])
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", ["", ".lock", ".queue"], ids=["ledger", "lock", "queue"])
def test_what_was_planted_grants_nothing_and_is_not_written_to(
    place: str, plant: Plant, path: str, target: str, *, used: bool
) -> None:
    if used:
        assert tokens(claim(path)) == ["0"]
        if place != ".queue":
            os.unlink(path + place)
    plant(path + place, target)
    before, status = set(os.listdir(os.path.dirname(path))), os.lstat(path + place)
    assert both_refuse(path).endswith(said_of(plant, path, place))
    assert Path(target).read_text() == CONTENT
    assert os.path.samestat(os.lstat(path + place), status)
    assert set(os.listdir(os.path.dirname(path))) - before <= ({"gpus", "gpus.lock"} if place else set())


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant is not folder])
@pytest.mark.parametrize("place", [".new", ".queue.new"])
def test_what_was_planted_where_a_file_is_written_is_removed_and_not_written_to(
    place: str, plant: Plant, path: str, target: str
) -> None:
    holder = Running(lambda: claim(path, 3))
    assert holder.result() == THREE
    plant(path + place, target)
    patient = Coordination(path, "gpu", pause=lambda _seconds, _reason: holder.kill())
    assert len(patient.claim(THREE, 1, me(), wait=LONG)) == 1
    assert held(path) == ["0"]
    assert Path(target).read_text() == CONTENT
    assert sorted(os.listdir(os.path.dirname(path))) == ["gpus", "gpus-target", "gpus.lock"]


@pytest.mark.parametrize("place", [".new", ".queue.new"])
def test_folder_where_a_file_is_written_is_an_error_that_grants_nothing(place: str, path: str) -> None:
    claim(path, 2)
    os.mkdir(path + place)
    if place == ".new":
        assert both_refuse(path) == f"cannot write {path}.new: it is a folder; {ELSEWHERE}"
    else:
        with pytest.raises(CoordinationError, match=rf"\.queue\.new: it is a folder; {ELSEWHERE}"):
            claim(path, 2, THREE, 1)
    assert held(path) == ["0", "1"]


@pytest.mark.parametrize("plant", [link, hard_link, fifo, folder])
def test_queue_that_is_no_plain_file_grants_nothing(plant: Plant, path: str, target: str) -> None:
    plant(f"{path}.queue", target)
    message = error_of(CoordinationError, lambda: ask(path, numbered(0), wait=LONG))
    assert message.endswith(said_of(plant, path, ".queue"))
    assert ledger.read(path) == []


def test_ledger_with_two_names_keeps_its_claims_if_one_does_what_the_error_says(path: str) -> None:
    holder = Running(lambda: claim(path))
    assert tokens(holder.result()) == ["0"]
    os.link(path, f"{path}-backup")
    subprocess.run(both_refuse(path).partition("make it a file of its own: ")[2], shell=True, check=True)
    assert held(path) == ["0"]
    assert tokens(claim(path)) == ["1"]
    assert "0" in Path(f"{path}-backup").read_text()
    holder.kill()
