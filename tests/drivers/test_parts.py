"""A driver's devices whose parts have parts: the author names the next level only."""

from pathlib import Path

import pytest

from externalresource.api import Device, ExternalResourceDriver, driver
from externalresource.errors import DiscoveryError, NotEnoughDevicesError

BOARD = Device("0", "B")
BROKEN_HALF = Device("0.a", "B-a", unusable="it does not answer", parent_uuid="B")
QUARTERS = [Device("0.a.1", "B-a-1", parent_token="0.a"), Device("0.a.2", "B-a-2", parent_token="0.a")]
ALL = [BOARD, BROKEN_HALF, *QUARTERS]


@pytest.fixture(params=["true", "false"], ids=["coordinated", "alone"])
def coordinated(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


def of(devices: list[Device], folder: Path, coordinated: str = "true", **options: str) -> ExternalResourceDriver:
    given = {"enable-coordination-mode": coordinated, "coordination-file": f"{folder}/ledger", **options}
    return driver("fpga")(lambda: devices).create_external_resource_driver(given)


def taken(made: ExternalResourceDriver, amount: int) -> list[str]:
    return sorted(info.get_property("index") or "" for info in made.retrieve_resource_info(amount))


@pytest.mark.parametrize("wait", ["0", "0.1"])
def test_board_and_a_quarter_of_it_are_not_two_though_their_half_is_not_usable(
    tmp_path: Path, coordinated: str, wait: str
) -> None:
    made = of(ALL, tmp_path, coordinated, wait=wait)
    assert taken(made, 2) == ["0.a.1", "0.a.2"]
    made.close()
    with pytest.raises(NotEnoughDevicesError):
        of(ALL[:3], tmp_path, coordinated, wait=wait).retrieve_resource_info(2)


def test_board_is_held_by_who_holds_a_quarter_of_a_half_that_is_not_usable(tmp_path: Path) -> None:
    holder = of(ALL, tmp_path)
    assert taken(holder, 2) == ["0.a.1", "0.a.2"]
    for listed in (ALL, [BOARD]):
        with pytest.raises(NotEnoughDevicesError, match=r"1 wanted, 0 of . free; held by pid"):
            of(listed, tmp_path).retrieve_resource_info(1)
    holder.close()
    assert taken(of([BOARD], tmp_path), 1) == ["0"]


def test_device_that_is_a_part_of_itself_is_an_error_in_one_line(tmp_path: Path, coordinated: str) -> None:
    circle = [Device("0", "A", parent_uuid="B"), Device("1", "B", parent_token="0")]
    with pytest.raises(DiscoveryError) as caught:
        of(circle, tmp_path, coordinated).retrieve_resource_info(1)
    assert str(caught.value) == (
        "the driver's device 0 is a part of B, and so of itself: correct its parent_uuid and parent_token"
    )
    assert [*tmp_path.iterdir()] == []
