"""A device as those that claim one see it, without anything of a driver."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    token: str
    uuid: str | None = None
    parent_uuid: str | None = None
    parent_token: str | None = None
