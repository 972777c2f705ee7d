"""One base error and its kinds. A message is one line: what happened, with which value, what is allowed, what to do."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class ExternalResourceError(Exception):
    """The base of all errors that this project raises on purpose."""


class ConfigurationError(ExternalResourceError):
    """A key, a value or an option is not allowed."""


class PluginError(ExternalResourceError):
    """A driver could not be found, loaded or created."""


class DiscoveryError(ExternalResourceError):
    """The devices of this host could not be determined."""


class CoordinationError(ExternalResourceError):
    """The coordination file could not be locked, read or written: nothing was granted."""


class NotEnoughDevicesError(ExternalResourceError):
    """Fewer devices than wanted exist here or are free now."""


def too_few(wanted: int, here: int) -> NotEnoughDevicesError:
    """Return the error that no other process has to do with."""
    return NotEnoughDevicesError(f"{wanted} wanted, this host has {here}")


def printable(text: str) -> str:
    """Return one line that changes nothing but its own place on a terminal: a process calls itself what it likes."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def cause(error: BaseException) -> str:
    """Return what foreign code raised, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def nearest(word: str, known: "Iterable[str]") -> str | None:
    """Return the known word nearest to `word`; None if none is near."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: "Iterable[str]") -> str:
    """Return ", did you mean 'x'?" for the known word nearest to `word`, or nothing if none is near."""
    near = nearest(word, known)
    return f", did you mean {near!r}?" if near is not None else ""


def warn(message: str) -> None:
    """Say in the log what is no error."""
    import logging

    logging.getLogger("externalresource").warning(message)
