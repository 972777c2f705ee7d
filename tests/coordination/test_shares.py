"""A run inside a run takes shares of that one's devices: never of others', never one that another has, none is lost."""

import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from externalresource.coordination import Claim, Coordination, Holder, Process, ledger, queue
from externalresource.coordination.life_lock import LifeLock
from externalresource.coordination.process import Observer
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.devices import Device

COMMAND = str(Path(sysconfig.get_path("scripts")) / "externalresource")
GPUS = [Device(str(number), f"GPU-{number}") for number in range(4)]


def made_up(pid: int, grant: str | None = None) -> Holder:
    """A process, and the name of what it is granted."""
    return Holder(Process(pid, pid, pid_namespace=1, program="make"), grant or f"of{pid}")


class Host:
    """A coordination file, and made-up processes, of which some are dead."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.dead: set[int] = set()

    def inside(self, *runs: str, pause: Callable[[float, str], None] = lambda _seconds, _reason: None) -> Coordination:
        """The coordination as a process sees it that is inside of these runs, the outermost first."""
        around = [frozenset(run.split(",")) for run in runs]
        # On the host, where those that are made up need no life lock.
        return Coordination(self.path, "gpu", in_container=lambda: False, gone=self.is_gone, pause=pause, runs=around)

    def is_gone(self, process: Process, here: Observer) -> bool:
        return process.pid in self.dead

    def claim(self, pid: int, amount: int, *runs: str, grant: str | None = None, wait: float = 0) -> list[str]:
        granted = self.inside(*runs).claim(GPUS, amount, made_up(pid, grant), wait=wait)
        return [device.token for device in granted]

    def refusal(self, pid: int, amount: int, *runs: str, wait: float = 0) -> str:
        with pytest.raises(NotEnoughDevicesError) as caught:
            self.claim(pid, amount, *runs, wait=wait)
        return str(caught.value)

    def holders(self) -> dict[str, list[int]]:
        """By device those that hold it as the file says, the owner first."""
        found: dict[str, list[int]] = {}
        for claim in self.inside().held():
            found[claim.token] = [holder.process.pid for holder in claim.holders]
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(str(tmp_path / "gpus"))


def test_runs_inside_one_run_divide_its_devices(host: Host) -> None:
    assert host.claim(1, 3) == ["0", "1", "2"]
    assert host.claim(2, 1, "of1") == ["0"]
    assert host.claim(3, 2, "of1") == ["1", "2"]
    assert host.holders() == {"0": [1, 2], "1": [1, 3], "2": [1, 3]}


def test_who_is_in_no_run_gets_nothing_of_what_a_run_has(host: Host) -> None:
    host.claim(1, 3)
    host.claim(2, 1, "of1")
    assert host.claim(3, 1) == ["3"]
    assert "1 wanted, 0 of 4 free" in host.refusal(4, 1)


def test_run_inside_gets_nothing_but_the_runs_devices(host: Host) -> None:
    host.claim(1, 2)
    host.claim(2, 2, "of1")
    said = host.refusal(3, 1, "of1")
    assert "1 wanted, 0 of the 2 that pid 1 (make) has, inside of which this runs, free" in said
    assert "held by pid 2 (make), since " in said
    assert "pid 1 (make), since" not in said


def test_share_is_free_again_when_its_process_is_dead(host: Host) -> None:
    host.claim(1, 2)
    host.claim(2, 2, "of1")
    host.dead.add(2)
    assert host.claim(3, 2, "of1") == ["0", "1"]
    assert host.holders() == {"0": [1, 3], "1": [1, 3]}


def test_device_is_held_while_a_share_of_a_dead_run_is_used(host: Host) -> None:
    host.claim(1, 4)
    host.claim(2, 1, "of1")
    host.dead.add(1)
    assert host.claim(3, 3) == ["1", "2", "3"]
    assert "held by pid 2 (make), since " in host.refusal(4, 1)
    assert host.holders() == {"0": [2], "1": [3], "2": [3], "3": [3]}


def test_device_is_free_once_all_its_holders_are_dead(host: Host) -> None:
    host.claim(1, 4)
    host.claim(2, 1, "of1")
    host.dead |= {1, 2}
    assert host.claim(3, 4) == ["0", "1", "2", "3"]
    assert host.holders() == {"0": [3], "1": [3], "2": [3], "3": [3]}


def test_innermost_run_counts(host: Host) -> None:
    host.claim(1, 4)
    host.claim(2, 2, "of1")
    host.claim(3, 1, "of1", "of2")
    assert host.claim(4, 1, "of1", "of2") == ["1"]
    assert "0 of the 2 that pid 2" in host.refusal(5, 1, "of1", "of2")
    assert host.holders() == {"0": [1, 2, 3], "1": [1, 2, 4], "2": [1], "3": [1]}


def test_process_in_a_run_that_has_ended_is_in_the_one_around_it(host: Host) -> None:
    host.claim(1, 2)
    host.claim(2, 2, "of1")
    host.dead.add(2)
    assert host.claim(3, 1, "of1", "of2") == ["0"]
    host.dead |= {1, 3}
    assert host.claim(4, 3, "of1", "of2") == ["0", "1", "2"]
    assert host.holders() == {"0": [4], "1": [4], "2": [4]}


def test_run_that_became_another_run_is_one_process_with_two_grants(host: Host) -> None:
    host.claim(1, 3)
    assert host.claim(1, 2, "of1", grant="second") == ["0", "1"]
    assert host.claim(1, 1, "of1", "second", grant="third") == ["0"]
    assert host.claim(2, 1, "of1", "second") == ["1"]


def test_who_asks_twice_inside_gets_further_devices(host: Host) -> None:
    host.claim(1, 2)
    assert host.claim(1, 1, "of1", grant="a") + host.claim(1, 1, "of1", grant="b") == ["0", "1"]


def test_grants_of_one_run_count_together(host: Host) -> None:
    host.claim(1, 1, grant="a")
    host.claim(1, 2, grant="b")
    assert host.claim(2, 3, "a,b") == ["0", "1", "2"]


def test_run_without_devices_of_this_class_bounds_nothing(host: Host) -> None:
    host.claim(1, 1)
    assert host.claim(2, 1, "of1", "rdma") == ["0"]
    assert host.claim(3, 3, "rdma") == ["1", "2", "3"]


def test_more_than_the_run_has_is_refused_at_once_though_one_waits(host: Host) -> None:
    host.claim(1, 2)
    said = host.refusal(2, 3, "of1", wait=1000)
    assert said == "3 wanted of the 2 that pid 1 (make) has, inside of which this runs"


def test_who_waits_for_more_than_the_run_has_left_is_refused_at_once(host: Host) -> None:
    host.claim(1, 2)
    host.claim(2, 1, "of1")

    def strike_out(_seconds: float, _reason: str) -> None:
        host.inside().drop(lambda claim, _holder: claim.token == "1")

    with pytest.raises(NotEnoughDevicesError) as caught:
        host.inside("of1", pause=strike_out).claim(GPUS, 2, made_up(3), wait=1000)
    assert str(caught.value) == "2 wanted of the 1 that pid 1 (make) has, inside of which this runs"
    assert queue.read(host.path) == []


def test_devices_of_the_run_that_are_not_asked_for_are_told_of(host: Host) -> None:
    host.claim(1, 2)
    with pytest.raises(NotEnoughDevicesError) as caught:
        host.inside("of1").claim(GPUS[1:], 2, made_up(2))
    assert "2 wanted of the 2 that pid 1 (make) has" in str(caught.value)
    assert str(caught.value).endswith("(1 of them visible and suitable)")


def test_refusal_says_since_when_the_share_is_held(host: Host) -> None:
    host.claim(1, 1)
    file = Path(host.path)
    file.write_text(re.sub(r'"since":"[^"]*"', '"since":"2000-01-01T00:00:00Z"', file.read_text()))
    host.claim(2, 1, "of1")
    assert "held by pid 1 (make), since 2000" in host.refusal(3, 4)
    assert "2000" not in host.refusal(3, 1, "of1")


def test_those_who_wait_for_devices_do_not_stand_in_the_way_of_shares(host: Host) -> None:
    host.claim(1, 4)
    outside = LifeLock(host.path)
    queue.write(host.path, [queue.place(outside.name, 4, GPUS)])
    assert host.claim(2, 1, "of1") == ["0"]
    assert [place.life_lock for place in queue.read(host.path)] == [outside.name]
    outside.close()


def test_those_who_wait_for_shares_of_one_run_are_served_in_turn(host: Host) -> None:
    host.claim(1, 1)
    host.claim(2, 1, "of1")
    reasons: list[str] = []

    def come_later(_seconds: float, reason: str) -> None:
        reasons.append(reason)
        assert "1 waiting before" in host.refusal(4, 1, "of1")
        host.dead.add(2)
        assert host.refusal(5, 1, "of1").startswith("1 wanted, 0 of the 1 that pid 1 (make) has")

    first = host.inside("of1", pause=come_later).claim(GPUS, 1, made_up(3), wait=60)
    assert [device.token for device in first] == ["0"]
    assert "held by pid 2 (make)" in reasons[0]
    assert host.holders() == {"0": [1, 3]}
    assert queue.read(host.path) == []


def test_place_of_one_who_waits_for_shares_is_read_as_it_was_written(host: Host) -> None:
    lock = LifeLock(host.path)
    places = [queue.place(lock.name, 2, GPUS[:2], "a b,=%")]
    queue.write(host.path, places)
    assert queue.read(host.path) == places
    lock.close()


def test_given_back_share_is_the_runs_again(host: Host) -> None:
    host.claim(1, 2)
    host.claim(2, 1, "of1")
    assert host.inside().release(GPUS, made_up(2)) == 1
    assert host.holders() == {"0": [1], "1": [1]}


def test_what_a_run_gives_back_stays_with_who_has_a_share_of_it(host: Host) -> None:
    host.claim(1, 2)
    host.claim(2, 1, "of1")
    assert host.inside().release(GPUS, made_up(1)) == 2
    assert host.holders() == {"0": [2]}


def test_process_gives_back_one_grant_and_keeps_the_other(host: Host) -> None:
    host.claim(1, 2)
    host.claim(1, 1, "of1", grant="inner")
    assert host.inside().release(GPUS, made_up(1, "inner")) == 1
    assert host.holders() == {"0": [1], "1": [1]}


def test_shares_that_are_struck_out_leave_the_claim(host: Host) -> None:
    host.claim(1, 1)
    host.claim(2, 1, "of1")
    host.dead.add(2)

    def dead(claim: Claim, holder: Holder) -> bool:
        return not holder.living

    assert [holder.process.pid for _, holder in host.inside().drop(dead)] == [2]
    assert host.holders() == {"0": [1]}


def test_what_we_do_not_know_of_a_line_is_kept(host: Host) -> None:
    host.claim(1, 1)
    (line,) = Path(host.path).read_text().splitlines()
    token, pid, details = line.split(" ", 2)
    Path(host.path).write_text(f"{token} {pid} {json.dumps(json.loads(details) | {'colour': 'red'})}\n")
    host.claim(2, 1, "of1")
    host.claim(3, 1)
    host.dead |= {1, 3}
    host.claim(4, 3)
    (claim,) = [claim for claim in ledger.read(host.path) if claim.token == "0"]
    assert (claim.holders[0].process.pid, claim.others, claim.holders[0].grant) == (2, {"colour": "red"}, "of2")
    assert len(claim.holders) == 1


@pytest.mark.parametrize(
    "shares",
    [
        "{}",
        "[1]",
        "[{}]",
        '[{"pid":"7"}]',
        '[{"pid":0}]',
        '[{"pid":1000000000}]',
        '[{"pid":true}]',
        '[{"pid":7,"grant":1}]',
    ],
)
def test_shares_that_cannot_be_read_grant_nothing(shares: str, host: Host) -> None:
    Path(host.path).write_text(f'0 7 {{"shares":{shares}}}\n')
    with pytest.raises(CoordinationError, match="line 1: cannot read"):
        host.claim(1, 1)


def test_every_refusal_leaves_the_file_as_it_was(host: Host) -> None:
    host.claim(1, 2)
    host.claim(2, 2, "of1")
    before = Path(host.path).read_bytes()
    host.refusal(3, 1, "of1")
    host.refusal(3, 4, "of1")
    host.refusal(3, 3)
    assert Path(host.path).read_bytes() == before


# ---- real processes -------------------------------------------------------------------------------

BOARDS = """
from externalresource import Device, driver

@driver("fpga")
def boards():
    return [Device(str(index), environment={"FPGA": str(index)}) for index in range(4)]
"""
#: Takes one device, tells it, and keeps it until the other file is there.
TELL = 'echo "$FPGA" >>"$TOLD"; while [ ! -e "$GO" ]; do sleep 0.02; done'


class Boards:
    """A host with four devices, for which no mask tells what a process may use."""

    def __init__(self, folder: Path) -> None:
        (folder / "boards.py").write_text(BOARDS)
        self.folder, self.told, self.go = folder, folder / "told", folder / "go"
        self.told.touch()
        self.file = str(folder / "fpgas")
        self.environment = os.environ | {
            "PYTHONPATH": str(folder), "TOLD": str(self.told), "GO": str(self.go), "RUN": COMMAND, "TELL": TELL,
            "FILE": self.file,
        }  # fmt: skip
        self.started: list[subprocess.Popen[str]] = []

    def run(self, amount: int, script: str, *options: str) -> "subprocess.Popen[str]":
        words = [COMMAND, "run", f"boards:boards={amount}", "--coordination-file", self.file, *options]
        process = subprocess.Popen(
            [*words, "--", "bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def output(self, amount: int, script: str, *options: str) -> str:
        return self.run(amount, script, *options).communicate(timeout=60)[0]

    def wait_for(self, count: int) -> list[str]:
        """The devices that so many processes were told."""
        end = time.monotonic() + 60
        while len(told := self.told.read_text().split()) < count:
            assert time.monotonic() < end, told
            time.sleep(0.02)
        return told

    def close(self) -> None:
        self.go.touch()
        for process in self.started:
            process.kill()
            process.communicate()


INNER = '"$RUN" run boards:boards=1 --coordination-file "$FILE"'


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[Boards]:
    made = Boards(tmp_path)
    yield made
    made.close()


def test_programs_of_one_run_get_a_device_each(boards: Boards) -> None:
    outer = boards.run(3, f'for _ in 1 2 3; do {INNER} -- bash -c "$TELL" & done; wait')
    assert sorted(boards.wait_for(3)) == ["0", "1", "2"]
    assert boards.output(1, "echo $FPGA") == "3\n"
    boards.go.touch()
    assert outer.wait(60) == 0


def test_run_of_a_run_of_a_run_has_one_pid_and_the_innermost_devices(boards: Boards) -> None:
    inner = f'exec "$RUN" run boards:boards=2 --coordination-file "$FILE" -- {INNER} -- bash -c \'echo $$ $FPGA\''
    outer = boards.run(3, inner)
    said, _ = outer.communicate(timeout=60)
    assert said == f"{outer.pid} 0\n"


def test_library_inside_of_a_run_takes_shares_and_never_the_same_twice(boards: Boards) -> None:
    code = (
        "import externalresource as e\n"
        f"options = {{'coordination-file': {boards.file!r}}}\n"
        "def one(): return e.claim('boards', driver_factory='boards:boards', options=options)\n"
        "first, second = one(), one()\n"
        "for each in (first, second):\n"
        "    print(*(info.get_property('index') for info in each.get_external_resource_infos('boards')))\n"
        "first.close()\n"
        "third = one()\n"
        "print(*(info.get_property('index') for info in third.get_external_resource_infos('boards')))\n"
        "try: one()\n"
        "except e.ExternalResourceError as error: print(error)\n"
    )
    (boards.folder / "library.py").write_text(code)
    *got, refused = boards.output(2, f"exec {sys.executable} library.py").splitlines()
    assert got == ["0", "1", "0"]
    assert refused.startswith("1 wanted, 0 of the 2 that pid ")


def test_device_of_a_killed_run_is_held_by_the_program_that_it_left(boards: Boards) -> None:
    outer = boards.run(4, f'{INNER} -- bash -c "$TELL" & wait')
    assert boards.wait_for(1) == ["0"]
    outer.kill()
    outer.wait()
    assert boards.output(3, "echo $FPGA") == "1,2,3\n"
    assert "4 wanted, 3 of 4 free; held by pid" in boards.output(4, "echo $FPGA")
    boards.go.touch()
    assert boards.output(4, "echo $FPGA", "--wait", "60") == "0,1,2,3\n"


def test_more_programs_than_devices_take_turns(boards: Boards) -> None:
    (boards.folder / "Makefile").write_text(
        "all: 1 2 3 4 5 6\n"
        "1 2 3 4 5 6: ; @$(RUN) run boards:boards=1 --coordination-file $(FILE) --wait 60 -- "
        "bash -c 'mkdir used-$$FPGA || echo TWICE; sleep 0.1; rmdir used-$$FPGA; echo $$FPGA >>told'\n"
    )
    assert "TWICE" not in boards.output(2, "make -s -j6")
    assert len(told := boards.wait_for(6)) == 6
    assert set(told) == {"0", "1"}


def test_gpus_of_a_run_are_divided_by_their_mask(tmp_path: Path) -> None:
    environment = os.environ | {
        "EXTERNALRESOURCE_GPU_SIMULATE": "dgx-a100",
        "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(tmp_path / "gpus"),
    }
    tell = 'echo "$CUDA_VISIBLE_DEVICES"; echo >>told; while [ "$(wc -l <told)" -lt 4 ]; do sleep 0.02; done'
    inner = f"'{COMMAND}' run gpu=1 -- sh -c '{tell}' & "
    words = [COMMAND, "run", "gpu=4", "--", "sh", "-c", f"{inner * 4} wait; echo $CUDA_VISIBLE_DEVICES"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120)
    *inside, outside = done.stdout.split()
    assert sorted(inside) == sorted(outside.split(","))


# ---- in any order ---------------------------------------------------------------------------------


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
        self.host = Host(f"{self.folder.name}/gpus")
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
            granted = self.host.inside(*runs).claim(GPUS, amount, made_up(pid), choose=choose)
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
        assert self.host.inside().release(devices, made_up(process.pid)) == len(devices)
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
