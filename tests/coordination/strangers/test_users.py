"""Users of one group share devices by a folder that they all may write and that is not sticky: `install -d -m 2770`."""

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from externalresource.coordination import Coordination, Holder, Process, identify
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from externalresource.records import replace
from tests.support.claiming import me
from tests.support.devices import Device
from tests.support.processes import NEW_PIDS, Running, in_child, in_namespaces

R = TypeVar("R")

# Whoever started the tests as another user cannot become these.
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")

ANN, BOB, STRANGER = 64_001, 64_002, 64_003
GROUP = 64_100


GPUS = [Device("0"), Device("1")]


@pytest.fixture(params=[0o022, 0o077], ids=["umask 022", "umask 077"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield a coordination file in a folder as the documentation sets it up; root is no user of it."""
    claim(f"{tmp_path}/warm")  # imports all that is needed: the users may not be able to read it
    earlier = os.umask(request.param)
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = f"{name}/shared"
        os.mkdir(folder)
        os.chown(folder, 0, GROUP)
        os.chmod(folder, 0o2770)
        yield f"{folder}/gpus"
    os.umask(earlier)


def by(user: int, function: Callable[[], R]) -> Callable[[], R]:
    """Return the function as that user runs it, in a child of its own."""

    def as_user() -> R:
        os.setgroups([] if user == STRANGER else [GROUP])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        return function()

    return as_user


def claim(path: str, amount: int = 1, wait: float = 0) -> list[str]:
    return [device.token for device in Coordination(path, "gpu").claim(GPUS, amount, me(), wait=wait)]


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises((CoordinationError, NotEnoughDevicesError)) as caught:
        action()
    return str(caught.value)


class Stage:
    """Users' processes, which live on until they are killed or the test ends."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.processes: list[Running[list[str]]] = []

    def start(self, user: int, function: Callable[[], list[str]]) -> Running[list[str]]:
        self.processes.append(Running(by(user, function)))
        return self.processes[-1]

    def claim(self, user: int, amount: int = 1, wait: float = 0) -> Running[list[str]]:
        return self.start(user, lambda: claim(self.path, amount, wait))

    def queued(self, count: int) -> None:
        """Return once so many wait."""
        deadline = time.monotonic() + 60
        queue = Path(f"{self.path}.queue")
        while not (queue.exists() and queue.read_text().count("\n") == count):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def modes(self) -> set[int]:
        """Return how the files' modes differ."""
        folder = os.path.dirname(self.path)
        return {stat.S_IMODE(os.stat(f"{folder}/{name}").st_mode) for name in os.listdir(folder)}


@pytest.fixture
def stage(path: str) -> Iterator[Stage]:
    stage = Stage(path)
    yield stage
    for process in stage.processes:
        process.kill()


def test_users_divide_the_devices(stage: Stage) -> None:
    assert stage.claim(ANN).result() == ["0"]
    assert stage.claim(BOB).result() == ["1"]
    for user in (ANN, BOB):
        message = in_child(by(user, lambda: refusal(lambda: claim(stage.path))))
        assert message.startswith("1 wanted, 0 of 2 free; held by pid ")
        assert all(str(process.pid) in message for process in stage.processes[:2])
    assert stage.modes() == {0o644}


@pytest.mark.parametrize(("first", "second"), [(ANN, BOB), (BOB, ANN)])
def test_device_of_a_dead_owner_is_free_for_the_other_user(first: int, second: int, stage: Stage) -> None:
    holder = stage.claim(first, 2)
    assert holder.result() == ["0", "1"]
    with pytest.raises(NotEnoughDevicesError):
        stage.claim(second).result()
    holder.kill()
    assert stage.claim(second, 2).result() == ["0", "1"]


def test_each_user_gives_back_its_own(stage: Stage) -> None:
    def take_and_give_back() -> list[str]:
        shared = Coordination(stage.path, "gpu")
        shared.release(shared.claim(GPUS, 1, me()), me())
        return [claim.token for claim in shared.held()]

    stage.claim(ANN).result()
    assert stage.start(BOB, take_and_give_back).result() == ["0"]
    assert stage.claim(ANN).result() == ["1"]


def test_users_wait_in_one_queue(stage: Stage) -> None:
    holder = stage.claim(ANN, 2)
    holder.result()
    waiting = []
    for count, user in enumerate((BOB, ANN, BOB), start=1):
        waiting.append(stage.claim(user, 2, wait=60))
        stage.queued(count)
        assert stage.modes() == {0o644}
    for process in waiting:
        holder.kill()
        assert process.result() == ["0", "1"]
        holder = process
    assert sorted(os.listdir(os.path.dirname(stage.path))) == ["gpus", "gpus.lock"]


def test_place_of_a_killed_user_vanishes_for_the_other(stage: Stage) -> None:
    holder = stage.claim(ANN, 2)
    holder.result()
    waiting = stage.claim(BOB, 2, wait=60)
    stage.queued(1)
    waiting.kill()
    holder.kill()
    assert stage.claim(ANN, 2).result() == ["0", "1"]
    assert sorted(os.listdir(os.path.dirname(stage.path))) == ["gpus", "gpus.lock"]


def in_container(user: int, function: Callable[[], R]) -> Callable[[], R]:
    """Return the function as that user runs it as the first process of a container."""
    return lambda: in_namespaces(by(user, function), NEW_PIDS)


def test_users_in_containers_divide_the_devices_by_their_life_locks(stage: Stage, path: str) -> None:
    ready, tell = os.pipe()
    stay, leave = os.pipe()

    def hold() -> None:
        os.write(tell, claim(path, 1)[0].encode())
        os.read(stay, 1)

    holder = Running(in_container(ANN, hold))
    try:
        assert os.read(ready, 1) == b"0"
        assert in_child(in_container(BOB, lambda: claim(path))) == ["1"]
        assert in_child(in_container(BOB, lambda: refusal(lambda: claim(path, 2)))).startswith("2 wanted, 1 of 2 free")
        assert stage.modes() == {0o644}
    finally:
        os.write(leave, b"!")
        holder.result()
        holder.kill()
    assert in_child(in_container(BOB, lambda: claim(path, 2))) == ["0", "1"]
    for descriptor in (ready, tell, stay, leave):
        os.close(descriptor)


def test_living_claim_is_not_given_back_for_a_made_up_owner(stage: Stage) -> None:
    holder = stage.claim(ANN)
    holder.result()
    living = identify(holder.pid)

    def give_back() -> list[str]:
        made_up = [
            Process(holder.pid),
            replace(living, start_time=None),
            replace(living, start_time=(living.start_time or 0) + 1),
            replace(living, boot_id="another"),
            replace(living, pid_namespace=1),
            replace(living, pid=os.getpid()),
            identify(os.getpid()),
        ]
        return [str(Coordination(stage.path, "gpu").release(GPUS, Holder(process))) for process in made_up]

    assert stage.start(BOB, give_back).result() == ["0"] * 7
    assert stage.claim(BOB).result() == ["1"]


def test_user_outside_the_group_gets_an_error_that_names_the_set_up(stage: Stage) -> None:
    stage.claim(ANN).result()
    message = in_child(by(STRANGER, lambda: refusal(lambda: claim(stage.path))))
    assert message == (
        f"cannot lock {stage.path}.lock: Permission denied; to share devices between users, once none are held, let "
        "all use one file in a new folder that they may write and that is not sticky "
        "(install -d -g GROUP -m 2770 FOLDER)"
    )


@pytest.mark.parametrize("last", ["", ".lock"], ids=["all files", "all but the lock"])
def test_file_in_a_sticky_folder_serves_one_user_and_the_next_one_is_told_the_set_up(stage: Stage, last: str) -> None:
    # With fs.protected_regular the system also refuses O_CREAT, without O_EXCL, for another user's file in such a
    # folder; so nothing of ours is ever opened like that, and this holds whichever way that is set.
    os.chmod(os.path.dirname(stage.path), 0o1777)
    holder = stage.claim(ANN)
    assert holder.result() == ["0"]
    if last:
        os.unlink(stage.path + last)
    before = Path(stage.path).read_bytes()
    message = in_child(by(BOB, lambda: refusal(lambda: claim(stage.path))))
    assert message == (
        f"cannot write {stage.path}: Operation not permitted; it belongs to uid {ANN}, and its folder is sticky; to "
        "share devices between users, once none are held, let all use one file in a new folder that they may write "
        "and "
        "that is not sticky (install -d -g GROUP -m 2770 FOLDER)"
    )
    assert Path(stage.path).read_bytes() == before
    held = in_child(by(BOB, lambda: [claim.owner.process.pid for claim in Coordination(stage.path, "gpu").held()]))
    assert held == [holder.pid]
    assert stage.claim(ANN).result() == ["1"]
