"""Processes that start others inside of them, die and give back in any order."""

import random
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from externalresource.errors import NotEnoughDevicesError
from tests.support.claiming import HostOfRuns, gpus, made_up_run
from tests.support.devices import Device

GPUS = gpus(4)


@dataclass
class Job:
    """One that runs inside of others, and what it was told."""

    pid: int
    runs: tuple[str, ...]
    devices: list[str]
    parent: "Job | None"
    living: bool = True
    children: list["Job"] = field(default_factory=list)

    def uses(self) -> set[str]:
        """What only it may use: not what living ones inside of it were given, nor those inside of a dead one there."""
        return set(self.devices) - {device for child in self.children for device in child.all()}

    def all(self) -> set[str]:
        own = set(self.devices) if self.living else set()
        return own.union(*(child.all() for child in self.children))


class Tree(RuleBasedStateMachine):
    """Processes that start others inside of them, and die."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.host = HostOfRuns(f"{self.folder.name}/gpus")
        self.processes: list[Job] = []

    def teardown(self) -> None:
        self.folder.cleanup()

    def living(self) -> list[Job]:
        return [process for process in self.processes if process.living]

    def start(self, parent: Job | None, amount: int, chance: random.Random) -> None:
        pid = len(self.processes) + 1
        runs = (*parent.runs, f"of{parent.pid}") if parent else ()
        around = parent
        while around and not around.living:
            around = around.parent
        taken = {device for process in self.processes if process.living for device in process.devices}
        free = around.uses() if around else {device.token for device in GPUS} - taken

        def choose(offered: Sequence[Device], claims: Collection[object], amount: int) -> Sequence[Device]:
            assert {device.token for device in offered} <= free
            return chance.sample(list(offered), amount)

        try:
            granted = self.host.inside(*runs).claim(GPUS, amount, made_up_run(pid), choose=choose)
        except NotEnoughDevicesError:
            assert amount > len(free)
            return
        process = Job(pid, runs, [device.token for device in granted], around)
        self.processes.append(process)
        if around:
            around.children.append(process)

    @rule(amount=st.integers(1, 3), chance=st.randoms(use_true_random=False))
    def start_on_the_host(self, amount: int, chance: random.Random) -> None:
        self.start(None, amount, chance)

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 20), amount=st.integers(1, 3), chance=st.randoms(use_true_random=False))
    def start_inside(self, number: int, amount: int, chance: random.Random) -> None:
        self.start(self.processes[number % len(self.processes)], amount, chance)

    @precondition(lambda self: self.living())
    @rule(number=st.integers(0, 20))
    def die(self, number: int) -> None:
        process = self.living()[number % len(self.living())]
        process.living = False
        self.host.dead.add(process.pid)

    @precondition(lambda self: self.living())
    @rule(number=st.integers(0, 20))
    def give_back(self, number: int) -> None:
        process = self.living()[number % len(self.living())]
        devices = [device for device in GPUS if device.token in process.devices]
        assert self.host.inside().release(devices, made_up_run(process.pid)) == len(devices)
        process.living = False

    @invariant()
    def file_tells_all_that_the_living_were_told(self) -> None:
        held = [
            (each.process.pid, claim.token)
            for claim in self.host.inside().held()
            for each in claim.holders
            if each.living
        ]
        assert sorted(held) == sorted((process.pid, device) for process in self.living() for device in process.devices)

    @invariant()
    def no_device_is_in_two_hands(self) -> None:
        hands = [device for process in self.living() for device in process.uses()]
        assert len(hands) == len(set(hands))


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=50, deadline=None)


@pytest.mark.sweep
class TestTreeAtLength(Tree.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(max_examples=400, deadline=None)
