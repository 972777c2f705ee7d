"""What the author of a driver imports: `driver` and `Device`, or the hook and the protocols that stand behind them.

The names are resolved when they are first used (PEP 562): a driver pays for what it needs.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from externalresource.coordination.own_claims import Grants
    from externalresource.drivers.child import Child, Overdue
    from externalresource.drivers.contract import (
        API_VERSION,
        Closing,
        Columns,
        Described,
        Environment,
        ExternalResourceDriver,
        ExternalResourceDriverFactory,
        ExternalResourceInfo,
        Holders,
        Keeping,
        Listing,
        Queueing,
        Recording,
        Versioned,
        hookimpl,
    )
    from externalresource.drivers.discovery_script import Ended, find_script, run_script
    from externalresource.drivers.enumerated import Device, DeviceInfo, driver
    from externalresource.drivers.options import Option

__all__ = [
    "API_VERSION",
    "Child",
    "Closing",
    "Columns",
    "Described",
    "Device",
    "DeviceInfo",
    "Ended",
    "Environment",
    "ExternalResourceDriver",
    "ExternalResourceDriverFactory",
    "ExternalResourceInfo",
    "Grants",
    "Holders",
    "Keeping",
    "Listing",
    "Option",
    "Overdue",
    "Queueing",
    "Recording",
    "Versioned",
    "driver",
    "find_script",
    "hookimpl",
    "run_script",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_home(name), name)


def _home(name: str) -> "ModuleType":
    """Return the room of a name. No importlib: the GPU's discovery script comes here before nvidia-smi is started."""
    if name in ("Child", "Overdue"):
        from externalresource.drivers import child

        return child
    if name in ("Device", "DeviceInfo", "driver"):
        from externalresource.drivers import enumerated

        return enumerated
    if name == "Grants":
        from externalresource.coordination import own_claims

        return own_claims
    if name in ("Ended", "find_script", "run_script"):
        from externalresource.drivers import discovery_script

        return discovery_script
    if name == "Option":
        from externalresource.drivers import options

        return options
    from externalresource.drivers import contract

    return contract


def __dir__() -> list[str]:
    return sorted(__all__)
