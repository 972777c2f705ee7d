"""What the author of a driver imports: `driver` and `Device`, or the hook and the protocols that stand behind them.

Importing this costs little: what only some drivers need is loaded when it is first used.
"""

from externalresource.hookspecs import (
    API_VERSION,
    Closing,
    Columns,
    Environment,
    ExternalResourceDriver,
    ExternalResourceDriverFactory,
    ExternalResourceInfo,
    Holders,
    Keeping,
    Listing,
    Queueing,
    Recording,
    hookimpl,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.drivers import Device, DeviceInfo, driver
    from externalresource.grants import Grants

__all__ = [
    "API_VERSION",
    "Closing",
    "Columns",
    "Device",
    "DeviceInfo",
    "Environment",
    "ExternalResourceDriver",
    "ExternalResourceDriverFactory",
    "ExternalResourceInfo",
    "Grants",
    "Holders",
    "Keeping",
    "Listing",
    "Queueing",
    "Recording",
    "driver",
    "hookimpl",
]


def __getattr__(name: str) -> object:
    if name == "Grants":
        from externalresource import grants

        return grants.Grants
    if name in __all__:
        from externalresource import drivers

        return getattr(drivers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
