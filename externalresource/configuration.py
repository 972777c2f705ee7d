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

from externalresource import flink_files
from externalresource.errors import ConfigurationError, did_you_mean
from externalresource.flink_files import Setting

_FAMILY, _LIST, _PREFIX = "external-resource", "external-resources", "external-resource."
_NONE = "none"
_AMOUNT, _FACTORY, _PARAM = "amount", "driver-factory.class", "param."
_KUBERNETES, _YARN = "kubernetes.config-key", "yarn.config-key"
_SUFFIXES = (_AMOUNT, _FACTORY, _KUBERNETES, _YARN)

# One element of Flink's `;` list: quoted ("" stands for one quote within), or bare up to the next semicolon.
_ELEMENT = re.compile(r"""\s*(?:"((?:[^"]|"")*)"|'((?:[^']|'')*)'|([^\s;"'][^;]*)?)\s*(?:;|$)""")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")  # what Java reads into a long, whatever its digits
_UNFIT = re.compile(
    r"""[\s;,="'\[\]{}]"""
)  # what Flink's shell scripts split, or what shows a list misread as one name

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
    complain = _warn if lenient else _refuse
    if isinstance(source, Mapping):
        settings = [(key, Setting(value)) for key, value in _flatten(source, "")]
    else:
        settings = flink_files.read(os.fspath(source or _flink_folder()), complain)
    return _resources({**_unique(_ours(settings), complain), **dict(_ours(_overrides(overrides)))}, complain)


def _refuse(message: str) -> None:
    raise ConfigurationError(message)


def _warn(message: str) -> None:
    import logging

    logging.getLogger("externalresource").warning("%s", message)


def _flink_folder() -> str:
    if folder := os.environ.get("FLINK_CONF_DIR"):
        return folder
    if home := os.environ.get("FLINK_HOME"):
        return os.path.join(home, "conf")
    raise ConfigurationError("no configuration is named, and neither FLINK_CONF_DIR nor FLINK_HOME is set")


def _flatten(mapping: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _overrides(overrides: Mapping[str, object] | Iterable[str]) -> Iterator[tuple[str, Setting]]:
    pairs = _flatten(overrides, "") if isinstance(overrides, Mapping) else map(_key_and_value, overrides)
    return ((key, Setting(value, "-D ")) for key, value in pairs)


def _key_and_value(override: str) -> tuple[str, str]:
    key, equals, value = override.partition("=")
    if not (key.strip() and equals):
        raise ConfigurationError(f"-D must be followed by key=value, not {override!r}")
    return key.strip(), value


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
    resources = [resource for name in names if (resource := _resource(name, settings, complain))]
    _check_config_keys(settings, resources, complain)
    return resources
