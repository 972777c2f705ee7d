"""How a command asks a driver: whatever that prints goes to stderr, and whatever it raises is one line."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from externalresource.errors import ExternalResourceError, PluginError, cause

T = TypeVar("T")

if TYPE_CHECKING:
    from externalresource.drivers.contract import ExternalResourceDriver


def driver_of(resource: str, options: Mapping[str, str]) -> "ExternalResourceDriver":
    """Return the driver of a resource."""
    from externalresource.drivers.containment import printing_to_stderr
    from externalresource.drivers.loading import create_driver

    with printing_to_stderr():
        return create_driver(resource, options)


def asked(ask: Callable[[], T], resource: str) -> T:
    """Return what a method of a driver returns; PluginError if the driver does not offer it, or if it breaks."""
    from externalresource.drivers.containment import printing_to_stderr
    from externalresource.drivers.contract import NotOfferedError

    try:
        with printing_to_stderr():
            return ask()
    except NotOfferedError as error:
        raise PluginError(f"the driver of {resource!r} cannot answer this: {error}") from None
    except ExternalResourceError:
        raise
    except Exception as error:
        raise PluginError(f"the driver of {resource!r} failed: {cause(error)}") from error
