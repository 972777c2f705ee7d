"""For which version of the driver API a plugin was written."""

import pytest

from externalresource.api import API_VERSION
from externalresource.drivers.loading import create_driver
from tests.support.plugins import FACTORY, MODULE, OBJECT, Install, error_of

VERSIONED = {
    "class": ("fpga:Factory", FACTORY + "    api_version = {}\n"),
    "instance": ("fpga:factory", OBJECT + "factory.api_version = {}\n"),
    "module": ("fpga", "api_version = {}\n" + MODULE),
    "module of a class": ("fpga:Factory", "api_version = {}\n" + FACTORY),
    "module of a function": (
        "fpga:fpga",
        "api_version = {}\nfrom externalresource.api import driver\n@driver('fpga')\ndef fpga(): return []\n",
    ),
}


@pytest.mark.parametrize(("value", "code"), VERSIONED.values(), ids=VERSIONED)
@pytest.mark.parametrize("version", [API_VERSION + 1, API_VERSION - 1, "new"])
def test_plugin_for_another_version_of_the_api_is_an_error_naming_both(
    value: str, code: str, version: object, install: Install
) -> None:
    install("fpga", code.format(repr(version)), {"fpga": value})
    assert error_of("fpga") == (
        f"plugin 'fpga' (entry point {value} of fpga 1.0) was written for version {version!r} of the driver API, and "
        f"this externalresource has version {API_VERSION}: install releases of the two that fit"
    )


@pytest.mark.parametrize(("value", "code"), VERSIONED.values(), ids=VERSIONED)
def test_plugin_for_this_version_of_the_api_is_used(value: str, code: str, install: Install) -> None:
    install("fpga", code.format(API_VERSION), {"fpga": value})
    assert create_driver("fpga", {}) is not None
