"""A resource for tests of what stands above drivers: its driver does what it was told to, and counts its ends."""

from collections.abc import Collection, Mapping, Set as AbstractSet
from typing import Any

from externalresource.api import ExternalResourceDriver, ExternalResourceInfo, hookimpl
from externalresource.errors import NotEnoughDevicesError


class Info:
    def __init__(self, number: int) -> None:
        self.number = number

    def get_property(self, key: str) -> str | None:
        return str(self.number) if key == "index" else None

    def get_keys(self) -> Collection[str]:
        return ("index",)


class Driver(ExternalResourceDriver):
    """Gives `amount` infos, or what it was told to; remembers how often it was closed."""

    def __init__(self, answer: object = None, *, not_closed: BaseException | None = None) -> None:
        self.answer = answer
        self.not_closed = not_closed
        self.closed = 0

    def retrieve_resource_info(self, amount: int) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return {Info(number) for number in range(amount)} if self.answer is None else self.answer

    def environment(self, infos: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
        return {"DEVICES": ",".join(sorted(info.get_property("index") or "" for info in infos)), "ORDER": "PCI"}

    def close(self) -> None:
        self.closed += 1
        if self.not_closed is not None:
            raise self.not_closed


class Plain(ExternalResourceDriver):
    def retrieve_resource_info(self, amount: int) -> AbstractSet[ExternalResourceInfo]:
        return {Info(number) for number in range(amount)}


class Ordered(Plain):
    def environment(self, infos: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
        return {"ORDER": "PCI"}


class Factory:
    """Makes the drivers above, by the options of the resource; remembers those options."""

    seen: list[dict[str, str]] = []  # noqa: RUF012 - emptied for each test

    @hookimpl
    def create_external_resource_driver(self, options: Mapping[str, str]) -> ExternalResourceDriver:
        self.seen.append(dict(options))
        return Driver(NotEnoughDevicesError("none left") if "fail" in options else None)


FACTORY = f"{__name__}:Factory"
