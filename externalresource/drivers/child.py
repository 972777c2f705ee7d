"""A child process that is read while it runs, has one deadline, and is never waited for without bound.

A hanging NVIDIA driver leaves its callers in uninterruptible sleep, where SIGKILL does not end them; and a child
that fills a pipe nobody reads never ends. `subprocess.run(timeout=)` waits again after its kill, and importing
subprocess costs the discovery script 9 ms.
"""

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections.abc would be imported before nvidia-smi has started
    from collections.abc import Mapping, Sequence

LONGEST = 86400.0  # seconds: more is no deadline, and a mistake
_KEPT = 1 << 20  # bytes kept of each stream: more is read, so that the child can go on, and dropped
_READ = 1 << 16
_SIGCHLD = 17  # of each Linux that Python is made for; the module signal costs 3 ms
_GRACE = 0.2  # seconds that a killed child has to be gone before it is left behind


class Overdue(Exception):  # noqa: N818 - what happened, not an error of ours: the caller says what was overdue
    """The child was still running at its deadline; its process group was killed. The text says which, and when."""

    #: The child's pid if it is there nevertheless: it hangs in the kernel, and nothing ends it.
    survivor: int | None = None


class Child:
    """Runs `argv` in a process group of its own, from the moment of construction. OSError if it cannot be started."""

    def __init__(self, argv: "Sequence[str]", environment: "Mapping[str, str] | None" = None) -> None:
        self._name, self._began = argv[0], time.monotonic()
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        try:
            self._pid = os.posix_spawnp(
                argv[0],
                list(argv),
                os.environ if environment is None else environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, out_end, 1),
                    (os.POSIX_SPAWN_DUP2, err_end, 2),
                ],
                setpgroup=0,
                setsigdef=[_SIGCHLD],  # ignored, it would be so for a script, too, whose children then have no status
            )
        except OSError:
            os.close(out)
            os.close(err)
            raise
        finally:
            os.close(out_end)
            os.close(err_end)
        self._kept = {out: bytearray(), err: bytearray()}
        self._out, self._err = out, err
        self._status: int | None = None

    def result(self, deadline: float) -> tuple[int, str, str]:
        """Return its exit status (minus the number of the signal that ended it), its stdout and its stderr.

        The status is lost where this process ignores SIGCHLD, or waits for all its children elsewhere: 0 then stands
        for a complete answer, whose last line has its end. ChildProcessError if it has not; Overdue if the child has
        not ended by `deadline` (of `time.monotonic`).
        """
        try:
            self._drain(deadline)
        except Overdue as overdue:
            overdue.survivor = None if self.kill() else self._pid
            overdue.args = (f"{self._name} did not end within {time.monotonic() - self._began:.3g} s and was killed",)
            raise
        except BaseException:
            self.kill()
            raise
        finally:
            for descriptor in self._kept:
                os.close(descriptor)
        out, err = (self._kept[end].decode("utf-8", "replace") for end in (self._out, self._err))
        if self._status is None and not out.endswith("\n"):
            raise ChildProcessError("the exit status is lost: something in this process waits for all its children")
        return self._status or 0, out, err

    def kill(self) -> bool:
        """Kill its process group and wait a moment for the child: False for one that is stuck in the driver."""
        import signal  # costs 3 ms, and most children need no killing

        try:
            os.killpg(self._pid, signal.SIGKILL)
        except ProcessLookupError:
            return True
        end = time.monotonic() + _GRACE
        while not self._ended():
            if time.monotonic() >= end:
                return False
            time.sleep(0.002)
        return True

    def _drain(self, deadline: float) -> None:
        """Read both streams until the child has ended: a grandchild may hold them open for longer."""
        poll = select.poll()
        for descriptor in self._kept:
            os.set_blocking(descriptor, False)
            poll.register(descriptor, select.POLLIN)
        unfinished, pause = len(self._kept), 0.00005  # it is nearly gone when its streams end
        while not self._ended():
            left = deadline - time.monotonic()
            if left <= 0:
                raise Overdue
            if not unfinished:
                time.sleep(min(left, pause))
                pause = min(pause * 2, 0.02)
                continue
            for descriptor, _ in poll.poll(min(left, 0.02) * 1000):
                if self._read(descriptor):
                    poll.unregister(descriptor)
                    unfinished -= 1
        for descriptor in self._kept:
            self._read(descriptor, blocks=_KEPT // _READ)

    def _read(self, descriptor: int, *, blocks: int = 1) -> bool:
        """Take what is there, at most so many blocks; True at the end of the stream."""
        for _ in range(blocks):
            try:
                block = os.read(descriptor, _READ)
            except BlockingIOError:
                return False
            if not block:
                return True
            kept = self._kept[descriptor]
            kept += block[: _KEPT - len(kept)]
        return False

    def _ended(self) -> bool:
        if self._status is None:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # reaped by somebody else: it has ended, and nobody knows how
                return True
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None
