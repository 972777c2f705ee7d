"""What a device may be made of."""

from collections.abc import Iterable
from typing import Any

import pytest

from externalresource.api import Device, driver, info_of
from externalresource.errors import DiscoveryError


@pytest.mark.parametrize(
    "fields",
    [
        {"environment": {"A": 3}},
        {"environment": {"A": None}},
        {"environment": {"A=B": "3"}},
        {"environment": {"": "3"}},
        {"environment": {1: "3"}},
        {"environment": {"A": "a\0b"}},
        {"environment": {"A": "\ud800"}},
        {"environment": None},
        {"environment": "A=3"},
        {"properties": {"size": 3}},
        {"uuid": 5},
        {"unusable": True},
        {"parent_uuid": b"U"},
    ],
)
def test_device_is_refused_where_it_is_made_of_what_is_no_text(fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"^Device '0': .* must be "):
        Device("0", **fields)


def test_device_of_what_is_no_text_is_an_error_of_the_enumeration() -> None:
    @driver("fpga")
    def wrong() -> Iterable[Device]:
        yield Device("0", environment={"A": 3})  # type: ignore[dict-item] # that is the point

    with pytest.raises(DiscoveryError) as caught:
        wrong.create_external_resource_driver({}).devices()
    assert str(caught.value) == (
        "the fpga driver failed: TypeError: Device '0': the environment must be texts by the name of a variable, not "
        "with 3 for 'A'"
    )


def test_properties_cannot_hide_what_a_device_is() -> None:
    info = info_of(Device("0", "u", {"index": "9", "uuid": "x", "unusable": "x"}))
    assert (info.get_property("index"), info.get_property("uuid"), info.get_property("unusable")) == ("0", "u", None)
