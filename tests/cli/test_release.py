"""`release`: who may end whose claim, and what it shows of others."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from externalresource.coordination import Coordination, Holder, flock, identify
from externalresource.errors import NotEnoughDevicesError
from tests.support.devices import Device
from tests.support.processes import Running
from tests.support.taskmanager import (
    COMMAND_LINE,
    Folder,
    TaskManager,
    containers_are_permitted,
    granted,
    unshare,
)

contained = pytest.mark.skipif(not containers_are_permitted(), reason="this system grants no pid namespaces")

LOUD = Device("a\x1b[2J")
Started = Callable[..., TaskManager]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def started() -> Iterator[Started]:
    with ExitStack() as processes:
        yield lambda **what: processes.enter_context(TaskManager(**what))


def release(folder: Folder, *words: str) -> list[str]:
    return [*COMMAND_LINE, "release", "--coordination-file", folder.file, *words]


def call(*command: str) -> tuple[int, str, str]:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


UNSEEN = r"externalresource: pid \d+ \(.+\) holds 0 and cannot be seen from this container, .* release it on the host\n"


@contained
@pytest.mark.parametrize("place", ["host", "another container"])
@pytest.mark.parametrize("words", [["--force"], []], ids=["by force", ""])
def test_holder_that_a_container_cannot_see_is_not_released_there(
    folder: Folder, started: Started, place: str, words: list[str]
) -> None:
    granted(started(container=place != "host").tell("script", *folder.script()))
    status, out, err = call(*unshare(), *release(folder, "--device", "0", *words))
    assert (status, out) == (1, "")
    assert re.fullmatch(UNSEEN, err)
    assert folder.states() == ["living"]


@contained
def test_line_of_flinks_script_is_not_released_in_a_container(folder: Folder) -> None:
    Path(folder.file).write_text("0 1\n")
    status, _, err = call(*unshare(), *release(folder, "--device", "0", "--force"))
    assert (status, Path(folder.file).read_text()) == (1, "0 1\n")
    assert "cannot be seen from this container" in err


@contained
def test_holder_in_a_container_is_released_there_and_on_the_host_by_force(folder: Folder, started: Started) -> None:
    container = started(container=True)
    granted(container.tell("script", *folder.script()))
    by_force = release(folder, "--device", "0", "--force")
    assert container.tell("shell", " ".join(by_force)) == "released 0, held by pid 1\n"
    granted(container.tell("script", *folder.script()))
    assert call(*by_force) == (0, "released 0, held by pid 1\n", "")
    assert folder.status() == []


@pytest.fixture
def loud(folder: Folder) -> Iterator[int]:
    """Yield the pid of a process that holds a device, and whose name, as the device's, commands a terminal."""

    def claim() -> None:
        Path("/proc/self/comm").write_bytes(b"\x1b[31mred\n")
        Coordination(folder.file, "gpu").claim([LOUD], 1, Holder(identify(os.getpid())))

    holder = Running(claim)
    holder.result()
    yield holder.pid
    holder.kill()


def test_names_of_a_device_and_a_program_do_not_control_the_terminal(folder: Folder, loud: int) -> None:
    of_it = ["--owner", str(loud)]
    said = f"externalresource: pid {loud} (?[31mred?) lives and holds a?[2J: end it; use --force only if "
    said += "it does not use the device\n"
    assert call(*release(folder, *of_it)) == (1, "", said)
    assert call(*release(folder, *of_it, "--force")) == (0, f"released a?[2J, held by pid {loud}\n", "")


def test_names_in_a_refusal_do_not_control_the_terminal(folder: Folder, loud: int) -> None:
    with pytest.raises(NotEnoughDevicesError, match=rf"; held by pid {loud} \(\?\[31mred\?\), since .*: a\?\[2J$"):
        Coordination(folder.file, "gpu").claim([LOUD], 1, Holder(identify(os.getpid())))


def test_lock_that_a_program_holds_whose_name_commands_a_terminal_is_told_plainly(folder: Folder) -> None:
    def lock() -> None:
        Path("/proc/self/comm").write_bytes(b"\x1b[31mred")
        Path(folder.file).touch()
        flock(os.open(f"{folder.file}.lock", os.O_RDWR | os.O_CREAT))

    holder = Running(lock)
    holder.result()
    try:
        status, _, err = call(*COMMAND_LINE, *folder.run(1, "--timeout", "1"), "--", "true")
        assert (status, f" by pid {holder.pid} (?[31mred)" in err) == (125, True)
        assert err.strip().isprintable()
    finally:
        holder.kill()


@pytest.mark.usefixtures("loud")
def test_programs_are_told_the_names_as_they_are(folder: Folder) -> None:
    [row] = folder.status()
    assert (row["device"], row["program"]) == (LOUD.token, "\x1b[31mred\n")
