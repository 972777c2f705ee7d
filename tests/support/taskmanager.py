"""A process that does as it is told, one JSON line at a time: on this host, or as pid 1 of a container of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

MODULE = [sys.executable, "-P", "-m", "externalresource_gpu.script.main"]
COMMAND_LINE = [sys.executable, "-P", "-m", "externalresource"]
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
ROOTLESS = ["--user", "--map-root-user"]

Options = Mapping[str, str]


class RefusedError(Exception):
    """What the process was told to do raised an error."""


class TaskManager:
    """Such a process. It ends with the block, whatever happens there."""

    def __init__(self, *, container: bool, wrapper: Sequence[str] = ()) -> None:
        command = [*(unshare() if container else ()), *wrapper, sys.executable, "-P", __file__]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
        self.answer()
        #: As this process sees it.
        self.pid = first_child(self._process.pid) if container else self._process.pid
        self.namespace = os.stat(f"/proc/{self.pid}/ns/pid").st_ino

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pid in living_processes():  # that outlived it on this host; those of a container cannot
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == self._process.pid:
                    os.kill(pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def kill(self) -> None:
        """End it and, with it, its container, from outside."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._process.wait()

    def tell(self, name: str, *arguments: object) -> Any:
        """Let it do what the function of this name below does, and return what that returns."""
        self.send(name, *arguments)
        return self.answer()

    def send(self, name: str, *arguments: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()

    def processes(self) -> list[int]:
        """Return the living processes of its pid namespace, itself included, as this process sees them."""
        return [pid for pid in living_processes() if _inode(pid) == self.namespace]

    def outside(self, pid: int) -> int:
        """Return as what this process sees one that is `pid` there."""
        for here in self.processes():
            with contextlib.suppress(OSError):  # it has ended this moment
                numbers = Path(f"/proc/{here}/status").read_text().split("NSpid:")[1]
                if numbers.split("\n")[0].split()[-1] == str(pid):
                    return here
        raise ProcessLookupError(pid)

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RefusedError("it has ended")
        value, error = json.loads(line)
        if error is not None:
            raise RefusedError(error)
        return value


class Folder:
    """A coordination folder that containers share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = str(path / "ledger")
        self.words = ("--enable-coordination-mode", "--coordination-file", self.file)

    def options(self, gpus: int | str = 1, **others: str) -> dict[str, str]:
        return {"coordination-file": self.file, "simulate": str(gpus), **others}

    def script(self, amount: int = 1, gpus: int | str = 1, *more: str) -> list[str]:
        return [str(amount), *self.words, "--simulate", str(gpus), *more]

    def run(self, gpus: int | str = 1, *more: str) -> list[str]:
        return ["run", "gpu=1", "--simulate", str(gpus), "--coordination-file", self.file, *more]

    def status(self) -> list[dict[str, Any]]:
        """Return what `externalresource status` says on this host."""
        command = [*COMMAND_LINE, "status", "--format", "json", "--coordination-file", self.file]
        done = subprocess.run(command, check=True, capture_output=True)
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    def states(self) -> list[str]:
        return [row["state"] for row in self.status()]

    def witnesses(self) -> list[Path]:
        return sorted(self.path.glob("ledger.witness-*"))

    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())


def granted(answer: Any) -> str:
    status, out, err = answer
    assert (status, err) == (0, "")
    return str(out).strip()


def is_refused(answer: Any) -> bool:
    status, out, err = answer
    assert status == 0 or (status, out) == (1, "")
    assert status == 0 or "1 wanted, 0 of " in err
    return bool(status == 1)


def unshare() -> list[str]:
    return CONTAINER if os.geteuid() == 0 else [*CONTAINER, *ROOTLESS]


def containers_are_permitted() -> bool:
    return subprocess.run([*unshare(), "true"], check=False, capture_output=True).returncode == 0


def first_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def living_processes() -> Iterator[int]:
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX":
                yield pid


def _inode(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return 0


# What it does when it is told


def script(*words: str) -> tuple[int, str, str]:
    """Start the discovery script as Flink does; return its exit status, stdout and stderr."""
    done = subprocess.run([*MODULE, *words], check=False, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def shell(command: str) -> str:
    """Run a shell's command line; return what it says."""
    return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout


def child_that_asks(*words: str) -> int:
    """Leave a child that starts the script, and lives on; return its pid as this process sees it."""
    child = os.fork()
    if child == 0:
        script(*words)
        _rest()
    return child


def overwhelmed_script(*words: str) -> int:
    """Start a script in a process group of its own that cannot deliver its answer; return its pid."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b" " * 65536)
    os.set_blocking(writer, True)
    child = subprocess.Popen([*MODULE, *words], stdout=writer, process_group=0)
    os.close(writer)
    _children.append(child)
    _unread.append(reader)
    return child.pid


def kill_group(pid: int) -> None:
    """Kill a script's process group, and read its stdout to the end."""
    os.killpg(pid, signal.SIGKILL)
    _children[-1].wait()
    with open(_unread.pop(), "rb") as pipe:
        pipe.read()


def script_of_a_child(*words: str) -> tuple[int, str]:
    """Let a child that lives on start the script; return its pid, as this container sees it, and the answer."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, script(*words)[1].encode())
        os.close(writer)
        _rest()
    os.close(writer)
    with open(reader) as pipe:
        return child, pipe.read()


def claim(options: Options, amount: int = 1) -> list[str]:
    """Claim with the driver, in this process; return the devices' UUIDs."""
    import externalresource

    _contexts.append(externalresource.claim("gpu", amount, options=options))
    return sorted(info.get_property("uuid") or "" for info in _contexts[-1].get_external_resource_infos("gpu"))


def claim_without_driver(file: str) -> None:
    """Claim device 0 in this process itself, as a stranger's driver may."""
    from externalresource.coordination import Coordination, Holder, identify

    _contexts.append(contextlib.ExitStack())
    coordination, owner = Coordination(file, "gpu"), Holder(identify(os.getpid()))
    _contexts[-1].callback(coordination.release, coordination.claim([_Device()], 1, owner), owner)


class _Device:
    token, uuid, parent_uuid, parent_token = "0", None, None, None


def close() -> None:
    """Give back what was claimed first."""
    _contexts.pop(0).close()


def fork() -> int:
    """Leave a child that lives on; return its pid as this process sees it."""
    child = os.fork()
    if child == 0:
        _rest()
    return child


def fork_that_closes() -> int:
    """Let a child close all that was claimed, and end; return its status."""
    child = os.fork()
    if child == 0:
        try:
            for context in _contexts:
                context.close()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_that_claims(options: Options) -> tuple[int, list[str]]:
    """Leave a child that closes all that it has inherited, and claims for itself; return its pid and its UUIDs."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        fork_that_claims_and_rests(options, writer)
    os.close(writer)
    with open(reader) as pipe:
        return child, json.load(pipe)


def fork_that_claims_and_rests(options: Options, writer: int) -> NoReturn:
    for context in _contexts:
        context.close()
    os.write(writer, json.dumps(claim(options)).encode())
    os.close(writer)
    _rest()


def fork_that_executes() -> int:
    """Leave a child that announces an exec, and becomes another program; return its pid."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for context in _contexts:
            context.keep_over_exec()
        os.execvp("sleep", ["sleep", "600"])
    os.close(writer)
    os.read(reader, 1)  # ends with the exec
    os.close(reader)
    return child


def end(pid: int) -> None:
    """Kill a child."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def run(*words: str) -> int:
    """Leave a child that becomes the command line; return its pid once that has become its command."""
    reader, writer = os.pipe()
    child = subprocess.Popen([*COMMAND_LINE, *words], stdout=writer)
    os.close(writer)
    with open(reader) as pipe:
        pipe.readline()
    _children.append(child)
    return child.pid


def execute_again(*, keep: bool) -> NoReturn:
    """Become this program again, as a TaskManager that restarts itself."""
    if keep:
        for context in _contexts:
            context.keep_over_exec()
    os.execv(sys.executable, [sys.executable, "-P", __file__])


_contexts: list[Any] = []
_children: list[subprocess.Popen[bytes]] = []
_unread: list[int] = []
_TOLD: list[Callable[..., Any]] = [
    script, script_of_a_child, child_that_asks, overwhelmed_script, kill_group, shell, run,
    claim, claim_without_driver, close, fork, fork_that_closes, fork_that_claims, fork_that_executes, end,
]  # fmt: skip


def _rest() -> NoReturn:
    while True:
        signal.pause()


def main() -> None:
    functions = {function.__name__: function for function in _TOLD}
    _say("", None)
    # Not `for line in sys.stdin`, which reads ahead what the program after an exec is to read.
    while line := sys.stdin.readline():
        name, *arguments = json.loads(line)
        if name == "execute_again":
            execute_again(keep=arguments[0])
        try:
            _say(functions[name](*arguments), None)
        except Exception as error:  # noqa: BLE001 - the teller raises it
            _say(None, f"{type(error).__name__}: {error}")


def _say(value: object, error: str | None) -> None:
    sys.stdout.write(json.dumps([value, error]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
