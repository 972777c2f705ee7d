"""Claims, releases and waits are killed at each of their system calls, and so are owners while these run.

strace counts the calls: after one whole run, each (name, nth) from the opening of the lock file on gets its own run.
"""

import contextlib
import ctypes
import os
import posix
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from externalresource.coordination import Coordination, Holder, identify, ledger, life_lock
from externalresource.errors import NotEnoughDevicesError
from externalresource_gpu import backends
from externalresource_gpu.script import main
from tests.support.claiming import me
from tests.support.processes import NEW_PIDS, Running, in_namespaces

_OWN_MEMORY = {"brk", "mmap", "mprotect", "mremap", "munmap", "futex", "madvise"}  # nobody else sees any of it
_SET_PTRACER, _ANYBODY = 0x59616D61, ctypes.c_ulong(-1)
_LIBC = ctypes.CDLL(None)

GPUS = backends.create("simulated", "3").devices(0)
Call = tuple[str, int]
Program = Callable[[str], None]  # it is given the coordination file, its parent owns what it claims
End = Callable[["Scene", Path, Call], bool]  # whether it came to that call


def held(path: str, pid: int) -> set[str]:
    return {claim.token for claim in Coordination(path, "gpu").held() if claim.owner.process.pid == pid}


def script(path: str, *words: str) -> None:
    sys.argv = ["", "1", "--simulate=3", "--enable-coordination-mode", f"--coordination-file={path}", *words]
    main.main()


def waiting_script(path: str) -> None:
    """Wait, and let the one who holds all give something back at the second look."""
    holder = ledger.read(path)[0]
    looks: list[float] = []

    def give_back_at_second_look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            Coordination(path, "gpu").drop(lambda claim, _: claim.token == holder.token)

    main._sleep = give_back_at_second_look
    script(path, "--wait=600")


def in_process(path: str) -> None:
    shared = Coordination(path, "gpu")
    claimed = shared.claim(GPUS, 1, me())
    os.write(1, b"claimed")
    shared.release(claimed, me())
    os.write(1, b", released")


def release_for_the_owner(path: str) -> None:
    Coordination(path, "gpu").release(GPUS, Holder(identify(os.getppid())))
    os.write(1, b"released")


def nothing(path: str) -> None:
    """Nobody has ever used the coordination file."""


def others(path: str) -> None:
    """One device is in a living process's hands, one in those of a dead one."""
    dead = Running(lambda: Coordination(path, "gpu").claim(GPUS, 1, me()))
    dead.result()
    Coordination(path, "gpu").claim(GPUS, 1, me())
    dead.kill()


def all_taken(path: str) -> None:
    Coordination(path, "gpu").claim(GPUS, 3, me())


@dataclass(frozen=True)
class Scene:
    program: Program
    before: Program = nothing
    #: The owner has a device of its own already.
    owner_holds: bool = False
    #: Devices that the program takes out of others' hands.
    given_back: int = 0


SCENES = {
    "first claim of all": Scene(script),
    "claim among others": Scene(script, others),
    "wait": Scene(waiting_script, all_taken, given_back=1),
    "claim and release in process": Scene(in_process, others),
    "release": Scene(release_for_the_owner, others, owner_holds=True),
}


class Run:
    """A program that does its work under strace, once it goes on; and the owner, its parent."""

    def __init__(self, scene: Scene, folder: Path, *strace: str) -> None:
        self.path, self._answer = str(folder / "gpus"), f"{folder}.answer"
        self.others = held(self.path, os.getpid())
        self.owner = Running(lambda: self._start(scene))
        self.pid = self.owner.result()
        self._pidfd = os.pidfd_open(self.pid)
        self._strace = subprocess.Popen(["strace", *strace, "-p", str(self.pid)], stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr
        self._lines = self._strace.stderr
        assert "attached" in next(self._lines)
        os.kill(self.pid, signal.SIGCONT)

    def _start(self, scene: Scene) -> int:
        if scene.owner_holds:
            Coordination(self.path, "gpu").claim(GPUS, 1, me())
        pid = os.fork()
        if pid == 0:
            _LIBC.prctl(_SET_PTRACER, _ANYBODY)
            os._exit = posix._exit  # coverage's would write a file
            os.closerange(3, 256)  # a pipe that others wait for the end of, an owner's life lock
            for descriptor in (1, 2):
                os.dup2(os.open(self._answer, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
            os.kill(os.getpid(), signal.SIGSTOP)
            scene.program(self.path)
            os._exit(0)
        os.waitpid(pid, os.WUNTRACED)
        return pid

    def close(self) -> None:
        """Leave nobody behind, whatever went wrong."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        self.owner.kill()
        self._strace.communicate()

    def until(self, pattern: str) -> Iterator[str]:
        """Yield what strace says, up to a line that matches, or all."""
        for line in self._lines:
            yield line
            if re.search(pattern, line):
                return

    def trace(self) -> list[str]:
        """Return what strace says until the program has ended."""
        return list(self.until("^$"))

    @property
    def answer(self) -> str:
        return Path(self._answer).read_text()


def calls(scene: Scene, folder: Path) -> list[Call]:
    """Return the calls of a run that nobody disturbs: name, and how many of that name it is."""
    with contextlib.closing(Run(scene, folder)) as run:
        lines = run.trace()
    assert lines[-1] == "+++ exited with 0 +++\n", run.answer
    names = [line.partition("(")[0] for line in lines]
    first = next(number for number, line in enumerate(lines) if "gpus.lock" in line)
    return [
        (name, names[: number + 1].count(name))
        for number, name in enumerate(names)
        if number >= first and name.isidentifier() and name not in _OWN_MEMORY
    ]


def skip_without_strace() -> None:
    try:
        subprocess.run(["strace", "-e", "trace=none", "true"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no strace")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this system lets strace trace nothing: {error.stderr}")


def swept(scene: Scene, folder: Path, end: End) -> int:
    """Let `end` have a folder of its own for each call, half of them in each of two processes; return how many."""
    skip_without_strace()

    def half(which: int) -> tuple[int, int]:
        before = folder / f"before-{which}"
        before.mkdir()
        scene.before(str(before / "gpus"))

        def place(number: int) -> Path:
            return shutil.copytree(before, folder / f"{which}-{number}")

        check_all_is_free(str(place(-2) / "gpus"))  # imports what it needs, so that all runs are alike
        ends = calls(scene, place(-1))
        came = [end(scene, place(number), call) for number, call in list(enumerate(ends))[which::2]]
        return came.count(True), came.count(False)

    halves = [Running(lambda which=which: half(which)) for which in (0, 1)]  # type: ignore[misc]
    try:
        first, second = [process.result() for process in halves]
    finally:
        for process in halves:
            process.kill()
    came, missed = map(sum, zip(first, second, strict=True))
    assert missed <= 3  # a file of /proc may be longer than before, and read in more pieces
    return came


def kill_at(scene: Scene, folder: Path, call: Call) -> bool:
    name, nth = call
    with contextlib.closing(Run(scene, folder, f"--trace={name}", f"--inject={name}:signal=SIGKILL:when={nth}")) as run:
        (*_, last) = run.trace()
        check_nothing_is_doubled_or_lost(run, scene.given_back)
    return last == "+++ killed by SIGKILL +++\n"


def kill_owner_at(scene: Scene, folder: Path, call: Call) -> bool:
    name, nth = call
    with contextlib.closing(Run(scene, folder, f"--trace={name}", f"--inject={name}:signal=SIGSTOP:when={nth}")) as run:
        list(run.until("SIGCONT"))
        (*_, last) = run.until("stopped by SIGSTOP")
        run.owner.kill()
        if stopped := not last.startswith("+++"):
            os.kill(run.pid, signal.SIGCONT)
            (*_, last) = run.trace()
        assert last.startswith("+++ exited with "), call
        check_all_is_free(run.path)
    return stopped or call[0] == "exit_group"


def check_nothing_is_doubled_or_lost(run: Run, given_back: int) -> None:
    """While the owner lives it has what it was told of, and the rest is for others; then all is."""
    shared = Coordination(run.path, "gpu")
    owners, others = held(run.path, run.owner.pid), held(run.path, os.getpid())
    assert others <= run.others
    assert len(run.others - others) <= given_back
    assert len(owners) <= 1
    if run.answer.endswith("released"):
        assert not owners
    elif run.answer not in ("", "claimed"):
        assert owners == {run.answer.strip()}
    free = {device.token for device in GPUS} - owners - others
    if free:
        rest = shared.claim(GPUS, len(free), me())
        assert {device.token for device in rest} == free
        with pytest.raises(NotEnoughDevicesError):
            shared.claim(GPUS, 1, me())
        shared.release(rest, me())
    run.owner.kill()
    check_all_is_free(run.path)


def check_all_is_free(path: str) -> None:
    shared = Coordination(path, "gpu")
    shared.drop(lambda claim, _: claim.owner.process.pid == os.getpid())
    assert len(shared.claim(GPUS, 3, me())) == 3
    shared.release(GPUS, me())
    assert shared.held() == []
    left = set(os.listdir(os.path.dirname(path))) - {"gpus.queue.new"}  # which is overwritten by the next one
    assert {"gpus", "gpus.lock"} <= left
    stray = [name.removeprefix("gpus.witness-") for name in left if len(name) > len("gpus.lock")]
    assert len(stray) <= 1  # of one who was killed before its claim, or its place, stood
    assert all(re.fullmatch("[0-9a-f]+", name) for name in stray)
    deadline = time.monotonic() + 20
    while any(life_lock.stands(path, name) for name in stray):
        assert time.monotonic() < deadline
        time.sleep(0.01)


ENDS = {"killed": kill_at, "owner killed": kill_owner_at}
ALWAYS = "claim among others"  # the other scenes take minutes: scripts/test --sweep


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(scene, id=name, marks=[] if name == ALWAYS else [pytest.mark.sweep])
        for name, scene in SCENES.items()
    ],
)
def test_death_at_any_call_doubles_and_loses_nothing(scene: Scene, end: End, tmp_path: Path) -> None:
    assert swept(scene, tmp_path, end) > 20


@pytest.mark.sweep
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("scene", ["claim among others", "claim and release in process"])
def test_death_at_any_call_in_a_container_doubles_and_loses_nothing(scene: str, end: End, tmp_path: Path) -> None:
    assert in_namespaces(lambda: swept(SCENES[scene], tmp_path, end), NEW_PIDS) > 20
