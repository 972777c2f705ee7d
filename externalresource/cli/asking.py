"""How a command asks a driver: whatever that prints goes to stderr, and whatever it raises is one line."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from externalresource.errors import ExternalResourceError, PluginError, cause

if TYPE_CHECKING:
    from externalresource.drivers.contract import ExternalResourceDriver


def driver_of(resource: str, options: Mapping[str, str]) -> "ExternalResourceDriver":
    """Return the driver of a resource."""
    from externalresource.drivers.containment import printing_to_stderr
    from externalresource.drivers.loading import create_driver

    with printing_to_stderr():
        return create_driver(resource, options)


def asked(driver: "ExternalResourceDriver", method: str, resource: str) -> Callable[..., Any]:
    """Return a method that a driver may have; PluginError if this one has not, or if it breaks."""
    found = getattr(driver, method, None)
    if found is None:
        raise PluginError(f"the driver of {resource!r} cannot answer this: it has no {method}()")

    def asked(*arguments: object) -> Any:
        from externalresource.drivers.containment import printing_to_stderr

        try:
            with printing_to_stderr():
                answer = found(*arguments)
                return list(answer) if isinstance(answer, Iterator) else answer  # a generator may still break
        except ExternalResourceError:
            raise
        except Exception as error:
            raise PluginError(f"the driver of {resource!r} failed: {cause(error)}") from error

    return asked
