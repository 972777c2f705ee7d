"""Infos: what a device says, and in which order devices stand."""

import pytest

from externalresource.api import DeviceInfo, order


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["10", "9", "0"], ["0", "9", "10"]),
        (["b", "7", "a", "1²"], ["7", "1²", "a", "b"]),
        ([], []),
    ],
    ids=["numbers", "names", "none"],
)
def test_infos_stand_in_the_order_of_their_indices(given: list[str], expected: list[str]) -> None:
    infos = order(DeviceInfo({"index": index}) for index in given)
    assert [info.get_property("index") for info in infos] == expected


def test_slices_stand_after_their_whole_by_number() -> None:
    places = {"MIG-c": "1:10", "MIG-b": "1:2", "MIG-a": "2:0"}
    slices = [DeviceInfo({"index": index, "place": place}) for index, place in places.items()]
    found = order([*slices, DeviceInfo({"index": "2"}), DeviceInfo({"index": "1"})])
    assert [info.get_property("index") for info in found] == ["1", "MIG-b", "MIG-c", "2", "MIG-a"]


def test_info_keeps_what_it_was_given() -> None:
    properties, environment = {"index": "0"}, {"BOARDS": "0"}
    info = DeviceInfo(properties, environment)
    properties.clear()
    environment.clear()
    assert (info.get_property("index"), info.environment) == ("0", {"BOARDS": "0"})
