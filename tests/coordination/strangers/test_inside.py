"""A copied grant opens nothing: inside of a run is its user, root, and whatever the run has started."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from externalresource.coordination import Coordination, Holder, identify
from externalresource.errors import CoordinationError
from externalresource.records import replace
from tests.support.claiming import content, gpus, me, tokens
from tests.support.processes import NEW_PIDS, NEW_USER, Running, in_child, in_namespaces

R = TypeVar("R")

# Whoever started the tests as another user cannot become these.
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")

ANN, BOB = 64_001, 64_002
RUN = "EXTERNALRESOURCE_RUN"
_DUMPABLE = 4


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    ctypes.CDLL(None).prctl(_DUMPABLE, 1)  # as after an exec: /proc/self is the user's own


def by(user: int, function: Callable[[], R]) -> Callable[[], R]:
    """Return the function as that user runs it, in a child of its own."""

    def as_user() -> R:
        become(user)
        return function()

    return as_user


def claim(path: str, *, run: str | None = None, grant: str | None = None, wait: float = 0) -> list[str]:
    """Claim the one device that is wanted; `run` is the grant that the environment carries."""
    os.environ.pop(RUN, None)
    if run is not None:
        os.environ[RUN] = run
    return tokens(Coordination(path, "gpu").claim(gpus(1), 1, replace(me(), grant=grant), wait=wait))


def refusal(path: str, wait: float = 0) -> str:
    with pytest.raises(CoordinationError) as caught:
        claim(path, run="anns", wait=wait)
    return str(caught.value)


def grants(path: str) -> list[list[str | None]]:
    return [[holder.grant for holder in claim.holders] for claim in Coordination(path, "gpu").held()]


@pytest.fixture
def anns(path: str) -> Iterator[int]:
    """A process of Ann's that holds the device by the grant `anns`."""
    holder = Running(by(ANN, lambda: claim(path, grant="anns")))
    assert holder.result() == ["0"]
    yield holder.pid
    holder.kill()


@pytest.mark.parametrize("wait", [0, 60])
def test_another_user_who_copies_a_grant_is_refused_with_the_reason(wait: float, path: str, anns: int) -> None:
    before = content(path)
    assert in_child(by(BOB, lambda: refusal(path, wait))) == (
        f"EXTERNALRESOURCE_RUN names a run of the user with uid 64001, pid {anns} ({program(anns)}), which has "
        "not started this process of uid 64002: nothing is granted; unset EXTERNALRESOURCE_RUN to claim as any other "
        "process"
    )
    assert content(path) == before
    assert sorted(os.listdir(os.path.dirname(path))) == ["gpus", "gpus.lock"]


def program(pid: int) -> str:
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read().rstrip("\n")


def test_grant_of_somebody_else_beside_an_own_one_is_refused(path: str, anns: int) -> None:
    def both() -> str:
        own = Coordination(path, "gpu")
        own.claim(gpus(2), 1, replace(me(), grant="bobs"))
        os.environ[RUN] = "bobs,anns"
        with pytest.raises(CoordinationError) as caught:
            Coordination(path, "gpu").claim(gpus(2), 1, me())
        return str(caught.value)

    assert f"pid {anns} " in in_child(by(BOB, both))


@pytest.mark.parametrize("user", [ANN, 0], ids=["the same user", "root"])
def test_user_of_the_run_and_root_may_be_inside_of_it(user: int, path: str, anns: int) -> None:
    assert in_child(by(user, lambda: (claim(path, run="anns"), grants(path)[0][0]))) == (["0"], "anns")


def test_worker_that_drops_its_privileges_is_inside_of_the_run_that_started_it(path: str) -> None:
    def run() -> tuple[list[str], int]:
        claim(path, grant="roots")
        return in_child(lambda: in_child(by(BOB, lambda: (claim(path, run="roots"), len(grants(path)[0])))))

    assert in_child(run) == (["0"], 2)


def test_process_of_another_user_that_the_run_has_left_behind_is_not_inside_any_more(path: str) -> None:
    reader, writer = os.pipe()

    def run() -> None:
        claim(path, grant="anns")
        if os.fork():
            os.wait()
            return
        if os.fork():
            os._exit(0)
        signal.alarm(60)
        while os.getppid() != 1:
            os.sched_yield()
        become(BOB)
        os.write(writer, refusal(path).encode())
        os._exit(0)

    holder = Running(run)
    try:
        holder.result()
        assert b"names a run of the user with uid 0" in os.read(reader, 4096)
    finally:
        holder.kill()
        os.close(reader)
        os.close(writer)


def recorded_with(path: str, **changes: object) -> Callable[[], str]:
    """Record this very process as the run, but for these changes, and ask inside of it from a child of Bob's."""

    def ask() -> str:
        holder = Holder(replace(identify(os.getpid()), **changes), "anns")
        Coordination(path, "gpu", gone=lambda _process, _here: False).claim(gpus(1), 1, holder)

        def inside() -> str:
            runs = [frozenset(["anns"])]
            try:
                Coordination(path, "gpu", gone=lambda _process, _here: False, runs=runs).claim(gpus(1), 1, me())
            except CoordinationError as error:
                return str(error)
            return "granted"

        return in_child(by(BOB, inside))

    return ask


def test_pid_of_the_run_that_another_process_has_now_makes_nobody_its_child(path: str) -> None:
    start = identify(os.getpid()).start_time or 0
    assert "has not started this process" in in_child(recorded_with(path, start_time=start - 1, uid=ANN))


def test_child_of_a_run_whose_user_is_not_known_is_inside_and_nobody_else(path: str) -> None:
    assert in_child(recorded_with(path, uid=None)) == "granted"
    os.unlink(path)
    os.unlink(f"{path}.lock")
    unknown = in_child(recorded_with(path, uid=None, boot_id=None))
    assert "names a run of a user who is not known, pid " in unknown


def test_root_of_a_user_namespace_that_anybody_can_make_is_not_root(path: str, anns: int) -> None:
    message = in_child(by(BOB, lambda: in_namespaces(lambda: (os.getuid(), refusal(path)), NEW_USER, own_proc=False)))
    assert message[0] == 0
    assert f"pid {anns} " in message[1]


def test_user_of_a_run_that_cannot_be_seen_from_a_container_may_be_inside_of_it(path: str, anns: int) -> None:
    def in_container(user: int, function: Callable[[], R]) -> R:
        return in_child(lambda: in_namespaces(by(user, function), NEW_PIDS))

    assert in_container(ANN, lambda: claim(path, run="anns")) == ["0"]
    assert "names a run of the user with uid 64001" in in_container(BOB, lambda: refusal(path))
    assert anns


def test_who_unsets_the_variable_is_any_other_process(path: str, anns: int) -> None:
    def other() -> list[str]:
        os.environ.pop(RUN, None)
        return tokens(Coordination(path, "gpu").claim(gpus(2), 1, me()))

    assert in_child(by(BOB, other)) == ["1"]
    assert anns


def test_run_that_has_ended_keeps_nobody_out(path: str) -> None:
    holder = Running(by(ANN, lambda: claim(path, grant="anns")))
    holder.result()
    holder.kill()
    assert in_child(by(BOB, lambda: claim(path, run="anns"))) == ["0"]
