"""Gives each process on a host its own GPUs, or any other device.

The public names are resolved when they are first used (PEP 562): importing this package costs nothing.

PYTEST_DONT_REWRITE: pytest marks all packages beside its plugin, and warns of those that are imported already.
"""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.api import (
        Device,
        ExternalResourceDriver,
        ExternalResourceDriverFactory,
        ExternalResourceInfo,
        driver,
        hookimpl,
    )
    from externalresource.context import RuntimeContext, claim, runtime_context
    from externalresource.errors import (
        ConfigurationError,
        CoordinationError,
        DiscoveryError,
        ExternalResourceError,
        NotEnoughDevicesError,
        PluginError,
    )
    from externalresource.pools import claim_for_worker

__all__ = [
    "ConfigurationError",
    "CoordinationError",
    "Device",
    "DiscoveryError",
    "ExternalResourceDriver",
    "ExternalResourceDriverFactory",
    "ExternalResourceError",
    "ExternalResourceInfo",
    "NotEnoughDevicesError",
    "PluginError",
    "RuntimeContext",
    "claim",
    "claim_for_worker",
    "driver",
    "hookimpl",
    "runtime_context",
]

_NAMES = {
    "api": "Device ExternalResourceDriver ExternalResourceDriverFactory ExternalResourceInfo driver hookimpl",
    "context": "RuntimeContext claim runtime_context",
    "errors": "ConfigurationError CoordinationError DiscoveryError ExternalResourceError NotEnoughDevicesError"
    " PluginError",
    "pools": "claim_for_worker",
}
__getattr__, __dir__ = face(__name__, _NAMES)
