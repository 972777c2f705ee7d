import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import lock_descriptor

from externalresource.coordination import Coordination, Holding, first, identify, lives
from externalresource.coordination.ledger import Claim
from externalresource.coordination.process import Observer, Owner, observer
from externalresource.errors import ConfigurationError, CoordinationError, NotEnoughDevicesError
from tests.support.devices import Device
from tests.support.processes import Running, as_another_user

R = TypeVar("R")


def gpus(count: int) -> list[Device]:
    return [Device(str(index), f"GPU-{index}") for index in range(count)]


def of(gpu: str, name: str) -> Device:
    """Return a slice, as MIG has them."""
    return Device(f"MIG-{name}", f"MIG-{name}", f"GPU-{gpu}", gpu)


def nobody_ends(who: Owner, here: Observer) -> bool:
    return False


def made_up(pid: int) -> Owner:
    return Owner(pid, start_time=pid, boot_id="b", pid_namespace=1, time_namespace=1, uid=0, program="java")


def me() -> Owner:
    return identify(os.getpid())


def tokens(devices: Sequence[Device]) -> list[str]:
    return [device.token for device in devices]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "gpus")


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[], R]], Running[R]]]:
    with contextlib.ExitStack() as running:

        def start(function: Callable[[], R]) -> Running[R]:
            process = Running(function)
            running.callback(process.kill)
            return process

        yield start


Start = Callable[[Callable[[], list[Device]]], Running[list[Device]]]


@pytest.fixture
def shared() -> Iterator[Path]:
    """Yield a folder that another user can reach and write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def claim(path: str, amount: int, devices: Sequence[Device]) -> list[Device]:
    return Coordination(path, "gpu").claim(devices, amount, me())


def content(path: str) -> str:
    return Path(path).read_text(encoding="ascii")


def error_of(kind: type[Exception], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def no_wait() -> float:
    return time.monotonic()


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        fcntl.flock(file, fcntl.LOCK_UN)  # processes that were started meanwhile have it open, too


# Who gets what


def test_processes_that_ask_at_once_get_different_devices_and_none_is_refused(path: str, start: Start) -> None:
    held, go = os.pipe()

    def ask() -> list[Device]:
        os.close(go)
        os.read(held, 1)  # until all are here
        return claim(path, 2, gpus(64))

    askers = [start(ask) for _ in range(32)]
    os.close(held)
    os.close(go)
    granted = [token for asker in askers for token in tokens(asker.result())]
    assert sorted(granted, key=int) == [str(index) for index in range(64)]


def test_owners_that_come_and_are_killed_never_share_a_device(path: str, start: Start) -> None:
    order = random.Random(7)
    living: dict[str, Running[list[Device]]] = {}
    for _ in range(150):
        if len(living) == 4 or (living and order.random() < 0.3):
            living.pop(order.choice(sorted(living))).kill()
        askers = [start(lambda: claim(path, 1, gpus(4))) for _ in range(4 - len(living))]
        for asker in askers:
            (device,) = asker.result()
            assert device.token not in living
            living[device.token] = asker


def test_killed_owner_frees_its_device(path: str, start: Start) -> None:
    holder = start(lambda: claim(path, 1, gpus(1)))
    assert tokens(holder.result()) == ["0"]
    with pytest.raises(NotEnoughDevicesError):
        claim(path, 1, gpus(1))
    holder.kill()
    assert tokens(claim(path, 1, gpus(1))) == ["0"]


def test_living_owner_keeps_its_device(path: str, start: Start) -> None:
    start(lambda: claim(path, 1, gpus(2))).result()
    assert tokens(claim(path, 1, gpus(2))) == ["1"]


def test_who_asks_twice_gets_further_devices(path: str) -> None:
    assert tokens(claim(path, 1, gpus(3))) == ["0"]
    assert tokens(claim(path, 2, gpus(3))) == ["1", "2"]


def test_dead_owner_is_struck_out_before_devices_are_chosen(path: str) -> None:
    seen = []

    def choose(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        seen.append((tokens(free), [claim.token for claim in claims]))
        return free[:amount]

    Path(path).write_text("1 999999999\n", encoding="ascii")
    assert tokens(Coordination(path, "gpu").claim(gpus(3), 1, me(), choose=choose)) == ["0"]
    assert seen == [(["0", "1", "2"], [])]
    assert "999999999" not in content(path)


def test_beyond_some_hundred_claims_the_dead_stay_while_enough_is_free(path: str) -> None:
    dead = "".join(f"{index} 999999999\n" for index in range(300))
    Path(path).write_text(dead, encoding="ascii")
    assert tokens(claim(path, 1, gpus(301))) == ["300"]
    assert content(path).startswith(dead)
    assert tokens(claim(path, 1, gpus(301))) == ["0"]
    assert "999999999" not in content(path)


def test_each_owner_is_looked_at_once(path: str) -> None:
    looked = []

    def gone(who: Owner, here: Observer) -> bool:
        looked.append(who.pid)
        return False

    shared = Coordination(path, "gpu", gone=gone)
    shared.claim(gpus(4), 2, made_up(7))
    shared.claim(gpus(4), 1, made_up(8))
    looked.clear()
    shared.claim(gpus(4), 1, made_up(9))
    assert sorted(looked) == [7, 8]


def test_line_tells_what_identity_needs(path: str) -> None:
    who = dataclasses.replace(made_up(7), time_namespace=None, uid=None)
    Coordination(path, "gpu").claim([of("3", "a")], 1, who)
    token, pid, details = content(path).rstrip("\n").split(" ", 2)
    fields = json.loads(details)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", fields.pop("since"))
    assert re.fullmatch("[0-9a-f]{16}", fields.pop("grant"))
    assert (token, pid, fields) == (
        "MIG-a",
        "7",
        {
            "uuid": "MIG-a",
            "parent_uuid": "GPU-3",
            "parent_token": "3",
            "class": "gpu",
            "start_time": 7,
            "boot_id": "b",
            "pid_namespace": 1,
            "program": "java",
        },
    )


# What is refused


def test_more_than_the_host_has_is_refused_as_that(path: str) -> None:
    message = error_of(NotEnoughDevicesError, lambda: claim(path, 3, gpus(2)))
    assert message == "3 wanted, this host has 2"
    assert not os.path.exists(path)


def test_more_than_is_free_is_refused_with_who_holds_what_since_when(path: str) -> None:
    shared = Coordination(path, "gpu", gone=nobody_ends)
    shared.claim(gpus(4), 2, made_up(7))
    shared.claim(gpus(4), 1, dataclasses.replace(made_up(8), program=None))
    with Path(path).open("a", encoding="ascii") as file:
        file.write("9 4711\n")
    before = content(path)
    since = {holding.claim.pid: holding.since for holding in shared.held()}
    message = error_of(NotEnoughDevicesError, lambda: shared.claim([*gpus(4), Device("9")], 2, made_up(9)))
    assert message == (
        f"2 wanted, 1 of 5 free; held by pid 7 (java), since {since[7]}: 0, 1; pid 8, since {since[8]}: 2; pid 4711: 9"
    )
    assert content(path) == before


def test_refusal_tells_the_asker_what_it_holds_itself(path: str) -> None:
    shared = Coordination(path, "gpu", gone=nobody_ends)
    shared.claim(gpus(2), 2, made_up(7))
    message = error_of(NotEnoughDevicesError, lambda: shared.claim(gpus(2), 1, made_up(7)))
    assert message.endswith(": 0, 1, which asks again and would get further ones")


def test_refusal_does_not_tell_of_devices_that_were_not_asked_for(path: str) -> None:
    shared = Coordination(path, "gpu", gone=nobody_ends)
    shared.claim(gpus(2)[1:], 1, made_up(7))
    shared.claim(gpus(1), 1, made_up(8))
    message = error_of(NotEnoughDevicesError, lambda: shared.claim(gpus(1), 1, made_up(9)))
    assert "pid 8" in message
    assert "pid 7" not in message


def test_refusal_by_a_whole_host_stays_short(path: str) -> None:
    shared = Coordination(path, "gpu", gone=nobody_ends)
    for pid in range(1, 12):
        shared.claim(gpus(11), 1, made_up(pid))
    message = error_of(NotEnoughDevicesError, lambda: shared.claim(gpus(11), 1, made_up(12)))
    assert message.count("java") == 8
    assert message.endswith("; and 3 more owners")


def test_refusal_by_an_owner_of_hundreds_stays_short(path: str) -> None:
    shared = Coordination(path, "gpu", gone=nobody_ends)
    shared.claim(gpus(500), 17, made_up(7))
    message = error_of(NotEnoughDevicesError, lambda: shared.claim(gpus(17), 1, made_up(8)))
    assert message.endswith(", 14, 15 and 1 more")


@pytest.mark.parametrize("amount", [0, -1])
def test_amount_must_be_positive(amount: int, path: str) -> None:
    message = error_of(ConfigurationError, lambda: claim(path, amount, gpus(3)))
    assert message == f"the amount must be a positive integer, not {amount}"
    assert not os.path.exists(path)


def test_line_of_another_class_is_an_error_for_all(path: str) -> None:
    Coordination(path, "nic").claim([Device("eth0")], 1, me())
    before, gpu = content(path), Coordination(path, "gpu")
    for action in (lambda: claim(path, 1, gpus(1)), gpu.held, lambda: gpu.release(gpus(1), me())):
        assert error_of(CoordinationError, action) == (
            f"{path} coordinates 'nic', not 'gpu': one file serves one class of devices; choose another file"
        )
    assert content(path) == before


@pytest.mark.parametrize("line", ["0 x", "0 7 {", "0 7 {}\r", '0 7 {"uuid":null}', "\x00"], ids=repr)
def test_line_that_cannot_be_read_grants_nothing_and_changes_nothing(line: str, path: str) -> None:
    Path(path).write_text(f"1 5\n{line}\n", encoding="ascii", newline="")
    before, shared = Path(path).read_bytes(), Coordination(path, "gpu")
    for action in (lambda: claim(path, 1, gpus(8)), shared.held, lambda: shared.release(gpus(8), me())):
        assert f"{path}, line 2: cannot read" in error_of(CoordinationError, action)
    assert Path(path).read_bytes() == before
    assert sorted(os.listdir(os.path.dirname(path))) == ["gpus", "gpus.lock"]


# What a driver chooses


def test_choice_is_the_drivers(path: str) -> None:
    chosen = Coordination(path, "gpu").claim(gpus(4), 2, me(), choose=lambda free, claims, amount: free[-amount:])
    assert tokens(chosen) == ["2", "3"]
    assert tokens(first(gpus(4), [], 2)) == ["0", "1"]


def test_choice_is_among_the_free_ones_and_sees_the_claims(path: str) -> None:
    seen = []

    def choose(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        seen.append((tokens(free), [claim.token for claim in claims], amount))
        return free[:amount]

    claim(path, 1, gpus(3))
    Coordination(path, "gpu").claim(gpus(3), 1, me(), choose=choose)
    assert seen == [(["1", "2"], ["0"], 1)]


WHOLE, SLICE = Device("0", "GPU-0"), of("0", "a")


@pytest.mark.parametrize(
    ("devices", "choose"),
    [
        (gpus(3), lambda free: free[:1]),
        (gpus(3), lambda free: free[:0]),
        (gpus(3), lambda free: free[:3]),
        (gpus(3), lambda free: [free[0], free[0]]),
        (gpus(3), lambda free: [free[0], Device("7", "GPU-7")]),
        ([WHOLE, SLICE], lambda free: free),
        ([SLICE, WHOLE], lambda free: free),
        ([WHOLE, Device("1", "GPU-0")], lambda free: free),
    ],
    ids=["fewer", "none", "more", "one twice", "a stranger", "whole and slice", "slice and whole", "one by two names"],
)
def test_choice_that_would_give_a_device_twice_is_refused(
    devices: list[Device], choose: Callable[[Sequence[Device]], Sequence[Device]], path: str
) -> None:
    ask = Coordination(path, "gpu")
    message = error_of(
        CoordinationError, lambda: ask.claim(devices, 2, me(), choose=lambda free, claims, amount: choose(free))
    )
    assert message.startswith("nothing is granted: the driver must choose 2 different ones of the free devices")
    assert ask.held() == []


def test_choice_of_what_another_one_holds_is_refused(path: str) -> None:
    claim(path, 1, gpus(2))
    ask = Coordination(path, "gpu")
    with pytest.raises(CoordinationError, match="nothing is granted"):
        ask.claim(devices := gpus(2), 1, me(), choose=lambda free, claims, amount: devices[:1])
    assert len(ask.held()) == 1


def test_first_devices_are_never_a_device_and_its_slice(path: str) -> None:
    whole, other = gpus(2)
    part, second = of("0", "a"), of("0", "b")
    assert tokens(Coordination(path, "gpu").claim([whole, part, other], 2, me())) == ["0", "1"]
    Path(path).write_text("")
    assert tokens(Coordination(path, "gpu").claim([whole, part, second], 2, me())) == [part.token, second.token]
    Path(path).write_text("")
    message = error_of(NotEnoughDevicesError, lambda: Coordination(path, "gpu").claim([whole, part], 2, me()))
    assert message == "2 wanted, 1 to be had: a device and its slices exclude each other"


def only_the_first(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
    if free[0].token != "0":
        raise NotEnoughDevicesError("only the first will do")
    return free[:amount]


def test_choice_may_refuse_what_is_free(path: str) -> None:
    claim(path, 1, gpus(1))
    before = content(path)
    message = error_of(
        NotEnoughDevicesError, lambda: Coordination(path, "gpu").claim(gpus(2), 1, me(), choose=only_the_first)
    )
    assert (message, content(path)) == ("only the first will do", before)


def test_choice_that_refuses_what_is_free_is_asked_again_with_what_the_dead_held(path: str) -> None:
    Path(path).write_text("".join(f"{index} 999999999\n" for index in range(300)), encoding="ascii")
    assert tokens(Coordination(path, "gpu").claim(gpus(301), 1, me(), choose=only_the_first)) == ["0"]


def test_choice_that_fails_grants_nothing_and_frees_the_lock(path: str) -> None:
    with pytest.raises(ZeroDivisionError):
        Coordination(path, "gpu").claim(gpus(2), 1, me(), choose=lambda free, claims, amount: free[: 1 // 0])
    assert tokens(Coordination(path, "gpu").claim(gpus(1), 1, me(), deadline=no_wait())) == ["0"]


# Which devices are the same

A, B = Device("0", "GPU-a"), Device("1", "GPU-b")
SLICED = Device("MIG-x", "MIG-x", "GPU-a", "0")
TABLE = [
    # claimed, asked for, taken?
    (A, A, True),
    (A, B, False),
    (A, Device("5", "GPU-a"), True),  # renumbered
    (A, Device("0", "GPU-b"), False),  # a container's 0
    (A, Device("0"), True),  # nobody knows
    (Device("0"), A, True),
    (Device("0"), Device("0"), True),
    (Device("0"), B, False),
    (Device("GPU-a"), A, True),  # a script that prints UUIDs
    (A, Device("GPU-a"), True),
    (A, SLICED, True),
    (SLICED, A, True),
    (SLICED, B, False),
    (B, SLICED, False),
    (SLICED, SLICED, True),
    (SLICED, Device("MIG-y", "MIG-y", "GPU-a", "0"), False),  # siblings
    (SLICED, Device("MIG-y", "MIG-y", "GPU-b", "0"), False),
    (Device("0"), SLICED, True),
    (SLICED, Device("0"), True),
    (SLICED, Device("3", "GPU-a"), True),
    (Device("3", "GPU-a"), SLICED, True),
    (SLICED, Device("0", "GPU-b"), False),
    (Device("0", "GPU-b"), SLICED, False),
    (A, Device("MIG-x", "MIG-x", None, "0"), True),  # a slice whose parent's UUID is not known
    (Device("MIG-x", "MIG-x", None, "0"), A, True),
    (Device("0/1", None, None, "0"), A, True),  # slices that have no UUID
    (A, Device("0/1", None, None, "0"), True),
    (Device("0/1", None, "GPU-a", "0"), Device("4", "GPU-a"), True),
    (Device("4", "GPU-a"), Device("0/1", None, "GPU-a", "0"), True),
    (Device("0/1", None, "GPU-a", "0"), Device("0/2", None, "GPU-a", "0"), False),
    (Device("0", ""), Device("0", "GPU-a"), True),  # an empty UUID is none
    (Device("0", "GPU-a"), Device("0", ""), True),
    (Device("0", ""), Device("1", ""), False),
]


@pytest.mark.parametrize(("claimed", "asked", "taken"), TABLE)
def test_devices_exclude_each_other_by_uuid_where_both_have_one_else_by_token(
    claimed: Device, asked: Device, path: str, *, taken: bool
) -> None:
    claim(path, 1, [claimed])
    with pytest.raises(NotEnoughDevicesError, match="held by") if taken else contextlib.nullcontext():
        claim(path, 1, [asked])


def test_whole_gpu_is_free_again_once_its_last_slice_is(path: str) -> None:
    shared = Coordination(path, "gpu")
    slices = shared.claim([of("0", "a"), of("0", "b")], 2, me())
    for piece in slices:
        with pytest.raises(NotEnoughDevicesError):
            claim(path, 1, gpus(1))
        shared.release([piece], me())
    assert tokens(claim(path, 1, gpus(1))) == ["0"]


def test_first_columns_never_repeat_though_each_container_counts_from_0(path: str) -> None:
    for uuid in ("GPU-a", "GPU-b", "GPU-c"):
        claim(path, 1, [Device("0", uuid)])
    assert [line.split()[0] for line in content(path).splitlines()] == ["0", "GPU-b", "GPU-c"]


def test_renumbered_device_is_released_by_its_uuid(path: str) -> None:
    for uuid in ("GPU-a", "GPU-b"):
        claim(path, 1, [Device("0", uuid)])
    assert Coordination(path, "gpu").release([Device("0", "GPU-b")], me()) == 1
    assert [line.split()[0] for line in content(path).splitlines()] == ["0"]


def test_line_of_flinks_own_script_blocks_its_index_while_its_process_lives(path: str, start: Start) -> None:
    holder: Running[list[Device]] = start(list)
    Path(path).write_text(f"0 {holder.pid}\n", encoding="ascii")
    assert tokens(claim(path, 1, gpus(2))) == ["1"]
    with pytest.raises(NotEnoughDevicesError):
        claim(path, 1, gpus(1))
    holder.kill()
    assert tokens(claim(path, 1, gpus(1))) == ["0"]


def test_line_of_index_1_does_not_block_11(path: str) -> None:
    Path(path).write_text(f"1 {os.getpid()}\n", encoding="ascii")
    assert tokens(claim(path, 1, [Device("11")])) == ["11"]


def test_lines_for_devices_that_are_not_visible_here_survive(path: str) -> None:
    lines = f'5 {os.getpid()}\n6 {os.getpid()} {{"uuid":"GPU-f","later":[1]}}\n'
    Path(path).write_text(f"{lines}0 999999999\n", encoding="ascii")
    shared = Coordination(path, "gpu")
    shared.release(shared.claim(gpus(1), 1, me()), me())
    assert content(path) == lines


# What is given back


def test_what_is_given_back_is_free(path: str) -> None:
    shared = Coordination(path, "gpu")
    claimed = shared.claim(gpus(3), 3, me())
    assert shared.release(claimed[1:], me()) == 2
    assert tokens(claim(path, 2, gpus(3))) == ["1", "2"]


def test_only_ones_own_is_given_back(path: str, start: Start) -> None:
    holder = start(lambda: claim(path, 1, gpus(2)))
    holder.result()
    claim(path, 1, gpus(2))
    before = content(path)
    shared = Coordination(path, "gpu")
    assert shared.release(gpus(1), me()) == 0
    assert shared.release(gpus(2), made_up(os.getpid())) == 0
    assert content(path) == before
    assert shared.release(gpus(2), me()) == 1
    assert [holding.claim.pid for holding in shared.held()] == [holder.pid]


@pytest.mark.parametrize("device", [Device("7"), Device("7", "")], ids=repr)
def test_device_without_a_uuid_is_given_back_by_its_name(device: Device, path: str) -> None:
    claim(path, 2, [device, Device("8")])
    assert Coordination(path, "gpu").release([Device("7", "GPU-7")], me()) == 1
    assert [line.split()[0] for line in content(path).splitlines()] == ["8"]


def test_line_of_flinks_own_script_is_never_given_back(path: str) -> None:
    Path(path).write_text(f"0 {os.getpid()}\n", encoding="ascii")
    assert Coordination(path, "gpu").release(gpus(1), me()) == 0


def test_giving_back_nothing_does_not_touch_the_file(path: str) -> None:
    claim(path, 1, gpus(1))
    before = os.stat(path)
    assert Coordination(path, "gpu").release([], me()) == 0
    assert os.path.samestat(os.stat(path), before)


def test_giving_back_leaves_dead_owners_alone(path: str) -> None:
    claimed = claim(path, 1, gpus(1))
    with open(path, "a", encoding="ascii") as file:
        file.write("1 999999999\n")
    Coordination(path, "gpu").release(claimed, me())
    assert content(path) == "1 999999999\n"


# Who holds what


def test_nothing_is_held_without_a_file(path: str) -> None:
    assert Coordination(path, "gpu").held() == []
    assert os.listdir(os.path.dirname(path)) == []


def test_dead_owners_are_shown_as_that(path: str, start: Start) -> None:
    holder = start(lambda: claim(path, 1, gpus(2)))
    holder.result()
    claim(path, 1, gpus(2))
    holder.kill()
    held = Coordination(path, "gpu").held()
    assert [(holding.claim.token, holding.living) for holding in held] == [("0", False), ("1", True)]
    assert held[1] == Holding(held[1].claim, me(), held[1].claim.details["since"], living=True)
    assert not lives(held[0].owner)
    assert lives(held[1].owner)


def test_line_of_flinks_own_script_means_a_process_of_whoever_reads_it(path: str) -> None:
    Path(path).write_text(f"0 {os.getpid()}\n", encoding="ascii")
    (holding,) = Coordination(path, "gpu").held()
    assert holding.owner == Owner(os.getpid(), pid_namespace=observer().pid_namespace)
    assert holding.since is None
    assert holding.living


def test_looking_needs_no_lock(path: str) -> None:
    claim(path, 1, gpus(1))
    with locked(f"{path}.lock"):
        assert len(Coordination(path, "gpu").held()) == 1


# The lock


def test_lock_that_another_process_holds_until_the_deadline_is_an_error(path: str) -> None:
    shared = Coordination(path, "gpu")
    claimed = shared.claim(gpus(2), 1, me())
    before = content(path)
    with locked(f"{path}.lock"):
        for action in (
            lambda: shared.claim(gpus(2), 1, me(), deadline=time.monotonic() + 0.05),
            lambda: shared.release(claimed, me(), deadline=no_wait()),
        ):
            assert error_of(CoordinationError, action) == (
                f"{path}.lock was not free in time, so nothing is granted: "
                f"it is locked by pid {os.getpid()} ({me().program})"
            )
    assert content(path) == before


def test_lock_that_is_free_is_taken_though_the_deadline_has_passed(path: str) -> None:
    assert Coordination(path, "gpu").claim(gpus(1), 1, me(), deadline=no_wait() - 10)


def test_lock_is_waited_for(path: str, start: Start) -> None:
    with locked(f"{path}.lock"):
        asker = start(lambda: claim(path, 1, gpus(1)))
        time.sleep(0.05)
        assert not os.path.exists(path)
    assert tokens(asker.result()) == ["0"]


def test_lock_file_that_is_removed_while_one_waits_is_made_anew(path: str, start: Start) -> None:
    with locked(f"{path}.lock"):
        asker = start(lambda: claim(path, 1, gpus(1)))
        time.sleep(0.05)
        os.unlink(f"{path}.lock")
        assert tokens(asker.result()) == ["0"]


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "replaced"])
def test_lock_on_a_file_that_is_no_longer_at_its_place_is_none(
    path: str, monkeypatch: pytest.MonkeyPatch, *, removed: bool
) -> None:
    calls: list[int] = []

    def at_the_worst_moment(descriptor: int, *, blocking: bool) -> bool:
        if not calls:
            Path(f"{path}.other").touch()
            os.replace(f"{path}.other", f"{path}.lock")
            if removed:
                os.unlink(f"{path}.lock")
        calls.append(descriptor)
        return lock_descriptor(descriptor, blocking=blocking)

    def choose(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        with open(f"{path}.lock", "rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return free[:amount]

    monkeypatch.setattr("externalresource.coordination.lock.lock_descriptor", at_the_worst_moment)
    assert Coordination(path, "gpu").claim(gpus(1), 1, me(), choose=choose)
    assert len(calls) == 2


def test_file_system_without_locks_is_an_error_with_its_remedy(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr("externalresource.coordination.lock.lock_descriptor", no_locks)
    message = error_of(CoordinationError, lambda: claim(path, 1, gpus(1)))
    assert message == f"cannot lock {path}.lock: No locks available; choose a file on a local file system"
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_lock_is_freed_though_a_fork_of_that_moment_lives_on(path: str) -> None:
    forks = []

    def fork(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        child = os.fork()
        if child == 0:
            signal.pause()
        forks.append(child)
        return free[:amount]

    Coordination(path, "gpu").claim(gpus(2), 1, me(), choose=fork)
    try:
        assert Coordination(path, "gpu").claim(gpus(2), 1, me(), deadline=no_wait())
    finally:
        os.kill(forks[0], signal.SIGKILL)
        os.waitpid(forks[0], 0)


def test_lock_of_a_killed_process_is_free(path: str, start: Start) -> None:
    (reader, writer) = os.pipe()

    def hold(free: Sequence[Device], claims: Sequence[Claim], amount: int) -> Sequence[Device]:
        os.write(writer, b".")
        signal.pause()
        return []

    holder = start(lambda: Coordination(path, "gpu").claim(gpus(1), 1, me(), choose=hold))
    os.read(reader, 1)
    with pytest.raises(CoordinationError, match="was not free in time"):
        Coordination(path, "gpu").claim(gpus(1), 1, me(), deadline=no_wait())
    holder.kill()
    assert Coordination(path, "gpu").claim(gpus(1), 1, me(), deadline=no_wait())
    os.close(reader)
    os.close(writer)


def test_lock_file_is_neither_written_nor_replaced_nor_removed(path: str) -> None:
    Path(f"{path}.lock").write_text("somebody's", encoding="ascii")
    before = os.stat(f"{path}.lock")
    shared = Coordination(path, "gpu")
    shared.release(shared.claim(gpus(1), 1, me()), me())
    assert os.path.samestat(os.stat(f"{path}.lock"), before)
    assert content(f"{path}.lock") == "somebody's"


@pytest.mark.parametrize("plant", ["fifo", "folder", "symbolic link", "dangling link", "hard link"])
def test_lock_that_is_no_plain_file_is_an_error(plant: str, path: str) -> None:
    lock, target = f"{path}.lock", f"{path}.target"
    Path(target).touch()
    match plant:
        case "fifo":
            os.mkfifo(lock)
        case "folder":
            os.mkdir(lock)
        case "symbolic link":
            os.symlink(target, lock)
        case "dangling link":
            os.symlink(f"{path}.missing", lock)
        case _:
            os.link(target, lock)
    message = error_of(CoordinationError, lambda: claim(path, 1, gpus(1)))
    assert re.match(
        rf"cannot (lock|use) {re.escape(lock)}: it (is|has) .*; (which is never followed; )?remove it", message
    )
    assert not os.path.exists(path)
    assert not os.path.exists(f"{path}.missing")


def test_missing_folder_is_an_error_with_its_remedy(path: str) -> None:
    message = error_of(CoordinationError, lambda: claim(f"{path}/missing/gpus", 1, gpus(1)))
    assert message == (
        f"cannot lock {path}/missing/gpus.lock: No such file or directory; create its folder, or choose another file"
    )


def test_no_descriptor_is_left_open(path: str) -> None:
    before = os.listdir("/proc/self/fd")
    shared = Coordination(path, "gpu")
    shared.release(shared.claim(gpus(1), 1, me()), me())
    with locked(f"{path}.lock"), pytest.raises(CoordinationError):
        shared.claim(gpus(1), 1, me(), deadline=no_wait())
    with pytest.raises(NotEnoughDevicesError):
        shared.claim(gpus(1), 2, me())
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_users_divide_the_devices_in_a_folder_that_all_may_write(shared: Path, umask: int) -> None:
    path = str(shared / "gpus")
    earlier = os.umask(umask)
    try:
        assert tokens(claim(path, 1, gpus(2))) == ["0"]
        assert tokens(as_another_user(lambda: claim(path, 1, gpus(2)))) == ["1"]
        assert tokens(claim(path, 1, gpus(3))) in (["1"], ["2"])
    finally:
        os.umask(earlier)
    assert {os.stat(file).st_mode & 0o777 for file in (path, f"{path}.lock")} == {0o644}


def test_file_of_another_user_in_a_sticky_folder_grants_nothing(shared: Path) -> None:
    path = str(shared / "gpus")
    shared.chmod(0o1777)
    claim(path, 1, gpus(2))
    before = content(path)
    message = as_another_user(lambda: error_of(CoordinationError, lambda: claim(path, 1, gpus(2))))
    assert message.startswith(f"cannot write {path}: Operation not permitted; to share devices between users")
    assert content(path) == before


def test_folder_that_may_not_be_written_grants_nothing(shared: Path) -> None:
    shared.chmod(0o755)
    path = str(shared / "gpus")
    message = as_another_user(lambda: error_of(CoordinationError, lambda: claim(path, 1, gpus(2))))
    assert message.startswith(f"cannot write {path}: Permission denied; to share devices between users")


@pytest.mark.parametrize("since", ["1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z"])
def test_clock_that_was_wrong_when_a_device_was_claimed_decides_nothing(path: str, since: str) -> None:
    shared = Coordination(path, "gpu")
    shared.claim(gpus(2), 1, me())
    shared.claim(gpus(2), 1, dataclasses.replace(me(), boot_id="another"))
    rewritten = re.sub(r'"since":"[^"]*"', f'"since":"{since}"', content(path))
    Path(path).write_text(rewritten, encoding="utf-8")
    assert [holding.living for holding in shared.held()] == [True, False]
    assert shared.claim(gpus(2), 1, me()) == gpus(2)[1:]
