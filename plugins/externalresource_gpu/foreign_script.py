"""GPUs that somebody's discovery script hands out, by Flink's protocol."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from externalresource.api import Device, DeviceInfo, ExternalResourceDriver, ExternalResourceInfo, run_script
from externalresource.coordination import Claim, Coordination, Holder, Process, identify
from externalresource.errors import CoordinationError, DiscoveryError
from externalresource_gpu.driver import environment
from externalresource_gpu.others import warn_of_others
from externalresource_gpu.script.options import ALIASES, DEFAULT_COORDINATION_FILE, check_blanks, variable

_TOKEN = re.compile(r"[\w.:/-]*\d[\w.:/-]*")  # an index, a UUID, a bus id: a word without any digit names no device
_TAKING_BACK = 0.5  # seconds for the lock to be free

#: A holder of a claim: token, pid, grant, since when.
_Held = tuple[str, int, str | None, str | None]


class ScriptDriver(ExternalResourceDriver):
    """Runs the script as a child of this process, which thus owns what that claims."""

    def __init__(self, script: str, words: Sequence[str], timeout: float) -> None:
        self._script, self._words, self._timeout = script, words, timeout
        file, is_told = _coordination(words, os.environ)
        self.coordination_file = file if is_told and os.path.isabs(file) else None
        self._coordination = None if self.coordination_file is None else Coordination(self.coordination_file, "gpu")
        self._file = file
        self._recorded: set[_Held] = set()

    def retrieve_resource_info(self, amount: int) -> set[ExternalResourceInfo]:
        """Return `amount` GPUs; DiscoveryError if the script fails, is late, or answers anything else."""
        before = self._held()
        try:
            found = tokens(self._answer(amount), amount)
        except BaseException:
            with contextlib.suppress(CoordinationError):
                self._give_back(self._held() - before, deadline=time.monotonic() + _TAKING_BACK)
            raise
        finally:
            self._recorded |= self._held() - before
        if self._coordination is None and os.path.exists(self._file):
            warn_of_others(Coordination(self._file, "gpu"), [Device(token) for token in found])
        return {DeviceInfo({"index": token}) for token in found}

    def devices(self) -> Collection[ExternalResourceInfo]:
        raise DiscoveryError(f"{self._script} cannot list devices: only our own discovery script does")

    def record(self) -> str:
        raise DiscoveryError(f"{self._script} cannot describe the host: only our own discovery script does")

    def environment(self, gpus: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
        return environment(gpus)

    def held(self, process: Process | None = None) -> Collection[Claim]:
        """Return who holds which GPU, by the coordination file that the script is told to use."""
        return self._books().held(process)

    def drop(self, which: Callable[[Claim, Holder], bool]) -> Collection[tuple[Claim, Holder]]:
        """Strike out the holders of claims for which `which` answers True, and return them."""
        return self._books().drop(which)

    def close(self) -> None:
        """Give back what was recorded for this process. In a forked child nothing happens: it is the parent's."""
        self._give_back(self._recorded)
        self._recorded = set()

    def _books(self) -> Coordination:
        if self._coordination is None:
            raise DiscoveryError(f"{self._script} is not told to coordinate: nobody knows who holds what")
        return self._coordination

    def _answer(self, amount: int) -> str:
        ended = run_script(
            [self._script, str(amount), *self._words],
            time.monotonic() + self._timeout,
            name=self._script,
            option="discovery-script.timeout",
        )
        if ended.status != 0:
            raise DiscoveryError(f"{self._script} {ended.failure}")
        return ended.out

    def _held(self) -> set[_Held]:
        """Return what is recorded for this process, as far as the script keeps such a file as ours."""
        if self._coordination is None:
            return set()
        itself = identify(os.getpid())
        with contextlib.suppress(CoordinationError):
            claims = self._coordination.held()
            return {_held(claim, each) for claim in claims for each in claim.holders if each.is_of(itself)}
        return set()

    def _give_back(self, held: set[_Held], deadline: float | None = None) -> None:
        itself = identify(os.getpid())
        own = {each for each in held if each[1] == itself.pid}
        if own and self._coordination is not None:
            self._coordination.drop(
                lambda claim, holder: holder.is_of(itself) and _held(claim, holder) in own, deadline=deadline
            )


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


def _coordination(words: Sequence[str], environment: Mapping[str, str]) -> tuple[str, bool]:
    """Return where a script that understands Flink's two options would keep its claims, and whether it is to."""
    said = {"mode": environment.get(variable("enable-coordination-mode"), "false")}
    said["file"] = environment.get(variable("coordination-file"), DEFAULT_COORDINATION_FILE)
    for word, following in zip(words, [*words[1:], ""], strict=False):
        check_blanks(word)
        name, equals, value = word.removeprefix("--").partition("=")
        if ALIASES.get(name, name) == "enable-coordination-mode":
            said["mode"] = value if equals else "true"
        elif name == "coordination-file":
            said["file"] = value if equals else following
    return said["file"], said["mode"] == "true"


def _held(claim: Claim, holder: Holder) -> _Held:
    return claim.token, holder.process.pid, holder.grant, holder.since
