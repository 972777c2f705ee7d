"""Drivers made of a function: what the framework does for all of them."""

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import externalresource
from externalresource.api import Device, driver, info_of
from externalresource.context import RuntimeContext
from externalresource.drivers.enumerated import DeviceDriver
from externalresource.errors import (
    ConfigurationError,
    DiscoveryError,
    ExternalResourceError,
    NotEnoughDevicesError,
    PluginError,
)
from tests.support.processes import Running, in_child


@dataclass(frozen=True)
class Options:
    count: int = 2


@driver("fpga", Options)
def fpga(options: Options) -> Iterable[Device]:
    """FPGA boards."""
    for index in range(options.count):
        yield Device(str(index), f"FPGA-{index}", {"slot": f"s{index}"}, {"FPGA_DEVICES": f"/dev/fpga{index}"})


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    return str(tmp_path / "fpgas")


def of(devices: Iterable[Device] | Callable[[], Iterable[Device]], ledger: str, **options: str) -> DeviceDriver:
    """Return a driver that enumerates these, coordinated."""

    @driver("fpga")
    def enumerated() -> Iterable[Device]:
        return devices() if callable(devices) else devices

    given = {"enable-coordination-mode": "true", "coordination-file": ledger}
    return enumerated.create_external_resource_driver(
        given | {name.replace("_", "-"): options[name] for name in options}
    )


def boards(count: int) -> list[Device]:
    return [Device(str(index), f"FPGA-{index}") for index in range(count)]


def indices(infos: Iterable[Any]) -> list[str]:
    return sorted(info.get_property("index") for info in infos)


def message(kind: type[ExternalResourceError], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


# ---- what is handed out ---------------------------------------------------------------------------


def test_infos_tell_all_that_is_known() -> None:
    made = fpga.create_external_resource_driver({"count": "1"})
    [info] = made.retrieve_resource_info(1)
    assert {key: info.get_property(key) for key in info.get_keys()} == {"index": "0", "uuid": "FPGA-0", "slot": "s0"}
    assert info.get_property("unknown") is None


def test_infos_are_equal_by_what_they_tell_and_survive_a_pickle() -> None:
    one, same, other = (info_of(Device(index, properties={"slot": "1"})) for index in ("0", "0", "1"))
    assert (one == same, hash(one) == hash(same), one == other, one == "0") == (True, True, False, False)
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(one) == "DeviceInfo({'index': '0', 'slot': '1'})"


def test_two_processes_get_different_devices_and_the_dead_ones_is_free(ledger: str) -> None:
    other = Running(lambda: indices(of(boards(2), ledger).retrieve_resource_info(1)))
    try:
        taken = other.result()
        mine = of(boards(2), ledger)
        assert indices(mine.retrieve_resource_info(1)) + taken == ["1", "0"]
        assert "0 of 2 free; held by pid" in message(NotEnoughDevicesError, lambda: mine.retrieve_resource_info(1))
    finally:
        other.kill()
    assert indices(mine.retrieve_resource_info(1)) == ["0"]
    mine.close()
    assert Path(ledger).read_text() == ""


def test_without_coordination_the_first_ones_are_handed_out_and_nothing_is_written(ledger: str) -> None:
    made = fpga.create_external_resource_driver({"coordination-file": ledger})
    assert indices(made.retrieve_resource_info(1)) == indices(made.retrieve_resource_info(1)) == ["0"]
    made.close()
    assert not Path(ledger).exists()
    assert made.coordination_file is None


def test_each_class_has_a_coordination_file_of_its_own() -> None:
    made = fpga.create_external_resource_driver({"enable-coordination-mode": "true"})
    assert made.coordination_file == "/var/tmp/externalresource-fpga-coordination"


def test_what_was_claimed_is_given_back_by_its_process_alone_and_once(ledger: str) -> None:
    made = of(boards(1), ledger)
    made.retrieve_resource_info(1)
    in_child(made.close)
    assert len(made.held()) == 1
    made.close()
    made.close()
    assert not made.held()


def halved(index: str) -> list[Device]:
    """Return a board and its halves."""
    halves = [Device(f"{index}.{half}", f"PART-{index}.{half}", parent_uuid=f"FPGA-{index}") for half in "ab"]
    return [Device(index, f"FPGA-{index}"), *halves]


@pytest.mark.parametrize(
    ("amount", "names"), [(1, ["0"]), (2, ["0", "1"]), (3, ["0.a", "0.b", "1.a"]), (4, ["0.a", "0.b", "1.a", "1.b"])]
)
@pytest.mark.parametrize("coordinated", ["true", "false"])
def test_process_never_gets_a_device_and_a_slice_of_it(
    ledger: str, amount: int, names: list[str], coordinated: str
) -> None:
    driver = of([*halved("0"), *halved("1")], ledger, enable_coordination_mode=coordinated)
    infos = driver.retrieve_resource_info(amount)
    assert sorted(info.get_property("index") or "" for info in infos) == names
    driver.close()


@pytest.mark.parametrize("coordinated", ["true", "false"])
@pytest.mark.parametrize("part", [Device("0.a", parent_uuid="FPGA-0"), Device("0.a", parent_token="0")])
def test_device_and_its_only_slice_are_not_two(ledger: str, part: Device, coordinated: str) -> None:
    driver = of([Device("0", "FPGA-0"), part], ledger, enable_coordination_mode=coordinated)
    with pytest.raises(NotEnoughDevicesError, match=r"^2 wanted, 1 to be had: a device and its slices exclude"):
        driver.retrieve_resource_info(2)


def test_slice_and_what_it_is_a_slice_of_exclude_each_other(ledger: str) -> None:
    whole, part = Device("0", "FPGA-0"), Device("0.0", "PART-0", parent_uuid="FPGA-0", parent_token="0")
    holder = of([part], ledger)
    holder.retrieve_resource_info(1)
    assert "0 of 1 free" in message(NotEnoughDevicesError, lambda: of([whole], ledger).retrieve_resource_info(1))
    holder.close()
    assert indices(of([whole], ledger).retrieve_resource_info(1)) == ["0"]


def test_device_that_is_held_is_waited_for(ledger: str) -> None:
    holder = of(boards(1), ledger)
    holder.retrieve_resource_info(1)
    threading.Timer(0.2, holder.close).start()
    assert indices(of(boards(1), ledger, wait="60").retrieve_resource_info(1)) == ["0"]


def test_driver_that_waits_says_once_for_whom(ledger: str, caplog: pytest.LogCaptureFixture) -> None:
    holder, waiting = of(boards(1), ledger), of(boards(1), ledger, wait="60")
    for _ in range(2):
        holder.retrieve_resource_info(1)
        threading.Timer(0.2, holder.close).start()
        waiting.retrieve_resource_info(1)
        waiting.close()
        [said] = caplog.messages
        caplog.clear()
        assert said.startswith(f"waiting for fpga: 1 wanted, 0 of 1 free; held by pid {os.getpid()} ")


def test_device_that_its_owner_makes_unusable_is_waited_for(ledger: str) -> None:
    mounted = [True]

    def disks() -> list[Device]:
        return [Device("0", unusable="it is mounted" if mounted else None)]

    holder = of(boards(1), ledger)
    holder.retrieve_resource_info(1)

    def unmount_and_give_back() -> None:
        mounted.clear()
        holder.close()

    threading.Timer(0.3, unmount_and_give_back).start()
    assert indices(of(disks, ledger, wait="60").retrieve_resource_info(1)) == ["0"]


def test_device_that_breaks_while_it_is_waited_for_is_not_handed_out(ledger: str) -> None:
    broken: list[str] = []

    def disks() -> list[Device]:
        return [Device(index, unusable="it broke" if index in broken else None) for index in ("0", "1")]

    holder = of(disks, ledger)
    holder.retrieve_resource_info(2)

    def break_and_give_back() -> None:
        broken.append("0")
        time.sleep(2)  # until whoever waits has seen it
        holder.close()

    threading.Timer(0, break_and_give_back).start()
    assert indices(of(disks, ledger, wait="60").retrieve_resource_info(1)) == ["1"]


def test_device_that_appears_goes_to_who_waits(ledger: str) -> None:
    there = ["0"]

    def disks() -> list[Device]:
        return [Device(index) for index in there]

    of(disks, ledger).retrieve_resource_info(1)
    threading.Timer(0.3, there.append, "1").start()
    assert indices(of(disks, ledger, wait="60").retrieve_resource_info(1)) == ["1"]


def test_device_that_stays_unusable_is_refused_with_the_reason_once_the_time_is_over(ledger: str) -> None:
    made = of([Device("0", unusable="it is mounted")], ledger, wait="0.2")
    assert message(NotEnoughDevicesError, lambda: made.retrieve_resource_info(1)) == (
        "1 wanted, 0 of 1 free ones are usable (fpga 0: it is mounted); waited 0.2 s for them"
    )
    assert message(NotEnoughDevicesError, lambda: made.retrieve_resource_info(2)) == "2 wanted, this host has 1"


# ---- what is not handed out -----------------------------------------------------------------------


def test_unusable_device_is_listed_with_its_reason_and_not_handed_out(ledger: str) -> None:
    made = of([Device("0", unusable="no firmware"), Device("1")], ledger)
    assert [(info.get_property("index"), info.get_property("unusable")) for info in made.devices()] == [
        ("0", "no firmware"),
        ("1", None),
    ]
    assert indices(made.retrieve_resource_info(1)) == ["1"]
    assert message(NotEnoughDevicesError, lambda: made.retrieve_resource_info(2)) == (
        "2 wanted, only 1 of 2 are usable (fpga 0: no firmware)"
    )
    assert message(NotEnoughDevicesError, lambda: made.retrieve_resource_info(3)) == "3 wanted, this host has 2"


@pytest.mark.parametrize("amount", [0, -1])
def test_amount_of_devices_must_be_positive(amount: int, ledger: str) -> None:
    assert message(ConfigurationError, lambda: of(boards(1), ledger).retrieve_resource_info(amount)) == (
        f"the amount must be a positive integer, not {amount}"
    )


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([Device("0"), Device("0")], "enumerated two devices called '0'"),
        ([Device("0", "u"), Device("1", "u")], "enumerated two devices called 'u'"),
        ([Device("")], "which is no Device with an index"),
        ([Device(0)], "which is no Device with an index"),  # type: ignore[arg-type] # that is the point
        (["0"], "the fpga driver enumerated '0', which is no Device with an index"),
        (
            [Device(index, environment={"FPGA": "/dev/fpga0", "BUS": "pci"}, unusable=None) for index in "01"],
            "the fpga driver enumerated '0' and '1' with the same environment (FPGA=/dev/fpga0, BUS=pci): ",
        ),
        (
            [Device("0", environment={"FPGA": "0"}, unusable="it failed over"), Device("1", environment={"FPGA": "0"})],
            "the fpga driver enumerated '0' and '1' with the same environment (FPGA=0): ",
        ),
    ],
)
def test_devices_that_nobody_can_tell_apart_are_refused(devices: Any, expected: str, ledger: str) -> None:
    assert expected in message(DiscoveryError, of(devices, ledger).devices)


def test_devices_need_one_variable_that_differs_or_none_at_all(ledger: str) -> None:
    flagged = [Device(index, environment={"FPGA": index, "FPGA_ORDER": "PCI"}) for index in "01"]
    assert indices(of(flagged, ledger).devices()) == ["0", "1"]
    assert indices(of([Device("0"), Device("1")], ledger).devices()) == ["0", "1"]


def test_enumeration_that_fails_is_a_discovery_error_that_names_the_driver_and_the_cause(ledger: str) -> None:
    def fail() -> Iterable[Device]:
        raise OSError("no such\nbus")

    assert message(DiscoveryError, of(fail, ledger).devices) == "the fpga driver failed: OSError: no such bus"

    def leave() -> Iterable[Device]:
        sys.exit(3)

    assert message(DiscoveryError, of(leave, ledger).devices) == "the fpga driver failed: SystemExit: 3"

    def nothing() -> Any:
        return None

    assert "the fpga driver failed: TypeError: " in message(DiscoveryError, of(nothing, ledger).devices)


def test_our_errors_of_an_enumeration_come_through(ledger: str) -> None:
    def fail() -> Iterable[Device]:
        raise NotEnoughDevicesError("the bus is off")

    assert message(NotEnoughDevicesError, of(fail, ledger).devices) == "the bus is off"


def test_enumeration_that_hangs_is_an_error_by_the_deadline(ledger: str) -> None:
    go_on = threading.Event()

    def hang() -> Iterable[Device]:
        go_on.wait(60)
        return boards(1)

    said = message(DiscoveryError, of(hang, ledger, timeout="0.2").devices)
    go_on.set()
    assert said.startswith("the fpga driver did not enumerate its devices within 0.")
    assert said.endswith("see its option timeout")


# ---- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cuont": "1"}, "has no option 'cuont' (allowed: count, enable-coordination-mode, coordination-file, wait, "),
        ({"count": "x"}, "option 'count' must be a whole number, not 'x'"),
        ({"coordination-file": "claims"}, "option 'coordination-file' must be an absolute path, not 'claims'"),
        ({"wait": "-1"}, "option 'wait' must be a number of seconds from 0 to 86400, not -1"),
        ({"timeout": "0"}, "option 'timeout' must be a number of seconds up to 86400, not 0"),
        ({"enable-coordination-mode": "yes"}, "option 'enable-coordination-mode' must be true or false, not 'yes'"),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(options: Mapping[str, str], expected: str) -> None:
    said = message(ConfigurationError, lambda: fpga.create_external_resource_driver(options))
    assert said.startswith("the fpga driver")
    assert expected in said


def test_factory_is_described_by_its_function() -> None:
    assert (fpga.device_class, fpga.options[0].name, fpga.__doc__) == ("fpga", "count", "FPGA boards.")


# ---- the environment ------------------------------------------------------------------------------


def test_variables_of_several_devices_are_joined_in_the_order_of_their_indices() -> None:
    def twelve() -> Iterable[Device]:
        return [Device(str(i), environment={"FPGA_DEVICES": f"f{i}", "FPGA_ORDER": "PCI"}) for i in (11, 2, 0)]

    made = driver("fpga")(twelve).create_external_resource_driver({})
    assert made.environment(made.devices()) == {"FPGA_DEVICES": "f0,f2,f11", "FPGA_ORDER": "PCI"}


def test_devices_without_variables_are_not_for_a_process_of_their_own() -> None:
    made = driver("fpga")(lambda: boards(1)).create_external_resource_driver({})
    assert message(PluginError, lambda: made.environment(made.devices())) == "the fpga driver sets no variables for 0"


def test_context_uses_such_a_driver_as_any_other(ledger: str) -> None:
    made = fpga.create_external_resource_driver({"coordination-file": ledger, "enable-coordination-mode": "true"})
    with RuntimeContext({"fpga": (made, 2)}) as context:
        assert indices(context.get_external_resource_infos("fpga")) == ["0", "1"]
        assert context.environment() == {"FPGA_DEVICES": "/dev/fpga0,/dev/fpga1"}
        assert len(made.held()) == 2
    assert not made.held()


def test_public_package_offers_both_names() -> None:
    assert (externalresource.driver, externalresource.Device) == (driver, Device)
