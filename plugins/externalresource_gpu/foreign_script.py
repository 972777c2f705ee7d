"""A discovery script, ours or anybody's: where it is, running it, what it printed."""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from externalresource.api import Ended, find_script, run_script
from externalresource.errors import ConfigurationError, DiscoveryError
from externalresource_gpu.script.progress import WAITING

_TOKEN = re.compile(r"[\w.:/-]*\d[\w.:/-]*")  # an index, a UUID, a bus id: a word without any digit names no device
_USAGE = 2  # the exit status of our own script for an option that is not allowed


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
        deadline = time.monotonic() + timeout
        telling = ["--terminal", "/dev/stderr"] if self.ours and "--terminal" not in words else []
        ended = run_script(
            [*self.command, *words, *telling],
            deadline,
            name=self.name,
            option="discovery-script.timeout",
            heard=_pass_on if self.ours else None,
        )
        if ended.status != 0:
            kind = ConfigurationError if self.ours and ended.status == _USAGE else DiscoveryError
            raise kind(self._failure(ended))
        return ended.out

    def _failure(self, ended: Ended) -> str:
        if self.ours:  # but for what was passed on already
            lines = ended.err.splitlines()
            ended = ended._replace(err="\n".join(line for line in lines if not line.startswith(WAITING)))
        if self.ours and ended.said:
            return ended.said.removeprefix("nvidia-gpu-discovery: ")
        return f"{self.name} {ended.failure}"


def find(path: str | None) -> Script:
    """Return the script at a path, or our own for None; ConfigurationError if it cannot be run."""
    if path is None:
        return Script(
            "the discovery script", [sys.executable, "-P", "-m", "externalresource_gpu.script.main"], ours=True
        )
    if not path.strip():
        raise ConfigurationError("discovery-script.path is empty; leave it out to use our own script")
    found = find_script(path)
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


def _pass_on(line: str) -> None:
    """Say in our log for whom our script waits: nobody else sees what it says before it ends."""
    if line.startswith(WAITING):
        import logging

        logging.getLogger("externalresource").warning("waiting for gpu: %s", line.removeprefix(WAITING))


def _is_ours(path: str) -> bool:
    """Tell our own script, which an engine may have from another environment, by the module that it starts."""
    try:
        with open(path, "rb") as file:
            return b"from externalresource_gpu.script.main import main" in file.read(4096)
    except OSError:  # it may be executable and not readable
        return False
