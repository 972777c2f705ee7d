"""RuntimeContext: what the operators of a TaskManager process ask for their devices."""

from __future__ import annotations

import functools
import os
import time
from _thread import get_ident
from contextlib import ExitStack
from itertools import pairwise

from externalresource.errors import (
    ConfigurationError,
    CoordinationError,
    ExternalResourceError,
    PluginError,
    cause,
    did_you_mean,
    warn,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Set as AbstractSet
    from types import TracebackType
    from typing import Self, TypeVar

    from externalresource.drivers.contract import ExternalResourceDriver, ExternalResourceInfo
    from externalresource.flink.configuration import ResourceConfig

    T = TypeVar("T")

_LONGEST = 10.0  # seconds for a driver to make the variables of a process


class RuntimeContext:
    """The devices of this process, by the name of their resource; a context manager that gives them back at its end."""

    def __init__(self, resources: Mapping[str, tuple[ExternalResourceDriver, int]], *, lenient: bool = False) -> None:
        """Retrieve all in the order that `_ordered` gives them, or raise and hold none.

        `lenient` leaves out the resources that fail, as Flink does.
        """
        self._lenient = lenient
        self._several = len(resources) > 1
        self._closed = False
        self._infos: dict[str, frozenset[ExternalResourceInfo]] = {}
        self._drivers: dict[str, ExternalResourceDriver] = {}
        _finish_interrupted()
        try:
            for name, (driver, amount) in _ordered(resources):
                self._retrieve(name, driver, amount)
        except BaseException:
            _interrupted[self] = get_ident()  # first of all: this may be interrupted, too
            self._for_each_driver(self._take_back)
            raise

    def get_external_resource_infos(self, name: str) -> AbstractSet[ExternalResourceInfo]:
        """Return the infos of a resource: the same set for every operator, as in Flink.

        A name that has none is a ConfigurationError; Flink, and `lenient`, answer an empty set.
        """
        self._check_open()
        if name in self._infos or self._lenient:
            return self._infos.get(name, frozenset())
        have = ", ".join(self._infos) or "none"
        raise ConfigurationError(
            f"this process has no devices of a resource {name!r} (it has: {have}){did_you_mean(name, self._infos)}"
        )

    def environment(self) -> dict[str, str]:
        """Return the environment variables for a process that is to use exactly these devices.

        PluginError if one of the drivers cannot say, or if two want to set one variable each to its own devices.
        """
        self._check_open()
        variables: dict[str, str] = {}
        setters: dict[str, str] = {}
        for name, infos in self._infos.items():
            for variable, value in variables_of(name, self._drivers[name], infos).items():
                if variables.setdefault(variable, value) != value:
                    raise PluginError(f"{setters[variable]!r} and {name!r} both set {variable}: a process has only one")
                setters.setdefault(variable, name)
        return variables

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Give the devices back.

        An error names the resource whose devices are still held; the others are given back. Another call asks again for
        what is still held, and is harmless where that is nothing.
        """
        _interrupted[self] = get_ident()
        self._closed = True
        self._infos = {}
        if self in _kept:
            _kept.remove(self)
        self._for_each_driver(self._give_back)

    def keep_over_exec(self) -> dict[str, str]:
        """Let the devices outlast an exec of this process, which then is another program and still their owner.

        Return the variable by which a process inside of that program knows that it may take shares of them, and of
        those of all other contexts of this process that are kept: of several such answers the last one is whole.
        """
        if self not in _kept:
            _kept.append(self)
        drivers = [each for context in _kept for each in context._drivers.items()]  # noqa: SLF001 - of this class
        grants = [grant for name, driver in drivers for grant in _asked(name, functools.partial(_kept_by, driver))]
        if not grants:
            return {}
        from externalresource.coordination import run_variable

        return run_variable(grants)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:  # no infos or no variables would be taken for no restriction
            raise ConfigurationError("this context is closed: its devices were given back")

    def _retrieve(self, name: str, driver: ExternalResourceDriver, amount: int) -> None:
        self._drivers[name] = driver
        try:
            self._infos[name] = _retrieved(name, driver, amount)
        except ExternalResourceError as error:
            if not self._lenient:
                error.args = (f"resource {name!r}: {error}" if self._several else str(error),)
                raise
            self._take_back(name)  # now, and not at the end: nobody here would use what it may hold
            warn(f"resource {name!r} is left out: {error}")

    def _for_each_driver(self, give_back: Callable[[str], None]) -> None:
        """Have each give back, also after one that fails. What an interrupt leaves is known as interrupted."""
        try:
            with ExitStack() as closing:
                for name in self._drivers:
                    closing.callback(give_back, name)
        except Exception:
            _interrupted.pop(self, None)  # whoever gets the error may close it again
            raise
        _interrupted.pop(self, None)

    def _give_back(self, name: str) -> None:
        """Have a driver give back what it holds; it is kept, to be asked again, unless it did."""
        try:
            if driver := self._drivers.get(name):  # and not closed by another thread meanwhile
                driver.close()
        except ExternalResourceError as error:
            error.args = (f"the devices of {name!r} are not given back: {error}",)
            raise
        except Exception as error:
            raise PluginError(f"the devices of {name!r} are not given back: {cause(error)}") from error
        self._drivers.pop(name, None)

    def _take_back(self, name: str) -> None:
        """Give back, if that can be: that it fails is less than the error for which it is done."""
        try:
            self._give_back(name)
        except ExternalResourceError as error:
            warn(str(error))


#: Contexts that were interrupted while they were made or closed, with the thread that did it.
_interrupted: dict[RuntimeContext, int] = {}


def _finish_interrupted(*, of_all_threads: bool = False) -> None:
    """Give back what an interrupt of this thread left; it is done before each new claim, and when the process ends."""
    _finish_at_exit()
    for context, thread in list(_interrupted.items()):
        if of_all_threads or thread == get_ident():
            try:
                context.close()
            except ExternalResourceError as error:
                warn(str(error))
            except SystemExit:
                if not of_all_threads:  # this process ends anyway
                    raise


@functools.cache
def _finish_at_exit() -> None:
    import atexit

    atexit.register(_finish_interrupted, of_all_threads=True)


#: The contexts that outlast an exec of this process. A fork has none: it has claimed nothing yet.
_kept: list[RuntimeContext] = []
os.register_at_fork(after_in_child=_kept.clear)


def runtime_context(
    config: str | os.PathLike[str] | Mapping[str, object] | None = None,
    *,
    overrides: Mapping[str, str] | None = None,
    lenient: bool = False,
) -> RuntimeContext:
    """Load the configured drivers and retrieve the devices of this process, a TaskManager.

    `config` is a Flink configuration: a file, a folder with one, a mapping, or by default Flink's own (in
    FLINK_CONF_DIR, else in FLINK_HOME/conf); `overrides` are keys that win over it. Raises ExternalResourceError, and
    then holds nothing; with `lenient` a resource that fails is left out with a warning, as Flink does.
    """
    from externalresource.flink import configuration

    resources = {}
    for resource in configuration.load(config, overrides=overrides or {}, lenient=lenient):
        driver = _driver(resource, lenient=lenient)
        if driver is not None:
            resources[resource.name] = driver, resource.amount
    return RuntimeContext(resources, lenient=lenient)


def claim(
    name: str, amount: int = 1, *, driver_factory: str | None = None, options: Mapping[str, object] | None = None
) -> RuntimeContext:
    """Claim devices of one resource for this process, coordinated with all others, without a configuration file.

    `driver_factory` is by default the installed plugin of that name; `options` are the driver's own, with values as in
    a configuration: texts, numbers, True or False.
    """
    check_amount(name, amount)
    return RuntimeContext({name: (driver_to_claim(name, driver_factory, options or {}), amount)})


def check_amount(name: str, amount: int) -> None:
    if not isinstance(amount, int) or amount < 1:
        raise ConfigurationError(f"the amount of {name!r} must be a positive integer, not {amount!r}")


def driver_to_claim(name: str, driver_factory: str | None, options: Mapping[str, object]) -> ExternalResourceDriver:
    """Return a driver that coordinates."""
    from externalresource.drivers.loading import create_driver
    from externalresource.flink import configuration

    given = {key: configuration.text(f"option {key!r}", value) for key, value in options.items()}
    return create_driver(driver_factory or name, {"enable-coordination-mode": "true"} | given)


def _driver(resource: ResourceConfig, *, lenient: bool) -> ExternalResourceDriver | None:
    if resource.driver_factory is None:  # scheduled by the engine, but nobody is told more
        return None
    from externalresource.drivers.loading import create_driver
    from externalresource.flink.configuration import defaults

    factory = resource.driver_factory
    try:
        return create_driver(factory, resource.options, defaults=defaults(factory))
    except ExternalResourceError as error:
        if not lenient:
            raise
        warn(f"resource {resource.name!r} is left out: {error}")
        return None


def _ordered(
    resources: Mapping[str, tuple[ExternalResourceDriver, int]],
) -> list[tuple[str, tuple[ExternalResourceDriver, int]]]:
    """Return the resources in the order of their coordination files, which is the same for all processes.

    Two processes that wait for the same two resources thus never hold one each and wait for the other. Within one file
    there is no such order: whoever waits comes first there, and a second one that would wait is a ConfigurationError.
    A file is known by its inode: two containers may have it under different paths.
    """
    if len(resources) == 1:
        return [*resources.items()]
    files = {name: _file(driver) for name, (driver, _) in resources.items()}
    ordered = sorted(resources.items(), key=lambda item: (files[item[0]], not item[1][0].wait, item[0]))
    for (name, (driver, _)), (other, (following, _)) in pairwise(ordered):
        if driver.wait and following.wait and files[name] == files[other] != ():
            paths = " and ".join(dict.fromkeys(str(each.coordination_file) for each in (driver, following)))
            raise ConfigurationError(
                f"resources {name!r} and {other!r} share one coordination file ({paths}) and both wait: two processes "
                "could hold one each and wait for the other; let one of the two wait, or ask for the devices as one "
                "resource"
            )
    return ordered


def _file(driver: ExternalResourceDriver) -> tuple[int, ...]:
    """Return by what the coordination file of a driver is known; nothing if it has none, or it cannot be used.

    What cannot be used comes first: its error then costs nobody a device.
    """
    if not driver.coordination_file:
        return ()
    from externalresource.coordination import Coordination

    try:
        return Coordination(driver.coordination_file, "").identity()
    except CoordinationError:
        return ()


def _retrieved(name: str, driver: ExternalResourceDriver, amount: int) -> frozenset[ExternalResourceInfo]:
    infos = _asked(name, lambda: frozenset(driver.retrieve_resource_info(amount)))
    if len(infos) != amount:
        raise PluginError(f"the driver of {name!r} returned {len(infos)} devices, not the {amount} asked for")
    return infos


def _asked(name: str, ask: Callable[[], T]) -> T:
    """Return what a driver answers in this thread: signals are handled there, and may end its wait."""
    try:
        return ask()
    except ExternalResourceError:
        raise
    except Exception as error:
        raise PluginError(f"the driver of {name!r} failed: {cause(error)}") from error


def _kept_by(driver: ExternalResourceDriver) -> list[str]:
    return [*driver.keep_over_exec()]


def variables_of(
    name: str, driver: ExternalResourceDriver, infos: AbstractSet[ExternalResourceInfo]
) -> Mapping[str, str]:
    """Return the variables for a process that uses exactly these devices. PluginError if the driver cannot say."""
    from externalresource.drivers.containment import answered, variables
    from externalresource.drivers.contract import NotOfferedError

    whose = f"the environment of the driver of {name!r}"
    try:
        return answered(
            lambda: variables(driver.environment(infos), whose),
            time.monotonic() + _LONGEST,
            failed=f"{whose} failed",
            late=f"{whose} was not made",
        )
    except NotOfferedError as error:
        raise PluginError(f"the driver of {name!r} sets no environment variables: {error}") from None
