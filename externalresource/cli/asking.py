"""How a command asks a driver: whatever that prints goes to stderr, and whatever it raises is one line."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from externalresource.errors import ExternalResourceError, PluginError, cause

if TYPE_CHECKING:
    from externalresource.drivers import ExternalResourceDriver

_A = TypeVar("_A")


def driver_of(resource: str, options: Mapping[str, str]) -> "ExternalResourceDriver":
    from externalresource.drivers import create_driver, printing_to_stderr

    with printing_to_stderr():
        return create_driver(resource, options)


def asked(resource: str, question: Callable[..., _A], *arguments: object) -> _A:
    """Return what a method of the driver answers; PluginError if the driver has none, or if it breaks."""
    from externalresource.drivers import NotOfferedError, printing_to_stderr

    try:
        with printing_to_stderr():
            return question(*arguments)
    except NotOfferedError as error:
        error.args = (f"the driver of {resource!r} cannot answer this: {error}",)
        raise
    except ExternalResourceError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"the driver of {resource!r} failed: {cause(error)}") from error


def listed(resource: str, question: Callable[..., Iterable[_A]], *arguments: object) -> list[_A]:
    """Return a driver's answer of several: a generator breaks only while it is read."""
    return asked(resource, lambda: list(question(*arguments)))
