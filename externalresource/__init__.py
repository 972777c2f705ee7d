"""Gives each process on a host its own GPUs, or any other device.

The public names are resolved when they are first used (PEP 562): importing this package costs nothing.

PYTEST_DONT_REWRITE: pytest marks all packages beside its plugin, and warns of those that are imported already.
"""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.api import (
        Device as Device,
        ExternalResourceDriver as ExternalResourceDriver,
        ExternalResourceDriverFactory as ExternalResourceDriverFactory,
        ExternalResourceInfo as ExternalResourceInfo,
        driver as driver,
        hookimpl as hookimpl,
    )
    from externalresource.context import (
        RuntimeContext as RuntimeContext,
        claim as claim,
        runtime_context as runtime_context,
    )
    from externalresource.errors import (
        ConfigurationError as ConfigurationError,
        CoordinationError as CoordinationError,
        DiscoveryError as DiscoveryError,
        ExternalResourceError as ExternalResourceError,
        NotEnoughDevicesError as NotEnoughDevicesError,
        PluginError as PluginError,
    )
    from externalresource.pools import claim_for_worker as claim_for_worker

_NAMES = {
    "api": "Device ExternalResourceDriver ExternalResourceDriverFactory ExternalResourceInfo driver hookimpl",
    "context": "RuntimeContext claim runtime_context",
    "errors": "ConfigurationError CoordinationError DiscoveryError ExternalResourceError NotEnoughDevicesError"
    " PluginError",
    "pools": "claim_for_worker",
}
__getattr__, __dir__, __all__ = face(__name__, _NAMES)
