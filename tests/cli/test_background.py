"""What a command of `run` leaves in the background, on the host and in a container: it keeps the command's devices."""

import os
import re
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from externalresource.coordination import inside
from externalresource.coordination.process import identify
from tests.cli.conftest import (
    ANN,
    BOB,
    LEAVE,
    WAYS,
    Left,
    Started,
    as_root,
    as_user,
    between,
    call,
    column,
    contained,
    end,
    is_taken,
    refusal,
    unreadable,
)
from tests.support.processes import NEW_PIDS, in_namespaces, wait_until
from tests.support.taskmanager import COMMAND_LINE, Folder

# What keeps a device


@between
@pytest.mark.parametrize("way", WAYS)
def test_what_leaves_the_foreground_keeps_the_device_until_it_ends(
    folder: Folder, started: Started, left: Left, place: str, asking: str, way: str
) -> None:
    where, asker = started(place), started(asking)
    pid = left(where, WAYS[way])
    assert is_taken(asker, folder)
    end(pid)
    wait_until(lambda: not is_taken(asker, folder))


@between
def test_last_of_several_keeps_the_device(
    folder: Folder, started: Started, left: Left, place: str, asking: str
) -> None:
    where, asker = started(place), started(asking)
    note = str(folder.path / "last")
    first = left(where, f"if os.fork() == 0: note({note!r}); time.sleep(600)")
    wait_until((folder.path / "last").exists)
    last = where.outside(int((folder.path / "last").read_text()))
    try:
        end(first)
        assert is_taken(asker, folder)
        wait_until(lambda: [row["pid"] for row in folder.status()] == [last])
        assert is_taken(asker, folder)
    finally:
        end(last)
    wait_until(lambda: not is_taken(asker, folder))


def test_process_that_a_shell_left_is_named_in_the_file_and_in_its_status(folder: Folder, started: Started) -> None:
    background = "sleep 600 >/dev/null 2>&1 & echo $!"
    pid = int(started("host").tell("shell", shlex.join([*COMMAND_LINE, *folder.run(), "--", "sh", "-c", background])))
    try:
        [row] = folder.status()
        assert (row["pid"], row["state"], row["program"]) == (pid, "living", "sleep")
        assert re.fullmatch(r"sh \(pid \d+\)", row["left_by"])
        assert column(folder) == pid
    finally:
        end(pid)
    wait_until(lambda: folder.states() != ["living"])


@as_root
def test_other_users_see_by_the_lock_that_a_device_is_used_or_free(
    folder: Folder, started: Started, left: Left
) -> None:
    pid = left(started("host"), "sleep", uid=ANN)
    assert "0 of 1 free" in refusal(folder, BOB)
    end(pid)
    wait_until(lambda: call(*folder.run(), "--", "true", uid=BOB).returncode == 0)


@as_root
def test_process_whose_environment_may_not_be_read_keeps_the_device(
    folder: Folder, started: Started, left: Left
) -> None:
    asker = started("host")
    pid = left(started("host"), unreadable(folder), uid=ANN)
    assert is_taken(asker, folder)
    end(pid)
    wait_until(lambda: not is_taken(asker, folder))


@as_root
def test_child_that_hides_its_environment_keeps_the_device_though_its_parent_has_stepped_out(
    folder: Folder, started: Started
) -> None:
    asker, note = started("host"), folder.path / "note"
    job = folder.path / "job"
    job.write_text(f"""#!/bin/sh
{unreadable(folder)} 600 </dev/null >/dev/null 2>&1 &
echo $! >{note}.new; mv {note}.new {note}
exec env -u EXTERNALRESOURCE_RUN sleep 600 </dev/null >/dev/null 2>&1
""")
    job.chmod(0o755)
    command = f"setsid {job} & until [ -e {note} ]; do sleep 0.01; done"
    asker.tell("shell", shlex.join([*as_user(ANN), *COMMAND_LINE, *folder.run(), "--", "sh", "-c", command]))
    pid = int(note.read_text())
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    try:
        assert is_taken(asker, folder)
    finally:
        end(pid)
        end(parent)
    wait_until(lambda: not is_taken(asker, folder))


def test_client_that_is_called_like_a_build_server_and_becomes_the_job_keeps_the_device(
    folder: Folder, started: Started, left: Left
) -> None:
    asker = started("host")
    becomes = "time.sleep(3); os.execv('/bin/sleep', ['sleep', '600'])"
    pid = left(asker, f"note(); os.execv(sys.executable, ['bazel', '-c', \"import os, time; {becomes}\"])")
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    assert is_taken(asker, folder)


def test_program_that_an_agent_is_only_for_a_moment_keeps_the_device(
    folder: Folder, started: Started, left: Left
) -> None:
    # It is older than an agent has to be to count as one, when it becomes one: `exec ssh-agent COMMAND`.
    asker = started("host")
    agent = "import os, time; time.sleep(0.5); os.execv('/bin/sleep', ['sleep', '600'])"
    pid = left(asker, f"note(); time.sleep(2.5); os.execv(sys.executable, ['ssh-agent', '-c', {agent!r}])")
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n" or not is_taken(asker, folder))
    assert is_taken(asker, folder)


def test_run_after_run_is_never_refused(folder: Folder) -> None:
    # The watchers of the one before have yet to see that it has left nothing.
    for _ in range(20):
        done = call(*folder.run(), "--", "true")
        assert (done.returncode, done.stderr) == (0, "")


# What keeps none


@pytest.mark.parametrize("place", ["host", pytest.param("container", marks=contained)])
def test_device_is_free_with_the_command_if_it_is_to(folder: Folder, started: Started, left: Left, place: str) -> None:
    left(started(place), "", "--free-at-exit")
    if place == "host":
        assert folder.witnesses() == []
    asker = started("host")
    wait_until(lambda: not is_taken(asker, folder))


@pytest.mark.parametrize(
    "becomes",
    [
        "os.execvp('env', ['env', '-u', 'EXTERNALRESOURCE_RUN', 'sleep', '600'])",
        "os.execve('/bin/sleep', ['sleep', '600'], {})",  # not to be seen; nor one that others start so
    ],
    ids=["steps out", "has an empty environment"],
)
def test_process_that_carries_no_mark_any_more_keeps_nothing(
    folder: Folder, started: Started, left: Left, becomes: str
) -> None:
    asker = started("host")
    left(asker, f"note(); {becomes}")
    wait_until(lambda: not is_taken(asker, folder))


def test_daemon_of_an_inner_run_keeps_its_own_device_and_not_the_other_of_the_run_around_it(
    folder: Folder, started: Started, left: Left
) -> None:
    asker, note = started("host"), folder.path / "inner"
    leave = [*COMMAND_LINE, *folder.run(2), "--", sys.executable, "-c", LEAVE, str(note), ""]
    outer = [*COMMAND_LINE, "run", "gpu=2", *folder.run(2)[2:], "--", *leave]
    asker.tell("shell", shlex.join(outer))
    pid = int(note.read_text())
    try:
        wait_until(lambda: [row["pid"] for row in folder.status() if row["state"] == "living"] == [pid])
        assert column(folder) == pid
        status, out, err = asker.tell("script", *folder.script(2, 2))
        assert (status, out, "1 of 2 free" in err) == (1, "", True)
        assert asker.tell("script", *folder.script(1, 2))[0] == 0
    finally:
        end(pid)


@pytest.mark.parametrize(
    ("name", "ignores"), [("ssh-agent", ""), ("gpg-agent", ""), ("buildd", "a,buildd"), ("bazel(here)", "")]
)
def test_agents_that_stay_keep_nothing(
    folder: Folder, started: Started, left: Left, name: str, ignores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXTERNALRESOURCE_RUN_IGNORES", ignores)
    asker = started("host")
    left(asker, f"note(); os.execv('/bin/sleep', [{name!r}, '600'])")
    wait_until(lambda: not is_taken(asker, folder))


@as_root
@pytest.mark.parametrize("parent", ["of before", "of later"])
def test_process_that_hides_its_environment_and_was_started_by_one_that_carries_no_mark_keeps_nothing(
    folder: Folder, started: Started, parent: str
) -> None:
    asker = started("host")
    words = [*folder.run(), "--", *as_user(ANN), "sh", "-c", "echo; exec sleep 600"]
    run = asker.tell("run", *words) if parent == "of later" else None
    hides = [*as_user(ANN), "sh", "-c", f"echo; read go; {unreadable(folder)} 600; exit 1"]
    with subprocess.Popen(hides, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as browser:
        try:
            assert browser.stdin
            assert browser.stdout
            browser.stdout.readline()
            run = run or asker.tell("run", *words)
            browser.stdin.write(b"\n")
            browser.stdin.close()
            wait_until(lambda: Path(f"/proc/{browser.pid}/task/{browser.pid}/children").read_text())
            asker.tell("end", run)
            wait_until(lambda: not is_taken(asker, folder))
        finally:
            os.killpg(browser.pid, signal.SIGKILL)


# The search


@contained
def test_one_that_is_always_another_process_is_found() -> None:
    # Each starts the next one and ends: of a single listing it may be missing altogether.
    program = """
import os, time
input()
for _ in range(300):
    if os.fork():
        os._exit(0)
    time.sleep(0.001)
print("over", flush=True)
time.sleep(600)
"""
    mark = inside.mark("gpu", os.urandom(4).hex())
    environment = {**os.environ, "EXTERNALRESOURCE_RUN": mark}

    def search() -> list[bool]:
        command = [sys.executable, "-I", "-c", program]
        chain = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert chain.stdin
        assert chain.stdout
        first, answers = identify(chain.pid), []
        chain.stdin.write(b"\n")
        chain.stdin.close()
        while not select.select([chain.stdout], [], [], 0)[0]:
            answers.append(inside.bearer(mark, first) is not None)
        last = inside.bearer(mark, first)
        assert last is not None
        end(last.pid)
        wait_until(lambda: inside.bearer(mark, first) is None)
        return answers

    answers = in_namespaces(search, NEW_PIDS)
    assert answers
    assert all(answers)
