"""The churn that benchmarks/churn.py measures, as a test; and its observer, which must not err."""

import contextlib
import functools
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from externalresource.errors import CoordinationError
from observer import Event, Life, Outcome, doubles, in_order, unjust_refusals
from tests.coordination.test_model import AnyOrder
from tests.support.devices import Device

_CHURN = Path(__file__).parents[2] / "benchmarks" / "churn.py"

# Asked at 1, had GPU 0 at 2, lived at 8 for certain, and was dead at 9 for certain.
FIRST = Life(Outcome.GRANTED, asked=1, answered=2, lived=8, died=9, device=0)
REFUSED = Life(Outcome.REFUSED, asked=10, answered=12, lived=13, died=14)


def _only(token: str, offered: Sequence[Device], _amount: int) -> Sequence[Device]:
    return [device for device in offered if device.token == token]


def replay(events: Iterable[Event], gpus: int) -> tuple[int, int]:
    """Let the model do the same in the same order; return how many were given a device, and how many refused."""
    model, devices, counts = AnyOrder(), [Device(str(number)) for number in range(gpus)], [0, 0]
    model.views, model.hands = [devices], {}
    pids = itertools.count(5)
    living: dict[Life, int] = {}
    with contextlib.ExitStack() as ending:
        ending.callback(model.teardown)
        for event in events:
            if event.life in living:
                del model.hands[living.pop(event.life)]
            else:
                pid = next(pids)
                model.hands[pid] = []
                has_it = model.decide(pid, devices, 1, None, functools.partial(_only, str(event.life.device)))
                assert has_it == event.begins
                counts[not has_it] += 1
                if has_it:
                    living[event.life] = pid
                else:
                    del model.hands[pid]
            model.no_device_is_in_two_hands()
            model.none_is_lost_and_no_name_repeats()
            model.what_is_shown_is_what_is()
    return counts[0], counts[1]


@pytest.mark.parametrize("rounds", [12, pytest.param(40, marks=pytest.mark.sweep)])
def test_no_device_is_in_two_hands_lost_or_kept_back_while_owners_come_and_are_killed(
    rounds: int, tmp_path: Path
) -> None:
    command = [sys.executable, str(_CHURN), "--script", "ours", "--gpus", "4", "--owners", "8", "--rounds", f"{rounds}"]
    command += ["--runs", "1", "--log", str(tmp_path / "log")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    found = re.search(
        r"^ours, all shapes: (\d+) grants, (\d+) of them double .*, (\d+) GPUs lost, \d+ refusals, "
        r"(\d+) of them while a GPU was free, (\d+) failures$",
        done.stdout,
        re.MULTILINE,
    )
    assert found is not None, done.stderr
    grants, *wrong = map(int, found.groups())
    assert wrong == [0, 0, 0, 0], done.stdout
    assert grants > 2.5 * rounds
    assert done.returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    lives = [Life(**{**line, "outcome": Outcome(line["outcome"])}) for line in lines]
    assert replay(in_order(lives, 4), 4)[0] == grants


def test_order_that_the_model_does_not_allow_is_none() -> None:
    second = replace(FIRST, asked=3, answered=5, lived=10, died=11)
    with pytest.raises(ValueError, match="was given what"):
        in_order([FIRST, second], 1)
    with pytest.raises(AssertionError):
        replay([Event(1, FIRST, begins=True), Event(2, second, begins=True)], 1)
    with pytest.raises(CoordinationError):  # the device is there to be had
        replay([Event(1, REFUSED)], 1)
    assert replay([Event(1, FIRST, begins=True), Event(2, REFUSED), Event(3, FIRST)], 1) == (1, 1)


@pytest.mark.parametrize(
    ("second", "is_double"),
    [
        (replace(FIRST, asked=3, answered=5, lived=6, died=7), True),
        (replace(FIRST, asked=3, answered=5, lived=10, died=11), True),
        (replace(FIRST, asked=3, answered=5, lived=10, died=11, device=1), False),
        (replace(FIRST, asked=7, answered=8.5, lived=10, died=11), False),  # it may have been dead by then
        (replace(FIRST, asked=9, answered=10, lived=11, died=12), False),
    ],
)
def test_grant_is_double_if_another_owner_of_the_device_provably_lives(second: Life, *, is_double: bool) -> None:
    assert doubles([second, FIRST]) == [second] * is_double


def test_grant_is_double_also_beside_an_owner_that_outlived_the_one_between() -> None:
    lives = [
        replace(FIRST, answered=2, lived=20),
        replace(FIRST, answered=3, lived=4),
        replace(FIRST, answered=10, lived=11),
    ]
    assert doubles(lives) == lives[1:]


def test_unknown_devices_of_killed_scripts_are_not_counted_as_doubles() -> None:
    assert doubles([FIRST, replace(FIRST, outcome=Outcome.KILLED, device=None, answered=3)]) == []


@pytest.mark.parametrize(
    ("others", "is_unjust"),
    [
        ([], True),
        ([FIRST], True),  # which was dead before
        ([replace(FIRST, died=10.5)], False),
        ([replace(FIRST, asked=11, answered=13, lived=14, died=15)], False),
        ([replace(FIRST, asked=13, answered=14, lived=15, died=16)], True),
        ([replace(FIRST, outcome=Outcome.KILLED, device=None, died=20)], False),
        ([replace(FIRST, outcome=Outcome.FAILED, device=None, died=20)], False),
        ([replace(REFUSED, answered=11)], True),
    ],
)
def test_refusal_is_unjust_if_the_gpu_was_provably_free_all_the_time(others: list[Life], *, is_unjust: bool) -> None:
    assert (REFUSED in unjust_refusals([*others, REFUSED], gpus=1)) == is_unjust


def test_one_device_that_came_into_two_hands_while_one_asked_is_one_device() -> None:
    others = [replace(FIRST, died=10.5), replace(FIRST, asked=11, answered=11.5, lived=20, died=21)]
    assert unjust_refusals([*others, REFUSED], gpus=2) == [REFUSED]
