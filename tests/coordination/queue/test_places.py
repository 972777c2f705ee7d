"""A place in the queue lives as long as its process waits, and nothing of it stays behind."""

import os

import pytest

from externalresource.coordination import ledger
from externalresource.errors import DiscoveryError
from tests.support.claiming import (
    LONG,
    Asker,
    ask,
    coordination,
    give_back,
    leftovers,
    made_up,
    numbered,
    places,
    queue_up,
    refusal,
    tokens,
)
from tests.support.processes import NEW_PIDS, Start, in_child, in_namespaces


@pytest.mark.parametrize("kinds", [0, NEW_PIDS], ids=["here", "another container"])
def test_place_of_a_killed_process_vanishes(kinds: int, path: str, start: Start, holder: Asker) -> None:
    waiter = queue_up(path, start, numbered(0, 1), 2)
    later = queue_up(path, start, numbered(0))

    def look() -> str:
        return refusal(path, numbered(1))

    def seen() -> str:
        return in_namespaces(look, kinds) if kinds else in_child(look)

    assert seen() == "1 wanted, 0 of 1 free; 1 waiting before"
    waiter.kill()
    if kinds:
        assert in_namespaces(lambda: ask(path, numbered(1)), kinds) == ["1"]
    else:
        assert ask(path, numbered(1)) == ["1"]
    assert places(path) == 1
    holder.kill()
    assert tokens(later.result()) == ["0"]
    assert leftovers(path) == set()


def test_queue_goes_on_without_its_first(path: str, start: Start, holder: Asker) -> None:
    queue = [queue_up(path, start, numbered(0)) for _ in range(3)]
    queue[0].kill()
    holder.kill()
    assert tokens(queue[1].result()) == ["0"]
    assert places(path) == 1


def test_who_comes_next_clears_up_after_a_killed_queue(path: str, start: Start, holder: Asker) -> None:
    waiters = [queue_up(path, start, numbered(0)) for _ in range(3)]
    for waiter in waiters:
        waiter.kill()
    assert len(leftovers(path)) == 4
    refusal(path, numbered(0))
    assert leftovers(path) == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, DiscoveryError], ids=lambda error: error.__name__)
def test_who_stops_waiting_leaves_nothing(error: type[BaseException], path: str) -> None:
    ask(path, numbered(0), pid=1)
    before = os.listdir("/proc/self/fd")

    def stop() -> None:
        assert places(path) == 1
        raise error("enough")

    with pytest.raises(error, match="enough"):
        coordination(path, stop).claim(numbered(0), 1, made_up(2), wait=LONG)
    assert leftovers(path) == set()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [1]


def test_who_stops_waiting_leaves_the_places_of_the_others(path: str, start: Start, holder: Asker) -> None:
    other = queue_up(path, start, numbered(0))

    def stop() -> None:
        assert places(path) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        coordination(path, stop).claim(numbered(0), 1, made_up(2), wait=LONG)
    assert places(path) == 1
    holder.kill()
    assert tokens(other.result()) == ["0"]


def test_place_that_somebody_struck_out_is_taken_anew(path: str) -> None:
    ask(path, numbered(0), pid=1)

    def lost() -> None:
        os.unlink(f"{path}.queue")

    def look() -> None:
        assert places(path) == 1
        give_back(path, numbered(0), 1)

    assert tokens(coordination(path, lost, look).claim(numbered(0), 1, made_up(2), wait=LONG)) == ["0"]
