"""Owners in pid namespaces of their own, where each is pid 1, that share a coordination file."""

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from externalresource.coordination import Coordination
from externalresource.coordination.process import gone, observer, pid_here
from externalresource.records import replace
from tests.support.processes import NEW_PIDS, as_another_user, in_namespaces, mount, wait_until
from tests.support.taskmanager import (
    COMMAND_LINE,
    MODULE,
    Folder,
    RefusedError,
    TaskManager,
    containers_are_permitted,
    first_child,
    granted,
    is_refused,
    unshare,
)

INITIAL_PID_NAMESPACE = 0xEFFFFFFC

pytestmark = pytest.mark.skipif(not containers_are_permitted(), reason="this system grants no pid namespaces")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def started() -> Iterator[Callable[..., TaskManager]]:
    with contextlib.ExitStack() as all_of_them:
        yield lambda **what: all_of_them.enter_context(TaskManager(**what))


Started = Callable[..., TaskManager]


def container(started: Started) -> TaskManager:
    return started(container=True)


def becomes_free(asker: TaskManager, folder: Folder) -> None:
    """Wait until a container gets the one GPU."""
    wait_until(lambda: not is_refused(asker.tell("script", *folder.script())))


# Never twice


def test_scripts_whose_parent_is_pid_1_of_its_container_get_different_devices(folder: Folder, started: Started) -> None:
    containers = [container(started) for _ in range(3)]
    devices = [granted(each.tell("script", *folder.script(1, 3))) for each in containers]
    assert sorted(devices) == ["0", "1", "2"]
    assert {row["pid"] for row in folder.status()} == {each.pid for each in containers}
    assert is_refused(container(started).tell("script", *folder.script(1, 3)))


def test_drivers_in_pid_1_of_their_containers_get_different_devices(folder: Folder, started: Started) -> None:
    devices = [container(started).tell("claim", folder.options(3))[0] for _ in range(3)]
    assert len(set(devices)) == 3
    with pytest.raises(RefusedError, match="1 wanted, 0 of 3 free; held by pid 1 "):
        container(started).tell("claim", folder.options(3))


@contextlib.contextmanager
def run_as_pid_1(folder: Folder, gpus: int) -> Iterator[tuple[int, str]]:
    """Let `externalresource run` be pid 1; yield its pid here, and the device that its command was given."""
    command = [*unshare(), *COMMAND_LINE, *folder.run(gpus), "--"]
    shell = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exec sleep 600"]
    with subprocess.Popen([*command, *shell], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            device = process.stdout.readline().strip()
            assert device
            yield first_child(process.pid), device
        finally:
            process.kill()


def test_commands_that_run_became_as_pid_1_get_different_devices(folder: Folder, started: Started) -> None:
    with run_as_pid_1(folder, 2) as (one, first), run_as_pid_1(folder, 2) as (_, second):
        assert first != second
        asker = container(started)
        assert is_refused(asker.tell("script", *folder.script(1, 2)))
        os.kill(one, signal.SIGKILL)
        wait_until(lambda: not is_refused(asker.tell("script", *folder.script(1, 2))))


def test_script_driver_and_run_share_one_host(folder: Folder, started: Started) -> None:
    granted(container(started).tell("script", *folder.script(1, 4)))
    container(started).tell("claim", folder.options(4))
    granted(started(container=False).tell("script", *folder.script(1, 4)))
    with run_as_pid_1(folder, 4):
        assert is_refused(container(started).tell("script", *folder.script(1, 4)))
        assert is_refused(started(container=False).tell("script", *folder.script(1, 4)))
        assert len({row["uuid"] for row in folder.status()}) == 4


def test_containers_within_a_container_are_told_apart(folder: Folder, started: Started) -> None:
    inner = started(container=True, wrapper=unshare())
    granted(inner.tell("script", *folder.script()))
    assert is_refused(container(started).tell("script", *folder.script()))
    assert folder.states() == ["living"]


def test_owner_of_the_host_is_held_for_a_container(folder: Folder, started: Started) -> None:
    owner = started(container=False)
    granted(owner.tell("script", *folder.script()))
    asker = container(started)
    assert is_refused(asker.tell("script", *folder.script()))
    owner.kill()
    assert is_refused(asker.tell("script", *folder.script()))  # who cannot see it cannot tell
    assert folder.states() == ["dead"]


# Free soon


CLAIMS: dict[str, Callable[[TaskManager, Folder], object]] = {
    "script": lambda owner, folder: granted(owner.tell("script", *folder.script())),
    "driver": lambda owner, folder: owner.tell("claim", folder.options()),
}


@pytest.mark.parametrize("how", CLAIMS)
@pytest.mark.parametrize("asker_is_a_container", [True, False], ids=["another container", "the host"])
def test_killed_container_frees_its_devices(
    folder: Folder, started: Started, how: str, *, asker_is_a_container: bool
) -> None:
    owner, asker = container(started), started(container=asker_is_a_container)
    CLAIMS[how](owner, folder)
    assert is_refused(asker.tell("script", *folder.script()))
    owner.kill()
    becomes_free(asker, folder)
    assert len(folder.witnesses()) == asker_is_a_container  # of the dead one nothing is left


def test_claim_of_a_killed_container_stays_until_somebody_asks(folder: Folder, started: Started) -> None:
    dead, living = container(started), container(started)
    assert granted(dead.tell("script", *folder.script(1, 2))) == "0"
    dead.kill()
    wait_until(lambda: folder.states() == ["dead"])
    assert granted(living.tell("script", *folder.script(1, 2))) == "0"
    assert folder.states() == ["living"]


@pytest.mark.parametrize("asker_is_a_container", [True, False], ids=["another container", "the host"])
def test_owner_that_ends_in_a_container_that_lives_on_frees_its_devices(
    folder: Folder, started: Started, *, asker_is_a_container: bool
) -> None:
    living, asker = container(started), started(container=asker_is_a_container)
    owner, device = living.tell("script_of_a_child", *folder.script())
    assert device == "0\n"
    assert is_refused(asker.tell("script", *folder.script()))
    assert is_refused(living.tell("script", *folder.script()))
    living.tell("end", owner)
    becomes_free(asker, folder)
    wait_until(lambda: living.processes() == [living.pid])


def test_owner_that_ended_is_dead_to_its_own_container_at_once(folder: Folder, started: Started) -> None:
    living = container(started)
    owner, _ = living.tell("script_of_a_child", *folder.script())
    living.tell("end", owner)
    assert granted(living.tell("script", *folder.script())) == "0"


def test_run_in_a_container_that_lives_on_frees_its_device_when_its_command_ends(
    folder: Folder, started: Started
) -> None:
    living, asker = container(started), container(started)
    owner = living.tell("run", *folder.run(), "--", "sh", "-c", "echo; exec sleep 600")
    assert is_refused(asker.tell("script", *folder.script()))
    living.tell("end", owner)
    becomes_free(asker, folder)


def test_driver_in_a_container_gives_back_at_once_and_leaves_nothing(folder: Folder, started: Started) -> None:
    owner = container(started)
    for _ in range(3):
        owner.tell("claim", folder.options())
        owner.tell("close")
    assert folder.files() == ["ledger", "ledger.lock"]
    assert folder.status() == []
    assert owner.processes() == [owner.pid]
    assert not any("witness" in os.readlink(entry) for entry in Path(f"/proc/{owner.pid}/fd").iterdir())


def test_refused_claim_in_a_container_leaves_nothing(folder: Folder, started: Started) -> None:
    owner, asker = container(started), container(started)
    granted(owner.tell("script", *folder.script()))
    before = folder.files()
    assert is_refused(asker.tell("script", *folder.script()))
    with pytest.raises(RefusedError, match="1 wanted, 0 of 1 free"):
        asker.tell("claim", folder.options())
    assert folder.files() == before
    assert asker.processes() == [asker.pid]


# What the host sees


def test_host_has_no_witnesses(folder: Folder, started: Started) -> None:
    if os.stat("/proc/self/ns/pid").st_ino != INITIAL_PID_NAMESPACE:
        pytest.skip("not in the machine's own pid namespace")
    owner = started(container=False)
    granted(owner.tell("script", *folder.script(1, 2)))
    owner.tell("claim", folder.options(2))
    assert folder.files() == ["ledger", "ledger.lock"]
    assert not any(holder.life_lock for claim in Coordination(folder.file, "gpu").held() for holder in claim.holders)


def test_host_shows_who_lives_in_containers_and_who_is_dead(folder: Folder, started: Started) -> None:
    living, dead = container(started), container(started)
    granted(living.tell("script", *folder.script(1, 2)))
    granted(dead.tell("script", *folder.script(1, 2)))
    dead_pid = dead.pid
    assert [(row["pid"], row["state"]) for row in folder.status()] == [(living.pid, "living"), (dead_pid, "living")]
    dead.kill()
    assert folder.states() == ["living", "dead"]


def test_container_that_started_in_the_same_moment_is_not_taken_for_another(folder: Folder, started: Started) -> None:
    dead, living = container(started), container(started)
    here = observer()
    for owner in (dead, living):
        granted(owner.tell("script", *folder.script(1, 2)))
    first, second = (claim.holders[0].process for claim in Coordination(folder.file, "gpu").held())
    if first.pidfd_inode is None:
        pytest.skip("this kernel has no inode for each process")
    twin = replace(first, start_time=second.start_time)
    assert pid_here(second, here) == living.pid
    dead.kill()
    assert gone(twin, here)
    assert not gone(second, here)


def test_container_shows_as_living_what_it_cannot_see(folder: Folder, started: Started) -> None:
    owner = container(started)
    granted(owner.tell("script", *folder.script()))

    def held() -> list[bool]:
        return [claim.living for claim in Coordination(folder.file, "gpu").held()]

    assert in_namespaces(held, NEW_PIDS) == [True]
    owner.kill()
    assert in_namespaces(held, NEW_PIDS) == [False]


def test_hidden_proc_shows_the_owners_of_containers_as_living(folder: Folder, started: Started) -> None:
    owner = container(started)
    granted(owner.tell("script", *folder.script()))
    owner.kill()
    text = Path(folder.file).read_text()

    def held() -> list[bool]:
        with tempfile.TemporaryDirectory() as elsewhere:  # pytest's folders are for their user only
            Path(elsewhere, "ledger").write_text(text)
            return [claim.living for claim in Coordination(f"{elsewhere}/ledger", "gpu").held()]

    def look() -> tuple[list[bool], list[bool]]:
        in_sight = as_another_user(held)
        mount("proc", "/proc", "proc", "hidepid=2")
        return in_sight, as_another_user(held)

    assert in_namespaces(look, 0, own_proc=False) == ([False], [True])


# Devices by another index


def gpus(folder: Folder, name: str, *uuids: str) -> str:
    path = folder.path / f"{name}.yaml"
    path.write_text("gpus:\n" + "".join(f"  - uuid: {uuid}\n" for uuid in uuids))
    return str(path)


A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000"


def test_gpus_of_one_index_in_two_containers_are_two(folder: Folder, started: Started) -> None:
    one, other = container(started), container(started)
    assert granted(one.tell("script", *folder.script(1, gpus(folder, "one", A)))) == "0"
    assert granted(other.tell("script", *folder.script(1, gpus(folder, "other", B)))) == "0"
    assert [row["uuid"] for row in folder.status()] == [A, B]


def test_gpu_of_another_index_in_each_container_is_one(folder: Folder, started: Started) -> None:
    one, other = container(started), container(started)
    assert granted(one.tell("script", *folder.script(1, gpus(folder, "one", A, B)))) == "0"
    swapped = gpus(folder, "other", B, A)
    assert granted(other.tell("script", *folder.script(1, swapped))) == "0"
    assert [row["uuid"] for row in folder.status()] == [A, B]
    assert is_refused(other.tell("script", *folder.script(1, swapped)))
    one.kill()
    assert granted(other.tell("script", *folder.script(1, swapped))) == "1"


# Strange surroundings


def test_without_a_proc_of_its_own_nothing_is_granted(folder: Folder) -> None:
    def look() -> tuple[int, str, str]:
        done = subprocess.run([*MODULE, *folder.script()], check=False, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    status, out, err = in_namespaces(look, NEW_PIDS, own_proc=False)
    assert (status, out) == (1, "")
    assert "/proc does not show this process's pid namespace; mount it there" in err
    assert folder.status() == []


def test_without_a_proc_of_its_own_others_are_held(folder: Folder, started: Started) -> None:
    owner = container(started)
    granted(owner.tell("script", *folder.script()))

    def held() -> list[bool]:
        return [claim.living for claim in Coordination(folder.file, "gpu").held()]

    assert in_namespaces(held, NEW_PIDS, own_proc=False) == [True]


def test_script_that_was_started_from_outside_its_container_grants_nothing(folder: Folder) -> None:
    # As by `docker exec`: its parent has no pid there.
    command = [*unshare(), *MODULE, *folder.script()]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "a process outside this pid namespace cannot own devices; see --owner-pid" in done.stderr
    assert folder.status() == []


def test_container_in_another_time_namespace_is_held_while_it_lives(folder: Folder, started: Started) -> None:
    shifted = started(container=True, wrapper=["unshare", "--time", "--fork", "--boottime", "86400"])
    granted(shifted.tell("script", *folder.script()))
    asker = container(started)
    assert is_refused(asker.tell("script", *folder.script()))
    assert is_refused(started(container=False).tell("script", *folder.script()))
    assert folder.states() == ["living"]
    shifted.kill()
    becomes_free(asker, folder)


# Many at once


def test_many_containers_that_come_and_die_never_share_a_device_nor_lose_one(folder: Folder, started: Started) -> None:
    chance = random.Random()
    living: dict[str, TaskManager] = {}
    for _ in range(9):
        asking = [container(started) for _ in range(4)]
        for each in asking:
            each.send("script", *folder.script(1, 4))
        time.sleep(chance.uniform(0, 0.2))
        asking.pop().kill()  # wherever its script is by now
        for each in asking:
            status, device, _ = each.answer()
            if status == 0:
                assert device not in living, f"{device!r} is given twice"
                living[device] = each
        for device in chance.sample(sorted(living), chance.randint(1, len(living))):
            living.pop(device).kill()
    for each in living.values():
        each.kill()
    last = container(started)
    wait_until(lambda: bool(last.tell("script", *folder.script(4, 4))[0] == 0))
    assert len(folder.witnesses()) == 1
