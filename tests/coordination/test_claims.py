import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from externalresource.coordination import Claim, Coordination, Holder, Process, identify, lives
from externalresource.coordination.process import Observer, observer
from externalresource.errors import ConfigurationError, CoordinationError, NotEnoughDevicesError
from externalresource.records import replace
from tests.support.claiming import (
    Asker,
    claim,
    content,
    error_of,
    gpus,
    locked,
    made_up,
    me,
    nobody_ends,
    of,
    tokens,
)
from tests.support.devices import Device
from tests.support.processes import Start

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
    living: dict[str, Asker] = {}
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

    def gone(who: Process, here: Observer) -> bool:
        looked.append(who.pid)
        return False

    shared = Coordination(path, "gpu", gone=gone)
    shared.claim(gpus(4), 2, made_up(7))
    shared.claim(gpus(4), 1, made_up(8))
    looked.clear()
    shared.claim(gpus(4), 1, made_up(9))
    assert sorted(looked) == [7, 8]


def test_line_tells_what_identity_needs(path: str) -> None:
    who = Holder(replace(made_up(7).process, time_namespace=None, uid=None))
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
    shared.claim(gpus(4), 1, Holder(replace(made_up(8).process, program=None)))
    with Path(path).open("a", encoding="ascii") as file:
        file.write("9 4711\n")
    before = content(path)
    since = {claim.owner.process.pid: claim.owner.since for claim in shared.held()}
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
    assert [claim.owner.process.pid for claim in shared.held()] == [holder.pid]


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
    assert [(claim.token, claim.living) for claim in held] == [("0", False), ("1", True)]
    assert held[1].owner.process == identify(os.getpid())
    assert not lives(held[0].owner.process)
    assert lives(held[1].owner.process)


def test_line_of_flinks_own_script_means_a_process_of_whoever_reads_it(path: str) -> None:
    Path(path).write_text(f"0 {os.getpid()}\n", encoding="ascii")
    (claim,) = Coordination(path, "gpu").held()
    assert claim.owner.process == Process(os.getpid(), pid_namespace=observer().pid_namespace)
    assert claim.owner.since is None
    assert claim.living


def test_looking_needs_no_lock(path: str) -> None:
    claim(path, 1, gpus(1))
    with locked(f"{path}.lock"):
        assert len(Coordination(path, "gpu").held()) == 1


@pytest.mark.parametrize("since", ["1970-01-01T00:00:00Z", "2999-01-01T00:00:00Z"])
def test_clock_that_was_wrong_when_a_device_was_claimed_decides_nothing(path: str, since: str) -> None:
    shared = Coordination(path, "gpu")
    shared.claim(gpus(2), 1, me())
    shared.claim(gpus(2), 1, Holder(replace(identify(os.getpid()), boot_id="another")))
    rewritten = re.sub(r'"since":"[^"]*"', f'"since":"{since}"', content(path))
    Path(path).write_text(rewritten, encoding="utf-8")
    assert [claim.living for claim in shared.held()] == [True, False]
    assert shared.claim(gpus(2), 1, me()) == gpus(2)[1:]
