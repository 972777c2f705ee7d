"""Drivers that inherit nothing: they are given an answer for everything when they are loaded."""

from typing import Any

import pytest

from externalresource.api import ExternalResourceDriver, NotOfferedError
from externalresource.drivers.loading import create_driver
from tests.support.plugins import Install, error_of

FACTORY = """
from externalresource.api import hookimpl

class Driver:
    {body}

@hookimpl
def create_external_resource_driver(options):
    return Driver()
"""
LEAST = "def retrieve_resource_info(self, amount): return {amount}"


def plain(install: Install, *more: str) -> Any:
    install("plain", FACTORY.format(body="\n    ".join([LEAST, *more])), {})
    return create_driver("plain:", {})


def test_plain_object_becomes_a_driver(install: Install) -> None:
    driver = plain(install)
    assert isinstance(driver, ExternalResourceDriver)
    infos: Any = driver.retrieve_resource_info(3)
    assert infos == {3}


def test_what_a_plain_object_has_not_is_answered_as_the_base_class_does(install: Install) -> None:
    driver = plain(install)
    assert (driver.columns, driver.coordination_file, driver.wait, driver.on_wait) == (None, None, 0, None)
    assert tuple(driver.keep_over_exec()) == ()
    driver.close()
    for method, arguments in {"devices": (), "record": (), "held": (), "drop": (bool,), "environment": ((),)}.items():
        with pytest.raises(NotOfferedError, match=rf"^it has no {method}\((infos)?\)$"):
            getattr(driver, method)(*arguments)


def test_what_a_plain_object_has_is_kept(install: Install) -> None:
    driver = plain(
        install,
        "columns = {'number': ('index',)}",
        "coordination_file = '/claims'",
        "wait = 5.0",
        "def devices(self): return [1, 2]",
        "def held(self): return [3]",
        "def close(self): self.wait = 6.0; raise OSError('closed')",
    )
    assert (driver.columns, driver.coordination_file, driver.wait) == ({"number": ("index",)}, "/claims", 5)
    assert (driver.devices(), driver.held()) == ([1, 2], [3])
    with pytest.raises(OSError, match="closed"):
        driver.close()


@pytest.mark.parametrize("slots", ["", "__slots__ = ()"], ids=["with attributes", "with slots"])
def test_plain_object_that_waits_is_told_whom_to_tell(slots: str, install: Install) -> None:
    driver = plain(install, slots, "def close(self): getattr(self, 'on_wait', print)('pid 1')")
    told: list[str] = []
    driver.on_wait = told.append
    driver.close()
    assert told == ([] if slots else ["pid 1"])


def test_object_that_finds_no_devices_is_no_driver(install: Install) -> None:
    install("plain", FACTORY.format(body="pass"), {})
    assert error_of("plain:") == (
        "plugin 'plain:' (import path) created no driver: a Driver has no retrieve_resource_info(amount)"
    )


def test_object_that_breaks_when_it_is_looked_at_is_an_error(install: Install) -> None:
    install("plain", FACTORY.format(body=f"{LEAST}\n    @property\n    def wait(self): raise ValueError('no')"), {})
    assert error_of("plain:") == "plugin 'plain:' (import path) could not create a driver: ValueError: no"
