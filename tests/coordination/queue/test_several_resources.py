"""Waiting for several resources: nobody holds one while it waits for another that comes before it."""

import os
from collections.abc import Callable, Collection

from externalresource.api import ExternalResourceInfo
from externalresource.context import RuntimeContext
from externalresource.coordination import Coordination
from tests.support.claiming import leftovers, me, places
from tests.support.devices import Device
from tests.support.processes import Start, wait_until


class Pool:
    """A driver of one device, for which it waits; it says what it is about to do."""

    def __init__(self, path: str, told: Callable[[], None]) -> None:
        self.coordination_file = path
        self.wait = 20
        self._shared = Coordination(path, "fpga")
        self._told = told
        self._claimed: list[Device] = []

    def retrieve_resource_info(self, amount: int) -> Collection[ExternalResourceInfo]:
        self._claimed = self._shared.claim([Device("0")], amount, me(), wait=self.wait)
        self._told()
        return [Info()] * amount

    def close(self) -> None:
        self._shared.release(self._claimed, me())


class Info:
    def get_property(self, key: str) -> str | None:
        return None

    def get_keys(self) -> Collection[str]:
        return ()


def test_two_that_want_the_same_resources_in_opposite_order_both_get_them(path: str, start: Start) -> None:
    a, b = f"{path}-a", f"{path}-b"

    def hold_both(first: str, second: str, after: Callable[[], None]) -> list[str]:
        resources = {"x": (Pool(first, after), 1), "y": (Pool(second, after), 1)}
        with RuntimeContext(resources) as context:  # type: ignore[arg-type] # a list for the set of the protocol
            return [name for name in resources if context.get_external_resource_infos(name)]

    def until_the_other_one_has_begun() -> None:
        wait_until(lambda: places(a) or os.path.exists(b))

    one = start(lambda: hold_both(a, b, until_the_other_one_has_begun))
    wait_until(lambda: os.path.exists(a))
    other = start(lambda: hold_both(b, a, lambda: None))
    assert (one.result(), other.result()) == (["x", "y"], ["x", "y"])
    assert leftovers(a) <= {b, f"{b}.lock"}
