"""Any order of events: owners come, ask, wait, give back and die; a model beside the file knows who may hold what."""

import contextlib
import fcntl
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from externalresource.coordination import Coordination, ledger, matching, queue
from externalresource.coordination.holders import Claim, Holder
from externalresource.coordination.life_lock import LifeLock
from externalresource.coordination.matching import Wholes
from externalresource.coordination.process import Observer, Process
from externalresource.coordination.queue import Place
from externalresource.coordination.request import Request
from externalresource.errors import NotEnoughDevicesError
from tests.support.devices import Device, claim_of


def of(gpu: str, name: str, token: str) -> Device:
    return Device(f"MIG-{name}", f"MIG-{name}", f"GPU-{gpu}", token)


# What processes of one host may see of it: each has a view of its own.
GPUS = {
    "host": [Device("0", "GPU-a"), Device("1", "GPU-b"), of("c", "x", "2"), of("c", "y", "2")],
    "host before it was sliced": [Device("0", "GPU-a"), Device("1", "GPU-b"), Device("2", "GPU-c")],
    "container": [Device("0", "GPU-b"), Device("1", "GPU-c")],
    "container with slices": [of("c", "x", "0"), of("c", "y", "0")],
}
WITHOUT_UUIDS = {
    "whole": [Device("0"), Device("1"), Device("board 2")],
    "sliced": [Device("0"), Device("1/0", parent_token="1"), Device("1/1", parent_token="1")],
    "few": [Device("1"), Device("board 2")],
}
HOSTS = [GPUS, WITHOUT_UUIDS]


def is_one(uuid: str | None, token: str | None, other_uuid: str | None, other_token: str | None) -> bool:
    """Whether two names may be those of one device."""
    if uuid and other_uuid:
        return uuid == other_uuid
    return any(
        name and name == another for name, another in ((token, other_token), (token, other_uuid), (uuid, other_token))
    )


def is_part(one: Device, other: Device, listed: Sequence[Device], steps: int = 6) -> bool:
    """Whether it says so itself, or one of the listed devices does that may be its parent."""
    parent = one.parent_uuid, one.parent_token
    ups = [up for up in listed if is_one(*parent, up.uuid, up.token)] if steps else []
    return is_one(*parent, other.uuid, other.token) or any(is_part(up, other, listed, steps - 1) for up in ups)


def overlap(one: Device, other: Device, listed: Sequence[Device] = ()) -> bool:
    itself = is_one(one.uuid, one.token, other.uuid, other.token)
    return itself or is_part(one, other, listed) or is_part(other, one, listed)


def free_of(devices: Sequence[Device], held: Sequence[Device]) -> list[Device]:
    return [device for device in devices if not any(overlap(device, other, devices) for other in held)]


@dataclass(frozen=True)
class Waiting:
    """A process in the queue."""

    place: Place
    lock: LifeLock
    devices: Sequence[Device]

    def served(self, held: Sequence[Device]) -> int:
        """Return how many of the devices that it wants it could have."""
        return min(self.place.amount, len(free_of(self.devices, held)))


Pick = Callable[[list[Device], int], Sequence[Device]]  # which of the devices that are offered, so many
views = st.sampled_from(range(4))
places = st.integers(0, 3)


class AnyOrder(RuleBasedStateMachine):
    """Owners of ours in `hands`, processes of Flink's script in `bare`, and those that wait in `queue`."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = f"{self.folder.name}/gpus"
        self.hands: dict[int, list[Device]] = {pid: [] for pid in range(1, 5)}  # of the living, as they were told
        self.bare: dict[int, str] = {}
        self.queue: list[Waiting] = []
        self.next_pid = 5
        self.shared = Coordination(self.path, "gpu", in_container=lambda: False, gone=self.is_gone)

    def is_gone(self, who: Process, here: Observer) -> bool:
        return who.pid not in self.hands and who.pid not in self.bare

    def teardown(self) -> None:
        for waiting_one in self.queue:
            waiting_one.lock.close()
        self.folder.cleanup()

    @initialize(host=st.sampled_from(HOSTS))
    def begin(self, host: dict[str, list[Device]]) -> None:
        self.views = list(host.values())

    def new_pid(self) -> int:
        self.next_pid += 1
        return self.next_pid

    def held(self) -> list[Device]:
        return [*(device for hand in self.hands.values() for device in hand), *map(Device, self.bare.values())]

    def owner(self, pid: int) -> Holder:
        return Holder(Process(pid, pid, pid_namespace=1, program="java"))

    @rule(place=places, amount=st.integers(1, 4), view=views, chance=st.randoms(use_true_random=False))
    def ask(self, place: int, amount: int, view: int, chance: random.Random) -> None:
        devices = self.views[view % len(self.views)]
        self.decide(sorted(self.hands)[place], devices, amount, None, chance.sample)

    @precondition(lambda self: self.queue)
    @rule(place=places, number=places, chance=st.randoms(use_true_random=False))
    def look_again(self, place: int, number: int, chance: random.Random) -> None:
        one = self.queue[number % len(self.queue)]
        if self.decide(sorted(self.hands)[place], one.devices, one.place.amount, one, chance.sample):
            one.lock.close()
            self.queue.remove(one)

    def decide(self, pid: int, devices: Sequence[Device], amount: int, one: Waiting | None, pick: Pick) -> bool:
        """Ask, and hold the answer against what is known; return whether it was granted."""
        ahead = self.queue[: self.queue.index(one)] if one else self.queue
        held = self.held()
        free = free_of(devices, held)

        def choose(offered: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
            assert set(offered) <= set(free)
            return pick(list(offered), amount)

        request = Request(devices, amount, self.owner(pid), choose, lambda _: True, Wholes(devices))
        try:
            granted = self.shared._claim_now(request, time.monotonic(), one.place.life_lock if one else None)
        except NotEnoughDevicesError:
            # A refusal has a reason: too few are free, or somebody came before and wants one of them.
            assert amount > len(free) or any(queue.wants(other.place, free) for other in ahead)
            return False
        assert len(granted) == amount
        self.hands[pid] += granted
        if ahead:  # the first of all can have as much as before
            assert ahead[0].served(self.held()) == ahead[0].served(held)
        return True

    @precondition(lambda self: len(self.queue) < 3)
    @rule(amount=st.integers(1, 4), view=views)
    def wait(self, amount: int, view: int) -> None:
        devices = self.views[view % len(self.views)]
        assume(amount <= len(devices))
        lock = LifeLock(self.path)
        place = queue.place(lock.name, amount, devices)
        queue.write(self.path, [*queue.read(self.path), place])
        self.queue.append(Waiting(place, lock, devices))

    @precondition(lambda self: self.queue)
    @rule(number=places)
    def stop_waiting(self, number: int) -> None:
        self.queue.pop(number % len(self.queue)).lock.close()

    @rule(place=places, count=st.integers(0, 4))
    def give_back(self, place: int, count: int) -> None:
        pid = sorted(self.hands)[place]
        back, self.hands[pid] = self.hands[pid][:count], self.hands[pid][count:]
        assert self.shared.release(back, self.owner(pid)) == len(back)

    @rule(place=places, other=places)
    def give_back_what_is_not_ones_own(self, place: int, other: int) -> None:
        pid, whose = sorted(self.hands)[place], sorted(self.hands)[other]
        assume(pid != whose)
        assert self.shared.release(self.hands[whose], self.owner(pid)) == 0

    @rule(place=places)
    def die(self, place: int) -> None:
        self.hands[self.new_pid()] = []
        del self.hands[sorted(self.hands)[place]]

    @rule(token=st.sampled_from("012"))
    def flinks_own_script_claims(self, token: str) -> None:
        claims = ledger.read(self.path)
        assume(all(claim.token != token for claim in claims) and free_of([Device(token)], self.held()))
        pid = self.new_pid()
        with open(self.path, "a", encoding="ascii") as file:
            file.write(f"{token} {pid}\n")
        self.bare[pid] = token

    @precondition(lambda self: self.bare)
    @rule(number=places)
    def process_of_flinks_dies(self, number: int) -> None:
        del self.bare[sorted(self.bare)[number % len(self.bare)]]

    @invariant()
    def no_device_is_in_two_hands(self) -> None:
        held = self.held()
        assert not any(overlap(one, other) for place, one in enumerate(held) for other in held[:place])

    @invariant()
    def none_is_lost_and_no_name_repeats(self) -> None:
        claims = ledger.read(self.path)
        recorded = sorted(
            (claim.owner.process.pid, claim.uuid or claim.token)
            for claim in claims
            if claim.owner.process.pid in self.hands
        )
        told = ((pid, device.uuid or device.token) for pid, hand in self.hands.items() for device in hand)
        assert recorded == sorted(told)
        names = [claim.token for claim in claims]
        assert len(names) == len(set(names))
        flinks = {claim.owner.process.pid: claim.token for claim in claims if claim.flinks}
        assert {pid: token for pid, token in flinks.items() if pid in self.bare} == self.bare

    @invariant()
    def queue_keeps_its_order(self) -> None:
        assert queue.read(self.path) == [one.place for one in self.queue]

    @invariant()
    def what_is_shown_is_what_is(self) -> None:
        living = [claim.owner.process.pid for claim in self.shared.held() if claim.living]
        owners = [pid for pid, hand in self.hands.items() for _ in hand]
        assert sorted(living) == sorted([*owners, *self.bare])


TestAnyOrder = AnyOrder.TestCase

# The pure parts

names = st.sampled_from("abc")
uuids = st.none() | st.just("") | names.map("GPU-{}".format)
devices = st.builds(Device, names | names.map("GPU-{}".format), uuids, uuids, st.none() | names)
claims = st.builds(
    lambda device, pid: Claim(
        device.token, (Holder(Process(pid)),), device.uuid, device.parent_uuid, device.parent_token
    ),
    devices,
    st.integers(1, 9),
)


def as_device(claim: Claim) -> Device:
    return Device(claim.token, claim.uuid, claim.parent_uuid, claim.parent_token)


@given(st.lists(devices, max_size=6, unique=True), st.lists(claims))
def test_free_is_what_overlaps_no_claim(asked: list[Device], taken: list[Claim]) -> None:
    assert matching.free(asked, taken, Wholes(asked)) == free_of(asked, list(map(as_device, taken)))


@given(devices, claims)
def test_claim_takes_what_it_overlaps(device: Device, claim: Claim) -> None:
    assert matching.takes(claim, [device], Wholes([device])) == overlap(device, as_device(claim), [device])
    assert not matching.takes(claim, [], Wholes([device]))


@given(claims)
def test_claim_is_the_same_as_its_device(claim: Claim) -> None:
    assert matching.same(claim, as_device(claim))


queues = st.lists(st.builds(queue.place, st.just("ab12"), st.integers(1, 4), st.lists(devices, min_size=1)))


@given(st.lists(devices, unique=True), queues)
def test_nothing_is_left_of_what_those_before_still_need(free: list[Device], before: list[Place]) -> None:
    left = queue.unreserved(free, before)
    assert [device for device in free if device in left] == left
    if len(left) == len(free):
        return
    assert before
    assert any(queue.wants(place, free) for place in before)


@given(st.lists(devices, unique=True), queues, queues)
def test_who_comes_later_is_left_no_more(free: list[Device], before: list[Place], later: list[Place]) -> None:
    assert set(queue.unreserved(free, [*before, *later])) <= set(queue.unreserved(free, before))


@given(st.lists(devices, unique=True), queues)
def test_first_keeps_as_many_as_it_wants(free: list[Device], before: list[Place]) -> None:
    left = queue.unreserved(free, before)
    for place in before[:1]:
        wanted = [device for device in free if (device.uuid or device.token) in {name for name, _ in place.devices}]
        kept = [device for device in wanted if device not in left]
        assert len(kept) >= min(place.amount, len(wanted))


@given(st.lists(devices, unique=True))
def test_nothing_is_kept_where_nobody_waits(free: list[Device]) -> None:
    assert queue.unreserved(free, []) == free


@pytest.fixture(scope="module")
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        yield name


@contextlib.contextmanager
def all_live(file: str, places: list[Place]) -> Iterator[None]:
    """Hold the lock of each place."""
    with contextlib.ExitStack() as held:
        for path in {f"{file}.witness-{place.life_lock}" for place in places}:
            fcntl.flock(held.enter_context(open(path, "w")), fcntl.LOCK_EX)
            held.callback(os.unlink, path)
        yield


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.builds(Place, st.text("0123456789abcdef", min_size=1, max_size=64), st.integers(1, 999_999_999),
    st.frozensets(st.tuples(words, st.just("") | words), min_size=1))))  # fmt: skip
def test_queue_is_read_as_it_was_written(folder: str, places: list[Place]) -> None:
    with all_live(f"{folder}/gpus", places):
        queue.write(f"{folder}/gpus", places)
        assert queue.read(f"{folder}/gpus") == places


tokens = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
details = st.fixed_dictionaries({}, optional={"uuid": words, "parent_token": words, "later": st.lists(st.integers())})


@given(st.lists(st.builds(claim_of, tokens, st.integers(1, 999_999_999), details)))
def test_line_is_kept_to_the_letter(written: list[Claim]) -> None:
    text = "".join(f"{ledger._render(claim)}\n" for claim in written)
    read = ledger.parse(text, "file")
    assert read == written
    assert "".join(f"{claim.line}\n" for claim in read) == text
