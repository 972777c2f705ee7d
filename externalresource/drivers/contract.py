"""The contract between the framework and a driver: the hook, and what a driver must and may answer."""

from collections.abc import Callable, Collection, Mapping, Sequence, Set as AbstractSet
from typing import Protocol

import pluggy

from externalresource.errors import PluginError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.coordination import Claim, Holder, Process
    from externalresource.drivers.options import Option

#: Grows when a driver that was written for the earlier one may not work any more: docs/api-stability.md.
API_VERSION = 1
PROJECT = "externalresource"  # of the hooks, and the entry-point group of the plugins

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class ExternalResourceInfo(Protocol):
    """One device as an operator sees it; hashable, equal to another info of the same device."""

    def get_property(self, key: str) -> str | None:
        """Return the value of a property; None if this device has none of that name."""

    def get_keys(self) -> Collection[str]:
        """Return the names of all its properties."""


def properties(info: ExternalResourceInfo) -> dict[str, str]:
    """Return all that a driver says of a device."""
    return {key: value for key in info.get_keys() if (value := info.get_property(key)) is not None}


class NotOfferedError(PluginError):
    """A driver was asked for something that it does not offer; the text names the method that it lacks."""


class ExternalResourceDriver:
    """Finds the devices of one resource, for one process. All but `retrieve_resource_info` is optional.

    A plain object with these methods will do as well: what it lacks is answered as here.
    """

    #: The properties that `discover` shows to people: by heading, in this order, the first that it has. None: all.
    columns: Mapping[str, Sequence[str]] | None = None
    #: The file in whose queue the driver may wait; None if nothing is coordinated. A process that has several
    #: resources retrieves them in the order of these files, so that no two hold what the other waits for.
    coordination_file: str | None = None
    #: Seconds that `retrieve_resource_info` waits for devices which others hold, at most.
    wait: float = 0.0
    #: What it retrieves is held also while another process lives that carries the mark of the grant: `run` sets it.
    marked: bool = False
    #: Called with the reason whenever the driver has to wait; None: the driver says so once in the log.
    on_wait: Callable[[str], None] | None = None

    def retrieve_resource_info(self, amount: int) -> AbstractSet[ExternalResourceInfo]:
        """Return `amount` (at least 1) devices for this process, or raise: never fewer, never more."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back all that `retrieve_resource_info` returned; harmless when called twice or in a forked child."""

    def keep_over_exec(self) -> Collection[str]:
        """Let what was retrieved outlast an exec of this process: it stays the owner, and close() is never called.

        Return the marks of the grants, if processes inside of that program may take shares of them.
        """
        return ()

    def devices(self) -> Collection[ExternalResourceInfo]:
        """Return all devices that it sees.

        Some properties mean the same for every driver: `index` and `uuid`; `unusable`, why a device would not be handed
        out; `in_use`, by what it is used, as far as the driver knows; `links`, how it is connected to each device that
        has links, in their order and with blanks between.
        """
        raise NotOfferedError("it has no devices()")

    def record(self) -> str:
        """Return the text of a file that its option `simulate` takes, without anything that names the host."""
        raise NotOfferedError("it has no record()")

    def environment(self, infos: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
        """Return the variables for a process that is to use exactly these devices: of none, those that hide all.

        `externalresource.claim_for_worker` sets the latter where a process is refused. Within 10 seconds.
        """
        del infos
        raise NotOfferedError("it has no environment(infos)")

    def held(self, process: "Process | None" = None) -> Collection["Claim"]:
        """Return the claims, with holders that have ended, too; only those of one process, if that is given."""
        del process
        raise NotOfferedError("it has no held()")

    def drop(self, which: Callable[["Claim", "Holder"], bool]) -> Collection[tuple["Claim", "Holder"]]:
        """Strike out the holders of claims for which `which` answers True, and return them."""
        del which
        raise NotOfferedError("it has no drop()")


class Described(Protocol):
    """A factory that says which options its drivers take: `externalresource plugins` shows them."""

    options: "Sequence[Option]"


class Versioned(Protocol):
    """A factory, or the module that it stands in, that says for which version of this contract it was written.

    Another version is refused, with an error that names both; without this it is taken for the present one.
    """

    api_version: int


class ExternalResourceDriverFactory:
    """The hook that a plugin implements. The plugin is the factory; its entry point's name is what users configure."""

    @hookspec(firstresult=True)
    def create_external_resource_driver(self, options: Mapping[str, str]) -> ExternalResourceDriver:
        """Return the driver for a resource with these options.

        The options are the resource's own `external-resource.NAME.param.` keys without that prefix. Raise
        ConfigurationError for one that is unknown or has a wrong value. `externalresource.claim` and the command line
        set some that mean the same for every driver: `enable-coordination-mode` (`true`; so does `runtime_context`, for
        a factory that lists it in `options`), `coordination-file` (a path), `simulate` (devices that are not there),
        `timeout` and `wait` (seconds).
        """
        raise NotImplementedError
