"""One device, as a driver's function enumerates it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from externalresource.drivers.containment import flaw
from externalresource.drivers.infos import DeviceInfo

_TEXTS = ("uuid", "unusable", "parent_uuid", "parent_token")


@dataclass(frozen=True, slots=True)
class Device:
    """One device as a driver enumerates it. What is not known is left out; TypeError for what is no text."""

    #: What operators know it by, and the coordination file if it has no UUID.
    index: str
    #: The same on the host and in every container, whatever the index is there.
    uuid: str | None = None
    #: All else that operators may ask for: `name`, `numa_node`, ...
    properties: Mapping[str, str] = field(default_factory=dict)
    #: Variables for a process that uses it; of several devices the values are joined by commas, equal ones stand once.
    #: No two devices have all the same.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Why it must not be handed out; None if nothing speaks against it.
    unusable: str | None = None
    #: The device that this is a part of, if it is one: the two exclude each other. That may be a part, too.
    parent_uuid: str | None = None
    parent_token: str | None = None

    def __post_init__(self) -> None:
        if wrong := flaw(self.environment):
            raise TypeError(
                f"Device {self.index!r}: the environment must be texts by the name of a variable, not {wrong}"
            )
        for name, value in {**self.properties, **{key: getattr(self, key) for key in _TEXTS}}.items():
            if not isinstance(name, str) or not isinstance(value, str | None):
                raise TypeError(f"Device {self.index!r}: {name} must be a text, not {value!r}")

    @property
    def token(self) -> str:
        return self.index


def info_of(device: Device) -> DeviceInfo:
    """Return a device as operators see it."""
    own = {"index": device.index, "unusable": device.unusable, "uuid": device.uuid}
    known = {key: value for key, value in {**own, **device.properties, **own}.items() if value is not None}
    return DeviceInfo(known, device.environment)
