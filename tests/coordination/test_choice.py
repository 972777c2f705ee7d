import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from externalresource.coordination import Claim, Coordination, first
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.claiming import Asker, claim, content, error_of, gpus, me, no_wait, of, tokens
from tests.support.devices import Device
from tests.support.processes import Start

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
    holder: Asker = start(list)
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
