"""`externalresource run` in a container: whatever its command closes, adopts or waits for, it keeps its device."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.processes import wait_until
from tests.support.taskmanager import (
    COMMAND_LINE,
    Folder,
    TaskManager,
    containers_are_permitted,
    first_child,
    is_refused,
    unshare,
)

pytestmark = pytest.mark.skipif(not containers_are_permitted(), reason="this system grants no pid namespaces")

NOBODY = 54322  # the last of some users of whom no process runs
PYTHON = [sys.executable, "-I", "-c"]
#: pid 1 of a container that starts a program, and ends with its status when that has ended.
INIT = ["sh", "-c", '"$@"; exit $?', "init"]
ADOPTING = "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)"
#: Becomes another program after it has become one that adopts what its descendants leave.
SUBREAPER = [*PYTHON, f"{ADOPTING}; import os, sys; os.execv(sys.argv[1], sys.argv[1:])"]
CLOSES_ALL = [*PYTHON, "import os, time; os.closerange(3, 1024); print(flush=True); time.sleep(600)"]
BOARDS = """
from externalresource.api import Device, driver


@driver("fpga")
def fpga():
    return [Device("0", environment={"FPGA": "0"})]
"""
WAITS_FOR_CHILDREN = """
import os
ended = 0
try:
    while True:
        os.wait()
        ended += 1
except ChildProcessError:
    print("waited for", ended)
"""

#: Says which signals it gets, one a line, until a last one.
SAYS_SIGNALS = """
import os, signal, sys
def say(number, _frame):
    os.write(1, f"{number}\\n".encode())
    if number == signal.SIGTERM:
        os._exit(7)
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, say)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""
#: Becomes a program, with a terminal that does not end it: outside the container it is of the same process group.
ON_TERMINAL = [
    *PYTHON,
    """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for number in (signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])
""",
]

Started = Callable[[], TaskManager]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def started() -> Iterator[Started]:
    with contextlib.ExitStack() as containers:
        yield lambda: containers.enter_context(TaskManager(container=True))


def call(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a container, in which it is pid 1."""
    return subprocess.run([*unshare(), *words], check=False, capture_output=True, text=True, timeout=120)


def watchers(container: TaskManager) -> list[int]:
    """Return the processes in a container that stand in none of its sessions."""
    return [pid for pid in container.processes() if os.getsid(pid) == pid != container.pid]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def is_taken(asker: TaskManager, folder: Folder, gpus: int = 1) -> bool:
    return is_refused(asker.tell("script", *folder.script(1, gpus)))


# Beside a command


def test_command_that_closes_what_it_inherited_keeps_its_device_until_it_ends(folder: Folder, started: Started) -> None:
    living, asker = started(), started()
    command = living.tell("run", *folder.run(), "--", *CLOSES_ALL)
    assert is_taken(asker, folder)
    living.tell("end", command)
    wait_until(lambda: not is_taken(asker, folder))
    wait_until(lambda: watchers(living) == [])


def test_watchers_of_a_command_are_two_and_no_children_of_it(folder: Folder, started: Started) -> None:
    living = started()
    living.tell("run", *folder.run(), "--", "sh", "-c", "echo; exec sleep 600")
    assert [parent(pid) for pid in watchers(living)] == [living.pid] * 2
    for pid in watchers(living):
        kept = sorted(os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
        assert kept == sorted(["/dev/null"] * 3 + ["anon_inode:[pidfd]", str(folder.witnesses()[0])])


@pytest.mark.parametrize("which", [0, 1])
def test_killing_one_watcher_of_a_command_frees_nothing(folder: Folder, started: Started, which: int) -> None:
    living, asker = started(), started()
    living.tell("run", *folder.run(), "--", *CLOSES_ALL)
    os.kill(watchers(living)[which], signal.SIGKILL)
    wait_until(lambda: len(watchers(living)) == 1)
    assert is_taken(asker, folder)


def test_each_resource_of_a_command_is_kept(folder: Folder, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.path / "boards.py").write_text(BOARDS)
    monkeypatch.setenv("PYTHONPATH", str(folder.path))
    living, asker = started(), started()
    gpus = ["-o", "gpu.simulate=1", "-o", f"gpu.coordination-file={folder.file}"]
    boards = ["-o", f"boards:fpga.coordination-file={folder.path}/boards"]
    living.tell("run", "run", "gpu=1", "boards:fpga=1", *gpus, *boards, "--", *CLOSES_ALL)
    assert is_taken(asker, folder)
    other = ["run", "boards:fpga=1", "--coordination-file", f"{folder.path}/boards", "--", "true"]
    assert "1 wanted, 0 of 1 free" in asker.tell("shell", f"{' '.join([*COMMAND_LINE, *other])} 2>&1 || true")


@pytest.mark.parametrize("adopts", ["nothing", "since before", "since it began"])
def test_command_that_waits_until_it_has_no_child_ends(folder: Folder, adopts: str) -> None:
    run = [*(SUBREAPER if adopts == "since before" else ()), *COMMAND_LINE, *folder.run(), "--"]
    program = f"{ADOPTING}\n{WAITS_FOR_CHILDREN}" if adopts == "since it began" else WAITS_FOR_CHILDREN
    done = call(*INIT, *run, *PYTHON, program)
    assert (done.stdout, done.stderr) == ("waited for 0\n", "")


def test_command_that_adopted_orphans_still_does(folder: Folder) -> None:
    orphan = ["sh", "-c", "(sleep 0.1 &)"]
    program = f"import subprocess; subprocess.run({orphan!r})\n{WAITS_FOR_CHILDREN}"
    done = call(*INIT, *SUBREAPER, *COMMAND_LINE, *folder.run(), "--", *PYTHON, program)
    assert (done.stdout, done.stderr) == ("waited for 1\n", "")


def test_child_that_was_there_before_run_stays_a_child_of_the_command(folder: Folder) -> None:
    before = f'sleep 0.1 & exec {" ".join([*COMMAND_LINE, *folder.run()])} -- "$@"'
    done = call(*INIT, "sh", "-c", before, "sh", *PYTHON, WAITS_FOR_CHILDREN)
    assert (done.stdout, done.stderr) == ("waited for 1\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("more", [0, 1, 2])
def test_command_beside_which_no_watcher_can_be_started_is_not_run_and_holds_nothing(more: int) -> None:
    limited = ["prlimit", f"--nproc={1 + more}", "setpriv", "--reuid", str(NOBODY - more), "--clear-groups"]
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o777)
        folder = Folder(Path(path))
        done = call(*INIT, *limited, *COMMAND_LINE, *folder.run(), "--", "echo", "ran")
        said = r"externalresource: no watcher can be started beside pid \d+: Resource temporarily unavailable\n"
        assert (done.returncode, done.stdout) == (125, "")
        assert re.fullmatch(said, done.stderr)
        assert folder.files() == ["ledger", "ledger.lock"]
        limited[1] = f"--nproc={1 + 3}"
        assert call(*INIT, *limited, *COMMAND_LINE, *folder.run(), "--", "echo", "ran").stdout == "ran\n"


def test_command_that_cannot_be_executed_leaves_no_watcher_and_holds_nothing(folder: Folder, started: Started) -> None:
    living = started()
    command = " ".join([*COMMAND_LINE, *folder.run(), "--", "/nowhere/command"])
    said = living.tell("shell", f"{command} 2>&1; echo $?")
    assert said == "externalresource: /nowhere/command: command not found\n127\n"
    assert folder.files() == ["ledger", "ledger.lock"]
    wait_until(lambda: watchers(living) == [])


@pytest.mark.parametrize("before", [[], unshare(), [*unshare(), *INIT]], ids=["host", "pid 1", "container"])
def test_command_ignores_and_blocks_the_signals_that_run_was_started_with(folder: Folder, before: list[str]) -> None:
    shown = ["grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]
    program = """
import os, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
os.execvp(sys.argv[1], sys.argv[1:])
"""

    def signals(*run: str) -> str:
        command = [*before, *PYTHON, program, *run, *shown]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert signals(*COMMAND_LINE, *folder.run(), "--") == signals()


@pytest.mark.parametrize("before", [[], INIT], ids=["pid 1", ""])
def test_run_whose_caller_takes_no_ends_of_children_runs_its_command(folder: Folder, before: list[str]) -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = call(*before, *PYTHON, ignoring, *COMMAND_LINE, *folder.run(), "--", "sh", "-c", "echo ran; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "ran\n", "")


# As pid 1


def test_run_as_pid_1_starts_the_command_as_its_child_which_keeps_its_device(folder: Folder, started: Started) -> None:
    asker = started()
    program = "import os, time; os.closerange(3, 1024); print(os.getpid(), os.getppid(), flush=True); time.sleep(600)"
    command = [*unshare(), *COMMAND_LINE, *folder.run(), "--", *PYTHON, program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as container:
        try:
            assert container.stdout is not None
            pid, above = map(int, container.stdout.readline().split())
            assert pid != above == 1
            assert is_taken(asker, folder)
        finally:
            container.kill()
    wait_until(lambda: not is_taken(asker, folder))


@pytest.mark.parametrize(("ending", "status"), [("exit 7", 7), ("kill -KILL $$", 128 + 9), ("kill -TERM $$", 128 + 15)])
def test_run_as_pid_1_ends_with_the_status_of_its_command(folder: Folder, ending: str, status: int) -> None:
    done = call(*COMMAND_LINE, *folder.run(), "--", "sh", "-c", f"echo done; {ending}")
    assert (done.returncode, done.stdout, done.stderr) == (status, "done\n", "")


def test_run_as_pid_1_says_that_its_command_cannot_be_executed_and_holds_nothing(folder: Folder) -> None:
    missing = call(*COMMAND_LINE, *folder.run(), "--", "no-such-command")
    assert (missing.returncode, missing.stderr) == (127, "externalresource: no-such-command: command not found\n")
    refused = call(*COMMAND_LINE, *folder.run(), "--", str(folder.path))
    assert (refused.returncode, refused.stderr) == (126, f"externalresource: {folder.path}: Permission denied\n")
    assert folder.files() == ["ledger", "ledger.lock"]


def test_run_as_pid_1_takes_the_ends_of_orphans_and_its_command_waits_for_its_own_only(folder: Folder) -> None:
    orphans = "for each in 1 2 3; do (sleep 0 &); done; while ps -eo stat= | grep -q Z; do sleep 0.1; done"
    program = f"import subprocess; subprocess.run(['sh', '-c', {orphans!r}])\n{WAITS_FOR_CHILDREN}"
    done = call(*COMMAND_LINE, *folder.run(), "--", *PYTHON, program)
    assert (done.stdout, done.stderr) == ("waited for 0\n", "")


def test_command_of_run_as_pid_1_that_starts_run_waits_for_its_own_children_only(folder: Folder) -> None:
    inner = f"import subprocess; subprocess.run({[*COMMAND_LINE, *folder.run(), '--', 'true']!r})\n{WAITS_FOR_CHILDREN}"
    done = call(*COMMAND_LINE, *folder.run(), "--", *PYTHON, inner)
    assert (done.returncode, done.stdout, done.stderr) == (0, "waited for 0\n", "")


@contextlib.contextmanager
def run_as_pid_1(
    folder: Folder, *command: str, terminal: int | None = None, before: Sequence[str] = ()
) -> Iterator["subprocess.Popen[str]"]:
    """Yield a container in which `run` is pid 1: in a session of its own, where it has a terminal."""
    words = [*(ON_TERMINAL if terminal else before), *unshare(), *COMMAND_LINE, *folder.run(), "--", *command]
    with subprocess.Popen(
        words,
        stdin=terminal or subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=terminal is not None,
    ) as container:
        try:
            yield container
        finally:
            if container.poll() is None:
                os.kill(first_child(container.pid), signal.SIGKILL)


def line(container: "subprocess.Popen[str]") -> str:
    assert container.stdout is not None
    return container.stdout.readline().strip()


def test_run_as_pid_1_passes_on_each_signal_once(folder: Folder) -> None:
    own = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTERM}
    with run_as_pid_1(folder, *PYTHON, SAYS_SIGNALS) as container:
        assert line(container) == "ready"
        for number in sorted(signal.valid_signals() - own):
            os.kill(first_child(container.pid), number)
            assert line(container) == str(int(number))
        os.kill(first_child(container.pid), signal.SIGTERM)
        assert container.communicate()[0] == "15\n"
        assert container.returncode == 7


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_run_as_pid_1_that_may_not_signal_its_command_waits_for_it_all_the_same(folder: Folder) -> None:
    no_kill = ["setpriv", "--bounding-set=-kill"]
    another_users = ["setpriv", "--reuid", str(NOBODY), "--clear-groups", "sh", "-c", "echo ready; read go; exit 7"]
    with run_as_pid_1(folder, *another_users, before=no_kill) as container:
        assert line(container) == "ready"
        os.kill(first_child(container.pid), signal.SIGTERM)
        os.kill(first_child(container.pid), signal.SIGUSR1)
        assert container.communicate("go\n")[0] == ""
        assert container.returncode == 7


@pytest.mark.parametrize("leaves", ["", "import os; os.setsid()\n"], ids=["in its group", "in a session of its own"])
def test_command_of_run_as_pid_1_gets_what_a_terminal_sends_once(folder: Folder, leaves: str) -> None:
    ours, theirs = os.openpty()
    with run_as_pid_1(folder, *PYTHON, leaves + SAYS_SIGNALS, terminal=theirs) as container:
        assert line(container) == "ready"
        for key, number in ((b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT), (b"\x03", signal.SIGINT)):
            os.write(ours, key)
            assert line(container) == str(int(number))
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_run_as_pid_1_that_waits_ends_when_it_is_asked(folder: Folder, started: Started, number: int) -> None:
    started().tell("claim", folder.options())
    words = [*unshare(), *COMMAND_LINE, *folder.run(1, "--wait", "600"), "--", "true"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as container:
        assert container.stderr is not None
        assert container.stderr.readline().startswith("waiting for gpu")
        os.kill(first_child(container.pid), number)
        assert container.wait(60) == 128 + number
    assert not Path(f"{folder.file}.queue").exists()
