"""Parts of parts: a board, its half, the quarter of that. Who holds one of them holds all of which it is a part."""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from externalresource.coordination import Coordination, Holder, first, identify, ledger, queue
from externalresource.coordination.life_lock import LifeLock
from externalresource.coordination.matching import Wholes
from externalresource.errors import CoordinationError, DiscoveryError, NotEnoughDevicesError
from tests.support.claiming import Asker, content, error_of, me, tokens
from tests.support.devices import Device
from tests.support.processes import Start

BOARD = Device("0", "B")
HALVES = [Device(f"0.{half}", f"B-{half}", "B") for half in "ab"]
QUARTERS = [Device(f"{half.token}.{number}", f"{half.uuid}-{number}", half.uuid) for half in HALVES for number in "12"]
EIGHTH = Device("0.a.1.x", None, None, "0.a.1")  # of a quarter, known by its token alone
ALL = [BOARD, *HALVES, *QUARTERS, EIGHTH]
RELATED = [
    (one, other)
    for one, other in itertools.permutations(ALL, 2)
    if one.token.startswith(f"{other.token}.") or other.token.startswith(f"{one.token}.")
]


def names(pairs: Sequence[tuple[Device, Device]]) -> list[str]:
    return [f"{one.token} and {other.token}" for one, other in pairs]


def ask(path: str, *devices: Device, among: Sequence[Device] = ALL) -> list[str]:
    return tokens(Coordination(path, "fpga").claim(devices, 1, me(), among=among))


def details(path: str) -> list[dict[str, Any]]:
    return [json.loads(line.split(" ", 2)[2]) for line in content(path).splitlines()]


@pytest.mark.parametrize(("held", "wanted"), RELATED, ids=names(RELATED))
def test_device_and_a_part_of_its_parts_exclude_each_other(held: Device, wanted: Device, path: str) -> None:
    ask(path, held)
    with pytest.raises(NotEnoughDevicesError, match=r"0 of 1 free; held by pid"):
        ask(path, wanted)


@pytest.mark.parametrize(("held", "wanted"), RELATED, ids=names(RELATED))
def test_one_who_lists_nothing_but_what_he_wants_is_kept_out_by_what_the_file_says(
    held: Device, wanted: Device, path: str
) -> None:
    ask(path, held)
    if held.token.startswith(f"{wanted.token}."):
        with pytest.raises(NotEnoughDevicesError, match=r"0 of 1 free; held by pid"):
            ask(path, wanted, among=[wanted])


def test_parts_of_different_halves_are_had_at_once(path: str) -> None:
    assert ask(path, QUARTERS[0]) + ask(path, QUARTERS[2]) == ["0.a.1", "0.b.1"]
    with pytest.raises(NotEnoughDevicesError):
        ask(path, BOARD, *HALVES)
    assert ask(path, *ALL) == ["0.a.2"]


def test_line_names_all_of_which_a_device_is_a_part_beyond_its_parent(path: str) -> None:
    ask(path, EIGHTH)
    assert details(path)[0]["parent_token"] == "0.a.1"
    assert details(path)[0]["ancestors"] == [["B-a", None], ["B", None]]
    Path(path).write_text("")
    ask(path, HALVES[0])
    assert "ancestors" not in details(path)[0]


def test_line_of_before_is_followed_upwards_through_what_the_driver_lists(path: str) -> None:
    ask(path, QUARTERS[0], among=[QUARTERS[0]])
    assert "ancestors" not in details(path)[0]
    with pytest.raises(NotEnoughDevicesError, match=r"0 of 1 free; held by pid"):
        ask(path, BOARD)
    with pytest.raises(NotEnoughDevicesError, match=r"0 of 1 free; held by pid"):
        Coordination(path, "fpga").claim([BOARD], 1, me(), among=HALVES)


def test_part_whose_parent_is_not_listed_has_only_that_one(path: str) -> None:
    ask(path, BOARD)
    assert ask(path, QUARTERS[0], among=[QUARTERS[0], BOARD]) == ["0.a.1"]


@pytest.mark.parametrize("amount", range(1, 7))
@pytest.mark.parametrize("among", [None, ALL], ids=["", "some are hidden"])
def test_one_process_is_never_given_a_device_and_a_part_of_it(
    amount: int, among: Sequence[Device] | None, path: str
) -> None:
    devices = ALL if among is None else [device for device in ALL if device not in HALVES]
    leaves = ["0.a.2", "0.b.1", "0.b.2", "0.a.1.x"]
    if amount > len(leaves):
        with pytest.raises(NotEnoughDevicesError):
            Coordination(path, "fpga").claim(devices, amount, me(), among=among)
        return
    chosen = tokens(first(devices, [], amount, among))
    assert len(chosen) == amount
    assert not {(one, other) for one in chosen for other in chosen if one.startswith(f"{other}.")}
    assert amount < len(leaves) or sorted(chosen) == sorted(leaves)


def test_choice_of_a_board_and_a_quarter_is_refused_where_their_half_is_hidden(path: str) -> None:
    both = [BOARD, QUARTERS[0]]
    message = error_of(
        CoordinationError,
        lambda: Coordination(path, "fpga").claim(both, 2, me(), choose=lambda free, *_: free, among=ALL),
    )
    assert message.startswith("nothing is granted: the driver must choose 2 different ones")


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([Device("0", "A", "A")], "0 is a part of A"),
        ([Device("0", None, None, "0")], "0 is a part of 0"),
        ([Device("0", "A", "B"), Device("1", "B", "A")], "0 is a part of B"),
        ([Device("0", "A", "B"), Device("1", "B", None, "2"), Device("2", "C", "A")], "0 is a part of B"),
    ],
    ids=["itself", "itself by its token", "two", "three"],
)
def test_device_that_is_a_part_of_itself_is_an_error_of_the_driver(listed: list[Device], said: str, path: str) -> None:
    for ask_for in (lambda: ask(path, *listed, among=listed), lambda: first(listed, [], 1)):
        message = error_of(DiscoveryError, ask_for)
        assert f"the driver's device {said}, and so of itself: correct its parent_uuid and parent_token" in message
    assert not Path(path).exists()


WRONG = [["B"], [["B"]], [[None, None]], [["B", 5]], [["B", None, None]], ["B-a", "B"], [{"uuid": "B"}]]


def write_line(path: str, **fields: Any) -> str:
    record = {"uuid": "B-a-1", "parent_uuid": "B-a", **fields}
    line = f"0.a.1 {os.getpid()} {json.dumps(record)}\n"
    Path(path).write_text(line, encoding="ascii")
    return line


@pytest.mark.parametrize("ancestors", [*WRONG, "B", None, {"B": None}], ids=json.dumps)
def test_ancestors_in_another_form_are_an_error(ancestors: Any, path: str) -> None:
    write_line(path, ancestors=ancestors)
    with pytest.raises(CoordinationError, match="line 1: cannot read"):
        ledger.read(path)


@pytest.mark.parametrize("ancestors", [*WRONG, [["B", None], 5]], ids=json.dumps)
def test_line_that_needs_a_later_reader_excludes_what_we_understand_of_it(ancestors: Any, path: str) -> None:
    line = write_line(path, needs=["tomorrow"], ancestors=ancestors)
    taken = ["B", None] in ancestors
    if taken:
        with pytest.raises(NotEnoughDevicesError):
            ask(path, BOARD, among=[BOARD])
    else:
        assert ask(path, BOARD, among=[BOARD]) == ["0"]
    assert content(path).startswith(line)


def test_what_a_line_says_of_ancestors_outlives_a_share_and_its_owner(path: str, start: Start) -> None:
    outer = Coordination(path, "fpga")
    holder: Asker = start(lambda: outer.claim([EIGHTH], 1, Holder(identify(os.getpid()), "outer"), among=ALL))
    holder.result()
    inner = Coordination(path, "fpga", runs=[frozenset(["outer"])])
    assert tokens(inner.claim([EIGHTH], 1, me())) == ["0.a.1.x"]
    holder.kill()
    ask(path, QUARTERS[2])
    assert [line.get("ancestors") for line in details(path)] == [[["B-a", None], ["B", None]], [["B", None]]]


# The queue


def test_board_is_kept_for_who_waits_for_a_quarter_and_the_other_way_round() -> None:
    devices = [BOARD, *HALVES, *QUARTERS]
    for wanted, kept in ((QUARTERS[0], [BOARD, HALVES[0], QUARTERS[0]]), (BOARD, devices)):
        place = queue.place("ab12", 1, [wanted], wholes=Wholes(devices))
        assert queue.unreserved(devices, [place]) == [device for device in devices if device not in kept]


def test_place_is_read_by_one_who_knows_of_one_parent_only(path: str) -> None:
    life = LifeLock(path)
    place = queue.place(life.name, 1, [QUARTERS[0], BOARD], wholes=Wholes(ALL))
    queue.write(path, [place])
    words = Path(f"{path}.queue").read_text(encoding="ascii").split()
    assert words == [life.name, "1", "B", "B-a-1@B", "B-a-1@B-a"]
    assert queue.read(path) == [place]
    life.close()
