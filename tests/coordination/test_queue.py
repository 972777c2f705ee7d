"""Waiting for devices: first come, first served, and nothing stays behind."""

import contextlib
import fcntl
import itertools
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

import externalresource
from externalresource.api import ExternalResourceInfo
from externalresource.context import RuntimeContext
from externalresource.coordination import Claim, Coordination, Holder, identify, ledger, queue
from externalresource.coordination.lock import Locked
from externalresource.coordination.process import Observer, Process
from externalresource.coordination.queue import Place
from externalresource.errors import CoordinationError, DiscoveryError, ExternalResourceError, NotEnoughDevicesError
from tests.support.devices import Device
from tests.support.processes import NEW_PIDS, Running, in_child, in_namespaces

R = TypeVar("R")
LONG = 60.0  # seconds: more than any of this takes
SCRIPT = [sys.executable, "-P", "-m", "externalresource_gpu.script.main"]


def gpus(*numbers: int) -> list[Device]:
    return [Device(str(number), f"GPU-{number}") for number in numbers]


def of(gpu: int, name: str) -> Device:
    return Device(f"MIG-{name}", f"MIG-{name}", f"GPU-{gpu}", str(gpu))


def made_up(pid: int) -> Holder:
    return Holder(Process(pid, pid, "b", 1, 1, program="java"))


def nobody_ends(who: Process, here: Observer) -> bool:
    return False


def on_the_host() -> bool:
    """Owners that are made up need no life lock, wherever these tests run."""
    return False


def tokens(devices: Sequence[Device]) -> list[str]:
    return [device.token for device in devices]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def places(path: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"{path}.queue").read_text(encoding="ascii").count("\n")
    return 0


def leftovers(path: str) -> set[str]:
    """Return what stands beside the coordination file that neither the lock is nor a claim names."""
    locks = {f"{path}.witness-{claim.holders[0].life_lock}" for claim in ledger.read(path)}
    names = {f"{os.path.dirname(path)}/{name}" for name in os.listdir(os.path.dirname(path))}
    return names - locks - {path, f"{path}.lock"}


@pytest.fixture
def path(tmp_path: Path) -> str:
    folder = tmp_path / "coordination"
    folder.mkdir()
    return str(folder / "gpus")


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], R]], Running[R]]]:
    with contextlib.ExitStack() as running:

        def start(function: Callable[[], R]) -> Running[R]:
            process = Running(function)
            running.callback(process.kill)
            return process

        yield start


Start = Callable[[Callable[[], list[str]]], Running[list[str]]]


class Events:
    """What happens, one after the other, whenever a process that waits pauses; then it goes on without a pause."""

    def __init__(self, *events: Callable[[], object]) -> None:
        self.left = list(events)
        self.reasons: list[str] = []

    def __call__(self, seconds: float, reason: str) -> None:
        assert seconds >= 0
        self.reasons.append(reason)
        assert len(self.reasons) < 1000, f"never granted: {reason}"
        if self.left:
            self.left.pop(0)()


def coordination(path: str, *events: Callable[[], object]) -> Coordination:
    return Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends, pause=Events(*events))


def ask(path: str, devices: Sequence[Device], amount: int = 1, *, pid: int = 99, wait: float = 0) -> list[str]:
    return tokens(coordination(path).claim(devices, amount, made_up(pid), wait=wait))


def refusal(path: str, devices: Sequence[Device], amount: int = 1) -> str:
    with pytest.raises(NotEnoughDevicesError) as caught:
        ask(path, devices, amount)
    return str(caught.value)


def give_back(path: str, devices: Sequence[Device], pid: int) -> None:
    assert Coordination(path, "gpu").release(devices, made_up(pid)) == len(devices)


def claim_really(path: str, numbers: Sequence[int], amount: int, wait: float) -> list[str]:
    return tokens(Coordination(path, "gpu").claim(gpus(*numbers), amount, Holder(identify(os.getpid())), wait=wait))


def queue_up(path: str, start: Start, numbers: Sequence[int], amount: int = 1) -> Running[list[str]]:
    """Start a process that waits; its place is there."""
    before = places(path)
    process = start(lambda: claim_really(path, numbers, amount, LONG))
    wait_until(lambda: places(path) > before)
    return process


# First come, first served


def test_those_that_wait_are_served_in_the_order_in_which_they_came(path: str, start: Start) -> None:
    holder = start(lambda: claim_really(path, [0], 1, 0))
    holder.result()
    queue = [holder, *(queue_up(path, start, [0]) for _ in range(6))]
    for number, (holding, following) in enumerate(itertools.pairwise(queue)):
        assert places(path) == 6 - number
        holding.kill()
        assert following.result() == ["0"]
        (claim,) = [claim for claim in Coordination(path, "gpu").held() if claim.living]
        assert claim.owner.process.pid == following.pid
    assert leftovers(path) == set()


def test_thirty_that_come_and_go_share_two_devices_and_all_are_served(path: str, tmp_path: Path, start: Start) -> None:
    def use() -> list[str]:
        shared, me = Coordination(path, "gpu"), Holder(identify(os.getpid()))
        (device,) = shared.claim(gpus(0, 1), 1, me, wait=LONG)
        os.close(os.open(tmp_path / device.token, os.O_CREAT | os.O_EXCL))  # fails if another one has it, too
        time.sleep(0.001)
        os.unlink(tmp_path / device.token)
        shared.release([device], me)
        return []

    for process in [start(use) for _ in range(30)]:
        process.result()
    assert leftovers(path) == set()


def test_free_device_is_kept_for_who_waits(path: str) -> None:
    ask(path, gpus(0), pid=1)

    def come_without_waiting() -> None:
        give_back(path, gpus(0), 1)
        assert refusal(path, gpus(0)) == "1 wanted, 0 of 1 free; 1 waiting before"

    first = coordination(path, come_without_waiting)
    assert tokens(first.claim(gpus(0), 1, made_up(2), wait=LONG)) == ["0"]
    assert leftovers(path) == set()


def test_later_one_that_waits_is_told_how_many_came_before(path: str) -> None:
    ask(path, gpus(0), pid=1)

    def come_later() -> None:
        inner = Events(lambda: give_back(path, gpus(0), 1))
        with pytest.raises(NotEnoughDevicesError, match=r"^1 wanted, 0 of 1 free; 1 waiting before; waited 0\.01 s"):
            Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends, pause=inner).claim(
                gpus(0), 1, made_up(3), wait=0.01
            )
        assert re.match(
            r"1 wanted, 0 of 1 free; 1 waiting before; held by pid 1 \(java\), since .*: 0$", inner.reasons[0]
        )

    earlier = coordination(path, come_later)
    assert tokens(earlier.claim(gpus(0), 1, made_up(2), wait=LONG)) == ["0"]


def test_who_wants_four_is_not_starved_by_those_that_want_one(path: str) -> None:
    for number in range(4):
        ask(path, gpus(number), pid=1)

    def free(number: int) -> Callable[[], None]:
        def event() -> None:
            give_back(path, gpus(number), 1)
            assert "1 waiting before" in refusal(path, gpus(0, 1, 2, 3))

        return event

    patient = coordination(path, *map(free, range(4)))
    assert len(patient.claim(gpus(0, 1, 2, 3), 4, made_up(2), wait=LONG)) == 4


def test_who_wants_other_devices_is_not_held_up(path: str) -> None:
    ask(path, gpus(0), pid=1)

    def come() -> None:
        assert ask(path, gpus(1, 2), 2) == ["1", "2"]
        give_back(path, gpus(0), 1)

    first = coordination(path, come)
    assert tokens(first.claim(gpus(0), 1, made_up(2), wait=LONG)) == ["0"]


def test_what_is_left_over_by_those_before_is_granted(path: str) -> None:
    ask(path, gpus(0, 1, 2), 3, pid=1)

    def come() -> None:
        give_back(path, gpus(0, 1), 1)
        assert ask(path, gpus(0, 1, 2)) == ["1"]

    first = coordination(path, come)
    assert tokens(first.claim(gpus(0, 1, 2), 1, made_up(2), wait=LONG)) == ["0"]


@pytest.mark.parametrize("choice", [[Device("0", "GPU-0")], [of(0, "a"), of(0, "b")]], ids=["whole", "slices"])
def test_gpu_is_kept_from_those_that_want_it_otherwise_cut(choice: list[Device], path: str) -> None:
    other = [of(0, "a"), of(0, "b")] if len(choice) == 1 else gpus(0)
    ask(path, other, pid=1)

    def come() -> None:
        give_back(path, other[:1], 1)
        assert refusal(path, other) == f"1 wanted, 0 of {len(other)} free; 1 waiting before"

    first = coordination(path, come)
    assert first.claim(choice, len(choice), made_up(2), wait=LONG) == choice


def test_device_of_a_dead_owner_is_waited_for_by_nobody(path: str) -> None:
    ask(path, gpus(0), pid=1)
    shared = Coordination(
        path,
        "gpu",
        in_container=on_the_host,
        gone=lambda who, here: True,
        pause=Events(lambda: pytest.fail("it is free")),
    )
    assert tokens(shared.claim(gpus(0), 1, made_up(2), wait=LONG)) == ["0"]


# Places vanish


@pytest.mark.parametrize("kinds", [0, NEW_PIDS], ids=["here", "another container"])
def test_place_of_a_killed_process_vanishes(kinds: int, path: str, start: Start) -> None:
    holder = start(lambda: claim_really(path, [0], 1, 0))
    holder.result()
    waiter = queue_up(path, start, [0, 1], 2)
    later = queue_up(path, start, [0])

    def look() -> str:
        return refusal(path, gpus(1))

    def seen() -> str:
        return in_namespaces(look, kinds) if kinds else in_child(look)

    assert seen() == "1 wanted, 0 of 1 free; 1 waiting before"
    waiter.kill()
    if kinds:
        assert in_namespaces(lambda: ask(path, gpus(1)), kinds) == ["1"]
    else:
        assert ask(path, gpus(1)) == ["1"]
    assert places(path) == 1
    holder.kill()
    assert later.result() == ["0"]
    assert leftovers(path) == set()


def test_queue_goes_on_without_its_first(path: str, start: Start) -> None:
    holder = start(lambda: claim_really(path, [0], 1, 0))
    holder.result()
    queue = [queue_up(path, start, [0]) for _ in range(3)]
    queue[0].kill()
    holder.kill()
    assert queue[1].result() == ["0"]
    assert places(path) == 1


def test_who_comes_next_clears_up_after_a_killed_queue(path: str, start: Start) -> None:
    holder = start(lambda: claim_really(path, [0], 1, 0))
    holder.result()
    waiters = [queue_up(path, start, [0]) for _ in range(3)]
    for waiter in waiters:
        waiter.kill()
    assert len(leftovers(path)) == 4
    refusal(path, gpus(0))
    assert leftovers(path) == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, DiscoveryError], ids=lambda error: error.__name__)
def test_who_stops_waiting_leaves_nothing(error: type[BaseException], path: str) -> None:
    ask(path, gpus(0), pid=1)
    before = os.listdir("/proc/self/fd")

    def stop() -> None:
        assert places(path) == 1
        raise error("enough")

    with pytest.raises(error, match="enough"):
        coordination(path, stop).claim(gpus(0), 1, made_up(2), wait=LONG)
    assert leftovers(path) == set()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [1]


def test_who_stops_waiting_leaves_the_places_of_the_others(path: str, start: Start) -> None:
    holder = start(lambda: claim_really(path, [0], 1, 0))
    holder.result()
    other = queue_up(path, start, [0])

    def stop() -> None:
        assert places(path) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coordination(path, stop).claim(gpus(0), 1, made_up(2), wait=LONG)
    assert places(path) == 1
    holder.kill()
    assert other.result() == ["0"]


def test_place_that_somebody_struck_out_is_taken_anew(path: str) -> None:
    ask(path, gpus(0), pid=1)

    def lost() -> None:
        os.unlink(f"{path}.queue")

    def look() -> None:
        assert places(path) == 1
        give_back(path, gpus(0), 1)

    assert tokens(coordination(path, lost, look).claim(gpus(0), 1, made_up(2), wait=LONG)) == ["0"]


# Giving up


def test_more_than_the_host_has_is_not_waited_for(path: str) -> None:
    events = Events()
    with pytest.raises(NotEnoughDevicesError, match=r"^2 wanted, this host has 1$"):
        Coordination(path, "gpu", pause=events).claim(gpus(0), 2, made_up(1), wait=LONG)
    assert events.reasons == []
    assert os.listdir(os.path.dirname(path)) == []


def test_who_has_waited_long_enough_is_told_who_holds_what(path: str) -> None:
    ask(path, gpus(0), pid=1)
    with pytest.raises(NotEnoughDevicesError) as caught:
        Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends).claim(gpus(0), 1, made_up(2), wait=0.2)
    assert re.fullmatch(
        r"1 wanted, 0 of 1 free; held by pid 1 \(java\), since \S+: 0; waited 0\.2 s for them", str(caught.value)
    )
    assert leftovers(path) == set()


def test_without_waiting_nothing_is_queued(path: str) -> None:
    ask(path, gpus(0), pid=1)
    assert "waited" not in refusal(path, gpus(0))
    assert leftovers(path) == set()


def test_pause_ends_when_the_wait_does(path: str) -> None:
    ask(path, gpus(0), pid=1)
    pauses = []

    def pause(seconds: float, reason: str) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    with pytest.raises(NotEnoughDevicesError):
        Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends, pause=pause).claim(
            gpus(0), 1, made_up(2), wait=0.12
        )
    assert len(pauses) > 1
    assert sum(pauses) <= 0.12


def test_lock_is_not_waited_for_longer_than_the_devices(path: str) -> None:
    ask(path, gpus(0), pid=1)
    with contextlib.ExitStack() as held:

        def take_it() -> None:
            file = held.enter_context(open(f"{path}.lock", "rb"))
            fcntl.flock(file, fcntl.LOCK_EX)

        stuck = coordination(path, take_it)
        with pytest.raises(CoordinationError, match=r"timed out waiting for the lock .*/gpus\.lock"):
            stuck.claim(gpus(0), 1, made_up(2), wait=0.1, deadline=time.monotonic() + 0.1)
    give_back(path, gpus(0), 1)
    assert ask(path, gpus(0)) == ["0"]
    assert leftovers(path) == set()


def test_lock_is_waited_for_at_most_until_the_deadline_and_the_wait_are_over(path: str) -> None:
    ask(path, gpus(0), pid=1)
    deadlines = []

    class Noting(Coordination):
        def _under_lock(self, section: Callable[[Locked], R], deadline: float | None) -> R:
            deadlines.append(deadline or 0)
            return super()._under_lock(section, deadline)

    deadline = time.monotonic() + 1
    waiting = Noting(path, "gpu", gone=nobody_ends, pause=Events(lambda: time.sleep(0.01)))
    with pytest.raises(NotEnoughDevicesError):
        waiting.claim(gpus(0), 1, made_up(2), wait=0.01, deadline=deadline)
    assert deadlines[0] == deadline
    assert max(deadlines) == deadline + 0.01


# A file that is no queue


RUBBISH = {
    "words": "what is this",
    "no device but a blank": "ab12 1 ",
    "no amount": "ab12 GPU-0",
    "amount 0": "ab12 0 GPU-0",
    "endless amount": f"ab12 {'9' * 5000} GPU-0",
    "amount in other digits": "ab12 \N{ARABIC-INDIC DIGIT FIVE} GPU-0",
    "path": "/../../victim 1 GPU-0",
    "NUL": "\x00 1 GPU-0",
    "blank": " ",
    "carriage return": "ab12 1 GPU-0\r",
}


def error_of(path: str, devices: Sequence[Device], wait: float) -> str:
    with pytest.raises(CoordinationError) as caught:
        ask(path, devices, wait=wait)
    message = str(caught.value)
    assert "\n" not in message
    assert ledger.read(path) == []
    return message


@pytest.mark.parametrize("wait", [0, LONG], ids=["asks", "waits"])
@pytest.mark.parametrize("line", RUBBISH.values(), ids=RUBBISH)
def test_queue_that_cannot_be_read_grants_nothing(line: str, path: str, wait: float) -> None:
    Path(f"{path}.queue").write_text(f"{line}\n", encoding="utf-8", newline="")
    message = error_of(path, gpus(0), wait)
    assert message.startswith("cannot read ")
    assert message.endswith(f" in {path}.queue, so nothing is granted: remove that file while nobody waits")
    assert leftovers(path) == {f"{path}.queue"}


def symbolic_link(queue: str) -> None:
    os.symlink("/etc/hostname", queue)


def hard_link(queue: str) -> None:
    Path(f"{queue}.other").touch()
    os.link(f"{queue}.other", queue)


@pytest.mark.parametrize("plant", [symbolic_link, hard_link, os.mkfifo, os.mkdir], ids=lambda plant: plant.__name__)
def test_queue_that_is_no_plain_file_grants_nothing(plant: Callable[[str], None], path: str) -> None:
    plant(f"{path}.queue")
    assert re.search(rf"{re.escape(path)}\.queue.*remove it", error_of(path, gpus(0), LONG))


def test_place_with_a_lock_that_nobody_holds_keeps_nothing(path: str) -> None:
    Path(f"{path}.witness-ab12").touch()
    Path(f"{path}.queue").write_text("ab12 1 GPU-0\nab13 1 GPU-0\n", encoding="ascii")
    assert ask(path, gpus(0)) == ["0"]
    assert leftovers(path) == set()


def test_queue_that_cannot_be_written_grants_nothing(path: str, start: Start) -> None:
    holder = start(lambda: claim_really(path, [0], 1, 0))
    holder.result()
    queue_up(path, start, [0, 1], 2)

    def full() -> None:
        os.mkdir(f"{path}.queue.new")  # whoever leaves the queue now cannot
        Path(f"{path}.queue").write_text(
            "".join(reversed(Path(f"{path}.queue").read_text(encoding="ascii").splitlines(keepends=True))),
            encoding="ascii",
        )

    with pytest.raises(CoordinationError, match=r"cannot write .*gpus\.queue: Is a directory"):
        coordination(path, full).claim(gpus(1), 1, made_up(2), wait=LONG)
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [holder.pid]


@pytest.mark.parametrize(
    "devices", [[], gpus(0, 11), [Device("a b@c%")], [of(0, "a"), Device("x", "", None, "p@ q")]], ids=repr
)
def test_place_is_read_as_it_was_written(devices: list[Device], path: str) -> None:
    place = queue.place("ab12", 3, devices)
    with open(f"{path}.witness-ab12", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        queue.write(path, [place])
        assert queue.read(path) == [place]
    assert queue.read(path) == []


def test_place_looks_as_documented(path: str) -> None:
    queue.write(path, [queue.place("ab12", 2, [Device("3"), of(0, "a")]), Place("cd", 1, frozenset({("x y", "")}))])
    assert Path(f"{path}.queue").read_text(encoding="ascii") == "ab12 2 3 MIG-a@GPU-0\ncd 1 x%20y\n"


# Several resources


def test_who_waits_for_what_its_choice_refuses_has_a_place_in_the_queue(path: str, start: Start) -> None:
    will_do = f"{path}-will-do"

    def choose(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        if not os.path.exists(will_do):
            raise NotEnoughDevicesError("none will do")
        return free[:amount]

    waiting_one = start(
        lambda: tokens(
            Coordination(path, "gpu").claim(gpus(0), 1, Holder(identify(os.getpid())), choose=choose, wait=LONG)
        )
    )
    wait_until(lambda: places(path))
    with pytest.raises(NotEnoughDevicesError, match="1 waiting before"):
        Coordination(path, "gpu").claim(gpus(0), 1, Holder(identify(os.getpid())))
    Path(will_do).touch()
    assert waiting_one.result() == ["0"]


def test_what_would_not_do_at_the_moment_is_not_kept_for_who_waits_but_what_would_is(path: str) -> None:
    unfit = {"0"}

    def choose(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        if len(fit := [device for device in free if device.token not in unfit]) < amount:
            raise NotEnoughDevicesError("none of these will do")
        return fit[:amount]

    def another_comes() -> None:
        give_back(path, gpus(1), 1)
        assert ask(path, gpus(0, 1), pid=2) == ["0"]
        assert refusal(path, gpus(0, 1)).startswith("1 wanted, 0 of 2 free; 1 waiting before")

    ask(path, gpus(1), pid=1)
    patient = coordination(path, another_comes)
    suited = patient.claim(
        gpus(0, 1), 1, made_up(3), choose=choose, suits=lambda device: device.token not in unfit, wait=LONG
    )
    assert tokens(suited) == ["1"]


def test_who_could_use_nothing_at_the_moment_stays_in_the_queue(path: str) -> None:
    unfit = {"0"}

    def choose(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        if unfit:
            raise NotEnoughDevicesError("none of these will do")
        return free[:amount]

    def look() -> None:
        assert places(path) == 1
        unfit.clear()

    waiting_one = coordination(path, look)
    found = waiting_one.claim(gpus(0), 1, made_up(3), choose=choose, suits=lambda device: not unfit, wait=LONG)
    assert tokens(found) == ["0"]


class Pool:
    """A driver of one device, for which it waits; it says what it is about to do."""

    def __init__(self, path: str, told: Callable[[], None]) -> None:
        self.coordination_file = path
        self.wait = 20
        self._shared = Coordination(path, "fpga")
        self._told = told
        self._claimed: list[Device] = []

    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        self._claimed = self._shared.claim([Device("0")], amount, Holder(identify(os.getpid())), wait=self.wait)
        self._told()
        return [Info()] * amount

    def close(self) -> None:
        self._shared.release(self._claimed, Holder(identify(os.getpid())))


class Info:
    def get_property(self, key: str) -> str | None:
        return None

    def get_keys(self) -> Collection[str]:
        return ()


def test_two_that_want_the_same_resources_in_opposite_order_both_get_them(path: str, start: Start) -> None:
    a, b = f"{path}-a", f"{path}-b"

    def hold_both(first: str, second: str, after: Callable[[], None]) -> list[str]:
        resources = {"x": (Pool(first, after), 1), "y": (Pool(second, after), 1)}
        with RuntimeContext(resources) as context:  # type: ignore[arg-type] # a list for the set of the protocol
            return [name for name in resources if context.get_external_resource_infos(name)]

    def until_the_other_one_has_begun() -> None:
        wait_until(lambda: places(a) or os.path.exists(b))

    one = start(lambda: hold_both(a, b, until_the_other_one_has_begun))
    wait_until(lambda: os.path.exists(a))
    other = start(lambda: hold_both(b, a, lambda: None))
    assert (one.result(), other.result()) == (["x", "y"], ["x", "y"])
    assert leftovers(a) <= {b, f"{b}.lock"}


# The script


@pytest.fixture
def held(path: str, start: Start) -> Running[list[str]]:
    """Another process that holds the only GPU; its claim is freed by killing it."""
    holder = start(lambda: tokens(Coordination(path, "gpu").claim([Device("0")], 1, Holder(identify(os.getpid())))))
    holder.result()
    return holder


def script(path: str, *words: str) -> list[str]:
    asked = ["1", "--simulate=1", "--enable-coordination-mode", f"--wait={LONG:g}", *words]
    return [*SCRIPT, *asked, f"--coordination-file={path}"]


def start_script(path: str, *words: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(script(path, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: places(path) or process.poll() is not None)
    return process


def test_script_waits_and_says_nothing_in_a_pipe(path: str, held: Running[list[str]]) -> None:
    with start_script(path) as process:
        held.kill()
        assert process.communicate() == ("0\n", "")
        assert process.returncode == 0
    assert leftovers(path) == set()


def test_driver_says_once_for_whom_its_script_waits(
    path: str, held: Running[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> bool:
        return bool(caplog.messages)

    def end_once_told() -> None:
        wait_until(told)
        held.kill()

    ending = threading.Thread(target=end_once_told)
    ending.start()
    options = {"simulate": "1", "coordination-file": path, "wait": f"{LONG:g}"}
    with externalresource.claim("gpu", options=options):
        [said] = caplog.messages
    ending.join()
    assert re.fullmatch(rf"waiting for gpu: 1 wanted, 0 of 1 free; held by pid {held.pid} \(.*\), since \S+: 0", said)


def test_refusal_repeats_nothing_of_what_was_said_while_waiting(path: str, held: Running[list[str]]) -> None:
    options = {"simulate": "1", "coordination-file": path, "wait": "0.3"}
    with pytest.raises(ExternalResourceError) as caught:
        externalresource.claim("gpu", options=options)
    assert str(caught.value).startswith("1 wanted, 0 of 1 free; held by pid ")
    assert str(caught.value).endswith("; waited 0.3 s for them")


@pytest.fixture(params=["SIGTERM", "SIGINT", "SIGHUP"])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is not ignored by what is started here, as it is under nohup and in a shell's background."""
    number = signal.Signals[request.param]
    before = signal.signal(number, lambda *_: None)
    yield number
    signal.signal(number, before)


def test_signal_ends_a_waiting_script_which_leaves_nothing(
    path: str, held: Running[list[str]], number: signal.Signals
) -> None:
    with start_script(path) as process:
        process.send_signal(number)
        assert process.communicate() == ("", "")
        assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert leftovers(path) == set()
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [held.pid]


def test_signal_that_is_ignored_does_not_end_a_waiting_script(path: str, held: Running[list[str]]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with start_script(path) as process:
            process.send_signal(signal.SIGHUP)
            held.kill()
            assert process.communicate() == ("0\n", "")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_script_that_was_stopped_for_a_while_waits_on(path: str, held: Running[list[str]]) -> None:
    with start_script(path) as process:
        for _ in range(3):  # longer than its longest pause
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.7)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
        held.kill()
        assert process.communicate(timeout=LONG) == ("0\n", "")


def test_killed_script_claims_nothing_later(path: str, held: Running[list[str]]) -> None:
    with start_script(path) as process:
        process.kill()
    before = ledger.read(path)
    held.kill()
    with pytest.raises(NotEnoughDevicesError):
        Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends).claim([Device("0")], 1, made_up(2))
    assert ledger.read(path) == before
    assert leftovers(path) == set()


def test_owner_that_ends_while_its_script_waits_gets_nothing(path: str, held: Running[list[str]]) -> None:
    with subprocess.Popen(["sleep", "600"]) as owner, start_script(path, f"--owner-pid={owner.pid}") as process:
        owner.kill()
        owner.wait()
        out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert err == f"nvidia-gpu-discovery: the owner (pid {owner.pid}) has ended: nothing is granted\n"
    assert leftovers(path) == set()
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [held.pid]


def test_parent_that_ends_while_its_script_waits_gets_nothing(
    path: str, held: Running[list[str]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    words = script(path, f"--log-file={log}", f"--owner-pid={os.getpid()}")
    with subprocess.Popen(["/bin/sh", "-c", '"$@" & wait', "sh", *words], stdout=subprocess.DEVNULL) as parent:
        wait_until(lambda: places(path))
        parent.kill()
    wait_until(lambda: log.exists() and log.read_text(encoding="ascii"))
    message = f"the process that started this script (pid {parent.pid}) has ended: nothing is granted"
    assert log.read_text(encoding="ascii").endswith(f": refused: {message}\n")
    assert leftovers(path) == set()
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [held.pid]


def test_script_gives_up_with_the_reason(path: str, held: Running[list[str]]) -> None:
    done = subprocess.run(script(path, "--wait=0.1"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"held by pid {held.pid} " in done.stderr
    assert done.stderr.endswith("; waited 0.1 s for them\n")
    assert leftovers(path) == set()


# What a terminal shows


def on_a_terminal(
    path: str, columns: int, held: Running[list[str]], command: Sequence[str] = ()
) -> tuple[list[str], str]:
    """Return what the script, or another command, shows on a terminal until it has the device, and its answer."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    shown = b""
    with subprocess.Popen(command or script(path), stdout=subprocess.PIPE, stderr=end, text=True) as process:
        os.close(end)
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while block := os.read(terminal, 1024):
                shown += block
                held.kill()
        assert process.stdout
        answer = process.stdout.read()
    os.close(terminal)
    return shown.decode().split("\r\x1b[K"), answer


@pytest.mark.parametrize("columns", [30, 200])
def test_terminal_shows_one_line_that_is_replaced_and_cleared(
    path: str, held: Running[list[str]], columns: int
) -> None:
    lines, answer = on_a_terminal(path, columns, held)
    assert answer == "0\n"
    assert (lines[0], lines[-1]) == ("", "")
    expected = rf"waiting 0 s: 1 wanted, 0 of 1 free; held by pid {held.pid} \(.*\), since \S+: 0"
    for line in lines[1:-1]:
        assert len(line) < columns
        assert "\n" not in line
    if columns == 200:
        assert re.fullmatch(expected, lines[1])


def test_run_shows_on_its_terminal_that_its_script_waits(path: str, held: Running[list[str]]) -> None:
    options = ["--simulate", "1", "--coordination-file", path, "--wait", "60"]
    command = [
        str(Path(sysconfig.get_path("scripts")) / "externalresource"),
        "run",
        "gpu=1",
        *options,
        "--",
        "echo",
        "x",
    ]
    lines, answer = on_a_terminal(path, 200, held, command)
    assert answer == "x\n"
    assert lines[1].startswith(f"waiting 0 s: 1 wanted, 0 of 1 free; held by pid {held.pid} ")
    assert lines[-1] == ""


def test_name_of_a_program_does_not_control_the_terminal(path: str, start: Start) -> None:
    def renamed() -> list[str]:
        Path("/proc/self/comm").write_bytes(b"\x1b[31m\nred")
        return tokens(Coordination(path, "gpu").claim([Device("0")], 1, Holder(identify(os.getpid()))))

    holder = start(renamed)
    holder.result()
    lines, _ = on_a_terminal(path, 200, holder)
    assert "(?[31m?red)" in lines[1]


# The driver


def test_driver_waits_longer_than_its_script_may_take(path: str, held: Running[list[str]], start: Start) -> None:
    def free_it_late() -> list[str]:
        wait_until(lambda: places(path))
        time.sleep(2.5)
        os.kill(held.pid, signal.SIGKILL)
        return []

    start(free_it_late)
    options = {
        "simulate": "1",
        "coordination-file": path,
        "wait": f"{LONG:g}",
        "discovery-script.timeout": "1",
    }
    with externalresource.claim("gpu", options=options) as context:
        assert len(context.get_external_resource_infos("gpu")) == 1
    assert leftovers(path) == set()


def test_driver_gives_up_with_the_reason(path: str, held: Running[list[str]]) -> None:
    options = {"simulate": "1", "coordination-file": path, "wait": "0.1"}
    with pytest.raises(NotEnoughDevicesError, match=rf"held by pid {held.pid} .*; waited 0\.1 s for them$"):
        externalresource.claim("gpu", options=options)
