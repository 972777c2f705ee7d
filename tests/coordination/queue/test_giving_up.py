"""How long is waited, for devices and for the lock, and what is not waited for."""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from externalresource.coordination import Coordination
from externalresource.coordination.lock import Locked
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.claiming import (
    LONG,
    Events,
    ask,
    coordination,
    leftovers,
    made_up,
    nobody_ends,
    numbered,
    on_the_host,
    refusal,
)

R = TypeVar("R")


def test_more_than_the_host_has_is_not_waited_for(path: str) -> None:
    events = Events()
    with pytest.raises(NotEnoughDevicesError, match=r"^2 wanted, this host has 1$"):
        Coordination(path, "gpu", pause=events).claim(numbered(0), 2, made_up(1), wait=LONG)
    assert events.reasons == []
    assert os.listdir(os.path.dirname(path)) == []


def test_who_has_waited_long_enough_is_told_who_holds_what(path: str) -> None:
    ask(path, numbered(0), pid=1)
    with pytest.raises(NotEnoughDevicesError) as caught:
        Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends).claim(
            numbered(0), 1, made_up(2), wait=0.2
        )
    assert re.fullmatch(
        r"1 wanted, 0 of 1 free; held by pid 1 \(java\), since \S+: 0; waited 0\.2 s for them", str(caught.value)
    )
    assert leftovers(path) == set()


def test_without_waiting_nothing_is_queued(path: str) -> None:
    ask(path, numbered(0), pid=1)
    assert "waited" not in refusal(path, numbered(0))
    assert leftovers(path) == set()


def test_pause_ends_when_the_wait_does(path: str) -> None:
    ask(path, numbered(0), pid=1)
    pauses = []

    def pause(seconds: float, reason: str) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    with pytest.raises(NotEnoughDevicesError):
        Coordination(path, "gpu", in_container=on_the_host, gone=nobody_ends, pause=pause).claim(
            numbered(0), 1, made_up(2), wait=1
        )
    assert len(pauses) > 1
    assert sum(pauses) <= 1


def test_lock_is_not_waited_for_longer_than_the_devices(path: str) -> None:
    ask(path, numbered(0), pid=1)
    with contextlib.ExitStack() as held:

        def take_it() -> None:
            file = held.enter_context(open(f"{path}.lock", "rb"))
            fcntl.flock(file, fcntl.LOCK_EX)
            os.truncate(path, 0)  # the device is free, but to claim it needs the lock

        stuck = coordination(path, take_it)
        with pytest.raises(CoordinationError, match=r"timed out waiting for the lock .*/gpus\.lock"):
            stuck.claim(numbered(0), 1, made_up(2), wait=0.1, deadline=time.monotonic() + 0.1)
    assert ask(path, numbered(0)) == ["0"]
    assert leftovers(path) == set()


def test_lock_is_waited_for_at_most_until_the_deadline_or_the_end_of_the_wait(path: str) -> None:
    ask(path, numbered(0), pid=1)
    deadlines = []

    class Noting(Coordination):
        def _under_lock(
            self, section: Callable[[Locked], R], deadline: float | None, *, tries_again: bool = False
        ) -> R:
            deadlines.append(deadline or 0)
            return super()._under_lock(section, deadline, tries_again=tries_again)

    deadline = time.monotonic() + 1
    waiting = Noting(path, "gpu", gone=nobody_ends)
    with pytest.raises(NotEnoughDevicesError):
        waiting.claim(numbered(0), 1, made_up(2), wait=0.01, deadline=deadline)
    assert max(deadlines) <= deadline
    deadlines.clear()
    with pytest.raises(NotEnoughDevicesError):
        waiting.claim(numbered(0), 1, made_up(2), wait=0.3, deadline=time.monotonic())
    assert max(deadlines[:-1]) <= time.monotonic()  # the last one is for leaving the queue
