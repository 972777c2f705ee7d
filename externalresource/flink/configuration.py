"""Flink's option keys for external resources, read into one record per resource. No other module spells a key.

Sources: Flink's `ExternalResourceOptions`, `KubernetesConfigOptions` and `YarnConfigOptions`. Flink warns of much and
then starts without the resource; here that is an error unless the caller asks for Flink's leniency. Only the resources
that `external-resources` lists count: keys of others, and everything else in the file, are passed over, as in Flink.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from externalresource.errors import ConfigurationError, did_you_mean, warn
from externalresource.flink import config_files
from externalresource.flink.config_files import Setting

_FAMILY, _LIST, _PREFIX = "external-resource", "external-resources", "external-resource."
_NONE = "none"
GPU_FACTORY = "org.apache.flink.externalresource.gpu.GPUDriverFactory"
_AMOUNT, _FACTORY, _PARAM = "amount", "driver-factory.class", "param."
_KUBERNETES, _YARN = "kubernetes.config-key", "yarn.config-key"
_SUFFIXES = (_AMOUNT, _FACTORY, _KUBERNETES, _YARN)

_ALLOWED = f", allowed are {', '.join(_SUFFIXES)} and {_PARAM}*"

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")  # what Java reads into a long, whatever its digits
# What Flink's shell scripts split, or what gives away a list that was misread as one name.
_UNFIT = re.compile(r"""[\s;,="'\[\]{}]""")

_Complain = Callable[[str], None]
_Settings = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class ResourceConfig:
    name: str
    amount: int  # per TaskManager, positive
    driver_factory: str | None  # None: it is scheduled, but nothing is known of its devices
    options: Mapping[str, str]  # what the driver factory gets: the `param.` keys without prefix; read-only
    kubernetes_config_key: str | None
    yarn_config_key: str | None


@dataclass(frozen=True, slots=True)
class Written:
    """A resource as it is written, whatever may be wrong with it."""

    name: str
    #: The list that has its name.
    listed: Setting
    amount: Setting | None
    driver_factory: Setting | None
    #: By what follows `param.`.
    params: Mapping[str, Setting]
    #: Kubernetes or YARN is asked for it.
    forwarded: bool


def load(
    source: str | os.PathLike[str] | Mapping[str, object] | None = None,
    *,
    overrides: Mapping[str, object] | Iterable[str] = (),
    lenient: bool = False,
) -> list[ResourceConfig]:
    """Return the resources in the order of `external-resources`.

    The source is a file, a folder with a `config.yaml` or `flink-conf.yaml`, or a mapping (nested or dotted keys; text,
    numbers, bools, lists); None means $FLINK_CONF_DIR, then $FLINK_HOME/conf. Overrides win over it: a mapping, or
    `key=value` texts as after `-D`, of which the last for a key wins. `lenient` logs what Flink only warns of, and goes
    on without that resource or key. Raises ConfigurationError, whose message is one line that begins with the place.
    """
    return _load(source, overrides, warn if lenient else _refuse)


def defaults(driver_factory: str) -> dict[str, str]:
    """Return the options that a driver of this name gets where its resource does not set them, if it takes them.

    Coordination is on, but for Flink's own class: the same configuration must mean the same to Flink.
    """
    return {} if driver_factory == GPU_FACTORY else {"enable-coordination-mode": "true"}


def complaints(source: str, *, overrides: Iterable[str] = ()) -> list[tuple[str, bool]]:
    """Return all that speaks against a configuration, each with True if Flink refuses it, which the last one may be."""
    found: list[tuple[str, bool]] = []
    try:
        _load(source, overrides, lambda message: found.append((message, False)))
    except ConfigurationError as error:
        found.append((str(error), True))
    return found


def _load(
    source: str | os.PathLike[str] | Mapping[str, object] | None,
    overrides: Mapping[str, object] | Iterable[str],
    complain: _Complain,
) -> list[ResourceConfig]:
    if isinstance(source, Mapping):
        settings = [(key, Setting(value)) for key, value in _flatten(source, "")]
    else:
        settings = config_files.read(os.fspath(flink_folder() if source is None else source), complain)
    return _resources({**_unique(_ours(settings), complain), **dict(_ours(_overrides(overrides)))}, complain)


def settings(source: str, *, overrides: Iterable[str] = ()) -> dict[str, Setting]:
    """Return all keys of a configuration as they are written, also those that are none of ours."""
    return {**dict(config_files.read(source, config_files.ignore)), **dict(_overrides(overrides))}


def written(settings: _Settings) -> list[Written]:
    """Return the resources that are listed; none if the list cannot be read."""
    try:
        names = [name for name in _names(settings, config_files.ignore) if not _fault(name)]
    except ConfigurationError:
        return []
    return [
        Written(
            name,
            settings[_LIST],
            settings.get(_key(name, _AMOUNT)),
            settings.get(_key(name, _FACTORY)),
            _params(name, settings),
            forwarded=any(_key(name, suffix) in settings for suffix in (_KUBERNETES, _YARN)),
        )
        for name in names
    ]


def unlisted(settings: _Settings) -> dict[str, str]:
    """Return a key of each resource that has one and is not listed, so that nothing reads it."""
    names = {resource.name for resource in written(settings)}
    found: dict[str, str] = {}
    for key in settings:
        for suffix in _SUFFIXES:
            name = key.removeprefix(_PREFIX).removesuffix(f".{suffix}")
            if key == _key(name, suffix) and name not in names:
                found.setdefault(name, key)
    return found


def flink_folder() -> str:
    """Return the folder of the configuration of the Flink that the environment names; ConfigurationError if none."""
    if folder := os.environ.get("FLINK_CONF_DIR"):
        return folder
    if home := os.environ.get("FLINK_HOME"):
        return os.path.join(home, "conf")
    raise ConfigurationError("no configuration is named, and neither FLINK_CONF_DIR nor FLINK_HOME is set")


def _refuse(message: str) -> None:
    raise ConfigurationError(message)


def _flatten(mapping: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _overrides(overrides: Mapping[str, object] | Iterable[str]) -> Iterator[tuple[str, Setting]]:
    if isinstance(overrides, Mapping):
        return ((key, Setting(value, "overrides: ")) for key, value in _flatten(overrides, ""))
    pairs = [override.partition("=") for override in overrides]
    for key, equals, value in pairs:
        if not (key.strip() and equals):
            raise ConfigurationError(f"-D must be followed by key=value, not {key + equals + value!r}")
    return ((key.strip(), Setting(value, "-D ")) for key, _, value in pairs)


def _ours(settings: Iterable[tuple[str, Setting]]) -> Iterator[tuple[str, Setting]]:
    return (pair for pair in settings if pair[0].startswith(_FAMILY))


def _unique(settings: Iterable[tuple[str, Setting]], complain: _Complain) -> dict[str, Setting]:
    """Return the settings by key; the same key may come twice where it is written both nested and dotted."""
    unique: dict[str, Setting] = {}
    for key, setting in settings:
        if key in unique:
            first = unique[key].where.rstrip(": ")
            complain(f"{setting.where}{key} is set twice{first and f', first in {first}'}")
        unique[key] = setting
    return unique


def _resources(settings: _Settings, complain: _Complain) -> list[ResourceConfig]:
    names = _names(settings, complain)
    for key, setting in settings.items():
        _check_key(key, setting.where, names, complain)
    kubernetes = _config_keys(_KUBERNETES, names, settings, complain)
    yarn = _config_keys(_YARN, names, settings, complain)
    return [
        ResourceConfig(
            name=name,
            amount=amount,
            driver_factory=_optional(_key(name, _FACTORY), settings, complain),
            options=MappingProxyType(
                {param: _text(_key(name, _PARAM + param), value) for param, value in _params(name, settings).items()}
            ),
            kubernetes_config_key=kubernetes.get(name),
            yarn_config_key=yarn.get(name),
        )
        for name in names
        if (amount := _amount(name, settings, complain)) is not None
    ]


def _key(name: str, suffix: str) -> str:
    return f"{_PREFIX}{name}.{suffix}"


def _names(settings: _Settings, complain: _Complain) -> list[str]:
    listed = settings.get(_LIST)
    if listed is None or listed.value == _NONE:
        return []
    names = _elements(listed)
    for name in dict.fromkeys(names):
        if fault := _fault(name):
            complain(f"{listed.where}{_LIST} lists {fault}")
        if names.count(name) > 1:
            complain(f"{listed.where}{_LIST} lists {name!r} twice")
    return list(dict.fromkeys(names))


def _elements(listed: Setting) -> list[str]:
    elements = listed.value
    if not isinstance(elements, (list, tuple)):
        try:
            elements = config_files.elements(_text(_LIST, listed), yaml=listed.yaml)
        except ValueError as error:
            raise ConfigurationError(f"{listed.where}{_LIST} {error}") from None
    return [_text(f"an element of {_LIST}", replace(listed, value=element)) for element in elements]


def _fault(name: str) -> str | None:
    if not name:
        return "an empty name"
    if name == _NONE:
        return f"{name!r} as a name, which Flink reserves: for no resources at all, {_LIST} is that word and no list"
    unfit = _UNFIT.search(name)
    return unfit and f"{name!r}, one name with {unfit[0]!r} in it: join names by ';', unquoted"


def _check_key(key: str, where: str, names: Iterable[str], complain: _Complain) -> None:
    """Complain of a key that nothing reads. If `a` and `a.b` are listed, a key may belong to either."""
    if not key.startswith(_PREFIX) and key != _LIST:
        complain(f"{where}{key}: unknown key{did_you_mean(key, [_LIST])}")
    owned = [_key(name, "") for name in names if f"{key}.".startswith(_key(name, ""))]
    suffixes = [key[len(prefix) :] for prefix in owned]
    if suffixes and not any(suffix in _SUFFIXES or suffix.startswith(_PARAM) for suffix in suffixes):
        suffix = min(suffixes, key=len)
        params = [_PARAM + suffix, _PARAM + suffix.partition(".")[2]]
        near = did_you_mean(suffix, _SUFFIXES) or did_you_mean(suffix, params)
        complain(f"{where}{key}: unknown key{near or _ALLOWED}")


def _amount(name: str, settings: _Settings, complain: _Complain) -> int | None:
    key = _key(name, _AMOUNT)
    setting = settings.get(key)
    if setting is None:
        complain(f"{settings[_LIST].where}{_LIST} lists {name!r}, but {key} is not set")
        return None
    text = _text(key, setting)
    message = f"{setting.where}{key} must be a positive integer, not {text!r}"
    if not _INTEGER.fullmatch(text):
        raise ConfigurationError(message)
    if int(text) > 0:
        return int(text)
    complain(message)
    return None


def _params(name: str, settings: _Settings) -> dict[str, Setting]:
    prefix = _key(name, _PARAM)
    return {key.removeprefix(prefix): setting for key, setting in settings.items() if key.startswith(prefix)}


def _config_keys(suffix: str, names: Iterable[str], settings: _Settings, complain: _Complain) -> dict[str, str]:
    """Return the config key by name; if two names have the same, the later one keeps it, as in Flink."""
    owners: dict[str, str] = {}
    for name in names:
        key = _key(name, suffix)
        if config_key := _optional(key, settings, complain):
            if config_key in owners:
                other = _key(owners[config_key], suffix)
                complain(f"{settings[key].where}{key} must not be {config_key!r}: {other} is that already")
            owners[config_key] = name
    return {name: config_key for config_key, name in owners.items()}


def _optional(key: str, settings: _Settings, complain: _Complain) -> str | None:
    if key not in settings:
        return None
    text = _text(key, settings[key]).strip()
    if not text:
        complain(f"{settings[key].where}{key} must not be empty")
    return text or None


def _text(key: str, setting: Setting) -> str:
    return text(f"{setting.where}{key}", setting.value)


def text(key: str, value: object) -> str:
    """Return a value as Flink writes it; ConfigurationError if it is none that it could write."""
    match value:
        case bool(value):
            return "true" if value else "false"
        case str() | int() | float() as value:
            return str(value)
        case os.PathLike() as path:
            return os.fsdecode(path)
        case None:
            raise ConfigurationError(f"{key} has no value")
        case value:
            raise ConfigurationError(f"{key} must be one value, not {value!r}")
