"""A device as operators see it."""

import sys
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.drivers.contract import ExternalResourceInfo

_NONE: Mapping[str, str] = MappingProxyType({})


class DeviceInfo:
    """A device as an operator sees it. Two infos are equal if all their properties are."""

    __slots__ = ("_properties", "environment")

    def __init__(self, properties: Mapping[str, str], environment: Mapping[str, str] = _NONE) -> None:
        self._properties = dict(properties)
        self.environment = dict(environment)

    def get_property(self, key: str) -> str | None:
        return self._properties.get(key)

    def get_keys(self) -> Collection[str]:
        return tuple(self._properties)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceInfo) and self._properties == other._properties

    def __hash__(self) -> int:
        return hash(frozenset(self._properties.items()))

    def __repr__(self) -> str:
        return f"DeviceInfo({self._properties})"


def order(infos: "Iterable[ExternalResourceInfo]") -> "list[ExternalResourceInfo]":
    """Return infos by index: numbers first, and slices after the whole, if their property `place` is `WHOLE:NUMBER`."""
    return sorted(infos, key=_place)


def _place(info: "ExternalResourceInfo") -> tuple[list[int], str]:
    index = info.get_property("index") or ""
    place = (info.get_property("place") or index).split(":")
    return ([int(part) for part in place], "") if all(map(str.isdecimal, place)) else ([sys.maxsize], index)
