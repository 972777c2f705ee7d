"""A driver whose answers raise what none should; found by its import path, with this folder on PYTHONPATH."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import externalresource
from externalresource.api import ExternalResourceInfo


class Driver:
    coordination_file = "/claims"

    def retrieve_resource_info(self, amount: int) -> set[ExternalResourceInfo]:
        return set()

    def devices(self) -> Iterator[ExternalResourceInfo]:
        nothing: Sequence[ExternalResourceInfo] = []
        yield from nothing
        raise ValueError("no\nbus")

    def held(self) -> NoReturn:
        raise ValueError("no claims")


class Factory:
    @externalresource.hookimpl
    def create_external_resource_driver(self, options: Mapping[str, str]) -> Driver:
        return Driver()
