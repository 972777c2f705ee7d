"""First come, first served: free devices are kept for who waits for them, and for nobody else."""

import itertools
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from externalresource.coordination import Coordination
from externalresource.errors import NotEnoughDevicesError
from tests.support.claiming import (
    LONG,
    Asker,
    Events,
    ask,
    claim,
    coordination,
    give_back,
    leftovers,
    made_up,
    me,
    nobody_ends,
    numbered,
    of,
    on_the_host,
    places,
    queue_up,
    refusal,
    tokens,
)
from tests.support.devices import Device
from tests.support.processes import Start


def test_those_that_wait_are_served_in_the_order_in_which_they_came(path: str, start: Start, holder: Asker) -> None:
    queue = [holder, *(queue_up(path, start, numbered(0)) for _ in range(6))]
    for number, (holding, following) in enumerate(itertools.pairwise(queue)):
        assert places(path) == 6 - number
        holding.kill()
        assert tokens(following.result()) == ["0"]
        living = [claim.owner.process.pid for claim in Coordination(path, "gpu").held() if claim.living]
        assert living == [following.pid]
    assert leftovers(path) == set()


def test_thirty_that_come_and_go_share_two_devices_and_all_are_served(path: str, tmp_path: Path, start: Start) -> None:
    def use() -> None:
        (device,) = claim(path, 1, numbered(0, 1), LONG)
        os.close(os.open(tmp_path / device.token, os.O_CREAT | os.O_EXCL))  # fails if another one has it, too
        time.sleep(0.001)
        os.unlink(tmp_path / device.token)
        Coordination(path, "gpu").release([device], me())

    for process in [start(use) for _ in range(30)]:
        process.result()
    assert leftovers(path) == set()


def test_free_device_is_kept_for_who_waits(path: str) -> None:
    ask(path, numbered(0), pid=1)

    def come_without_waiting() -> None:
        give_back(path, numbered(0), 1)
        assert refusal(path, numbered(0)) == "1 wanted, 0 of 1 free; 1 waiting before"

    first = coordination(path, come_without_waiting)
    assert tokens(first.claim(numbered(0), 1, made_up(2), wait=LONG)) == ["0"]
    assert leftovers(path) == set()


def test_later_one_that_waits_is_told_how_many_came_before(path: str) -> None:
    ask(path, numbered(0), pid=1)

    def come_later() -> None:
        inner = Events(lambda: give_back(path, numbered(0), 1), lambda: time.sleep(0.5))
        with pytest.raises(NotEnoughDevicesError, match=r"^1 wanted, 0 of 1 free; 1 waiting before; waited 0\.5 s"):
            Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends, pause=inner).claim(
                numbered(0), 1, made_up(3), wait=0.5
            )
        assert re.match(
            r"1 wanted, 0 of 1 free; 1 waiting before; held by pid 1 \(java\), since .*: 0$", inner.reasons[0]
        )

    earlier = coordination(path, come_later)
    assert tokens(earlier.claim(numbered(0), 1, made_up(2), wait=LONG)) == ["0"]


def test_who_wants_four_is_not_starved_by_those_that_want_one(path: str) -> None:
    for number in range(4):
        ask(path, numbered(number), pid=1)

    def free(number: int) -> Callable[[], None]:
        def event() -> None:
            give_back(path, numbered(number), 1)
            assert "1 waiting before" in refusal(path, numbered(0, 1, 2, 3))

        return event

    patient = coordination(path, *map(free, range(4)))
    assert len(patient.claim(numbered(0, 1, 2, 3), 4, made_up(2), wait=LONG)) == 4


def test_who_wants_other_devices_is_not_held_up(path: str) -> None:
    ask(path, numbered(0), pid=1)

    def come() -> None:
        assert ask(path, numbered(1, 2), 2) == ["1", "2"]
        give_back(path, numbered(0), 1)

    first = coordination(path, come)
    assert tokens(first.claim(numbered(0), 1, made_up(2), wait=LONG)) == ["0"]


def test_what_is_left_over_by_those_before_is_granted(path: str) -> None:
    ask(path, numbered(0, 1, 2), 3, pid=1)

    def come() -> None:
        give_back(path, numbered(0, 1), 1)
        assert ask(path, numbered(0, 1, 2)) == ["1"]

    first = coordination(path, come)
    assert tokens(first.claim(numbered(0, 1, 2), 1, made_up(2), wait=LONG)) == ["0"]


@pytest.mark.parametrize("choice", [[Device("0", "GPU-0")], [of("0", "a"), of("0", "b")]], ids=["whole", "slices"])
def test_gpu_is_kept_from_those_that_want_it_otherwise_cut(choice: list[Device], path: str) -> None:
    other = [of("0", "a"), of("0", "b")] if len(choice) == 1 else numbered(0)
    ask(path, other, pid=1)

    def come() -> None:
        give_back(path, other[:1], 1)
        assert refusal(path, other) == f"1 wanted, 0 of {len(other)} free; 1 waiting before"

    first = coordination(path, come)
    assert first.claim(choice, len(choice), made_up(2), wait=LONG) == choice


def test_device_of_a_dead_owner_is_waited_for_by_nobody(path: str) -> None:
    ask(path, numbered(0), pid=1)
    shared = Coordination(
        path,
        "gpu",
        in_container=on_the_host,
        gone=lambda who, here: True,
        pause=Events(lambda: pytest.fail("it is free")),
    )
    assert tokens(shared.claim(numbered(0), 1, made_up(2), wait=LONG)) == ["0"]
