"""Somebody's discovery script, in whatever language: where it is, and what it said before its deadline."""

import errno
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from externalresource.drivers.child import Child, Overdue
from externalresource.errors import ConfigurationError, DiscoveryError

_SHOWN = 2000  # characters of what a script said that an error repeats
_ADVICE = {
    errno.ENOENT: "; the interpreter in its first line does not exist",
    errno.ENOEXEC: "; its first line must name its interpreter, as #!/bin/sh does",
}


class Ended(NamedTuple):
    """How a script ended, and what it said."""

    #: Minus the number of the signal that ended it.
    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """What a script that failed said of it, in one line; empty if it said nothing."""
        return " ".join((self.err.strip() or self.out.strip()).split())[:_SHOWN]

    @property
    def failure(self) -> str:
        """How it failed, and what it said of that."""
        how = f"was ended by signal {-self.status}" if self.status < 0 else f"exited with {self.status}"
        return f"{how}: {self.said or 'it said nothing'}"


def find_script(path: str) -> str:
    """Return the script that is meant by Flink's `discovery-script.path`; ConfigurationError if it cannot be run."""
    looked = _places(path)
    found = next((place for place in looked if os.path.isfile(place)), None)
    if found is None:
        what = "is a directory" if any(map(os.path.isdir, looked)) else "does not exist"
        raise ConfigurationError(f"the discovery script {path} {what}; looked for {' and '.join(looked)}")
    if not os.access(found, os.X_OK):
        raise ConfigurationError(f"the discovery script {found} is not executable; chmod +x it")
    return found


def run_script(command: Sequence[str], deadline: float, *, name: str, option: str) -> Ended:
    """Return how it ended. DiscoveryError if it cannot be started, or has not ended by `deadline` (`time.monotonic`).

    The script is killed then, with all that it started. Errors say `name` for it, and which option gives it more time.
    """
    began = time.monotonic()
    try:
        return Ended(*Child(command).result(deadline))
    except Overdue:
        raise DiscoveryError(
            f"{name} did not answer within {max(0.0, deadline - began):.3g} s and was killed; see {option}"
        ) from None
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "")
        raise DiscoveryError(f"{name} could not be run: {error.strerror or error}{advice}") from None


def _places(path: str) -> list[str]:
    """Return where Flink looks (FLINK_HOME, else the current folder), and then FLINK_PLUGINS_DIR, which Flink forgets.

    Flink's default starts with `plugins/`, the usual name of that folder itself.
    """
    if os.path.isabs(path):
        return [path]
    places = [os.path.join(os.environ.get("FLINK_HOME") or os.getcwd(), path)]
    if plugins := os.environ.get("FLINK_PLUGINS_DIR"):
        places.append(os.path.join(plugins, path.removeprefix("plugins/")))
    return places
