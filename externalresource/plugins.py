"""From the name of a factory to a driver. Only what is named is imported."""

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import cast

import pluggy

from externalresource.errors import ExternalResourceError, PluginError, did_you_mean
from externalresource.hookspecs import PROJECT, ExternalResourceDriver, ExternalResourceDriverFactory


def create_driver(factory: str, options: Mapping[str, str]) -> ExternalResourceDriver:
    """Return the driver that a factory makes of these options.

    `factory` is the entry point of an installed plugin (`gpu`, or Flink's class name for it), or an import path
    (`package.module:Class`). Raises PluginError, which names plugin, entry point, distribution and cause; what the
    factory itself raises of our errors comes through as it is.
    """
    name, plugin = _import_path(factory) if ":" in factory else _entry_point(factory)
    manager = _manager(name, plugin)
    try:
        driver = manager.hook.create_external_resource_driver(options=options)
    except ExternalResourceError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{name} could not create a driver: {_cause(error)}") from error
    if driver is None:
        raise PluginError(f"{name} created no driver: its create_external_resource_driver returned None")
    return cast("ExternalResourceDriver", driver)


def _entry_point(factory: str) -> tuple[str, object]:
    found = entry_points(group=PROJECT, name=factory)
    by_distribution = {_distribution(point): point for point in found}
    if not by_distribution:
        known = sorted({point.name for point in entry_points(group=PROJECT)})
        raise PluginError(
            f"no installed plugin is called {factory!r} (installed: {', '.join(known) or 'none'}; an import path is "
            f"written package.module:Class){did_you_mean(factory, known)}"
        )
    if len(by_distribution) > 1:
        raise PluginError(
            f"plugin {factory!r} is ambiguous: {' and '.join(sorted(by_distribution))} both provide it; uninstall one, "
            f"or name the import path ({' or '.join(sorted(point.value for point in by_distribution.values()))})"
        )
    ((distribution, point),) = by_distribution.items()
    name = f"plugin {factory!r} (entry point {point.value} of {distribution})"
    return name, _made(name, point.load)


def _import_path(factory: str) -> tuple[str, object]:
    name = f"plugin {factory!r} (import path)"
    module, _, attribute = factory.partition(":")

    def load() -> object:
        found: object = importlib.import_module(module)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
        return found

    return name, _made(name, load)


def _made(name: str, load: Callable[[], object]) -> object:
    """Return what is loaded; an instance, if that is a class."""
    try:
        plugin = load()
        return plugin() if isinstance(plugin, type) else plugin
    except (Exception, SystemExit) as error:
        raise PluginError(f"{name} could not be loaded: {_cause(error)}") from error


def _manager(name: str, plugin: object) -> pluggy.PluginManager:
    """Return a manager with this plugin alone: one manager refuses the same module under two names."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ExternalResourceDriverFactory)
    try:
        manager.register(plugin, name=name)
        manager.check_pending()  # a misspelt hook is found here, and not as a factory that created nothing
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{name} does not fit: {_cause(error)}") from error
    if not manager.hook.create_external_resource_driver.get_hookimpls():
        raise PluginError(
            f"{name} is no factory: it has no create_external_resource_driver marked @externalresource.hookimpl"
        )
    return manager


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
