"""From the name of a driver to its devices. Authors of drivers enter by `externalresource.api`."""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.drivers.containment import printing_to_stderr
    from externalresource.drivers.contract import (
        ExternalResourceDriver,
        ExternalResourceInfo,
        NotOfferedError,
        properties,
    )
    from externalresource.drivers.device import Device, info_of
    from externalresource.drivers.loading import create_driver

__all__ = [
    "Device",
    "ExternalResourceDriver",
    "ExternalResourceInfo",
    "NotOfferedError",
    "create_driver",
    "info_of",
    "printing_to_stderr",
    "properties",
]

_NAMES = {
    "containment": "printing_to_stderr",
    "contract": "ExternalResourceDriver ExternalResourceInfo NotOfferedError properties",
    "device": "Device info_of",
    "loading": "create_driver",
}
__getattr__, __dir__ = face(__name__, _NAMES)
