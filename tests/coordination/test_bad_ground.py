"""Files that were lost or hold no ledger, disks that fail: a clear line or the right devices, and no wrong grant."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from externalresource.coordination import Coordination
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.claiming import (
    THREE,
    both_refuse,
    claim,
    error_of,
    held,
    me,
    script_says,
    tokens,
)
from tests.support.devices import Device
from tests.support.processes import Running, in_mounts, mount

DEAD = 999_999_999


def release(path: str) -> int:
    return Coordination(path, "gpu").release(THREE, me())


def lost(path: str) -> str:
    return (
        f"coordination file {path} was removed while its lock file remained, so nothing is granted: its claims are "
        f"lost, but their owners may live; once none of them does, remove {path}.lock, too"
    )


def test_ledger_that_was_removed_grants_nothing_until_its_lock_is_removed_too(path: str) -> None:
    assert tokens(claim(path)) == ["0"]
    os.unlink(path)
    assert both_refuse(path) == lost(path)
    assert error_of(CoordinationError, lambda: held(path)) == lost(path)
    assert error_of(CoordinationError, lambda: release(path)) == lost(path)
    assert error_of(CoordinationError, lambda: Coordination(path, "gpu").drop(lambda claim, holder: True)) == lost(path)
    assert os.listdir(os.path.dirname(path)) == ["gpus.lock"]
    os.unlink(f"{path}.lock")
    assert tokens(claim(path)) == ["0"]


def test_ledger_that_was_removed_before_anybody_claimed_is_missed_all_the_same(path: str) -> None:
    assert release(path) == 0
    assert sorted(os.listdir(os.path.dirname(path))) == ["gpus", "gpus.lock"]
    assert held(path) == []
    os.unlink(path)
    assert both_refuse(path) == lost(path)


def test_ledger_that_its_user_emptied_claims_nothing(path: str) -> None:
    claim(path)
    os.truncate(path, 0)
    assert held(path) == []
    assert script_says(path) == "0"


def test_lock_that_somebody_else_made_says_nothing_of_a_ledger(path: str) -> None:
    Path(f"{path}.lock").touch()
    assert held(path) == []
    assert tokens(claim(path)) == ["0"]
    assert Path(f"{path}.lock").read_text() == ""


@pytest.mark.parametrize("replace", [False, True], ids=["removed", "replaced"])
def test_lock_that_was_removed_or_replaced_leaves_the_claims(path: str, *, replace: bool) -> None:
    assert tokens(claim(path, 2)) == ["0", "1"]
    os.unlink(f"{path}.lock")
    if replace:
        Path(f"{path}.lock").touch()
    assert script_says(path) == "2"
    with pytest.raises(NotEnoughDevicesError):
        claim(path)


def test_ledger_without_a_lock_is_taken_over(path: str) -> None:
    Path(path).write_text(f"0 {os.getpid()}\n")
    assert tokens(claim(path)) == ["1"]
    os.unlink(path)
    assert both_refuse(path) == lost(path)


def test_first_users_that_come_at_once_see_no_lost_ledger(path: str) -> None:
    for _ in range(40):
        askers = [Running(lambda: claim(path)) for _ in range(3)]
        try:
            assert sorted(device.token for asker in askers for device in asker.result()) == ["0", "1", "2"]
        finally:
            for asker in askers:
                asker.kill()
        os.unlink(f"{path}.lock")  # first: until both are gone, nobody asks
        os.unlink(path)


RUBBISH = {
    "100 MB": b"0 7\n" * 25_000_000,
    "binary": bytes(range(256)) * 64,
    "CRLF": f"0 {DEAD}\r\n1 {DEAD}\r\n".encode(),
    "a page of zeros": b"\0" * 4096,
    "UTF-16": f"0 {DEAD}\n".encode("utf-16"),
    "a list": b"[]\n",
}


@pytest.mark.parametrize("content", RUBBISH.values(), ids=RUBBISH)
def test_ledger_that_is_none_grants_nothing_and_is_left_as_it_is(content: bytes, path: str) -> None:
    Path(path).write_bytes(content)
    reason = both_refuse(path)
    assert path in reason
    assert len(reason) < 500
    assert Path(path).read_bytes() == content


def test_lines_that_flinks_script_doubled_count_each(path: str) -> None:
    other = Running(lambda: None)
    Path(path).write_text(f"0 {DEAD}\n0 {other.pid}\n0 {DEAD}\n1 {os.getpid()}\n1 {os.getpid()}\n")
    assert tokens(claim(path)) == ["2"]
    with pytest.raises(NotEnoughDevicesError):
        claim(path)
    other.kill()
    assert tokens(claim(path)) == ["0"]
    assert [line.split()[0] for line in Path(path).read_text().splitlines()] == ["1", "1", "2", "0"]


def test_what_a_later_version_writes_is_kept_to_the_letter(path: str) -> None:
    lines = [
        f'1 {os.getpid()} {{"uuid":"GPU-b",  "shares":[{{"pid":9,"part":0.5}}],"until":null,"class":"gpu"}}',
        f'a%20b {os.getpid()} {{"x":{{"y":[1e400,"\\ud800"]}},"z":"\N{GREEK SMALL LETTER MU}"}}',
    ]
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    shared = Coordination(path, "gpu")
    shared.release(shared.claim([Device("0", "GPU-a")], 1, me()), me())
    assert script_says(path) == "0"
    assert Path(path).read_text(encoding="utf-8").splitlines()[:2] == lines


def system(*command: str) -> None:
    subprocess.run(command, check=True)


@pytest.mark.parametrize("used", [False, True], ids=["first use", "in use"])
def test_full_disk_grants_nothing_and_breaks_nothing(path: str, *, used: bool) -> None:
    def look() -> tuple[list[str], list[str], list[str]]:
        mount("none", os.path.dirname(path), "tmpfs", "size=32k")
        if used:
            claim(path)
        filler = Path(f"{path}-filler")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        reasons, before = [error_of(CoordinationError, lambda: claim(path)), script_says(path)], held(path)
        filler.unlink()
        return reasons, before, tokens(claim(path))

    reasons, before, after = in_mounts(look)
    for reason in reasons:
        assert reason.startswith(f"cannot write {path}")
        assert reason.endswith(": No space left on device; make room on its file system")
    assert (before, after) == ((["0"], ["1"]) if used else ([], ["0"]))


@pytest.mark.parametrize("used", [False, True], ids=["first use", "in use"])
def test_read_only_file_system_grants_nothing_and_can_be_looked_at(path: str, *, used: bool) -> None:
    def look() -> tuple[str, list[str]]:
        mount("none", os.path.dirname(path), "tmpfs")
        if used:
            claim(path)
        system("mount", "-o", "remount,ro", os.path.dirname(path))
        return both_refuse(path), held(path)

    reason, before = in_mounts(look)
    assert reason == (
        f"cannot write {path}: Read-only file system; mount its file system writable: another file would not know who "
        "holds devices by this one"
    )
    assert before == (["0"] if used else [])


def test_file_that_is_mounted_alone_grants_nothing(path: str) -> None:
    claim(path)

    def look() -> str:
        mount(path, path)
        return both_refuse(path)

    assert in_mounts(look) == (
        f"cannot write {path}: Device or resource busy; a single file is mounted there: mount its folder instead"
    )
    assert held(path) == ["0"]


def test_missing_folder_grants_nothing(path: str) -> None:
    assert both_refuse(f"{path}/missing/gpus").startswith(
        f"cannot lock {path}/missing/gpus.lock: No such file or directory; "
    )
