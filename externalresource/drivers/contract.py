"""The contract between the framework and a driver: the hook, and what a driver must and may answer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

import pluggy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.coordination import Holding, Owner
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


class ExternalResourceDriver(Protocol):
    """Finds the devices of one resource, for one process.

    It may also offer what the classes below ask for; the framework looks for each by its method's name.
    """

    def retrieve_resource_info(self, amount: int) -> AbstractSet[ExternalResourceInfo]:
        """Return `amount` (at least 1) devices for this process, or raise: never fewer, never more."""


class Closing(Protocol):
    """A driver that holds something for its process."""

    def close(self) -> None:
        """Give back all that `retrieve_resource_info` returned; harmless when called twice or in a forked child."""


class Listing(Protocol):
    """A driver that can show what is here."""

    def devices(self) -> Collection[ExternalResourceInfo]:
        """Return all devices that it sees.

        Some properties mean the same for every driver: `index` and `uuid`; `unusable`, why a device would not be handed
        out; `in_use`, by what it is used, as far as the driver knows; `links`, how it is connected to each device that
        has links, in their order and with blanks between.
        """


class Columns(Protocol):
    """A driver that says which properties `discover` shows to people. Without this it shows all."""

    #: By heading, in the order in which they stand: of the properties the first that a device has.
    columns: Mapping[str, Sequence[str]]


class Recording(Protocol):
    """A driver that can describe this host."""

    def record(self) -> str:
        """Return the text of a file that its option `simulate` takes, without anything that names the host."""


class Environment(Protocol):
    """A driver whose devices are handed to a process by environment variables."""

    def environment(self, infos: Collection[ExternalResourceInfo]) -> Mapping[str, str]:
        """Return the variables for a process that is to use exactly these devices."""


class Holders(Protocol):
    """A driver whose devices are coordinated between the processes of a host."""

    def held(self, owner: "Owner | None" = None) -> Collection["Holding"]:
        """Return who holds which device, dead owners included; only what one owner holds, if that is given."""

    def drop(self, which: Callable[["Holding"], bool]) -> Collection["Holding"]:
        """Strike out the claims for which `which` answers True, and return them."""


class Queueing(Protocol):
    """A driver that may wait for devices which others hold, in the queue of a coordination file.

    A process that has several resources retrieves them in the order of these files: two that wait for the same ones
    then never hold one each and wait for the other.
    """

    #: None if nothing is coordinated.
    coordination_file: str | None
    #: Seconds that `retrieve_resource_info` waits at most.
    wait: float


class Keeping(Protocol):
    """A driver whose claims rest on something that an exec would end."""

    def keep_over_exec(self) -> Collection[str] | None:
        """Let what was retrieved outlast an exec of this process: it stays the owner, and close() is never called.

        Return the names of the grants, if processes inside of that program may take shares of them.
        """


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
        set some that mean the same for every driver: `enable-coordination-mode` (`true`),
        `coordination-file` (a path), `simulate` (devices that are not there), `timeout` and `wait` (seconds) and
        `until-children-exit` (`true`).
        """
        raise NotImplementedError
