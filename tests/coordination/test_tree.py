"""Several roots of one claim, and lines of a later version that need a reader who knows more."""

import json
from pathlib import Path
from typing import Any

import pytest

from externalresource.coordination import Holder, Process, above, ledger
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.claiming import HostOfRuns, gpus, me, tokens


def record(pid: int, **fields: Any) -> dict[str, Any]:
    return {"start_time": pid, "pid_namespace": 1, "grant": f"of{pid}", **fields}


def of_several_roots() -> dict[str, Any]:
    """Two roots; the first's device was taken on by 11, the second's by 12."""
    return {
        "uuid": "GPU-0",
        **record(1, share={"memory": 4}),
        "shares": [
            {"pid": 11, **record(11)},
            {"pid": 2, "root": True, **record(2, share={"memory": 8})},
            {"pid": 12, **record(12), "colour": "red"},
        ],
    }


class Host(HostOfRuns):
    def __init__(self, path: str, details: dict[str, Any]) -> None:
        super().__init__(path)
        self.line = f"0 1 {json.dumps(details)}"
        Path(path).write_text(f"{self.line}\n", encoding="ascii")

    def tree(self) -> list[tuple[int, int | None]]:
        """Return each holder with the one that it has the device from."""
        (claim,) = self.inside().held()
        pairs = [(holder, above(claim, holder)) for holder in claim.holders]
        return [(holder.process.pid, outer.process.pid if outer else None) for holder, outer in pairs]

    def sweep(self) -> None:
        """Have the dead struck out, by one who claims another device."""
        self.inside().claim(gpus(2)[1:], 1, me())
        self.inside().release(gpus(2)[1:], me())


@pytest.fixture
def host(path: str) -> Host:
    return Host(path, of_several_roots())


def test_each_holder_has_its_device_from_the_one_before_it_and_a_root_from_nobody(host: Host) -> None:
    assert host.tree() == [(1, None), (11, 1), (2, None), (12, 2)]
    (claim,) = host.inside().held()
    assert [holder.share for holder in claim.holders] == [{"memory": 4}, None, {"memory": 8}, None]


@pytest.mark.parametrize(
    ("dead", "left"),
    [
        ({1}, [(11, None), (2, None), (12, 2)]),
        ({2}, [(1, None), (11, 1), (12, None)]),
        ({1, 11}, [(2, None), (12, 2)]),
        ({11, 12}, [(1, None), (2, None)]),
    ],
    ids=str,
)
def test_who_is_left_of_a_root_that_has_ended_is_the_root(
    host: Host, dead: set[int], left: list[tuple[int, int | None]]
) -> None:
    host.dead = dead
    host.sweep()
    assert host.tree() == left


def test_device_is_held_while_one_of_its_roots_lives(host: Host) -> None:
    host.dead = {1, 11, 12}
    with pytest.raises(NotEnoughDevicesError):
        host.inside().claim(gpus(1), 1, me())
    host.dead.add(2)
    assert tokens(host.inside().claim(gpus(1), 1, me())) == ["0"]


@pytest.mark.parametrize(
    ("root", "left"), [(1, [(1, None), (9, 1), (2, None)]), (2, [(1, None), (2, None), (9, 2)])], ids=str
)
def test_part_is_taken_from_the_root_that_one_runs_inside_of(
    host: Host, root: int, left: list[tuple[int, int | None]]
) -> None:
    host.dead = {11, 12}
    assert host.inside(f"of{root}").claim(gpus(1), 1, Holder(Process(9, 9, pid_namespace=1)))
    assert host.tree() == left


def test_what_is_not_known_of_further_holders_is_kept(host: Host) -> None:
    host.dead = {11}
    host.sweep()
    written = json.loads(Path(host.path).read_text(encoding="ascii").split(" ", 2)[2])
    assert written["share"] == {"memory": 4}
    assert written["shares"] == [share for share in of_several_roots()["shares"] if share["pid"] != 11]


@pytest.mark.parametrize("share", [{"root": 1}, {"root": None}, {"share": 5}], ids=str)
def test_root_or_share_of_a_wrong_type_is_an_error(path: str, share: dict[str, Any]) -> None:
    Host(path, {"uuid": "GPU-0", **record(1), "shares": [{"pid": 2, **share}]})
    with pytest.raises(CoordinationError, match="line 1: cannot read"):
        ledger.read(path)


STRANGE = {"uuid": "GPU-0", **record(1), "needs": ["tomorrow"], "shares": "in another form"}


def test_line_that_needs_what_is_not_known_counts_as_held_and_is_kept_to_the_letter(path: str) -> None:
    host = Host(path, STRANGE)
    host.dead = {1}
    with pytest.raises(NotEnoughDevicesError):
        host.inside().claim(gpus(1), 1, me())
    with pytest.raises(NotEnoughDevicesError):
        host.inside("of1").claim(gpus(1), 1, Holder(Process(9, 9)))
    assert host.inside().drop(lambda _claim, _holder: True) == []
    assert host.inside().release(gpus(1), Holder(Process(1, 1, pid_namespace=1))) == 0
    host.sweep()
    assert Path(path).read_text(encoding="ascii") == f"{host.line}\n"
    assert [claim.living for claim in host.inside().held()] == [True]


def test_line_that_needs_nothing_is_judged_as_any_other(path: str) -> None:
    host = Host(path, {"uuid": "GPU-0", **record(1), "needs": []})
    host.dead = {1}
    assert tokens(host.inside().claim(gpus(1), 1, me())) == ["0"]


@pytest.mark.parametrize("needs", ["tomorrow", [5], None], ids=str)
def test_needs_that_are_no_list_of_words_are_an_error(path: str, needs: Any) -> None:
    Host(path, {**STRANGE, "needs": needs})
    with pytest.raises(CoordinationError, match="line 1: cannot read"):
        ledger.read(path)
