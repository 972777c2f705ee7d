"""From the name of a factory to a driver. Only what is named is imported."""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from types import MappingProxyType

import pluggy

from externalresource.drivers.containment import watched
from externalresource.drivers.contract import (
    API_VERSION,
    PROJECT,
    ExternalResourceDriver,
    ExternalResourceDriverFactory,
)
from externalresource.errors import ExternalResourceError, PluginError, cause, did_you_mean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

#: Our own plugins. Their names are ours, whoever else offers them, and need no look at what is installed.
OURS: Mapping[str, str] = MappingProxyType(
    {
        "amd": "externalresource_amd.driver:amd",
        "gpu": "externalresource_gpu.driver:GPUDriverFactory",
        "nvme": "externalresource_nvme.driver:nvme",
        "org.apache.flink.externalresource.gpu.GPUDriverFactory": "externalresource_gpu.driver:GPUDriverFactory",
        "rdma": "externalresource_rdma.driver:rdma",
        "script": "externalresource_script.driver:ScriptDriverFactory",
    }
)

IMPORT_TIMEOUT = 60.0  # seconds until the log says that an import takes long, as from a network's file system


def create_driver(
    factory: str,
    options: Mapping[str, str],
    *,
    defaults: Mapping[str, str] = MappingProxyType({}),
    import_timeout: float = IMPORT_TIMEOUT,
) -> ExternalResourceDriver:
    """Return the driver that a factory makes of these options, and of the defaults that it says that it takes.

    `factory` is one of our names (`gpu`, or Flink's class name for it), the entry point of an installed plugin, or an
    import path (`package.module:Class`). A driver that is a plain object is adapted to ExternalResourceDriver. Raises
    PluginError, which names plugin, entry point, distribution and cause; what the factory itself raises of our errors
    comes through as it is.
    """
    if factory in OURS:
        name, find = f"plugin {factory!r}", _finder(OURS[factory])
    elif ":" in factory:
        name, find = f"plugin {factory!r} (import path)", _finder(factory)
    else:
        name, find = _entry_point(factory)
    plugin = load(name, find, None if factory in OURS else import_timeout)
    create = hook(name, plugin)
    try:
        return _fitted(name, create(options={**_taken(plugin, defaults), **options} if defaults else options))
    except (ExternalResourceError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginError(f"{name} could not create a driver: {cause(error)}") from error


def _taken(plugin: object, options: Mapping[str, str]) -> dict[str, str]:
    """Return those of the options that a factory lists as its own."""
    listed = getattr(plugin, "options", None)
    names = [getattr(option, "name", None) for option in listed] if isinstance(listed, list | tuple) else []
    return {name: value for name, value in options.items() if name in names}


def _fitted(name: str, made: object) -> ExternalResourceDriver:
    """Return what a factory has made as a driver that answers everything."""
    if isinstance(made, ExternalResourceDriver):
        return made
    if made is None:
        raise PluginError(f"{name} created no driver: its create_external_resource_driver returned None")
    if not hasattr(made, "retrieve_resource_info"):
        raise PluginError(f"{name} created no driver: a {type(made).__name__} has no retrieve_resource_info(amount)")
    return _Adapted(made)


class _Adapted(ExternalResourceDriver):
    """A stranger's driver that is a plain object: what it has stands before the answers of the base class."""

    plain: object

    def __init__(self, plain: object) -> None:
        super().__setattr__("plain", plain)
        for name in vars(ExternalResourceDriver):
            if not name.startswith("_") and hasattr(plain, name):
                super().__setattr__(name, getattr(plain, name))

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        with suppress(Exception):  # it may have slots, or be frozen
            setattr(self.plain, name, value)  # it is the one that waits, and calls `on_wait`


def installed(name: str | None = None) -> "list[EntryPoint]":
    """Return the entry points of all plugins, or those of a name; once each, though a package may be found twice."""
    from importlib.metadata import entry_points

    found = entry_points(group=PROJECT) if name is None else entry_points(group=PROJECT, name=name)
    points = {(point.name, distribution(point), point.value): point for point in found}
    return [points[key] for key in sorted(points)]


def load(name: str, find: Callable[[], object], timeout: float | None = IMPORT_TIMEOUT) -> object:
    """Return the factory that is found; an instance, if that is a class. PluginError if it is not for us.

    After `timeout` seconds the log says that this takes long: nothing can end an import from outside.
    """
    try:
        with watched(timeout, f"the import of {name}") if timeout else nullcontext():
            found = find()
            plugin = found() if isinstance(found, type) else found
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what libraries derive beside Exception: pyo3's PanicException
        raise PluginError(f"{name} could not be loaded: {cause(error)}") from error
    version = api_version(plugin)
    if version not in (None, API_VERSION):
        raise PluginError(
            f"{name} was written for version {version!r} of the driver API, and this externalresource has version "
            f"{API_VERSION}: install releases of the two that fit"
        )
    return plugin


def hook(name: str, plugin: object) -> Callable[..., object]:
    """Return what makes drivers, of a manager with this plugin alone: one refuses the same module under two names."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ExternalResourceDriverFactory)
    try:
        manager.register(plugin, name=name)
        manager.check_pending()  # a misspelt hook is found here, and not as a factory that created nothing
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{name} does not fit: {cause(error)}") from error
    create = manager.hook.create_external_resource_driver
    if not create.get_hookimpls():
        raise PluginError(
            f"{name} is no factory: it has no create_external_resource_driver marked @externalresource.hookimpl"
        )
    return create


def api_version(plugin: object) -> object:
    """Return for which version of the driver API a plugin says that it was written, itself or its module; or None."""
    module = sys.modules.get(getattr(plugin, "__module__", None) or "")
    return getattr(plugin, "api_version", getattr(module, "api_version", None))


def distribution(point: "EntryPoint") -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _entry_point(factory: str) -> tuple[str, Callable[[], object]]:
    named = installed(factory)  # of the others the metadata is not read
    if not named:
        known = sorted({*OURS, *(point.name for point in installed())})
        raise PluginError(
            f"no installed plugin is called {factory!r} (installed: {', '.join(known) or 'none'}; an import path is "
            f"written package.module:Class){did_you_mean(factory, known)}"
        )
    if len(named) > 1:
        raise PluginError(
            f"plugin {factory!r} is ambiguous: {' and '.join(map(distribution, named))} both provide it; "
            f"uninstall one, or name the import path ({' or '.join(point.value for point in named)})"
        )
    [point] = named
    return f"plugin {factory!r} (entry point {point.value} of {distribution(point)})", point.load


def _finder(path: str) -> Callable[[], object]:
    """Return what imports `package.module:name`."""
    module, _, attribute = path.partition(":")

    def find() -> object:
        import importlib

        found: object = importlib.import_module(module)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
        return found

    return find
