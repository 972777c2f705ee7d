"""From the name of a driver to its devices. Authors of drivers enter by `externalresource.api`."""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.drivers.containment import printing_to_stderr as printing_to_stderr
    from externalresource.drivers.contract import (
        ExternalResourceDriver as ExternalResourceDriver,
        ExternalResourceInfo as ExternalResourceInfo,
        NotOfferedError as NotOfferedError,
        properties as properties,
    )
    from externalresource.drivers.device import Device as Device, info_of as info_of
    from externalresource.drivers.loading import create_driver as create_driver

_NAMES = {
    "containment": "printing_to_stderr",
    "contract": "ExternalResourceDriver ExternalResourceInfo NotOfferedError properties",
    "device": "Device info_of",
    "loading": "create_driver",
}
__getattr__, __dir__, __all__ = face(__name__, _NAMES)
