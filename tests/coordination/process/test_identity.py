"""What identifies a process, and what only tells of it."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from externalresource.coordination import lives
from externalresource.coordination.process import Process, identify, observer, program_of
from externalresource.records import replace
from tests.support.processes import end, in_child, wait_until


def test_identity_tells_what_it_saw(living: subprocess.Popen[bytes]) -> None:
    here = observer()
    who = identify(living.pid)
    assert {field: getattr(who, field) for field in who.__match_args__} == {
        "pid": living.pid,
        "start_time": who.start_time,
        "boot_id": here.boot_id,
        "pid_namespace": Path("/proc/self/ns/pid").stat().st_ino,
        "time_namespace": here.time_namespace,
        "uid": os.getuid(),
        "program": "sleep",
        "pidfd_inode": who.pidfd_inode,
    }
    assert who.start_time


def test_program_of_an_owner_is_what_it_runs_now_or_else_what_it_ran(living: subprocess.Popen[bytes]) -> None:
    claimed = replace(identify(living.pid), program="externalresourc")
    assert program_of(claimed, observer()) == "sleep"
    end(living)
    assert program_of(claimed, observer()) == "externalresourc"


def test_arguments_of_the_program_are_not_recorded() -> None:
    process = subprocess.Popen(["sleep", "600.4711"])
    try:
        assert "600.4711" not in repr(identify(process.pid))
    finally:
        end(process)


@pytest.mark.parametrize("name", ["a) Z 1 (b", "))))", "(", "two words", "new\nline"])
def test_program_of_any_name_is_read(name: str, tmp_path: Path) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "600"])
    try:
        wait_until(lambda: identify(process.pid).program == name)
        assert lives(identify(process.pid))
    finally:
        end(process)


def test_process_stays_the_same_when_it_becomes_another_program() -> None:
    process = subprocess.Popen(["sh", "-c", "read line; exec sleep 600"], stdin=subprocess.PIPE)
    try:
        before = identify(process.pid)
        assert process.stdin
        process.stdin.close()
        wait_until(lambda: identify(process.pid).program == "sleep")
        assert identify(process.pid) == before
        assert lives(before)
    finally:
        end(process)


def test_process_stays_the_same_when_it_is_renamed() -> None:
    def renamed() -> tuple[Process, Process]:
        before = identify(os.getpid())
        Path("/proc/self/comm").write_text("other", encoding="ascii")
        return before, identify(os.getpid())

    before, after = in_child(renamed)
    assert after.program == "other"
    assert after == before


def test_fork_is_another_process() -> None:
    assert in_child(lambda: identify(os.getpid())) != identify(os.getpid())


@pytest.mark.parametrize(
    "change", [{"pid": 7}, {"start_time": 7}, {"pid_namespace": 7}, {"boot_id": "7"}, {"time_namespace": 7}], ids=str
)
def test_processes_that_differ_in_one_of_these_are_two(change: dict[str, Any]) -> None:
    who = identify(os.getpid())
    other = replace(who, **change)
    assert who == replace(who)
    assert who != other
    assert other != who


@pytest.mark.parametrize("unknown", [{"start_time": None}, {"pid_namespace": None}], ids=str)
def test_process_of_which_too_little_is_known_is_not_one_that_is_known(unknown: dict[str, Any]) -> None:
    who = identify(os.getpid())
    assert replace(who, **unknown) != who


def test_program_user_and_pidfd_of_a_process_are_no_part_of_which_it_is() -> None:
    who = identify(os.getpid())
    assert replace(who, program="another", uid=None, pidfd_inode=None) == who
