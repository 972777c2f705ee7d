"""What a Python operator of real Flink holds: Flink itself has no way to tell it.

The worker's TaskManager is found among its ancestors, the configuration by the arguments of that process, the devices
in the coordination file. In thread mode the operator runs inside the TaskManager itself.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from externalresource import configuration
from externalresource.configuration import ResourceConfig
from externalresource.coordination import Holding, identify
from externalresource.errors import ConfigurationError, DiscoveryError, PluginError, did_you_mean
from externalresource.hookspecs import ExternalResourceDriver, ExternalResourceInfo
from externalresource.plugins import create_driver

#: The main classes of a TaskManager: stand-alone and in Docker, on Kubernetes, on YARN.
_MAIN = (
    "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
    "org.apache.flink.kubernetes.taskmanager.KubernetesTaskExecutorRunner",
    "org.apache.flink.yarn.YarnTaskExecutorRunner",
)


class HeldInfo:
    """A device that the TaskManager holds, as far as the coordination file tells."""

    __slots__ = ("_properties",)

    def __init__(self, holding: Holding) -> None:
        known = {"index": holding.claim.token, "uuid": holding.claim.uuid, "parent.uuid": holding.claim.parent_uuid}
        self._properties = {key: value for key, value in known.items() if value is not None}

    def get_property(self, key: str) -> str | None:
        return self._properties.get(key)

    def get_keys(self) -> Collection[str]:
        return tuple(self._properties)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeldInfo) and self._properties == other._properties

    def __hash__(self) -> int:
        return hash(frozenset(self._properties.items()))

    def __repr__(self) -> str:
        return f"HeldInfo({self._properties})"


@dataclass(frozen=True, slots=True)
class TaskManager:
    """The Flink process that this one works for."""

    pid: int
    #: What followed its main class: `--configDir`, `-D key=value`.
    arguments: Sequence[str]

    def configuration(self) -> list[ResourceConfig]:
        """Return its resources, dynamic properties included; what Flink itself would leave out is left out."""
        folder = self._option("--configDir", "-c") or os.environ.get("FLINK_CONF_DIR")
        # A relative one (YARN has `.`) is relative to where the TaskManager is.
        source = None if folder is None else os.path.join(f"/proc/{self.pid}/cwd", folder)
        return configuration.load(source, overrides=[*self._dynamic()], lenient=True)

    def _option(self, *names: str) -> str | None:
        for name, value in zip(self.arguments, self.arguments[1:], strict=False):
            if name in names:
                return value
        return None

    def _dynamic(self) -> Iterator[str]:
        rest = iter(self.arguments)
        for word in rest:
            if word == "-D":
                yield next(rest, "")
            elif word.startswith("-D"):
                yield word.removeprefix("-D")


def get_external_resource_infos(name: str) -> AbstractSet[ExternalResourceInfo]:
    """Return the infos of a resource of this operator's TaskManager, as Flink gives them to Java.

    To be called in `open()`. These are the devices that the TaskManager holds in the coordination file; without
    coordination (Kubernetes and YARN give each container its own devices) those that its driver finds. Raises
    ExternalResourceError, which says what was looked for, and where.
    """
    task_manager = find_task_manager()
    resource = _resource(task_manager, name)
    if resource.driver_factory is None:
        raise ConfigurationError(f"external-resource.{name}.driver-factory.class is not set: nothing tells its devices")
    driver = create_driver(resource.driver_factory, resource.options)
    path = getattr(driver, "coordination_file", None)
    if path is None:
        return driver.retrieve_resource_info(resource.amount)
    return _held(driver, path, task_manager, resource)


def find_task_manager() -> TaskManager:
    """Return the TaskManager among this process and its ancestors. DiscoveryError names those, if there is none."""
    seen: list[str] = []
    pid = os.getpid()
    while pid > 0:
        words = _command(pid)
        main = next((word for word in words if word in _MAIN), None)
        if main is not None:
            return TaskManager(pid, words[words.index(main) + 1 :])
        seen.append(f"pid {pid} ({os.path.basename(words[0]) if words else 'unknown'})")
        pid = _parent(pid)
    raise DiscoveryError(
        f"no TaskManager of Flink is among this process and its ancestors: {', '.join(seen)}; in a process that Flink "
        "did not start, use externalresource.claim or externalresource.runtime_context"
    )


def _resource(task_manager: TaskManager, name: str) -> ResourceConfig:
    resources = {resource.name: resource for resource in task_manager.configuration()}
    if name in resources:
        return resources[name]
    raise ConfigurationError(
        f"the TaskManager (pid {task_manager.pid}) has no resource {name!r} (it has: {', '.join(resources) or 'none'})"
        f"{did_you_mean(name, resources)}"
    )


def _held(
    driver: ExternalResourceDriver, path: str, task_manager: TaskManager, resource: ResourceConfig
) -> AbstractSet[ExternalResourceInfo]:
    held = getattr(driver, "held", None)
    if held is None:
        raise PluginError(f"the driver of {resource.name!r} cannot tell what the TaskManager holds: it has no held()")
    infos = frozenset(HeldInfo(holding) for holding in held(identify(task_manager.pid)))
    if len(infos) != resource.amount:
        raise DiscoveryError(
            f"the TaskManager (pid {task_manager.pid}) holds {len(infos)} devices of {resource.name!r} in {path}, not "
            f"the {resource.amount} of its configuration; if its discovery script failed, its log says why"
        )
    return infos


def _command(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().split("\0")[:-1]
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
