"""What a Python operator of real Flink holds: Flink itself has no way to tell it.

The worker's TaskManager is found among its ancestors, the configuration by the arguments of that process, the devices
in the coordination file. In thread mode the operator runs inside the TaskManager itself.
"""

import os
from collections.abc import Mapping, Sequence, Set as AbstractSet

from externalresource.coordination import identify, runs_around
from externalresource.drivers import (
    Device,
    ExternalResourceDriver,
    ExternalResourceInfo,
    NotOfferedError,
    create_driver,
    info_of,
)
from externalresource.errors import ConfigurationError, DiscoveryError, PluginError, did_you_mean
from externalresource.flink import configuration, task_manager, worker_end, worker_share
from externalresource.flink.configuration import ResourceConfig
from externalresource.flink.task_manager import TaskManager


def get_external_resource_infos(name: str, *, exclusive: int | None = None) -> AbstractSet[ExternalResourceInfo]:
    """Return the infos of a resource of this operator's TaskManager, as Flink gives them to Java.

    To be called in `open()`. These are the devices that the TaskManager holds in the coordination file; without
    coordination (Kubernetes and YARN give each container its own devices) those that its driver finds. `exclusive` is
    for so many of them that no other worker of the TaskManager gets that asks so, as long as this one lives: all
    operators of one worker are told the same ones. The worker is killed 5 s after its TaskManager has ended: the
    devices are another's then. Raises ExternalResourceError, which says what was looked for, and where.
    """
    found = find_task_manager()
    resource = _resource(name, found, _resources(found))
    if resource.driver_factory is None:
        raise ConfigurationError(f"external-resource.{name}.driver-factory.class is not set: nothing tells its devices")
    infos = _infos(create_driver(resource.driver_factory, resource.options), found, resource, exclusive)
    worker_end.end_with(found.pid)
    return infos


def environment(found: TaskManager, exclusive: Mapping[str, int] | None = None) -> dict[str, str]:
    """Return the variables for a process that uses the devices of a TaskManager, of all its resources with a driver.

    Of those that `exclusive` names, with an amount, they are this worker's own.
    """
    resources, exclusive = _resources(found), exclusive or {}
    for name in exclusive:
        _resource(name, found, resources)
    variables: dict[str, str] = {}
    for resource in resources:
        if resource.driver_factory is not None:
            driver = create_driver(resource.driver_factory, resource.options)
            infos = _infos(driver, found, resource, exclusive.get(resource.name))
            variables |= _variables(driver, infos, resource.name)
    return variables


def find_task_manager() -> TaskManager:
    """Return the TaskManager among this process and its ancestors. DiscoveryError names those, if there is none."""
    found = task_manager.find()
    if found is not None:
        return found
    seen = [
        f"pid {pid} ({os.path.basename(words[0]) if words else 'unknown'})" for pid, words in task_manager.ancestors()
    ]
    raise DiscoveryError(
        f"no TaskManager of Flink is among this process and its ancestors: {', '.join(seen)}; in a process that Flink "
        "did not start, use externalresource.claim or externalresource.runtime_context"
    )


def _resources(found: TaskManager) -> list[ResourceConfig]:
    """Return its resources, dynamic properties included; what Flink itself would leave out is left out."""
    return configuration.load(found.folder(), overrides=[*found.properties()], lenient=True)


def _resource(name: str, found: TaskManager, resources: Sequence[ResourceConfig]) -> ResourceConfig:
    names = {resource.name: resource for resource in resources}
    if name not in names:
        raise ConfigurationError(
            f"the TaskManager (pid {found.pid}) has no resource {name!r} (it has: {', '.join(names) or 'none'})"
            f"{did_you_mean(name, names)}"
        )
    return names[name]


def _infos(
    driver: ExternalResourceDriver, found: TaskManager, resource: ResourceConfig, exclusive: int | None
) -> AbstractSet[ExternalResourceInfo]:
    if driver.coordination_file is not None:
        return _held(driver, driver.coordination_file, found, resource, exclusive)
    if exclusive is not None:
        raise ConfigurationError(
            f"exclusive devices of {resource.name!r} need coordination, which says who has which: add "
            "--enable-coordination-mode to its discovery-script.args, or the driver's option enable-coordination-mode"
        )
    return driver.retrieve_resource_info(resource.amount)


def _variables(
    driver: ExternalResourceDriver, infos: AbstractSet[ExternalResourceInfo], name: str
) -> Mapping[str, str]:
    try:
        return driver.environment(infos)
    except NotOfferedError as error:
        raise PluginError(f"the driver of {name!r} sets no environment variables: {error}") from None
    except PluginError:  # it needs more than the coordination file tells
        names = {_name(info) for info in infos}
        return driver.environment([info for info in driver.devices() if _name(info) in names])


def _name(info: ExternalResourceInfo) -> str | None:
    return info.get_property("uuid") or info.get_property("index")


def _held(
    driver: ExternalResourceDriver, path: str, found: TaskManager, resource: ResourceConfig, exclusive: int | None
) -> AbstractSet[ExternalResourceInfo]:
    try:
        claims, manager = [*driver.held()], identify(found.pid)
    except NotOfferedError as error:
        raise PluginError(f"the driver of {resource.name!r} cannot tell what the TaskManager holds: {error}") from None
    its = [(claim, each.grant) for claim in claims for each in claim.holders if each.is_of(manager)]
    outer = frozenset[str]().union(*runs_around())  # a TaskManager that `externalresource run` became holds more
    mine = [(claim, grant) for claim, grant in its if grant not in outer] or its
    if len(mine) != resource.amount:
        raise DiscoveryError(
            f"the TaskManager (pid {found.pid}) holds {len(mine)} devices of {resource.name!r} in {path}, not "
            f"the {resource.amount} of its configuration; if its discovery script failed, its log says why"
        )
    if exclusive is not None:
        devices = worker_share.take(path, mine, found.pid, exclusive)
    else:
        devices = worker_share.own(claims, mine, found.pid) or [claim for claim, _ in mine]
    # As far as the coordination file tells.
    known = [
        Device(each.token, each.uuid, {"parent.uuid": each.parent_uuid} if each.parent_uuid else {}) for each in devices
    ]
    return frozenset(map(info_of, known))
