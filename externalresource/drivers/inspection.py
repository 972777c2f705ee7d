"""The plugins that are installed, each tried in a child process: one that hangs, prints or crashes hides no other."""

import contextlib
import inspect
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any, NoReturn

from externalresource.drivers import loading
from externalresource.drivers.child import Child, Overdue
from externalresource.drivers.contract import PROJECT
from externalresource.drivers.loading import OURS
from externalresource.drivers.options import Option
from externalresource.errors import PluginError

_AT_ONCE = 4  # children
_SAID = 200  # characters of what a plugin prints that are shown
_PROGRAM = (  # with our own path: what the child finds is what this process would import
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from externalresource.drivers import inspection; inspection.answer(sys.argv[2])"
)


@dataclass(frozen=True, slots=True)
class Plugin:
    """One name under which a plugin is installed."""

    name: str
    distribution: str | None
    version: str | None
    entry_point: str
    loads: bool = False
    #: Why it does not load, or cannot be had by its name; None if nothing is wrong.
    problem: str | None = None
    #: What its import printed, on stdout or stderr.
    said: str | None = None
    #: What it says of itself, in a line.
    summary: str | None = None
    api_version: int | None = None
    #: None if it does not tell.
    options: Sequence[Option] | None = None


def installed(timeout: float) -> list[Plugin]:
    """Return all that are installed, by name. The import of each may take so many seconds."""
    points = loading.installed()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda point: _tried(point, timeout), points))
    names = Counter(plugin.name for plugin in found)
    return [_judged(plugin, found) if names[plugin.name] > 1 or plugin.name in OURS else plugin for plugin in found]


def _judged(plugin: Plugin, found: Sequence[Plugin]) -> Plugin:
    """Return the plugin with what keeps it from being had by its name."""
    ours = OURS.get(plugin.name)
    if ours == plugin.entry_point:
        return plugin
    if ours is not None:
        problem = f"has a name of ours, which is used: write the import path {plugin.entry_point} instead"
    else:
        others = [other for other in found if other.name == plugin.name and other is not plugin]
        by = " and ".join(f"{other.distribution} {other.version}" for other in others)
        problem = (
            f"is ambiguous: {by} provides this name, too; uninstall one, or name the import path {plugin.entry_point}"
        )
    return replace(plugin, problem="; it ".join(filter(None, (plugin.problem, problem))))


def _tried(point: EntryPoint, timeout: float) -> Plugin:
    answer = _answer(point, timeout)
    options = answer.get("options")
    return Plugin(
        name=point.name,
        distribution=point.dist.name if point.dist else None,
        version=point.dist.version if point.dist else None,
        entry_point=point.value,
        **{**answer, "options": options and [Option(**option) for option in options]},
    )


def _answer(point: EntryPoint, timeout: float) -> Mapping[str, Any]:
    """Return what a child process finds out about a plugin."""
    try:
        child = Child([sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path), point.value])
        status, out, err = child.result(time.monotonic() + timeout)
    except Overdue:
        return {"problem": f"could not be loaded: its import had not ended after {timeout:g} s"}
    except OSError as error:
        return {"problem": f"could not be tried: {error}"}
    printed = " ".join("".join(letter if letter.isprintable() else " " for letter in err).split())
    said = {"said": printed if len(printed) <= _SAID else f"{printed[:_SAID]}..."} if printed else {}
    try:
        return {**said, **json.loads(out)}
    except ValueError:
        return {**said, "problem": f"could not be loaded: its import ended the process with {_end(status)}"}


def _end(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


def answer(value: str) -> NoReturn:
    """Print what there is to say of an entry point, in JSON. All that the plugin prints goes to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)
    found = json.dumps(_described(EntryPoint("", value, PROJECT)))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the plugin may have put something of its own there
            stream.flush()
    with open(out, "w", encoding="utf-8") as file:
        file.write(found)
    os._exit(0)  # threads that the import has started do not matter


def _described(point: EntryPoint) -> dict[str, object]:
    try:
        plugin = loading.load("", point.load, None)
        loading.hook("", plugin)
    except PluginError as error:
        return {"problem": str(error).strip()}
    text = getattr(plugin, "__doc__", None)
    summary = text.strip().partition("\n")[0] if isinstance(text, str) else None
    known = {"loads": True, "api_version": loading.api_version(plugin), "summary": summary or None}
    try:
        return known | {"options": _options(plugin)}
    except Exception as error:  # noqa: BLE001 - code of the plugin's
        return known | {"problem": f"cannot say which options it takes: {type(error).__name__}: {error}"}


def _options(plugin: object) -> list[dict[str, object]] | None:
    if inspect.getattr_static(plugin, "options", None) is None:
        return None
    options = plugin.options  # type: ignore[attr-defined] # not by getattr: an AttributeError within is a fault
    if not isinstance(options, list | tuple) or not all(isinstance(option, Option) for option in options):
        return None  # a module may have something else of that name
    return [asdict(option) for option in options]
