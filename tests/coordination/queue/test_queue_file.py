"""The file in which those stand that wait: as it is written, and where it is none."""

import fcntl
import os
from pathlib import Path

import pytest

from externalresource.coordination import ledger, queue
from externalresource.coordination.queue import Place
from externalresource.errors import CoordinationError
from tests.support.claiming import LONG, Asker, ask, coordination, error_of, leftovers, made_up, numbered, of, queue_up
from tests.support.devices import Device
from tests.support.processes import Start


@pytest.mark.parametrize(
    "devices", [[], numbered(0, 11), [Device("a b@c%")], [of("0", "a"), Device("x", "", None, "p@ q")]], ids=repr
)
def test_place_is_read_as_it_was_written(devices: list[Device], path: str) -> None:
    place = queue.place("ab12", 3, devices)
    with open(f"{path}.witness-ab12", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        queue.write(path, [place])
        assert queue.read(path) == [place]
    assert queue.read(path) == []


def test_place_looks_as_documented(path: str) -> None:
    queue.write(path, [queue.place("ab12", 2, [Device("3"), of("0", "a")]), Place("cd", 1, frozenset({("x y", "")}))])
    assert Path(f"{path}.queue").read_text(encoding="ascii") == "ab12 2 3 MIG-a@GPU-0\ncd 1 x%20y\n"


RUBBISH = {
    "words": "what is this",
    "no device but a blank": "ab12 1 ",
    "no amount": "ab12 GPU-0",
    "amount 0": "ab12 0 GPU-0",
    "endless amount": f"ab12 {'9' * 5000} GPU-0",
    "amount in other digits": "ab12 \N{ARABIC-INDIC DIGIT FIVE} GPU-0",
    "path": "/../../victim 1 GPU-0",
    "NUL": "\x00 1 GPU-0",
    "blank": " ",
    "carriage return": "ab12 1 GPU-0\r",
}


@pytest.mark.parametrize("wait", [0, LONG], ids=["asks", "waits"])
@pytest.mark.parametrize("line", RUBBISH.values(), ids=RUBBISH)
def test_queue_that_cannot_be_read_grants_nothing(line: str, path: str, wait: float) -> None:
    Path(f"{path}.queue").write_text(f"{line}\n", encoding="utf-8", newline="")
    message = error_of(CoordinationError, lambda: ask(path, numbered(0), wait=wait))
    assert ledger.read(path) == []
    assert message.startswith("cannot read ")
    assert message.endswith(f" in {path}.queue, so nothing is granted: remove that file while nobody waits")
    assert leftovers(path) == {f"{path}.queue"}


def test_place_with_a_lock_that_nobody_holds_keeps_nothing(path: str) -> None:
    Path(f"{path}.witness-ab12").touch()
    Path(f"{path}.queue").write_text("ab12 1 GPU-0\nab13 1 GPU-0\n", encoding="ascii")
    assert ask(path, numbered(0)) == ["0"]
    assert leftovers(path) == set()


def test_queue_that_cannot_be_written_grants_nothing(path: str, start: Start, holder: Asker) -> None:
    queue_up(path, start, numbered(0, 1), 2)

    def full() -> None:
        os.mkdir(f"{path}.queue.new")  # whoever leaves the queue now cannot
        Path(f"{path}.queue").write_text(
            "".join(reversed(Path(f"{path}.queue").read_text(encoding="ascii").splitlines(keepends=True))),
            encoding="ascii",
        )

    with pytest.raises(CoordinationError, match=r"cannot write .*gpus\.queue\.new: it is a folder"):
        coordination(path, full).claim(numbered(1), 1, made_up(2), wait=LONG)
    assert [claim.holders[0].process.pid for claim in ledger.read(path)] == [holder.pid]
