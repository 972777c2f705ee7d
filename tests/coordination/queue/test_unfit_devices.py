"""Waiting for devices of which some would not do at the moment."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from externalresource.coordination import Claim, Coordination
from externalresource.errors import NotEnoughDevicesError
from tests.support.claiming import (
    LONG,
    ask,
    claim,
    coordination,
    give_back,
    made_up,
    me,
    numbered,
    places,
    refusal,
    tokens,
)
from tests.support.devices import Device
from tests.support.processes import Start, wait_until


def test_who_waits_for_what_its_choice_refuses_has_a_place_in_the_queue(path: str, start: Start) -> None:
    will_do = f"{path}-will-do"

    def choose(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        if not os.path.exists(will_do):
            raise NotEnoughDevicesError("none will do")
        return free[:amount]

    waiting_one = start(lambda: tokens(Coordination(path, "gpu").claim(numbered(0), 1, me(), choose=choose, wait=LONG)))
    wait_until(lambda: places(path))
    with pytest.raises(NotEnoughDevicesError, match="1 waiting before"):
        claim(path, 1, numbered(0))
    Path(will_do).touch()
    assert waiting_one.result() == ["0"]


def test_what_would_not_do_at_the_moment_is_not_kept_for_who_waits_but_what_would_is(path: str) -> None:
    unfit = {"0"}

    def choose(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        if len(fit := [device for device in free if device.token not in unfit]) < amount:
            raise NotEnoughDevicesError("none of these will do")
        return fit[:amount]

    def another_comes() -> None:
        give_back(path, numbered(1), 1)
        assert ask(path, numbered(0, 1), pid=2) == ["0"]
        assert refusal(path, numbered(0, 1)).startswith("1 wanted, 0 of 2 free; 1 waiting before")

    ask(path, numbered(1), pid=1)
    patient = coordination(path, another_comes)
    suited = patient.claim(
        numbered(0, 1), 1, made_up(3), choose=choose, suits=lambda device: device.token not in unfit, wait=LONG
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
    found = waiting_one.claim(numbered(0), 1, made_up(3), choose=choose, suits=lambda device: not unfit, wait=LONG)
    assert tokens(found) == ["0"]
