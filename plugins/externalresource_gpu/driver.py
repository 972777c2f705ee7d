"""GPUDriver: asks for the GPUs of this host, and claims them for this process. Somebody's script is run instead.

A guest in somebody's process: it does not exit, print, or set a signal handler, the working directory or a variable.
What can hang or crash, nvidia-smi and NVML, stays in a child with a deadline.
"""

import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from externalresource.api import DeviceInfo, ExternalResourceDriver, ExternalResourceInfo, find_script, hookimpl, order
from externalresource.errors import ConfigurationError, ExternalResourceError, did_you_mean, warn
from externalresource_gpu.question import Question
from externalresource_gpu.script import dialects, said
from externalresource_gpu.script.options import OPTIONS, PREFIX, Options, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.api import Grants, Option
    from externalresource.coordination import Claim, Coordination, Holder, Process
    from externalresource_gpu.device import Device
    from externalresource_gpu.host import Host

_DEFAULT_TIMEOUT = "10"  # seconds, as in Flink
_PATH, _ARGS, _TIMEOUT = (f"discovery-script.{name}" for name in ("path", "args", "timeout"))
_SCRIPT = "nvidia-gpu-discovery"


class GPUDriver(ExternalResourceDriver):
    """The GPUs of one resource: whole ones, or MIG instances of them. The options are those of the factory."""

    columns = MappingProxyType(
        {
            "index": ("place", "index"),
            "name": ("name",),
            "memory MiB": ("memory.total",),
            "MIG": ("mig.profile", "mig.mode.current"),
            "NUMA": ("numa_node",),
        }
    )

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._variables = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
        self._options = self._asking(0)
        #: In whose queue this waits; None without coordination.
        self.coordination_file = self._options.coordination_file if self._options.coordination else None
        self.wait = self._options.wait
        self._grants: Grants | None = None  # until something is claimed
        self._look_again: Callable[[], None] = lambda: None
        self._told = False

    def retrieve_resource_info(self, amount: int) -> set[ExternalResourceInfo]:
        """Return `amount` GPUs. DiscoveryError or NotEnoughDevicesError says why there are not so many.

        Their properties are `index`, and what else is known: `uuid`, `name`, `memory.total` (MiB), `pci.bus_id`, ...
        The index of a MIG instance is its UUID, as in CUDA_VISIBLE_DEVICES; `place` is its `GPU:NUMBER` for people.
        """
        if amount < 1:
            raise ConfigurationError(f"the amount of GPUs must be a positive integer, not {amount}")
        options = self._asking(amount)
        try:
            host, granted, owner = self._granted(options)
        except ExternalResourceError as error:
            self._log(f"refused: {error}")
            raise
        self._log(host.decision(granted, owner))
        return set(map(DeviceInfo, host.properties(granted)))

    def devices(self) -> Collection[ExternalResourceInfo]:
        """Return all GPUs of this host; one that must not be handed out has the property `unusable`."""
        return list(map(DeviceInfo, self._host(self._options).all_properties()))

    def record(self) -> str:
        """Return this host as a machine for `--simulate`: a YAML file without what identifies it."""
        options = self._asking(0)
        options.topology, options.format = True, "yaml"
        return self._host(options).listing()

    def environment(self, gpus: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
        return environment(gpus)

    def held(self, process: "Process | None" = None) -> "Collection[Claim]":
        """Return who holds which GPU, by the coordination file; only what one process holds, if that is given."""
        return self._coordination().held(process)

    def drop(self, which: "Callable[[Claim, Holder], bool]") -> "Collection[tuple[Claim, Holder]]":
        """Strike out the holders of claims for which `which` answers True, and return them."""
        return self._coordination().drop(which)

    def close(self) -> None:
        """Give back what was retrieved. In a forked child nothing happens: there it belongs to the parent."""
        if self._grants is not None:
            self._grants.close()

    def keep_over_exec(self) -> Collection[str]:
        """Let what was retrieved outlast an exec of this process: it stays the owner, and close() is never called.

        Return the names of the grants.
        """
        return () if self._grants is None else self._grants.keep_over_exec()

    def _asking(self, amount: int) -> Options:
        return Options([str(amount), *self._words], self._variables, driver=True)

    def _host(self, options: Options) -> "Host":
        question = Question(options)
        question.start()
        return question.host(time.monotonic() + options.timeout)

    def _granted(self, options: Options) -> "tuple[Host, Sequence[Device], Process | None]":
        if not options.coordination:
            return self._named(options)
        deadline = time.monotonic() + options.timeout
        question = Question(options)
        question.start()
        try:  # what this imports is hidden behind the answer
            from externalresource.api import Grants
            from externalresource.coordination import identify

            if self._grants is None:
                self._grants = Grants(self._coordination())
            owner = identify(os.getpid())
        except BaseException:
            question.abandon()
            raise
        host = question.host(deadline)
        self._told = False
        coordination = self._grants.coordination
        self._look_again = lambda: question.look_again(host, deadline + options.wait, first=coordination.is_first)
        granted = self._grants.claim(
            host.claimable(),
            options.amount,
            marked=self.marked,
            choose=host.choose,
            suits=host.suits,
            deadline=deadline,
            wait=options.wait,
        )
        return host, granted, owner

    def _named(self, options: Options) -> "tuple[Host, Sequence[Device], None]":
        host = self._host(options)
        chosen = host.choose(host.candidates(), [], options.amount)
        if os.path.exists(options.coordination_file):
            from externalresource_gpu.others import warn_of_others

            warn_of_others(self._coordination(), chosen)
        return host, chosen, None

    def _coordination(self) -> "Coordination":
        from externalresource.coordination import Coordination, flock

        return Coordination(self._options.coordination_file, "gpu", pause=self._pause, lock=flock)

    def _pause(self, waiting: float, reason: str) -> None:
        """Wait, say for whom, and see what has become of the GPUs meanwhile."""
        if self.on_wait is not None:
            self.on_wait(reason)
        elif not self._told:
            self._told = True
            warn(f"waiting for gpu: {reason}")
        time.sleep(waiting)
        self._look_again()

    def _log(self, decision: str) -> None:
        if failure := said.log(self._options.log_file, os.getpid(), decision):
            warn(failure)


class GPUDriverFactory:
    """NVIDIA GPUs, whole or in MIG instances.

    `discovery-script.path` is for a script of your own; `discovery-script.timeout` bounds it, and without one it is
    our `timeout`. The arguments of `discovery-script.args` stand before the other options, which win.
    """

    api_version = 1

    @property
    def options(self) -> "list[Option]":
        from externalresource.api import Option

        return [
            Option(_PATH, "a text", None, required=False),
            Option(_ARGS, "a text", None, required=False),
            Option(_TIMEOUT, "a number", _DEFAULT_TIMEOUT, required=False),
            *(
                Option(option.name, option.kind, option.default if option.value else "false", required=False)
                for option in OPTIONS.values()
                if option.driver
            ),
        ]

    @hookimpl
    def create_external_resource_driver(self, options: Mapping[str, str]) -> ExternalResourceDriver:
        _check_names(options)
        words = [*_split(options.get(_ARGS, "")), *_words(options)]
        timeout = seconds(_TIMEOUT, options.get(_TIMEOUT, _DEFAULT_TIMEOUT))
        script = _foreign(options.get(_PATH))
        if script is None:
            return GPUDriver([f"--timeout={timeout:g}", *words] if _TIMEOUT in options else words)
        from externalresource_gpu.foreign_script import ScriptDriver

        return ScriptDriver(script, words, timeout)


def environment(gpus: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
    """Return CUDA_VISIBLE_DEVICES and its kin for exactly these GPUs, ordered by index."""
    return dialects.environment([(gpu.get_property("uuid"), gpu.get_property("index") or "") for gpu in order(gpus)])


def _foreign(path: str | None) -> str | None:
    """Return somebody's script at a path; None for no path and for our own. ConfigurationError if it cannot be run."""
    if path is None:
        return None
    if not path.strip():
        raise ConfigurationError(f"{_PATH} is empty; leave it out to use our own script")
    found = find_script(path)
    return None if any(os.path.exists(own) and os.path.samefile(found, own) for own in _own_scripts()) else found


def _own_scripts() -> list[str]:
    """Return where this installation has its script, and where the checkout that it belongs to has its wrapper."""
    import sysconfig

    folders = {sysconfig.get_path("scripts"), sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))}
    if os.path.basename(sys.prefix) == ".venv":
        folders.add(os.path.join(os.path.dirname(sys.prefix), "scripts"))
    return [os.path.join(folder, _SCRIPT) for folder in folders]


def _check_names(options: Mapping[str, str]) -> None:
    allowed = [_PATH, _ARGS, _TIMEOUT, *(option.name for option in OPTIONS.values() if option.driver)]
    for name in options:
        if name not in allowed:
            raise ConfigurationError(
                f"the GPU driver has no option {name!r} (allowed: {', '.join(allowed)}){did_you_mean(name, allowed)}"
            )


def _split(args: str) -> list[str]:
    try:
        return shlex.split(args)
    except ValueError as error:
        raise ConfigurationError(f"{_ARGS} cannot be split as a shell would ({error}): {args}") from None


def _words(options: Mapping[str, str]) -> list[str]:
    """Return the options as words that Flink's own script understands as well: it knows no `--name=value`."""
    words: list[str] = []
    for option in OPTIONS.values():
        if option.name in options:
            value = options[option.name]
            if option.value:
                words += [f"--{option.name}", value]
            else:
                words.append(f"--{option.name}" if value == "true" else f"--{option.name}={value}")
    return words
