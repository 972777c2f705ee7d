import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

from externalresource.api import ExternalResourceDriver
from externalresource.context import RuntimeContext
from externalresource.coordination import Coordination
from externalresource.errors import (
    ConfigurationError,
    CoordinationError,
    ExternalResourceError,
    NotEnoughDevicesError,
    PluginError,
)
from tests.support.fpga import Driver, Info, Ordered, Plain


def error_of(driver: ExternalResourceDriver, amount: int = 2) -> str:
    with pytest.raises(PluginError) as caught:
        RuntimeContext({"fpga": (driver, amount)})
    message = str(caught.value)
    assert "\n" not in message
    return message


# What operators ask


def test_each_operator_gets_the_same_infos() -> None:
    context = RuntimeContext({"fpga": (Driver(), 2), "nic": (Plain(), 1)})
    infos = context.get_external_resource_infos("fpga")
    assert {info.get_property("index") for info in infos} == {"0", "1"}
    assert context.get_external_resource_infos("fpga") == infos
    assert len(context.get_external_resource_infos("nic")) == 1


def test_infos_cannot_be_changed() -> None:
    infos = RuntimeContext({"fpga": (Driver(), 1)}).get_external_resource_infos("fpga")
    assert isinstance(infos, frozenset)


def test_name_that_is_not_configured_is_an_error_naming_the_nearest() -> None:
    context = RuntimeContext({"fpga": (Driver(), 1), "nic": (Driver(), 1)})
    with pytest.raises(ConfigurationError) as caught:
        context.get_external_resource_infos("fgpa")
    assert str(caught.value) == (
        "this process has no devices of a resource 'fgpa' (it has: fpga, nic), did you mean 'fpga'?"
    )


def test_process_without_resources_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"no devices of a resource 'gpu' \(it has: none\)$"):
        RuntimeContext({}).get_external_resource_infos("gpu")


def test_lenient_answers_an_empty_set_as_flink_does() -> None:
    assert RuntimeContext({}, lenient=True).get_external_resource_infos("gpu") == frozenset()


def test_environment_is_that_of_all_drivers() -> None:
    context = RuntimeContext({"nic": (Ordered(), 1), "fpga": (Driver(), 2), "other": (Ordered(), 1)})
    assert context.environment() == {"DEVICES": "0,1", "ORDER": "PCI"}


def test_two_resources_that_set_one_variable_to_different_devices_are_an_error() -> None:
    context = RuntimeContext({"fpga": (Driver(), 1), "nic": (Ordered(), 1), "gpu": (Driver(), 2)})
    with pytest.raises(PluginError, match=r"^'fpga' and 'gpu' both set DEVICES: a process has only one$"):
        context.environment()


def test_environment_of_a_driver_that_has_none_is_an_error() -> None:
    with pytest.raises(PluginError, match=r"the driver of 'nic' sets no environment variables"):
        RuntimeContext({"nic": (Plain(), 1)}).environment()


# All or nothing


@pytest.mark.parametrize("error", [NotEnoughDevicesError("none"), ValueError("foreign"), KeyboardInterrupt()], ids=repr)
def test_what_was_claimed_is_given_back_when_a_later_resource_fails(error: BaseException) -> None:
    first, second, third = Driver(), Driver(error), Driver()
    with pytest.raises((type(error), PluginError)):
        RuntimeContext({"a": (first, 1), "b": (second, 1), "c": (third, 1)})
    assert (first.closed, second.closed, third.closed) == (1, 1, 0)


class Queued(Driver):
    def __init__(self, order: list[str], name: str, coordination_file: str | None, wait: float = 0) -> None:
        super().__init__()
        self.order = order
        self.name = name
        self.coordination_file = coordination_file
        self.wait = wait

    def retrieve_resource_info(self, amount: int) -> Any:
        self.order.append(self.name)
        return super().retrieve_resource_info(amount)


def test_resources_are_retrieved_in_the_order_of_their_files_whatever_their_names_and_paths(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    files = sorted((f"{tmp_path}/{number}" for number in range(3)), key=lambda path: Coordination(path, "").identity())
    for names in itertools.permutations("abc"):
        order: list[str] = []
        paths = files[0], files[1].replace(str(tmp_path), f"{tmp_path}/link"), files[2]
        drivers = {name: Queued(order, name, path, wait=1) for name, path in zip(names, paths, strict=True)}
        drivers["d"] = Queued(order, "d", None)
        RuntimeContext({name: (driver, 1) for name, driver in drivers.items()}).close()
        assert order == ["d", *names]


def test_file_that_cannot_be_used_fails_before_anything_is_claimed(tmp_path: Path) -> None:
    order: list[str] = []
    drivers = {"a": Queued(order, "a", f"{tmp_path}/1"), "b": Queued(order, "b", f"{tmp_path}/missing/1")}
    RuntimeContext({name: (driver, 1) for name, driver in drivers.items()}).close()
    assert order == ["b", "a"]


def test_files_of_one_resource_are_left_to_its_driver(tmp_path: Path) -> None:
    RuntimeContext({"a": (Queued([], "a", f"{tmp_path}/1", wait=1), 1)}).close()
    assert [*tmp_path.iterdir()] == []


def test_of_two_resources_with_one_file_the_one_that_waits_comes_first(tmp_path: Path) -> None:
    order: list[str] = []
    drivers = {"a": Queued(order, "a", f"{tmp_path}/1"), "b": Queued(order, "b", f"{tmp_path}/1", wait=1)}
    RuntimeContext({name: (driver, 1) for name, driver in drivers.items()}).close()
    assert order == ["b", "a"]


def test_two_resources_with_one_file_do_not_both_wait(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    order: list[str] = []
    drivers = {"a": Queued(order, "a", f"{tmp_path}/1", wait=1), "b": Queued(order, "b", f"{tmp_path}/link/1", wait=9)}
    with pytest.raises(ConfigurationError, match=r"'a' and 'b' share one coordination file \(.*/1 and .*/link/1\) and"):
        RuntimeContext({name: (driver, 1) for name, driver in drivers.items()})
    assert order == []


def test_lenient_leaves_out_what_fails_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    drivers = {"one": (Driver(NotEnoughDevicesError("none left")), 1), "two": (Driver(), 1)}
    context = RuntimeContext(drivers, lenient=True)
    assert context.get_external_resource_infos("one") == frozenset()
    assert len(context.get_external_resource_infos("two")) == 1
    assert caplog.record_tuples == [
        ("externalresource", logging.WARNING, "resource 'one' is left out: none left"),
    ]


def test_lenient_gives_back_what_a_failed_driver_may_hold() -> None:
    driver = Driver({Info(0)})
    with RuntimeContext({"one": (driver, 2)}, lenient=True):
        assert driver.closed == 1
    assert driver.closed == 1


@pytest.mark.parametrize("error", [NotEnoughDevicesError("none left"), KeyboardInterrupt()], ids=repr)
def test_driver_that_fails_to_give_back_does_not_hide_the_error_for_which_it_was_to(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    drivers = [Driver(), Driver(not_closed=OSError("cannot give back")), Driver(error)]
    with pytest.raises(type(error)) as caught:
        RuntimeContext({str(number): (driver, 1) for number, driver in enumerate(drivers)})
    assert caught.value is error
    assert [driver.closed for driver in drivers] == [1, 1, 1]
    assert caplog.messages == ["the devices of '1' are not given back: OSError: cannot give back"]


def test_interrupt_while_one_resource_is_given_back_does_not_keep_the_others() -> None:
    drivers = [Driver(not_closed=KeyboardInterrupt()), Driver(), Driver(NotEnoughDevicesError("none left"))]
    with pytest.raises(KeyboardInterrupt):
        RuntimeContext({str(number): (driver, 1) for number, driver in enumerate(drivers)})
    assert [driver.closed for driver in drivers] == [1, 1, 1]
    drivers[0].not_closed = None
    RuntimeContext({})
    assert [driver.closed for driver in drivers] == [2, 1, 1]


@pytest.mark.parametrize("amount", [1, 3])
def test_driver_that_returns_another_number_is_an_error(amount: int) -> None:
    driver = Driver({Info(0), Info(1)})
    message = error_of(driver, amount)
    assert message == f"the driver of 'fpga' returned 2 devices, not the {amount} asked for"
    assert driver.closed == 1


def test_one_device_twice_is_not_two() -> None:
    one = Info(0)
    assert error_of(Driver([one, one])).startswith("the driver of 'fpga' returned 1 devices, not the 2 asked for")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (ValueError("what it\nsays"), "ValueError: what it says"),
        (OSError(5, "no board"), "OSError: [Errno 5] no board"),
        (7, "TypeError: 'int' object is not iterable"),
        ([[]], "TypeError: unhashable type: 'list'"),
    ],
    ids=["raises", "raises OSError", "returns no set", "returns what cannot be in a set"],
)
def test_driver_that_fails_in_its_own_way_is_an_error_that_names_it(answer: object, cause: str) -> None:
    assert error_of(Driver(answer)) == f"the driver of 'fpga' failed: {cause}"


def test_our_own_errors_come_through_as_they_are() -> None:
    error = NotEnoughDevicesError("none left")
    with pytest.raises(NotEnoughDevicesError) as caught:
        RuntimeContext({"fpga": (Driver(error), 1)})
    assert caught.value is error


# What is given back


def test_end_of_the_with_block_gives_back() -> None:
    driver = Driver()
    with RuntimeContext({"fpga": (driver, 1)}) as context:
        assert context.get_external_resource_infos("fpga")
        assert driver.closed == 0
    assert driver.closed == 1


def test_error_in_the_with_block_gives_back() -> None:
    driver = Driver()
    with pytest.raises(ZeroDivisionError), RuntimeContext({"fpga": (driver, 1)}):
        raise ZeroDivisionError
    assert driver.closed == 1


def test_closing_twice_gives_back_once() -> None:
    driver = Driver()
    context = RuntimeContext({"fpga": (driver, 1)})
    context.close()
    context.close()
    assert driver.closed == 1


@pytest.mark.parametrize("lenient", [False, True])
def test_closed_context_has_no_infos_and_says_so(*, lenient: bool) -> None:
    context = RuntimeContext({"fpga": (Driver(), 1)}, lenient=lenient)
    context.close()
    with pytest.raises(ConfigurationError, match="is closed: its devices were given back"):
        context.get_external_resource_infos("fpga")
    with pytest.raises(ConfigurationError, match="is closed: its devices were given back"):
        context.environment()


def test_driver_that_fails_to_give_back_does_not_keep_the_others_from_it() -> None:
    drivers = [Driver(), Driver(not_closed=OSError("cannot give back")), Driver()]
    context = RuntimeContext({str(number): (driver, 1) for number, driver in enumerate(drivers)})
    with pytest.raises(PluginError, match=r"^the devices of '1' are not given back: OSError: cannot"):
        context.close()
    assert [driver.closed for driver in drivers] == [1, 1, 1]


@pytest.mark.parametrize("error", [OSError("no bus"), CoordinationError("locked"), KeyboardInterrupt()], ids=repr)
def test_closing_again_asks_only_those_who_failed(error: BaseException) -> None:
    drivers = [Driver(), Driver(not_closed=error), Driver()]
    context = RuntimeContext({str(number): (driver, 1) for number, driver in enumerate(drivers)})
    for _ in range(2):
        with pytest.raises((ExternalResourceError, KeyboardInterrupt)):
            context.close()
    drivers[1].not_closed = None
    context.close()
    context.close()
    assert [driver.closed for driver in drivers] == [1, 3, 1]


def test_lenient_context_that_could_not_give_back_a_failed_resource_tries_again_at_its_end() -> None:
    driver = Driver(NotEnoughDevicesError("none left"), not_closed=OSError("no bus"))
    with RuntimeContext({"one": (driver, 1)}, lenient=True):
        driver.not_closed = None
    assert driver.closed == 2


def test_driver_need_not_have_anything_to_give_back() -> None:
    RuntimeContext({"nic": (Plain(), 1)}).close()
