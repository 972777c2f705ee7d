"""What a TaskManager's forks, its later selves and its threads hold: on the host, and in a container."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import externalresource
from externalresource.coordination import Coordination
from tests.support.processes import wait_until
from tests.support.taskmanager import (
    Folder,
    TaskManager,
    containers_are_permitted,
    first_child,
    granted,
    is_refused,
)

#: pid 1 of a container that lives on when the TaskManager in it has ended.
INIT = ["sh", "-c", '"$@"; exec sleep 600', "init"]

contained = pytest.mark.skipif(not containers_are_permitted(), reason="this system grants no pid namespaces")
everywhere = pytest.mark.parametrize("place", ["host", pytest.param("container", marks=contained)])
#: Where the TaskManager is, and where the one that asks for its device.
between = pytest.mark.parametrize(
    ("place", "asking"),
    [
        ("host", "host"),
        pytest.param("container", "host", marks=contained),
        pytest.param("container", "container", marks=contained),
    ],
)

Started = Callable[[str], TaskManager]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def started() -> Iterator[Started]:
    with contextlib.ExitStack() as all_of_them:

        def start(place: str) -> TaskManager:
            container = place == "container"
            return all_of_them.enter_context(TaskManager(container=container, wrapper=INIT if container else ()))

        yield start


def kill(task_manager: TaskManager, place: str) -> None:
    """End a TaskManager only: its forks, and its container, live on."""
    if place == "host":
        task_manager.kill()
    else:
        os.kill(first_child(task_manager.pid), signal.SIGKILL)


def is_free(asker: TaskManager, folder: Folder) -> bool:
    return not is_refused(asker.tell("script", *folder.script()))


@contextlib.contextmanager
def outliving(task_manager: TaskManager, child: int) -> Iterator[Callable[[], None]]:
    """Yield what ends a child on the host that has outlived its TaskManager; that of a container ends with it."""
    here = task_manager.outside(child)
    try:
        yield lambda: os.kill(here, signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(here, signal.SIGKILL)


# Forks


@between
def test_end_of_a_fork_gives_nothing_back(folder: Folder, started: Started, place: str, asking: str) -> None:
    owner, asker = started(place), started(asking)
    owner.tell("claim", folder.options())
    owner.tell("end", owner.tell("fork"))
    assert not is_free(asker, folder)


@between
def test_close_in_a_fork_gives_nothing_back(folder: Folder, started: Started, place: str, asking: str) -> None:
    owner, asker = started(place), started(asking)
    owner.tell("claim", folder.options())
    files = folder.files()
    assert owner.tell("fork_that_closes") == 0
    assert not is_free(asker, folder)
    assert folder.files() == files
    owner.tell("close")
    assert is_free(asker, folder)


@between
def test_what_a_fork_claims_is_its_own(folder: Folder, started: Started, place: str, asking: str) -> None:
    owner, asker = started(place), started(asking)
    (first,) = owner.tell("claim", folder.options(2))
    fork, (second,) = owner.tell("fork_that_claims", folder.options(2))
    assert first != second
    assert is_refused(asker.tell("script", *folder.script(1, 2)))
    owner.tell("close")
    assert [row["uuid"] for row in folder.status()] == [second]
    owner.tell("end", fork)
    wait_until(lambda: not is_refused(asker.tell("script", *folder.script(2, 2))))


@between
def test_fork_that_outlives_its_task_manager_holds_nothing(
    folder: Folder, started: Started, place: str, asking: str
) -> None:
    # A PyFlink worker ends with its TaskManager; one that hangs does not keep a GPU from the next.
    owner, asker = started(place), started(asking)
    owner.tell("claim", folder.options())
    with outliving(owner, owner.tell("fork")):
        kill(owner, place)
        wait_until(lambda: is_free(asker, folder))


@between
def test_fork_of_one_that_claimed_without_a_driver_holds_nothing(
    folder: Folder, started: Started, place: str, asking: str
) -> None:
    owner, asker = started(place), started(asking)
    owner.tell("claim_without_driver", folder.file)
    assert not is_free(asker, folder)
    with outliving(owner, owner.tell("fork")):
        kill(owner, place)
        wait_until(lambda: is_free(asker, folder))


@everywhere
def test_one_that_claimed_without_a_driver_gives_back_and_leaves_nothing(
    folder: Folder, started: Started, place: str
) -> None:
    owner, asker = started(place), started(place)
    owner.tell("claim_without_driver", folder.file)
    owner.tell("close")
    assert folder.files() == ["ledger", "ledger.lock"]
    assert is_free(asker, folder)


@between
def test_fork_of_a_task_manager_whose_script_claimed_holds_nothing(
    folder: Folder, started: Started, place: str, asking: str
) -> None:
    owner, asker = started(place), started(asking)
    granted(owner.tell("script", *folder.script()))
    with outliving(owner, owner.tell("fork")):
        kill(owner, place)
        wait_until(lambda: is_free(asker, folder))


# A TaskManager that executes itself again


@between
def test_task_manager_that_executes_itself_again_keeps_its_device(
    folder: Folder, started: Started, place: str, asking: str
) -> None:
    owner, asker = started(place), started(asking)
    owner.tell("claim", folder.options())
    owner.tell("execute_again", True)
    assert not is_free(asker, folder)
    assert not is_free(owner, folder)
    owner.tell("execute_again", True)
    assert not is_free(asker, folder)
    kill(owner, place)
    wait_until(lambda: is_free(asker, folder))


@everywhere
def test_task_manager_that_executes_itself_again_keeps_what_its_script_claimed(
    folder: Folder, started: Started, place: str
) -> None:
    owner, asker = started(place), started(place)
    granted(owner.tell("script", *folder.script()))
    owner.tell("execute_again", False)
    assert not is_free(asker, folder)
    kill(owner, place)
    wait_until(lambda: is_free(asker, folder))


def test_device_outlasts_an_exec_on_the_host_that_nobody_announced(folder: Folder, started: Started) -> None:
    owner, asker = started("host"), started("host")
    owner.tell("claim", folder.options())
    owner.tell("execute_again", False)
    assert not is_free(asker, folder)


@contained
def test_fork_that_announces_an_exec_keeps_nothing_of_its_parents(folder: Folder, started: Started) -> None:
    owner, asker = started("container"), started("container")
    owner.tell("claim", folder.options())
    fork = owner.tell("fork_that_executes")
    with outliving(owner, fork):
        kill(owner, "container")
        wait_until(lambda: is_free(asker, folder))


# Threads


def test_contexts_of_several_threads_have_different_devices_and_give_back_their_own(folder: Folder) -> None:
    number = 4
    together = threading.Barrier(number)
    claimed: dict[int, str | None] = {}
    errors: list[BaseException] = []

    def held() -> set[str | None]:
        return {claim.uuid for claim in Coordination(folder.file, "gpu").held()}

    def operate(turn: int) -> None:
        try:
            with externalresource.claim("gpu", 1, options=folder.options(number)) as context:
                (info,) = context.get_external_resource_infos("gpu")
                claimed[turn] = info.get_property("uuid")
                together.wait()
                assert held() == set(claimed.values())
                for other in range(number):
                    together.wait()
                    if other == turn:
                        context.close()
                    together.wait()
                    assert held() == {claimed[later] for later in range(other + 1, number)}
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            together.abort()
            errors.append(error)

    threads = [threading.Thread(target=operate, args=[turn]) for turn in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(claimed.values())) == number
