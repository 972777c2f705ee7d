import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from externalresource.drivers.child import Child, Overdue

FAR = 60.0


def python(code: str) -> list[str]:
    return [sys.executable, "-SEc", code]


def shell(code: str) -> list[str]:
    return ["/bin/sh", "-c", code]


def result(argv: list[str], seconds: float = FAR) -> tuple[int, str, str]:
    return Child(argv).result(time.monotonic() + seconds)


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def gone(pid: int) -> bool:
    """Whether the process has ended; nobody may have reaped it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_answer_is_status_and_both_streams() -> None:
    assert result(shell("echo out; echo err >&2; exit 7")) == (7, "out\n", "err\n")


def test_child_that_died_of_a_signal_has_its_negative_number() -> None:
    assert result(shell("kill -SEGV $$"))[0] == -signal.SIGSEGV


def test_child_runs_from_construction_on(tmp_path: Path) -> None:
    child = Child(shell(f"echo > {tmp_path}/began"))
    assert eventually((tmp_path / "began").exists)
    assert child.result(time.monotonic() + FAR)[0] == 0


def test_child_that_ended_long_ago_still_answers() -> None:
    child = Child(shell("echo out"))
    assert eventually(lambda: gone(child._pid))
    assert child.result(time.monotonic() + FAR) == (0, "out\n", "")


def test_child_gets_the_environment_that_it_is_given() -> None:
    child = Child(["/usr/bin/env"], {"ONLY": "this"})
    assert child.result(time.monotonic() + FAR)[1] == "ONLY=this\n"


def test_child_has_nothing_on_stdin() -> None:
    ours, (read, write) = os.dup(0), os.pipe()
    os.dup2(read, 0)
    try:
        assert result(["/bin/cat"]) == (0, "", "")
    finally:
        os.dup2(ours, 0)
        for descriptor in (ours, read, write):
            os.close(descriptor)


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert result(shell(r"printf '\377x'"))[1] == "\ufffdx"


def test_child_that_fills_both_streams_ends() -> None:
    status, out, err = result(python("import sys; sys.stderr.write('e' * 1_000_000); print('o' * 1_000_000)"))
    assert (status, len(out), len(err)) == (0, 1_000_001, 1_000_000)


def test_output_beyond_a_mebibyte_is_read_and_dropped() -> None:
    status, out, _ = result(python("print('o' * 9_000_000)"))
    assert (status, len(out)) == (0, 1 << 20)


def test_child_past_its_deadline_is_overdue_and_killed() -> None:
    child = Child(["sleep", "600"])
    with pytest.raises(Overdue, match=r"^sleep did not end within 0\.\d+ s and was killed$"):
        child.result(time.monotonic() + 0.1)
    assert gone(child._pid)


def test_child_that_talks_for_ever_is_overdue() -> None:
    with pytest.raises(Overdue):
        result(shell("while :; do echo more; done"), 0.3)


def test_child_that_has_closed_its_streams_is_still_awaited() -> None:
    assert result(shell("exec >&- 2>&-; sleep 0.2; exit 3")) == (3, "", "")
    with pytest.raises(Overdue):
        result(shell("exec >&- 2>&-; exec sleep 600"), 0.3)


def test_grandchildren_are_killed_with_their_parent(tmp_path: Path) -> None:
    child = Child(shell(f"sleep 600 & echo $! > {tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/known; wait"))
    assert eventually((tmp_path / "known").exists)
    with pytest.raises(Overdue):
        child.result(time.monotonic())
    assert eventually(lambda: gone(int((tmp_path / "known").read_text())))


def test_grandchild_that_holds_the_streams_open_is_not_awaited() -> None:
    child = Child(shell("sleep 600 & echo answer"))
    try:
        assert child.result(time.monotonic() + FAR) == (0, "answer\n", "")
    finally:
        os.killpg(child._pid, signal.SIGKILL)


def test_child_is_killed_when_reading_it_is_interrupted(tmp_path: Path) -> None:
    # It goes on only when it is read: no pipe holds so much.
    child = Child(shell(f"head -c 2000000 /dev/zero; touch {tmp_path}/read; exec sleep 600"))

    def interrupt() -> None:
        if eventually((tmp_path / "read").exists):
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        child.result(time.monotonic() + FAR)
    assert gone(child._pid)


def test_status_that_somebody_else_collected_is_an_error() -> None:
    child = Child(shell("exit 3"))
    os.waitpid(child._pid, 0)
    with pytest.raises(ChildProcessError, match="exit status is lost"):
        child.result(time.monotonic() + FAR)


def test_killing_a_child_that_has_ended_does_nothing() -> None:
    child = Child(shell("exit 0"))
    child.result(time.monotonic() + FAR)
    child.kill()


@pytest.mark.parametrize(("mode", "error"), [(None, FileNotFoundError), (0o644, PermissionError), (0o755, OSError)])
def test_program_that_cannot_be_started_is_an_error(tmp_path: Path, mode: int | None, error: type[OSError]) -> None:
    program = tmp_path / "program"
    if mode is not None:
        program.write_bytes(b"\0\0\0\0")  # of no format that could be executed
        program.chmod(mode)
    with pytest.raises(error):
        Child([str(program)])


def test_no_descriptor_is_left_open() -> None:
    before = descriptors()
    result(shell("echo out"))
    with pytest.raises(Overdue):
        result(["sleep", "600"], 0.05)
    with pytest.raises(FileNotFoundError):
        Child(["/no/such/program"])
    assert descriptors() == before
