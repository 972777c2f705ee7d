"""What a running Flink advertises, by its REST API, against what its TaskManagers hold or have found.

A TaskManager whose discovery failed advertises its devices all the same: Flink schedules onto them.
"""

import json
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from http.client import HTTPException, InvalidURL
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from externalresource.coordination import above, pid_here
from externalresource.errors import ConfigurationError, ExternalResourceError
from externalresource.flink import task_manager
from externalresource.flink.configuration import GPU_FACTORY, Written
from externalresource.flink.doctor.findings import WARNING, Finding, Looked, Note, NotLooked
from externalresource.flink.doctor.host import ledger_of
from externalresource.flink.doctor.keys import Settings, text

_PATIENCE = 5  # seconds for each answer
_LARGEST = 4 << 20  # bytes of a log: discovery stands at its beginning
_ADDRESS = re.compile(r"@(.+):([0-9]+)/")
_FOUND = re.compile(r"Discover GPU resources: \[(.*)\]\.")
_SAYS_WHY = re.compile(
    r"WARN .*(?:Discovery script exit|Could not instantiate driver|Could not find (?:factory|driver) class"
    r"|Will ignore that resource)|^STDERR: \S|TimeoutException: The discovery script"
)
_NO_PLACE = re.compile(r"^\S+ \S+ WARN +\S+ +\[.*?\] - ")  # when, and in which class
_STARTED = "Enabled external resources"
_CAUSES = 3  # lines of a log

_Log = Callable[[], str]


class _TaskManager(NamedTuple):
    id: str
    advertised: Mapping[str, float]
    #: None if it does not run here, or is not ours to look at.
    pid: int | None

    @property
    def name(self) -> str:
        return f"TaskManager {self.id}" + (f" (pid {self.pid})" if self.pid else "")


def address(settings: Settings) -> str:
    """Return where a configuration says that the REST API is."""
    host = text(settings.get("rest.address")) or text(settings.get("jobmanager.rpc.address")) or "localhost"
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    encrypted = text(settings.get("security.ssl.rest.enabled")) == "true"
    return f"http{'s' * encrypted}://{host}:{text(settings.get('rest.port')) or 8081}"


def check_address(url: str) -> str:
    """Return the URL without a slash at its end, and without what the web UI has after `#`.

    ConfigurationError if it is none.
    """
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port or an address in brackets that is none
        is_one = False
    if not is_one or re.search(r"\s", url):
        raise ConfigurationError(f"--rest must be the address of Flink's REST API, http://host:8081, not {url!r}")
    return parts._replace(query="", fragment="").geturl().rstrip("/")


def notes(url: str, resources: Sequence[Written]) -> Iterator[Note]:
    """Look at each TaskManager of the cluster. `resources` are those that it must advertise."""
    configured = {resource.name: resource for resource in resources}
    at = f"REST API {url}"
    try:
        found = [_read(entry) for entry in json.loads(_get(f"{url}/taskmanagers"))["taskmanagers"]]
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        yield NotLooked(at, _reason(error))
        return
    yield Looked(at)
    if not found:
        problem, seen = "no TaskManager is registered", f"{url}/taskmanagers is empty"
        remedy = "start one (bin/taskmanager.sh start); if it does not stay, its log says why"
        yield Finding("cluster", problem, seen, remedy, severity=WARNING)
    for one in found:
        log = cache(partial(_log, url, one))  # looked at once, and only if there is something to explain
        if missing := [name for name in configured if name not in one.advertised]:
            yield _not_advertised(url, one, missing, log)
        for name, amount in one.advertised.items():
            at = f"{url}/taskmanagers: {one.name}: extendedResources {name}={amount:g}"
            yield from _undiscovered(at, one, (name, amount), configured.get(name), log)


def _not_advertised(url: str, one: _TaskManager, names: Sequence[str], log: _Log) -> Finding:
    has = ", ".join(f"{name}={amount:g}" for name, amount in one.advertised.items()) or "nothing"
    return Finding(
        "not-advertised",
        f"a TaskManager does not have {' and '.join(map(repr, names))}, as the configuration says",
        f"{url}/taskmanagers: {one.name}: extendedResources has {has}; its log says: {_causes(log())}",
        "start it again with this configuration (FLINK_CONF_DIR); if it is so then, too, see the other problems",
    )


def _undiscovered(
    advertised: str, one: _TaskManager, resource: tuple[str, float], configured: Written | None, its_log: _Log
) -> Iterator[Note]:
    """Compare with the coordination file and with the log; where one of the two cannot be had, with the other."""
    name, amount = resource
    held, where = _held(one, configured)
    if held is not None and held >= amount:
        return
    log = its_log()
    is_gpu = configured is not None and text(configured.driver_factory) == GPU_FACTORY  # which tells in the log
    is_gpu = is_gpu or f"external-resource.{name}.driver-factory.class, {GPU_FACTORY}" in log
    discovered = _discovered(log) if is_gpu else None
    number = held if discovered is None else discovered
    if number is None:
        why = "it is not among the processes of this host, or nothing is coordinated, and its log does not say"
        yield NotLooked(f"what {one.name} found of {name!r}", why)
    elif number < amount:
        yield Finding(
            "undiscovered",
            f"a TaskManager advertises {amount:g} of {name!r} and has found {number}: jobs are scheduled onto what it "
            "has not, and their operators are told of nothing",
            f"{advertised}; {where}; its log says: {_causes(log)}",
            "mend what its log says, and start the TaskManager again: it looks for devices only once",
        )
    elif held is not None:
        yield Finding(
            "uncoordinated",
            f"a TaskManager uses {name!r} of which the coordination file does not know: others get the same devices",
            f"{advertised}; its log tells of {number}; {where}",
            "start it again with this configuration",
        )


def _causes(log: str) -> str:
    """Return what a log says of why there are no devices: the last of it is of the last start."""
    causes = [_NO_PLACE.sub("", line) for line in log.splitlines() if _SAYS_WHY.search(line)]
    return " | ".join(causes[-_CAUSES:]) or "nothing of that"


def _discovered(log: str) -> int | None:
    """Return how many devices a TaskManager found, by its log; None if that is not the log of its start."""
    before, _, start = log.rpartition(_STARTED)  # it may have several starts
    if not before:
        return None
    found = _FOUND.search(start)
    return len([part for part in found[1].split(",") if part.strip()]) if found else 0


def _held(one: _TaskManager, configured: Written | None) -> tuple[int | None, str]:
    """Return how many devices a TaskManager has by the coordination file, and in words; None if that cannot tell."""
    with suppress(ExternalResourceError):  # of which the coordination file's own check tells
        ledger = ledger_of(configured) if configured and one.pid else None
        if ledger and os.path.isabs(ledger.path):
            pairs = [(claim, holder) for claim in ledger.held() for holder in claim.holders]
            its = [each for each in pairs if one.pid in (each[1].process.pid, pid_here(each[1].process))]
            # One that `externalresource run` became holds what it asked for as shares of its own.
            shares = [each for each in its if (outer := above(*each)) and outer.process == each[1].process]
            number = len({claim.token for claim, _ in shares or its})
            return number, f"{ledger.path} has {number} of that pid"
    return None, "no coordination file to compare with"


def _read(entry: Mapping[str, Any]) -> _TaskManager:
    total = entry.get("totalResource") or {}
    found = _ADDRESS.search(entry.get("path", ""))
    running = task_manager.running() if found and _is_here(found[1]) else ()
    pid = next((pid for pid in running if found and task_manager.listens(pid, int(found[2]))), None)
    advertised = {str(name): float(amount) for name, amount in (total.get("extendedResources") or {}).items()}
    return _TaskManager(str(entry["id"]), advertised, pid)


def _log(url: str, one: _TaskManager) -> str:
    try:
        return _get(f"{url}/taskmanagers/{quote(one.id, safe='')}/log")
    except (OSError, HTTPException):
        return ""


def _get(url: str) -> str:
    """Return what is there. Not by a proxy: a cluster's REST API is near."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_PATIENCE) as answer:
        content: bytes = answer.read(_LARGEST)
    return content.decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    match error:
        case urllib.error.HTTPError():
            return f"it answers {error.code} {error.reason}"
        case urllib.error.URLError():
            return getattr(error.reason, "strerror", None) or str(error.reason)
        case OSError():
            return error.strerror or str(error)
        case InvalidURL():
            return f"that is no address: {error}"
    return "what answers there is not Flink"


def _is_here(host: str) -> bool:
    """Return whether an address is one of this host: only such a one can be bound."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(target)
    except OSError:
        return False
    return True
