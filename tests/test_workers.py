"""`claim_for_worker` in a process that is refused, or that calls it again: what the process sees, and what it has."""

import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer
from typing import NoReturn, TypeVar

import pytest

import externalresource
from externalresource.api import Device, driver
from externalresource.context import RuntimeContext
from externalresource.errors import ExternalResourceError
from tests.support.processes import in_child, wait_until

MASK = "CUDA_VISIBLE_DEVICES"
R = TypeVar("R")

card = driver("card")(lambda: [Device("0", environment={"CARDS": "c0"})])


def in_thread(function: Callable[[], R]) -> R:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def refused(claim: Callable[[], object]) -> str:
    """Return why a claim is refused, and then the mask of the process."""
    with pytest.raises(ExternalResourceError) as caught:
        claim()
    return f"{caught.value}; {os.environ.get(MASK)!r}"


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Return the options of a host with two GPUs, which this process may see."""
    monkeypatch.setenv(MASK, "0,1")
    return {"simulate": "2", "coordination-file": str(tmp_path / "claims")}


def worker(options: Mapping[str, object], amount: int = 1) -> RuntimeContext:
    return externalresource.claim_for_worker("gpu", amount, options)


# ---- a refusal, for whoever only logs it ------------------------------------------------------------


def test_thread_is_refused_as_it_shares_the_environment_of_the_others() -> None:
    said = in_child(lambda: in_thread(lambda: refused(externalresource.claim_for_worker)))
    assert said.endswith("use a pool of processes; ''")


@pytest.mark.parametrize(
    ("amount", "more", "why"),
    [
        (2, {}, "2 wanted, 1 of 2 free"),
        (3, {}, "3 wanted, this host has 2"),
        (0, {}, "must be a positive integer"),
        (1, {"wiat": "60"}, "has no option 'wiat'"),
        (1, {"wait": []}, "must be one value"),
        (1, {"simulate": "driver-not-loaded"}, "driver"),
    ],
)
def test_process_that_is_refused_sees_no_device(
    gpus: dict[str, object], amount: int, more: dict[str, object], why: str
) -> None:
    with externalresource.claim("gpu", options=gpus):
        said = in_child(lambda: refused(lambda: worker({**gpus, **more}, amount)))
    assert why in said
    assert said.endswith("; ''")


def test_process_that_is_interrupted_while_it_waits_sees_no_device(gpus: dict[str, object]) -> None:
    class TimeLimitError(BaseException):
        pass

    def end(*_: object) -> NoReturn:
        raise TimeLimitError

    def interrupted() -> str:
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(TimeLimitError):
            worker({**gpus, "wait": 60}, 1)
        return os.environ[MASK]

    with externalresource.claim("gpu", 2, options=gpus):
        assert in_child(interrupted) == ""


def test_call_after_a_refusal_has_the_masks_that_were_inherited(
    gpus: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MASK, "1")

    def twice() -> tuple[str, list[str | None]]:
        with externalresource.claim("gpu", options=gpus) as taken:
            said = refused(lambda: worker(gpus))
            of_another = taken.environment()[MASK]
        said_again = refused(lambda: worker(gpus, 2))
        assert "hidden by CUDA_VISIBLE_DEVICES=1" in said_again
        return said, [of_another, worker(gpus).environment()[MASK], os.environ[MASK]]

    said, seen = in_child(twice)
    assert said.endswith("; ''")
    assert len({*seen}) == 1


def test_mask_that_somebody_sets_after_a_refusal_stays(gpus: dict[str, object]) -> None:
    def twice() -> str:
        refused(lambda: worker(gpus, 3))
        os.environ[MASK] = "1"
        return refused(lambda: worker(gpus, 2))

    assert "hidden by CUDA_VISIBLE_DEVICES=1" in in_child(twice)


@pytest.mark.parametrize(
    ("factory", "options", "variables"),
    [
        (f"{__name__}:card", {}, {"CARDS": ""}),
        ("amd", {"command": "/missing"}, {"ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}),
        ("rdma", {"sysfs": "/missing"}, {"UCX_NET_DEVICES": "none", "NCCL_IB_HCA": "=none"}),
        ("script", {"discovery-script.path": "/missing/tpu.sh"}, {"TPU_DEVICES": ""}),
        ("gpu", {"discovery-script.path": "/bin/false"}, {MASK: "", "NVIDIA_VISIBLE_DEVICES": "void"}),
        ("nobody", {}, {}),
    ],
)
def test_each_driver_says_how_a_process_sees_none(
    tmp_path: Path, factory: str, options: dict[str, object], variables: dict[str, str]
) -> None:
    if factory != "gpu":
        options = {**options, "coordination-file": str(tmp_path / "claims")}

    def changed() -> dict[str, str | None]:
        before = dict(os.environ)
        refused(lambda: externalresource.claim_for_worker("x", 2, options, driver_factory=factory))
        return {name: value for name, value in os.environ.items() if before.get(name) != value}

    assert in_child(changed).items() >= variables.items()


# ---- a second call in one process -------------------------------------------------------------------


def test_second_call_returns_what_the_first_did_until_that_is_closed(gpus: dict[str, object]) -> None:
    def twice() -> tuple[bool, bool, int]:
        first = worker(gpus)
        again = worker(gpus)
        in_a_thread = in_thread(lambda: worker(gpus))
        first.close()
        anew = worker(gpus, 2)  # as the mask is the inherited one again
        return first is again is in_a_thread, anew is first, len(anew.get_external_resource_infos("gpu"))

    assert in_child(twice) == (True, False, 2)


def test_second_call_with_other_arguments_says_what_this_process_has(gpus: dict[str, object]) -> None:
    def twice() -> tuple[str, str]:
        has = worker(gpus).environment()[MASK]
        return refused(lambda: worker(gpus, 2)), has

    said, has = in_child(twice)
    assert said.startswith("this process already has devices by claim_for_worker (1 of 'gpu', options {'simulate': ")
    assert "and now asks for others (2 of 'gpu', options " in said
    assert said.endswith(f"; {has!r}")


def test_fork_has_nothing_of_its_parents(gpus: dict[str, object]) -> None:
    def parent() -> tuple[str, str]:
        return worker(gpus).environment()[MASK], in_child(lambda: worker(gpus).environment()[MASK])

    mine, its = in_child(parent)
    assert mine != its


def test_thread_that_calls_meanwhile_gets_what_the_main_thread_claims(gpus: dict[str, object]) -> None:
    def both() -> bool:
        waiting = {**gpus, "wait": 60}
        others = externalresource.claim("gpu", 2, options=gpus)

        def call_and_let_go() -> RuntimeContext:
            wait_until(Path(f"{gpus['coordination-file']}.queue").exists)
            Timer(0.3, others.close).start()
            return worker(waiting)

        with ThreadPoolExecutor(1) as pool:
            called = pool.submit(call_and_let_go)
            return worker(waiting) is called.result()

    assert in_child(both)
