"""The orders of small cases that benchmarks/interleavings tries, as a test; and its judge, which must not err."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from small_cases import Case, Judge, asks, waits

_INTERLEAVINGS = Path(__file__).parents[2] / "benchmarks" / "interleavings"
_FAULT = re.compile(r"^found: (.*)\n  to see it: .*--replay (\w[\w!]*)$", re.MULTILINE)

ONE = Case("one device", {"A": asks, "B": asks, "C": waits})
TWO = Case("two devices", {"A": asks, "B": asks, "C": waits}, devices=2)
RUN = Case("a run", {"A": asks, "B": asks, "C": asks}, inside="BC")


def interleavings(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(_INTERLEAVINGS), *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)


def without_folder(text: str) -> str:
    return re.sub(r"\S*/tmp\w+/", "", text)


def test_no_order_of_small_cases_puts_a_device_in_two_hands_loses_it_or_lets_anybody_overtake() -> None:
    done = interleavings("--quick")
    found = re.search(r"^all +\d+ +(\d+) +\d+ +(\d+) +(\d+) ", done.stdout, re.MULTILINE)
    assert found is not None, done.stderr
    orders, deaths, errors = map(int, found.groups())
    assert (orders > 400, deaths > 200, errors > 10) == (True, True, True), done.stdout
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("broken", "case"),
    [
        ("lock", "two ask for one device"),
        ("inode", "a cleaner takes the lock file"),
        ("order", "one waits, the disk fails"),
    ],
)
def test_what_is_broken_is_found_and_the_order_that_shows_it_can_be_run_again(broken: str, case: str) -> None:
    done = interleavings("--break", broken, "--case", case)
    found = _FAULT.search(done.stdout)
    assert found is not None, done
    assert done.returncode == 1
    fault, word = found.groups()
    again = interleavings("--break", broken, "--case", case, "--replay", word)
    assert without_folder(again.stdout.splitlines()[-1]) == without_folder(fault)
    assert again.returncode == 1


def test_one_order_goes_the_same_way_each_time() -> None:
    words = "--case", "one waits for a holder", "--replay", "A17B6b"
    first, second = interleavings(*words), interleavings(*words)
    assert first.returncode == 0, first
    assert first.stdout.endswith("\nnothing is found\n")
    assert "  b  " in first.stdout
    assert first.stdout == second.stdout


@pytest.mark.parametrize(
    ("case", "said", "fault"),
    [
        (ONE, ["A begins", "A has 0", "B begins", "B has 0"], "B is given device 0, which A has"),
        (ONE, ["A begins", "A has 0", "A gives", "B begins", "B has 0"], ""),
        (ONE, ["A begins", "A has 0", "A dies", "B begins", "B has 0"], ""),
        (ONE, ["A begins", "A has 0", "A left 1", "A dies", "B begins", "B has 0"], "B is given device 0, which A has"),
        (TWO, ["A begins", "A has 0", "B begins", "B has 1"], ""),
        (RUN, ["A begins", "A has 0", "B begins", "B has 0"], ""),
        (
            RUN,
            ["A begins", "A has 0", "B begins", "B has 0", "C begins", "C has 0"],
            "C is given device 0, which B has",
        ),
        (
            ONE,
            ["C begins", "C waits", "B begins", "B has 0"],
            "B is given the device before C, which waited when B came",
        ),
        (ONE, ["C begins", "B begins", "C waits", "B has 0"], ""),
        (ONE, ["C begins", "C waits", "B begins", "C dies", "B has 0"], ""),
        (ONE, ["A begins", "A refused none"], "A is refused a device, and one was free all the time: none"),
        (ONE, ["A begins", "B begins", "A refused none"], ""),
        (ONE, ["B begins", "A begins", "B gives", "B gave", "A refused none"], ""),
        (ONE, ["B begins", "B gave", "A begins", "A refused none"], "A is refused a device, and one was free all the"),
        (TWO, ["A begins", "B begins", "A refused none"], "A is refused a device, and one was free all the time: none"),
        (ONE, ["A begins", "A failed x"], "A fails: x"),
        (ONE, ["A crashed x"], "A crashes: x"),
    ],
)
def test_judge_sees_what_must_not_be(case: Case, said: Sequence[str], fault: str) -> None:
    judge = Judge(case)
    for sentence in said:
        letter, *words = sentence.split(" ")
        if words == ["dies"]:
            judge.dies(letter)
        else:
            judge.hear(letter, words)
    assert judge.fault.startswith(fault)
    assert bool(judge.fault) == bool(fault)
