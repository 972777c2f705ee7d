"""GPUDriver: runs a discovery script and turns its answer into infos."""

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from externalresource.api import ExternalResourceInfo, Grants, Option, hookimpl
from externalresource.coordination import Coordination, Holding, Owner, identify, new_grant
from externalresource.errors import ConfigurationError, CoordinationError, DiscoveryError, did_you_mean
from externalresource_gpu import foreign_script
from externalresource_gpu.script import described, dialects
from externalresource_gpu.script.options import FLAGS, PREFIX, VALUED, Options

_DEFAULT_TIMEOUT = 10.0  # seconds, as in Flink
_LONGEST = 86400
_TAKING_BACK = 0.5  # seconds for the lock to be free
_STARTING = 1.0  # seconds for the interpreter of our own script
_OWN = ("discovery-script.path", "discovery-script.args", "discovery-script.timeout")
_SCRIPT = tuple(
    name for name in (*FLAGS, *VALUED) if name not in ("list", "format", "owner-pid", "witness", "grant", "terminal")
)


class GPUInfo:
    """One GPU as an operator sees it. Two infos are equal if all their properties are."""

    __slots__ = ("_properties",)

    def __init__(self, properties: Mapping[str, str]) -> None:
        self._properties = dict(properties)

    def get_property(self, key: str) -> str | None:
        """Return `index`, and what else is known: `uuid`, `name`, `memory.total` (MiB), `pci.bus_id`, ...

        The index of a MIG instance is its UUID, as in CUDA_VISIBLE_DEVICES; `place` is its `GPU:NUMBER` for people.
        """
        return self._properties.get(key)

    def get_keys(self) -> Collection[str]:
        return tuple(self._properties)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GPUInfo) and self._properties == other._properties

    def __hash__(self) -> int:
        return hash(frozenset(self._properties.items()))

    def __repr__(self) -> str:
        return f"GPU Device({self._properties.get('index')})"


class _Granted:
    """An info's device as the coordination file knows it, to be given back."""

    parent_uuid = parent_token = None  # a MIG instance is known by its own UUID

    def __init__(self, info: GPUInfo) -> None:
        self.token = info.get_property("index") or ""
        self.uuid = info.get_property("uuid")


class GPUDriver:
    """The GPUs of one resource: whole ones, or MIG instances of them.

    Options: `discovery-script.path` (ours by default), `discovery-script.args`, `discovery-script.timeout` (seconds, 10
    by default), and each option of our script by its name (`simulate`, `coordination-file`, ...), which are appended to
    the arguments. The script runs as a child of this process, which thus owns what it claims.
    """

    columns = MappingProxyType(
        {
            "index": ("place", "index"),
            "name": ("name",),
            "memory MiB": ("memory.total",),
            "MIG": ("mig.profile", "mig.mode.current"),
            "NUMA": ("numa_node",),
        }
    )

    def __init__(self, options: Mapping[str, str]) -> None:
        _check_names(options)
        self._script = foreign_script.find(options.get("discovery-script.path"))
        self._timeout = _timeout(options)
        self._words = [*_split(options.get("discovery-script.args", "")), *_own_words(options)]
        # Of a script that is not ours we know neither the options nor what it claims.
        self._options = None
        if self._script.ours:
            # Our script ends before we would kill it: it says what kept it, and takes back what it cannot deliver.
            if "discovery-script.timeout" in options or f"{PREFIX}TIMEOUT" not in os.environ:
                self._words.insert(0, f"--timeout={self._timeout * 0.9:g}")
            self._options = Options(["0", *self._words], os.environ)
            if self._options.list:
                raise ConfigurationError(
                    f"option --list hands out no devices: not for discovery-script.args, nor as {PREFIX}LIST"
                )
            self._timeout = max(self._timeout, self._options.timeout + _STARTING) + self._options.wait
        self._grants: Grants | None = None  # until something is claimed

    @property
    def coordination_file(self) -> str | None:
        """The file in whose queue this waits; None without coordination, or if a foreign script keeps its own."""
        return self._options.coordination_file if self._options and self._options.coordination else None

    @property
    def wait(self) -> float:
        return self._options.wait if self._options else 0.0

    def retrieve_resource_info(self, amount: int) -> set[ExternalResourceInfo]:
        """Return `amount` GPUs; DiscoveryError if the script fails, is late, or answers anything else."""
        if amount < 1:
            raise ConfigurationError(f"the amount of GPUs must be a positive integer, not {amount}")
        if self._options is None:
            answer = self._script.run([str(amount), *self._words], self._timeout)
            return {GPUInfo({"index": token}) for token in foreign_script.tokens(answer, amount)}
        words = [str(amount), *self._words, "--owner-pid", str(os.getpid())]
        return set(self._claim(words, self._options) if self._options.coordination else self._ask(*words))

    def devices(self) -> Collection[ExternalResourceInfo]:
        """Return all GPUs of this host; one that must not be handed out has the property `unusable`."""
        if self._options is None:
            raise DiscoveryError(f"{self._script.name} cannot list devices: only our own discovery script does")
        return self._ask(*self._words, "--list")

    def record(self) -> str:
        """Return this host as a machine for `--simulate`: a YAML file without what identifies it."""
        if self._options is None:
            raise DiscoveryError(f"{self._script.name} cannot describe the host: only our own discovery script does")
        return self._script.run([*self._words, "--list", "--topology", "--format", "yaml"], self._timeout)

    def environment(self, infos: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
        """Return CUDA_VISIBLE_DEVICES and its kin for exactly these GPUs, ordered by index."""
        return dialects.environment(
            [
                dialects.mask_name(info.get_property("uuid"), info.get_property("index") or "")
                for info in sorted(infos, key=_order)
            ]
        )

    def held(self, owner: Owner | None = None) -> Collection[Holding]:
        """Return who holds which GPU, by the coordination file; only what one owner holds, if that is given."""
        return self._coordination().held(owner)

    def drop(self, which: Callable[[Holding], bool]) -> Collection[Holding]:
        """Strike out the claims for which `which` answers True, and return them."""
        return self._coordination().drop(which)

    def close(self) -> None:
        """Give back what was retrieved. In a forked child nothing happens: there it belongs to the parent."""
        if self._grants is not None:
            self._grants.close()

    def keep_over_exec(self) -> Collection[str]:
        """Let what was retrieved outlast an exec of this process: it stays the owner, and close() is never called.

        Return the names of the grants.
        """
        return [] if self._grants is None else self._grants.keep_over_exec()

    def _claim(self, words: Sequence[str], options: Options) -> list[GPUInfo]:
        if self._grants is None:
            self._grants = Grants(self._coordination())
        owner = identify(os.getpid(), grant=new_grant())
        with self._grants.witnessed(until_children_exit=options.until_children_exit) as witness:
            try:
                lock = ["--witness", witness.name] if witness else []
                infos = self._ask(*words, "--grant", str(owner.grant), *lock, *_terminal(options))
            except BaseException:
                self._take_back(owner)
                raise
            self._grants.add([_Granted(info) for info in infos], owner, witness)
        return infos

    def _take_back(self, owner: Owner) -> None:
        """Strike out what a script may have claimed that was killed before it answered."""
        with contextlib.suppress(CoordinationError):
            self._coordination().drop(
                lambda holding: holding.owner.grant == owner.grant, deadline=time.monotonic() + _TAKING_BACK
            )

    def _coordination(self) -> Coordination:
        if self._options is None:
            raise DiscoveryError(
                f"{self._script.name} keeps its own books: who holds what is known only of our own script"
            )
        return Coordination(self._options.coordination_file, "gpu")

    def _ask(self, *words: str) -> list[GPUInfo]:
        answer = self._script.run([*words, "--format", "json"], self._timeout)
        try:
            return [GPUInfo(properties) for properties in json.loads(answer)]
        except ValueError:  # a sitecustomize that prints, for example
            raise DiscoveryError(
                f"something else printed into our discovery script's answer: {answer[:80]!r}"
            ) from None


class GPUDriverFactory:
    """NVIDIA GPUs, whole or in MIG instances."""

    api_version = 1

    @property
    def options(self) -> list[Option]:
        return [
            Option("discovery-script.path", "a text", None, required=False),
            Option("discovery-script.args", "a text", None, required=False),
            Option("discovery-script.timeout", "a number", f"{_DEFAULT_TIMEOUT:g}", required=False),
            *described.options(_SCRIPT),
        ]

    @hookimpl
    def create_external_resource_driver(self, options: Mapping[str, str]) -> GPUDriver:
        return GPUDriver(options)


def _check_names(options: Mapping[str, str]) -> None:
    for name in options:
        if name not in _OWN and name not in _SCRIPT:
            raise ConfigurationError(
                f"the GPU driver has no option {name!r} (allowed: {', '.join((*_OWN, *_SCRIPT))})"
                f"{did_you_mean(name, (*_OWN, *_SCRIPT))}"
            )


def _terminal(options: Options) -> list[str]:
    """Return the option by which a script that waits shows so on our terminal: we read its stderr ourselves."""
    return ["--terminal", os.ttyname(2)] if options.wait and os.isatty(2) else []


def _split(args: str) -> list[str]:
    try:
        return shlex.split(args)
    except ValueError as error:
        raise ConfigurationError(f"discovery-script.args cannot be split as a shell would ({error}): {args}") from None


def _own_words(options: Mapping[str, str]) -> list[str]:
    """Return the options as words that Flink's own script understands as well: it knows no `--name=value`."""
    words: list[str] = []
    for name in _SCRIPT:
        if name in VALUED and name in options:
            words += [f"--{name}", options[name]]
        elif name in options:
            words.append(f"--{name}" if options[name] == "true" else f"--{name}={options[name]}")
    return words


def _timeout(options: Mapping[str, str]) -> float:
    text = options.get("discovery-script.timeout", str(_DEFAULT_TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= _LONGEST:
        raise ConfigurationError(
            f"discovery-script.timeout must be a number of seconds, above 0 and at most {_LONGEST}, not {text!r}"
        )
    return seconds


def _order(info: ExternalResourceInfo) -> tuple[list[int], str]:
    """Sort GPUs by index, MIG instances by GPU and number, and what a foreign script calls its devices last."""
    index = info.get_property("index") or ""
    place = (info.get_property("place") or index).split(":")
    return ([int(part) for part in place], "") if all(map(str.isdecimal, place)) else ([sys.maxsize], index)
