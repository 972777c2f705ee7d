"""A discovery script, ours or anybody's: where it is, running it, what it printed."""

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from externalresource.api import Child, Overdue
from externalresource.errors import ConfigurationError, DiscoveryError

_TOKEN = re.compile(r"[\w.:/-]*\d[\w.:/-]*")  # an index, a UUID, a bus id: a word without any digit names no device
_USAGE = 2  # the exit status of our own script for an option that is not allowed
_SHOWN = 2000  # characters of what a script said that an error repeats


@dataclass(frozen=True, slots=True)
class Script:
    """An executable that speaks Flink's protocol."""

    name: str
    command: Sequence[str]
    #: It is our own script, of this installation or another: it knows our options and answers in JSON.
    ours: bool

    def run(self, words: Sequence[str], timeout: float) -> str:
        """Return its stdout; DiscoveryError if it does not exit with 0 within `timeout` seconds.

        ConfigurationError if it is ours and does not allow an option.
        """
        try:
            status, out, err = Child([*self.command, *words]).result(time.monotonic() + timeout)
        except Overdue:
            raise DiscoveryError(
                f"{self.name} did not answer within {timeout:g} s and was killed; see discovery-script.timeout"
            ) from None
        except OSError as error:
            raise DiscoveryError(f"{self.name} could not be run: {error.strerror or error}") from None
        if status != 0:
            kind = ConfigurationError if self.ours and status == _USAGE else DiscoveryError
            raise kind(self._failure(status, err.strip() or out.strip()))
        return out

    def _failure(self, status: int, text: str) -> str:
        said = " ".join(text.split())[:_SHOWN]
        if self.ours and said:
            return said.removeprefix("nvidia-gpu-discovery: ")
        how = f"was ended by signal {-status}" if status < 0 else f"exited with {status}"
        return f"{self.name} {how}: {said or 'it said nothing'}"


def find(path: str | None) -> Script:
    """Return the script at a path, or our own for None; ConfigurationError if it cannot be run."""
    if path is None:
        return Script("the discovery script", [sys.executable, "-P", "-m", "externalresource_gpu.discovery"], ours=True)
    if not path.strip():
        raise ConfigurationError("discovery-script.path is empty; leave it out to use our own script")
    looked = _places(path)
    found = next((place for place in looked if os.path.isfile(place)), None)
    if found is None:
        what = "is a directory" if any(map(os.path.isdir, looked)) else "does not exist"
        raise ConfigurationError(f"the discovery script {path} {what}; looked for {' and '.join(looked)}")
    if not os.access(found, os.X_OK):
        raise ConfigurationError(f"the discovery script {found} is not executable; chmod +x it")
    return Script(found, [found], ours=_is_ours(found))


def tokens(out: str, amount: int) -> list[str]:
    """Return the devices that a script printed in Flink's protocol: exactly one line, tokens joined by commas.

    Flink takes any words, any number of them, and of several lines the first: a wrong answer without a word.
    """
    lines = out.rstrip("\n").split("\n")
    if len(lines) > 1 or not lines[0].strip():
        what = f"{len(lines)} lines" if out.strip() else "nothing"
        raise DiscoveryError(f"the discovery script printed {what}, not one line of devices: {out[:80]!r}")
    found = [token.strip() for token in lines[0].split(",") if token.strip()]
    seen: set[str] = set()
    for token in found:
        if not _TOKEN.fullmatch(token):
            raise DiscoveryError(f"the discovery script printed {token[:80]!r}, which is neither an index nor a UUID")
        if token in seen:
            raise DiscoveryError(f"the discovery script printed device {token!r} more than once: {lines[0][:80]!r}")
        seen.add(token)
    if len(found) != amount:
        raise DiscoveryError(f"the discovery script printed {len(found)} devices, not the {amount} asked for")
    return found


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


def _is_ours(path: str) -> bool:
    """Tell our own script, which an engine may have from another environment, by the module that it starts."""
    try:
        with open(path, "rb") as file:
            return b"from externalresource_gpu.discovery import main" in file.read(4096)
    except OSError:  # it may be executable and not readable
        return False
