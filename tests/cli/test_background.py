"""What a command of `run` leaves in the background, on the host and in a container: it keeps the command's devices."""

import contextlib
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from externalresource.coordination import inside
from externalresource.coordination.process import identify
from tests.support.processes import NEW_PIDS, in_namespaces, wait_until
from tests.support.taskmanager import (
    COMMAND_LINE,
    Folder,
    TaskManager,
    containers_are_permitted,
    is_refused,
    living_processes,
)

ANN, BOB = 54331, 54332

contained = pytest.mark.skipif(not containers_are_permitted(), reason="this system grants no pid namespaces")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
#: Where the command is, and where who asks for its device.
between = pytest.mark.parametrize(
    ("place", "asking"),
    [
        ("host", "host"),
        pytest.param("container", "host", marks=contained),
        pytest.param("container", "container", marks=contained),
    ],
)

#: Leaves a process that is nobody's child, in a session of its own, with nothing of what it inherited but the
#: environment, which does what it is told; ends when that has noted its pid.
LEAVE = """
import os, sys, time

def note(path=sys.argv[1]):
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 1024)
        exec(sys.argv[2])
        note()
        time.sleep(600)
    os._exit(0)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.005)
"""
#: The same for another user, who may not use this Python: what is left becomes a program.
LEAVE_BY_SHELL = """
setsid sh -c 'echo $$ > "$0.new"; mv "$0.new" "$0"; exec "$1" 600' "$0" "$1" </dev/null >/dev/null 2>&1 &
until [ -e "$0" ]; do sleep 0.01; done
"""
TITLE = "import setproctitle; setproctitle.setproctitle('title' * 1000)"
WAYS = {
    "a daemon": "",
    "a daemon with a title": TITLE,
    "a daemon with a title over its environment": f"os.environ.pop('SPT_NOENV'); {TITLE}",
    "another program": "note(); os.execvp('sleep', ['sleep', '600'])",
}

Left = Callable[..., int]
Started = Callable[[str], TaskManager]


@pytest.fixture
def folder() -> Iterator[Folder]:
    with tempfile.TemporaryDirectory() as path:  # which other users may enter
        Path(path).chmod(0o777)
        yield Folder(Path(path))


@pytest.fixture
def started() -> Iterator[Started]:
    with contextlib.ExitStack() as all_of_them:
        yield lambda place: all_of_them.enter_context(TaskManager(container=place == "container"))


@pytest.fixture
def left(folder: Folder) -> Iterator[Left]:
    """Runs a command that leaves a process in the background, and returns as what this one sees that."""
    pids: list[int] = []

    def leave(where: TaskManager, does: str = "", *words: str, uid: int | None = None, gpus: int = 1) -> int:
        note = folder.path / f"left-{len(pids)}"
        program = [sys.executable, "-c", LEAVE] if uid is None else ["sh", "-c", LEAVE_BY_SHELL]
        command = [*program, str(note), does]
        where.tell("shell", shlex.join([*as_user(uid), *COMMAND_LINE, *folder.run(gpus, *words), "--", *command]))
        pids.append(where.outside(int(note.read_text())))
        return pids[-1]

    yield leave
    for pid in pids:
        end(pid)


def as_user(uid: int | None) -> list[str]:
    return [] if uid is None else ["setpriv", f"--reuid={uid}", "--clear-groups"]


def unreadable(folder: Folder) -> str:
    """Return a program that others may execute and not read: nor then what the kernel says of its process."""
    program = folder.path / "unreadable"
    shutil.copy("/bin/sleep", program)
    program.chmod(0o711)
    return str(program)


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def call(*words: str, uid: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*as_user(uid), *COMMAND_LINE, *words], check=False, capture_output=True, text=True)


def is_taken(asker: TaskManager, folder: Folder) -> bool:
    return is_refused(asker.tell("script", *folder.script()))


def refusal(folder: Folder, uid: int | None = None) -> str:
    """Return why a user gets no device."""
    done = call(*folder.run(), "--", "true", uid=uid)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    return done.stderr.strip()


def watchers(folder: Folder) -> list[int]:
    """Return the living watchers that hold a life lock of this folder's."""
    found = []
    for pid in living_processes():
        with contextlib.suppress(OSError):
            held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            if Path(f"/proc/{pid}/comm").read_text() == "device-watcher\n" and str(folder.witnesses()[0]) in held:
                found.append(pid)
    return found


def column(folder: Folder) -> int:
    """Return the pid that Flink's own script takes for the device's."""
    return int(Path(folder.file).read_text().split()[1])


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


def test_process_that_has_stepped_out_keeps_nothing(folder: Folder, started: Started, left: Left) -> None:
    asker = started("host")
    left(asker, "note(); os.execvp('env', ['env', '-u', 'EXTERNALRESOURCE_RUN', 'sleep', '600'])")
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


@pytest.mark.parametrize("name", ["ssh-agent", "gpg-agent", "dbus-daemon"])
def test_agents_that_stay_keep_nothing(folder: Folder, started: Started, left: Left, name: str) -> None:
    agent, asker = folder.path / name, started("host")
    shutil.copy("/bin/sleep", agent)
    left(asker, f"note(); os.execv({str(agent)!r}, [{name!r}, '600'])")
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


# Without watchers


def kill_watchers(folder: Folder) -> None:
    for pid in watchers(folder):
        end(pid)
    wait_until(lambda: not watchers(folder))


def test_killing_one_watcher_frees_nothing(folder: Folder, started: Started, left: Left) -> None:
    asker = started("host")
    pid = left(asker)
    end(watchers(folder)[0])
    assert is_taken(asker, folder)
    end(pid)
    wait_until(lambda: not is_taken(asker, folder))


@pytest.mark.parametrize("when", ["while the command runs", "when it has ended"])
def test_who_may_look_finds_what_was_left_where_both_watchers_were_killed(
    folder: Folder, started: Started, left: Left, when: str
) -> None:
    asker = started("host")
    if when == "while the command runs":
        command = asker.tell("run", *folder.run(), "--", "sh", "-c", "echo; exec sleep 600")
        kill_watchers(folder)
        asker.tell("end", command)
        wait_until(lambda: not is_taken(asker, folder))
        return
    pid = left(asker)
    kill_watchers(folder)
    assert is_taken(asker, folder)
    end(pid)
    wait_until(lambda: not is_taken(asker, folder))


@as_root
def test_who_may_not_look_counts_it_as_held_and_says_who_may(folder: Folder, started: Started, left: Left) -> None:
    left_by_ann = left(started("host"), "sleep", uid=ANN)
    wait_until(lambda: column(folder) == left_by_ann)
    kill_watchers(folder)
    end(left_by_ann)
    said = refusal(folder, BOB)
    assert f"only its user, uid {ANN}, and root see what it has left: by `externalresource status gpu`" in said
    assert call("status", "--coordination-file", folder.file, uid=ANN).returncode == 0
    assert call(*folder.run(), "--", "true", uid=BOB).returncode == 0


# What is said, and done by hand


def test_refusal_names_what_keeps_the_device_who_left_it_and_what_to_type(
    folder: Folder, started: Started, left: Left
) -> None:
    pid = left(started("host"))
    wait_until(lambda: column(folder) == pid)
    said = refusal(folder)
    assert re.search(rf"held by pid {pid} \(python[0-9.]*\), left by pid \d+ \(python[0-9.]*\), since .*Z: 0 ", said)
    [command] = re.findall(r"\(end it; if it does not use the device, `externalresource (.*)` frees it\)$", said)
    assert call(*command.split(), "--coordination-file", folder.file).stdout == f"released 0, held by pid {pid}\n"
    assert call(*folder.run(), "--", "true").returncode == 0


@as_root
def test_only_its_user_releases_what_a_command_has_left(folder: Folder, started: Started, left: Left) -> None:
    left(started("host"), "sleep", uid=ANN)
    words = ["release", "--device", "0", "--force", "--coordination-file", folder.file]
    refused = call(*words, uid=BOB)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "you may not signal it" in refused.stderr
    assert call(*words, uid=ANN).stdout.startswith("released 0")


def test_process_inside_of_a_run_whose_command_has_ended_is_told_how_to_step_out(
    folder: Folder, started: Started, left: Left
) -> None:
    pid = left(started("host"))
    wait_until(lambda: column(folder) == pid)
    [mark] = [
        word
        for word in Path(f"/proc/{pid}/environ").read_text().split("\0")
        if word.startswith("EXTERNALRESOURCE_RUN=")
    ]
    inside_of_it = subprocess.run(
        ["env", mark, *COMMAND_LINE, "run", "gpu=2", *folder.run(2)[2:], "--", "true"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert inside_of_it.returncode == 125
    assert "; `env -u EXTERNALRESOURCE_RUN` steps out of it" in inside_of_it.stderr


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
