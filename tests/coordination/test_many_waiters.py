"""A crowd that waits: served in its order, and a look costs what changed, not the length of the queue."""

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from externalresource.coordination import Claim, Coordination, Holder, flock, identify, ledger, queue
from externalresource.coordination.life_lock import LifeLock
from externalresource.coordination.process import Observer, Process
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.devices import Device
from tests.support.processes import Running, in_child

LONG = 60.0  # seconds: more than any of this takes
SOON = 4.0  # seconds, on a busy machine: 2 are promised

Start = Callable[[Callable[[], list[str]]], Running[list[str]]]


def gpus(*numbers: int) -> list[Device]:
    return [Device(str(number), f"GPU-{number}") for number in numbers]


def made_up(pid: int) -> Holder:
    return Holder(Process(pid, pid, "b", 1, 1, program="java"))


def nobody_ends(_who: Process, _here: Observer) -> bool:
    return False


def on_the_host() -> bool:
    return False


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def places(path: str) -> list[str]:
    file = Path(f"{path}.queue")
    return file.read_text(encoding="ascii").splitlines() if file.exists() else []


def claim(path: str, devices: Sequence[Device], amount: int = 1, *, wait: float = LONG) -> list[str]:
    granted = Coordination(path, "gpu").claim(devices, amount, Holder(identify(os.getpid())), wait=wait)
    return [device.token for device in granted]


def queue_up(path: str, start: Start, devices: Sequence[Device], amount: int = 1) -> Running[list[str]]:
    before = len(places(path))
    process = start(lambda: claim(path, devices, amount))
    wait_until(lambda: len(places(path)) > before)
    return process


@pytest.fixture
def held(path: str, start: Start) -> Running[list[str]]:
    """A process that has devices 0 and 1."""
    holder = start(lambda: claim(path, gpus(0, 1), 2))
    holder.result()
    return holder


@pytest.fixture
def crowd(path: str) -> Iterator[list[str]]:
    """The locks of 200 that wait for device 0."""
    with ExitStack() as stack:
        locks = [LifeLock(path) for _ in range(200)]
        for lock in locks:
            stack.callback(lock.close)
        queue.write(path, [queue.place(lock.name, 1, gpus(0)) for lock in locks])
        yield [lock.name for lock in locks]


def asked(function: Callable[[], object]) -> list[str]:
    """Return of which life locks a file was opened meanwhile."""

    def watched() -> list[str]:
        opened: list[str] = []

        def note(event: str, arguments: tuple[object, ...]) -> None:
            if event == "open" and ".witness-" in str(arguments[0]):
                opened.append(str(arguments[0]).rpartition("-")[2])

        sys.addaudithook(note)  # for ever, hence in a fork
        function()
        return opened

    return in_child(watched)


# In their order


def test_sixty_that_wait_for_four_devices_are_served_in_their_order(path: str, tmp_path: Path, start: Start) -> None:
    devices, log = gpus(0, 1, 2, 3), tmp_path / "served"
    log.touch()
    shared, me = Coordination(path, "gpu"), Holder(identify(os.getpid()))
    shared.claim(devices, 4, me)

    def use() -> list[str]:
        def choose(free: Sequence[Device], _claims: Sequence[Claim], amount: int) -> Sequence[Device]:
            with log.open("a") as file:  # under the lock
                file.write(f"{os.getpid()}\n")
            return free[:amount]

        own, itself = Coordination(path, "gpu"), Holder(identify(os.getpid()))
        device = own.claim(devices, 1, itself, choose=choose, wait=LONG)
        time.sleep(0.05)
        own.release(device, itself)
        return []

    came = []
    for number in range(60):
        came.append(start(use))
        wait_until(lambda: len(places(path)) > number)  # noqa: B023 - it is called at once
    shared.release(devices, me)
    for process in came:
        process.result()
    pids = [process.pid for process in came]
    served = [pids.index(int(line)) for line in log.read_text().split()]
    assert sorted(served) == list(range(60))
    for at, number in enumerate(served):  # a device was kept for each of those before
        assert sum(other < number for other in served[at:]) < len(devices)


@pytest.mark.parametrize("survivor", [1, 30])
def test_crowd_that_is_killed_holds_nobody_up(survivor: int, path: str, start: Start, held: Running[list[str]]) -> None:
    waiters = [queue_up(path, start, gpus(0)) for _ in range(31)]
    time.sleep(1)  # they have looked by now, and the last one watches another
    for waiter in waiters[:survivor]:
        waiter.kill()
    held.kill()
    began = time.monotonic()
    assert waiters[survivor].result() == ["0"]
    assert time.monotonic() - began < SOON


def test_dead_one_keeps_nothing_from_those_behind_a_stopped_one(
    path: str, start: Start, held: Running[list[str]]
) -> None:
    dead = queue_up(path, start, gpus(0, 1), 2)
    stopped = queue_up(path, start, gpus(0))
    behind = queue_up(path, start, gpus(0, 1))
    os.kill(stopped.pid, signal.SIGSTOP)
    held.kill()
    dead.kill()
    began = time.monotonic()
    assert behind.result() == ["1"]
    assert time.monotonic() - began < SOON
    os.kill(stopped.pid, signal.SIGCONT)
    assert stopped.result() == ["0"]


def test_who_wants_other_devices_passes_a_crowd(path: str, start: Start, crowd: list[str]) -> None:
    holder = start(lambda: claim(path, gpus(1)))
    holder.result()
    other = queue_up(path, start, gpus(1))
    holder.kill()
    began = time.monotonic()
    assert other.result() == ["1"]
    assert time.monotonic() - began < SOON
    assert [line.split()[0] for line in places(path)] == crowd


# What a look costs


def test_claim_asks_few_of_those_that_wait(path: str, crowd: list[str]) -> None:
    def others() -> None:
        in_a_container = Coordination(path, "gpu", in_container=lambda: True)
        me = Holder(identify(os.getpid()))
        assert in_a_container.release(in_a_container.claim(gpus(1), 1, me), me) == 1
        with pytest.raises(NotEnoughDevicesError, match="200 waiting before"):
            in_a_container.claim(gpus(0), 1, me)

    assert len(set(asked(others)) & set(crowd)) < 80


def test_who_stands_far_back_watches_one_that_is_before_it(path: str, crowd: list[str]) -> None:
    view = queue.View(path, crowd[-1])
    view.look(gpus(0), "")
    assert asked(lambda: [view.is_outdated() for _ in range(20)]) == [crowd[99]] * 20
    assert not view.is_outdated()


def test_view_is_outdated_once_the_watched_one_has_gone(path: str, crowd: list[str]) -> None:
    view = queue.View(path, crowd[-1])
    view.look(gpus(0), "")
    os.unlink(f"{path}.witness-{crowd[99]}")
    assert view.is_outdated()


def test_nobody_takes_the_lock_while_nothing_changes(path: str, tmp_path: Path, start: Start) -> None:
    log = tmp_path / "tries"
    log.touch()

    def noted(descriptor: int) -> bool:
        with log.open("a") as file:
            file.write(".")
        return flock(descriptor)

    def wait() -> list[str]:
        Coordination(path, "gpu", lock=noted).claim(gpus(0), 1, Holder(identify(os.getpid())), wait=LONG)
        return []

    holder = start(lambda: claim(path, gpus(0)))
    holder.result()
    for number in range(30):
        start(wait)
        wait_until(lambda: len(places(path)) > number)  # noqa: B023 - it is called at once
    before = log.stat().st_size
    time.sleep(2)
    assert log.stat().st_size == before


def test_who_waits_pauses_for_a_second_at_most(path: str, crowd: list[str]) -> None:
    pauses: list[float] = []

    def pause(seconds: float, _reason: str) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Coordination(path, "gpu", pause=pause).claim(gpus(0), 1, Holder(identify(os.getpid())), wait=LONG)
    assert max(pauses) == 1
    assert len(crowd) == len(places(path))


def test_dead_do_not_pile_up_behind_those_that_live(path: str, crowd: list[str]) -> None:
    dead = [queue.place(f"dead{number:04}", 1, gpus(0)) for number in range(300)]
    queue.write(path, [*queue.read(path), *dead])
    for _ in range(60):
        with pytest.raises(NotEnoughDevicesError):
            Coordination(path, "gpu").claim(gpus(0), 1, Holder(identify(os.getpid())))
    left = [line.split()[0] for line in places(path)]
    assert left[:200] == crowd
    assert len(left) < 400


def test_device_that_appears_is_granted_to_who_waits(path: str) -> None:
    devices = gpus(0)

    def pause(_seconds: float, _reason: str) -> None:
        devices[1:] = gpus(1)

    shared = Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends, pause=pause)
    shared.claim(gpus(0), 1, made_up(1))
    granted = shared.claim(devices, 1, made_up(2), wait=LONG)
    assert [device.token for device in granted] == ["1"]


def test_place_says_by_and_by_what_would_do(path: str) -> None:
    unfit = {"1"}

    def refused() -> None:
        with pytest.raises(NotEnoughDevicesError, match="1 waiting before"):
            Coordination(path, "gpu").claim(gpus(1), 1, Holder(identify(os.getpid())))
        shared.release(gpus(0), made_up(1))

    events: list[Callable[[], object]] = [lambda: None, unfit.clear, refused]

    def pause(_seconds: float, _reason: str) -> None:
        events.pop(0)()

    shared = Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends, pause=pause)
    shared.claim(gpus(0), 1, made_up(1))
    granted = shared.claim(gpus(0, 1), 2, made_up(2), suits=lambda device: device.token not in unfit, wait=LONG)
    assert len(granted) == 2


# A lock that somebody else has


def lock_for_long(path: str) -> list[str]:
    descriptor = os.open(f"{path}.lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return []  # and it stays open


@pytest.fixture
def locked(path: str, start: Start) -> Running[list[str]]:
    """A process that has the lock, and is stopped."""
    Coordination(path, "gpu").release([], made_up(1))
    process = start(lambda: lock_for_long(path))
    process.result()
    os.kill(process.pid, signal.SIGSTOP)
    return process


def test_stopped_holder_of_the_lock_ends_no_wait(path: str, start: Start, locked: Running[list[str]]) -> None:
    def wait() -> list[str]:
        me = Holder(identify(os.getpid()))
        Coordination(path, "gpu").claim(gpus(0), 1, me, wait=LONG, deadline=time.monotonic() + 0.1)
        return ["0"]

    waiting = start(wait)
    time.sleep(1.5)
    locked.kill()
    assert waiting.result() == ["0"]


def test_stopped_holder_of_the_lock_ends_no_wait_of_one_in_the_queue(
    path: str, start: Start, held: Running[list[str]]
) -> None:
    waiting = queue_up(path, start, gpus(0))
    stopped = start(lambda: lock_for_long(path))
    stopped.result()
    held.kill()
    time.sleep(10)  # longer than who does not wait for devices waits for the lock
    stopped.kill()
    assert waiting.result() == ["0"]


def test_who_has_waited_for_the_lock_until_the_end_is_told_who_has_it(path: str, locked: Running[list[str]]) -> None:
    began = time.monotonic()
    with pytest.raises(CoordinationError, match=rf"held by pid {locked.pid} \(.*; nothing was changed$"):
        Coordination(path, "gpu").claim(gpus(0), 1, made_up(1), wait=1, deadline=began)
    assert 1 <= time.monotonic() - began < 1 + SOON
    assert ledger.read(path) == []


def test_who_waits_briefly_waits_for_the_lock_as_long_as_those_that_do_not(
    path: str, start: Start, locked: Running[list[str]]
) -> None:
    waiting = start(lambda: claim(path, gpus(0), wait=0.1))
    time.sleep(1)
    locked.kill()
    assert waiting.result() == ["0"]


def test_signal_ends_a_wait_for_the_lock(path: str, locked: Running[list[str]]) -> None:
    def pause(_seconds: float, reason: str) -> None:
        assert reason == f"the lock {path}.lock is not free"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Coordination(path, "gpu", pause=pause).claim(gpus(0), 1, made_up(1), wait=LONG)
    assert places(path) == []
