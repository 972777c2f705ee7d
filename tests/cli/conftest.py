"""Commands of `run` that leave something in the background, on the host and in a container."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
#: Leaves neither zeros nor a mark where the kernel looks for the environment.
WORDS_OVER_IT = """
import ctypes
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
start, end = map(int, fields[47:49])
ctypes.memmove(start, (b"k\\0OME=/x\\0" * end.bit_length() * 1000)[: end - start], end - start)
"""
WAYS = {
    "a daemon": "",
    "a daemon with a title": TITLE,
    "a daemon with a title over its environment": f"os.environ.pop('SPT_NOENV'); {TITLE}",
    "a daemon with words over its environment": WORDS_OVER_IT,
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
