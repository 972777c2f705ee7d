"""Processes that tests need for real: forked children, of another user, in namespaces of their own."""

import ctypes
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NoReturn, Protocol, TypeVar

import pytest

R = TypeVar("R")

NEW_TIME, NEW_MOUNTS, NEW_USER, NEW_PIDS = 0x80, 0x20000, 0x10000000, 0x20000000
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x4000, 0x40000
_NOBODY = 65534
_DIE_WITH_PARENT = 1

_libc = ctypes.CDLL(None, use_errno=True)


class Running(Generic[R]):
    """A process that did something, and lives on until it is killed."""

    def __init__(self, function: Callable[[], R]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # also when the tests are killed
            try:
                answer: object = function()
            except pytest.fail.Exception as failed:  # which cannot be pickled
                answer = AssertionError(str(failed))
            except Exception as error:  # noqa: BLE001 - it is raised in the parent
                answer = error
            with open(writer, "wb") as pipe:
                pipe.write(pickle.dumps(answer))
            signal.pause()
        os.close(writer)
        self._reader = reader
        self._living = True

    def result(self) -> R:
        with open(self._reader, "rb") as pipe:
            answer: R = pickle.loads(pipe.read())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self) -> None:
        if self._living:
            self._living = False
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class Start(Protocol):
    """What the fixture of this name does: start a process that lives until the test ends."""

    def __call__(self, function: Callable[[], R]) -> Running[R]: ...


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def state(pid: int) -> str:
    """Return the letter by which /proc says what a process does, `Z` once it has ended; `gone` once it is reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0]
    except FileNotFoundError:
        return "gone"


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def paused_fork() -> int:
    child = os.fork()
    if child == 0:
        signal.pause()
    return child


def end_fork(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def let_the_next_process_have(pid: int) -> None:
    """Set what the kernel counts from in the pid namespace of the caller."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1), encoding="ascii")


def in_child(function: Callable[[], R]) -> R:
    """Run it in a forked child; return what it returns, or raise what it raises (or skips)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(function, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    outcome, value = pickle.loads(answer)
    if outcome == "skipped":
        pytest.skip(value)
    if outcome == "raised":
        raise value
    result: R = value
    return result


def in_namespaces(function: Callable[[], R], kinds: int, *, own_proc: bool = True, offset: int = 0) -> R:
    """Run it as the first process of new namespaces; `offset` shifts the time since boot by seconds."""

    def first() -> R:
        if own_proc:
            mount("proc", "/proc", "proc")
        return function()

    def enter() -> R:
        user, group = os.getuid(), os.getgid()
        _unshare(kinds | NEW_MOUNTS | (0 if user == 0 else NEW_USER))
        if user != 0:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/gid_map", f"0 {group} 1")
            _write("/proc/self/uid_map", f"0 {user} 1")
        _call("mount", b"none", b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)
        if offset:
            _write("/proc/self/timens_offsets", f"boottime {offset} 0")
        return in_child(first)

    return in_child(enter)


def in_mounts(function: Callable[[], R]) -> R:
    """Run it where it may mount file systems that nobody else sees."""
    return in_namespaces(function, 0, own_proc=False)


def as_another_user(function: Callable[[], R]) -> R:
    """Run it in a child that is nobody; what it needs must be imported by now."""

    def become() -> R:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except OSError:
            pytest.skip("only root can become another user")
        return function()

    return in_child(become)


def mount(source: str, target: str, kind: str = "", options: str = "") -> None:
    """Mount a file system, or without a kind the source itself once more."""
    flags = ctypes.c_ulong(0 if kind else _BIND)
    _call("mount", source.encode(), target.encode(), kind.encode() or None, flags, options.encode())


def _unshare(kinds: int) -> None:
    try:
        _call("unshare", kinds)
    except OSError as error:
        pytest.skip(f"this system grants no namespaces: {error}")


def _call(name: str, *arguments: object) -> None:
    if _libc[name](*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _answer(function: Callable[[], object], writer: int) -> NoReturn:
    try:
        answer = pickle.dumps(("returned", function()))
    except pytest.skip.Exception as skipped:
        answer = pickle.dumps(("skipped", str(skipped)))
    except pytest.fail.Exception as failed:  # which cannot be pickled
        answer = pickle.dumps(("raised", AssertionError(str(failed))))
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised in the parent
        answer = pickle.dumps(("raised", error))
    with open(writer, "wb") as pipe:
        pipe.write(answer)
    os._exit(0)
