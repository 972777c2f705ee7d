"""What the author of a driver imports: `driver` and `Device`, or the hook and the protocols that stand behind them.

The names are resolved when they are first used (PEP 562): a driver pays for what it needs.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from externalresource.child import Child, Overdue
    from externalresource.drivers import Device, DeviceInfo, driver
    from externalresource.grants import Grants
    from externalresource.hookspecs import (
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
    from externalresource.options import Option
    from externalresource.script import Ended, find_script, run_script

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
        from externalresource import child

        return child
    if name in ("Device", "DeviceInfo", "driver"):
        from externalresource import drivers

        return drivers
    if name == "Grants":
        from externalresource import grants

        return grants
    if name in ("Ended", "find_script", "run_script"):
        from externalresource import script

        return script
    if name == "Option":
        from externalresource import options

        return options
    from externalresource import hookspecs

    return hookspecs


def __dir__() -> list[str]:
    return sorted(__all__)
