"""A run inside a run takes shares of that one's devices: never of others', never one that another has, none is lost."""

import json
import re
from pathlib import Path

import pytest

from externalresource.coordination import Claim, Holder, ledger, queue
from externalresource.coordination.life_lock import LifeLock
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.claiming import HostOfRuns, gpus, made_up_run

GPUS = gpus(4)


class Host(HostOfRuns):
    def claim(self, pid: int, amount: int, *runs: str, grant: str | None = None, wait: float = 0) -> list[str]:
        granted = self.inside(*runs).claim(GPUS, amount, made_up_run(pid, grant), wait=wait)
        return [device.token for device in granted]

    def refusal(self, pid: int, amount: int, *runs: str, wait: float = 0) -> str:
        with pytest.raises(NotEnoughDevicesError) as caught:
            self.claim(pid, amount, *runs, wait=wait)
        return str(caught.value)

    def holders(self) -> dict[str, list[int]]:
        """Return by device those that hold it as the file says, the owner first."""
        found: dict[str, list[int]] = {}
        for claim in self.inside().held():
            found[claim.token] = [holder.process.pid for holder in claim.holders]
        return found


@pytest.fixture
def host(path: str) -> Host:
    return Host(path)


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
        host.inside("of1", pause=strike_out).claim(GPUS, 2, made_up_run(3), wait=1000)
    assert str(caught.value) == "2 wanted of the 1 that pid 1 (make) has, inside of which this runs"
    assert queue.read(host.path) == []


def test_devices_of_the_run_that_are_not_asked_for_are_told_of(host: Host) -> None:
    host.claim(1, 2)
    with pytest.raises(NotEnoughDevicesError) as caught:
        host.inside("of1").claim(GPUS[1:], 2, made_up_run(2))
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

    first = host.inside("of1", pause=come_later).claim(GPUS, 1, made_up_run(3), wait=60)
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
    assert host.inside().release(GPUS, made_up_run(2)) == 1
    assert host.holders() == {"0": [1], "1": [1]}


def test_what_a_run_gives_back_stays_with_who_has_a_share_of_it(host: Host) -> None:
    host.claim(1, 2)
    host.claim(2, 1, "of1")
    assert host.inside().release(GPUS, made_up_run(1)) == 2
    assert host.holders() == {"0": [2]}


def test_process_gives_back_one_grant_and_keeps_the_other(host: Host) -> None:
    host.claim(1, 2)
    host.claim(1, 1, "of1", grant="inner")
    assert host.inside().release(GPUS, made_up_run(1, "inner")) == 1
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
