"""Processes that stop at each step that touches the coordination folder, and go on when they are told to.

A step is what a process does from one stop to the next. It stops before it opens, locks, renames, removes, lists or
looks at a file there, and before it sleeps; Python's audit events tell so. Its time is its own: a sleep takes none, and
its clock shows as if it had. So what happens depends on nothing but the order of the steps.
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

MOST = 3000  # steps, more than any run takes that ends
LARGEST = 1 << 16  # bytes of a message
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_TOGETHER = 100  # lines of what a process says, sent at once
_ASKING = {"check_replaceable", "_give"}  # functions whose looks at a file change nothing for anybody
SLEEP = "sleep"


@dataclass(frozen=True, slots=True)
class Event:
    """What a process is about to do."""

    name: str
    #: Of files in the folder; "*" is the folder itself.
    paths: Sequence[str] = ()
    #: Whether others can see it.
    changes: bool = False
    #: Whether it may be a failing disk's error.
    can_fail: bool = False

    def __str__(self) -> str:
        return " ".join([self.name, *self.paths])

    def meets(self, other: "Event") -> bool:
        """Return whether it matters which of the two comes first."""
        if not (self.changes or other.changes):
            return False
        return bool({*self.paths} & {*other.paths}) or "*" in (*self.paths, *other.paths)


class Steps:
    """The side of a process that stops."""

    def __init__(self, letter: str, channel: socket.socket, folder: str) -> None:
        self.letter, self.folder = letter, folder
        self._channel = channel
        self._pid = os.getpid()
        self._quiet = False
        self._begin()

    def _begin(self) -> None:
        self._clock = 1000.0
        self._names = 0
        self._said: list[str] = []
        self._left = 0  # steps to make before it stops again

    def run(self, does: Callable[[], object]) -> None:
        """Do something, again whenever there is word for it: nothing shows that it is not the first time."""
        while True:
            self._begin()
            self.stop(Event("start"))
            does()
            self.say("done")
            self.wait()

    def install(self) -> None:
        """Make this process stop; there is no way back."""
        look = os.lstat

        def lstat(path: Any, **options: Any) -> os.stat_result:
            if sys._getframe(1).f_code.co_name not in _ASKING:  # noqa: SLF001 - who looks
                self._stop_at("os.lstat", (path,))
            return look(path, **options)

        time.monotonic = lambda: self._clock
        time.sleep = self._sleep  # type: ignore[assignment] # nobody here gives it what is no float
        os.urandom = self._name
        os.lstat = lstat  # no audit event tells of it
        sys.addaudithook(self._stop_at)

    def become(self, letter: str, channel: socket.socket) -> None:
        """Go on in a fork as another process."""
        self.letter, self._channel, self._pid = letter, channel, os.getpid()
        self._begin()

    def say(self, *words: str) -> None:
        """Tell the controller what it cannot see, and go on."""
        self._said.append("\t".join(("say", *words)).replace("\n", " "))
        if len(self._said) >= _TOGETHER:
            self._send()

    def stop(self, event: Event) -> None:
        """Tell what comes next, and wait for the word to do it, unless there is word for so many steps."""
        self._said.append("\t".join(("at", event.name, f"{event.changes:d}", f"{event.can_fail:d}", *event.paths)))
        self._left -= 1
        if self._left > 0 and event.name != SLEEP:
            if len(self._said) >= _TOGETHER:
                self._send()
            return
        self._left = self.wait()
        if self._left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def wait(self) -> int:
        """Tell what has happened, and wait for the word how many steps to make: none of a step that is to fail."""
        self._said.append("wait")
        self._send()
        answer = self._channel.recv(LARGEST)
        if not answer:
            os._exit(1)
        return int(answer)

    def _send(self) -> None:
        self._channel.send("\n".join(self._said).encode())
        self._said.clear()

    def end(self) -> NoReturn:
        """End as a process does that gives nothing back."""
        self.say("ends")
        self.wait()
        os._exit(0)

    def has_place(self, path: str) -> bool:
        """Return whether it stands in the queue beside a coordination file."""
        self._quiet = True
        try:
            with open(f"{path}.queue", encoding="ascii") as file:
                return any(line.startswith(f"{ord(self.letter):02x}") for line in file)
        except FileNotFoundError:
            return False
        finally:
            self._quiet = False

    def _sleep(self, seconds: float, /) -> None:
        self.stop(Event(SLEEP))
        self._clock += seconds

    def _name(self, size: int) -> bytes:
        self._names += 1
        return bytes([ord(self.letter), *self._names.to_bytes(size - 1, "big")])

    def _stop_at(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in _READ and not self._quiet and os.getpid() == self._pid:
            event = _READ[name](name, arguments, self._in_folder)
            if event is not None and not (name == "os.remove" and not self._exists(arguments[0])):
                self.stop(event)

    def _exists(self, path: str) -> bool:
        return os.access(path, os.F_OK, follow_symlinks=False)

    def _in_folder(self, path: Any) -> str | None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}").removesuffix(" (deleted)")
        if not isinstance(path, str) or not path.startswith(self.folder):
            return None
        return path.removeprefix(self.folder).lstrip("/") or "*"


def _opens(_name: str, arguments: tuple[Any, ...], within: Callable[[Any], str | None]) -> Event | None:
    path, _, flags = arguments
    if isinstance(path, int) or (file := within(path)) is None:
        return None
    return Event("open", [file], bool(flags & _WRITING), bool(flags & os.O_CREAT))


def _locks(name: str, arguments: tuple[Any, ...], within: Callable[[Any], str | None]) -> Event | None:
    file = within(arguments[0])
    return None if file is None else Event(name.removeprefix("fcntl."), [f"{file}#"], changes=True)


def _looks(name: str, arguments: tuple[Any, ...], within: Callable[[Any], str | None]) -> Event | None:
    file = within(arguments[0])
    return None if file is None else Event(name.removeprefix("os."), [file])


def _changes(name: str, arguments: tuple[Any, ...], within: Callable[[Any], str | None]) -> Event | None:
    files = [file for file in map(within, arguments[:2]) if file is not None]
    return Event(name.removeprefix("os."), files, changes=True, can_fail=name != "os.chmod") if files else None


def _changes_one(name: str, arguments: tuple[Any, ...], within: Callable[[Any], str | None]) -> Event | None:
    return _changes(name, arguments[:1], within)


#: After os.chmod the content of a new file is written. os.rmdir only asks whether a file may be replaced.
_READ: Mapping[str, Callable[[str, tuple[Any, ...], Callable[[Any], str | None]], Event | None]] = {
    "open": _opens,
    "fcntl.flock": _locks,
    "os.lstat": _looks,
    "os.listdir": _looks,
    "os.rename": _changes,
    "os.remove": _changes_one,
    "os.chmod": _changes_one,
}
