"""What a Flink configuration says that leaves its TaskManagers without devices. Pure: it sees settings, and no file.

Flink warns of most of this in the log of each TaskManager at most, and starts.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise

from externalresource.errors import nearest
from externalresource.flink import configuration
from externalresource.flink.config_files import Setting
from externalresource.flink.configuration import GPU_FACTORY, Written
from externalresource.flink.doctor.findings import ERROR, WARNING, Finding

Settings = Mapping[str, Setting]

PATH, ARGS = "discovery-script.path", "discovery-script.args"
DEFAULT_SCRIPT = "plugins/external-resource-gpu/nvidia-gpu-discovery.sh"
OUR_SCRIPT = "nvidia-gpu-discovery"
COORDINATE, COORDINATION_FILE = "--enable-coordination-mode", "--coordination-file"
_STOCK_OPTIONS = (COORDINATE, COORDINATION_FILE)
WITHOUT_BLANKS = (
    f"write the configuration into a file that is mounted there, or use {OUR_SCRIPT} and its options in the "
    "environment: EXTERNALRESOURCE_GPU_ENABLE_COORDINATION_MODE=true, EXTERNALRESOURCE_GPU_COORDINATION_FILE=/path"
)
_MISSPELT = "--enable-coordination"  # as Flink's documentation has it
_GLUED = re.compile(  # in the value of an option that we do not know two dashes may be right
    r"--?[\w-]*[^\s=-]--[a-z]\S*|--coordination-file/\S*|\S+--(?:enable-coordination|coordination-file)\S*"
)


def text(setting: Setting | None) -> str:
    return "" if setting is None or setting.value is None else str(setting.value)


def key(resource: Written, suffix: str) -> str:
    return f"external-resource.{resource.name}.{suffix}"


def evidence(key: str, setting: Setting) -> str:
    return f"{setting.where}{key}: {text(setting)}"


def args_evidence(resource: Written) -> str:
    """Return the arguments of the discovery script with their place."""
    return evidence(key(resource, f"param.{ARGS}"), resource.params[ARGS])


def script_path(resource: Written) -> str:
    """Return the discovery script by Flink's default where none is named."""
    return text(resource.params.get(PATH)) or DEFAULT_SCRIPT


def is_ours(resource: Written) -> bool:
    """Return whether this project finds the devices, by its script or a driver: it names wrong options itself."""
    if script_path(resource).rpartition("/")[2] == OUR_SCRIPT:
        return True
    return PATH not in resource.params and text(resource.driver_factory) not in ("", GPU_FACTORY)


def is_flinks(resource: Written) -> bool:
    """Return whether the discovery script is Flink's own, of which the options are known."""
    has_script = PATH in resource.params or text(resource.driver_factory) == GPU_FACTORY
    return has_script and not is_ours(resource) and script_path(resource).endswith("/nvidia-gpu-discovery.sh")


def coordination_file(resource: Written, default: str) -> str | None:
    """Return the file that the script is told to use; None if it is told none, or `default` without a name for it."""
    words = text(resource.params.get(ARGS)).split()
    named = (following for word, following in pairwise(words) if word == COORDINATION_FILE)
    return next(named, default) if COORDINATE in words else None


def amount(resource: Written) -> int | None:
    """Return the amount as Java reads it, also one below 1; None if it is none."""
    written = text(resource.amount)
    return int(written) if re.fullmatch("[+-]?[0-9]{1,18}", written) else None


def are_mangled(resource: Written) -> bool:
    """Return whether the arguments have lost their blanks or kept their quotes, so that our script refuses them."""
    return any(chain(_blanks(resource), _quotes(resource)))


def is_glued(word: str) -> bool:
    """Return whether a word looks like several that have lost the blanks between them."""
    return bool(_GLUED.fullmatch(word))


def asks_for_nothing(settings: Settings) -> bool:
    """Return whether the list of resources is missing, or is meant to be empty."""
    return text(settings.get("external-resources")) in ("", "none", "[]")


def findings(settings: Settings, place: str) -> Iterator[Finding]:
    """Yield what is wrong with the settings; `place` is the file that has them."""
    resources = configuration.written(settings)
    yield from _not_listed(settings, resources, place)
    yield from _several(settings, resources)
    for resource in resources:
        for check in _CHECKS:
            yield from check(resource)


def _not_listed(settings: Settings, resources: Sequence[Written], place: str) -> Iterator[Finding]:
    lost = configuration.unlisted(settings)
    listed = settings.get("external-resources")
    seen = evidence("external-resources", listed) if listed else f"{place}: external-resources is not set"
    if not lost and asks_for_nothing(settings):
        yield Finding("not-listed", "Flink is asked for no resource at all", seen, "external-resources: gpu")
    for name, own in lost.items():
        names = ";".join([*(resource.name for resource in resources), name])
        yield Finding(
            "not-listed",
            f"the keys of {name!r} count for nothing: external-resources does not list it",
            f"{evidence(own, settings[own])}; {seen}",
            f"external-resources: {names}",
        )


def _several(settings: Settings, resources: Sequence[Written]) -> Iterator[Finding]:
    """Flink quotes `a;b` for a shell that is not there, and its TaskManagers know one resource of that very name."""
    target = text(settings.get("execution.target"))
    has_shell = target.startswith(("kubernetes", "yarn")) or "kubernetes.cluster-id" in settings
    factories = [text(resource.driver_factory) for resource in resources]
    # The others are of TaskManagers in Python.
    of_flink = [name for name in factories if not name or ("." in name and ":" not in name)]
    if len(resources) < 2 or has_shell or not of_flink:  # noqa: PLR2004 - "several"
        return
    names = ";".join(resource.name for resource in resources)
    yield Finding(
        "several-resources",
        "of two resources a standalone TaskManager has none: Flink puts the list in quotes that nobody removes",
        f"{evidence('external-resources', resources[0].listed)}; a TaskManager is started with "
        f'-D external-resources="{names}", and looks for one resource of that name',
        "list one resource on standalone and Docker clusters (on Kubernetes and YARN a shell removes the quotes)",
        severity=WARNING if all(resource.forwarded for resource in resources) else ERROR,
    )


def _amount(resource: Written) -> Iterator[Finding]:
    name = key(resource, "amount")
    number = amount(resource)
    if number is not None and number > 0:
        return
    if resource.amount is None:
        problem = f"Flink passes {resource.name!r} over: it has no amount"
        seen = f"{evidence('external-resources', resource.listed)}, and {name} is not set"
    else:
        consequence = "no TaskManager starts" if number is None else "Flink passes the resource over"
        problem = f"the amount of {resource.name!r} is no positive integer: {consequence}"
        seen = evidence(name, resource.amount)
    yield Finding("amount", problem, seen, f"{name}: 1")


def _factory(resource: Written) -> Iterator[Finding]:
    if text(resource.driver_factory).strip():
        return
    name = key(resource, "driver-factory.class")
    yield Finding(
        "factory",
        f"Flink advertises {resource.name!r}, and tells no operator which devices those are: it has no driver",
        f"{evidence('external-resources', resource.listed)}, and {name} is not set",
        f"{name}: the class of its driver ({GPU_FACTORY} for GPUs)",
        severity=WARNING if resource.forwarded else ERROR,
    )


def _flags(resource: Written) -> Iterator[Finding]:
    """Flink's script passes over what it does not know. Another one may do so, or know what Flink documents."""
    words = [] if is_ours(resource) else text(resource.params.get(ARGS)).split()
    unknown = [word for word in words if word.startswith("-") and word not in _STOCK_OPTIONS]
    for word in unknown:
        if (word == _MISSPELT and COORDINATE in words) or is_glued(word):  # of the glued _blanks() tells
            continue
        if is_flinks(resource):
            consequence = "every TaskManager gets the same devices" if "coord" in word else "it does nothing"
            problem = f"the discovery script does not know {word}, and ignores it without a word: {consequence}"
        elif word == _MISSPELT:
            problem = f"a script may ignore {word}, as Flink's does: then all TaskManagers get the same devices"
        else:
            continue
        near = nearest(word, _STOCK_OPTIONS)
        yield Finding(
            "coordination-flag",
            problem,
            args_evidence(resource),
            (f"write {near} instead of {word}" if near else f"remove {word}")
            + f", or use the script {OUR_SCRIPT}, which knows both spellings and refuses the rest",
            severity=ERROR if is_flinks(resource) else WARNING,
        )


def _blanks(resource: Written) -> Iterator[Finding]:
    glued = [word for word in text(resource.params.get(ARGS)).split() if is_glued(word)]
    if glued:
        yield Finding(
            "lost-blanks",
            f"the arguments have lost their blanks, so that {glued[0]} is one word that no script understands",
            args_evidence(resource),
            f"Flink's Docker image removes all blanks from FLINK_PROPERTIES: {WITHOUT_BLANKS}",
        )


def _unread(resource: Written) -> Iterator[Finding]:
    """Flink's own driver reads two params; that of this project takes the script's options as well."""
    if text(resource.driver_factory) == GPU_FACTORY:
        for param in resource.params.keys() - {PATH, ARGS}:
            value = text(resource.params[param])
            yield Finding(
                "unread-option",
                f"Flink does not read param.{param}: only TaskManagers in Python do",
                evidence(key(resource, f"param.{param}"), resource.params[param]),
                f"{key(resource, f'param.{ARGS}')}: --{param}" + ("" if value == "true" else f" {value}"),
                severity=WARNING,
            )


def _quotes(resource: Written) -> Iterator[Finding]:
    found = re.search(r"""["'\\$*~]""", text(resource.params.get(ARGS)))
    if found and text(resource.driver_factory) == GPU_FACTORY:
        yield Finding(
            "quotes",
            f"no shell reads the arguments: Flink splits them at blanks, and passes {found[0]} on as it is",
            args_evidence(resource),
            "write them without quotes and variables; a value must have no blank",
        )


_CHECKS: tuple[Callable[[Written], Iterator[Finding]], ...] = (_amount, _factory, _flags, _blanks, _quotes, _unread)
