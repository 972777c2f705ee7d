"""Why has a Flink cluster no GPUs? All that can be looked at from here, one check after the other."""

import os
from collections.abc import Iterator, Mapping, Sequence

from externalresource.errors import ConfigurationError
from externalresource.flink import config_files, configuration
from externalresource.flink.configuration import Written
from externalresource.flink.doctor import cluster, host, installation, keys
from externalresource.flink.doctor.findings import WARNING, Finding, Looked, Note, NotLooked, Report
from externalresource.flink.doctor.keys import Settings

_ORDER = "containerized.taskmanager.env.CUDA_DEVICE_ORDER"


def examine(config: str | None, *, overrides: Sequence[str] = (), rest: str | None = None) -> Report:
    """Return what is wrong with a configuration, this host and the cluster, as far as they can be looked at.

    `config` is a file or a folder, by default that of the environment; `overrides` are `key=value` texts, `rest` is the
    address of Flink's REST API if the configuration does not tell it. ConfigurationError for an address that is none.
    """
    url = cluster.check_address(rest) if rest else None
    return Report(_notes(config, overrides, url, os.environ))


def _notes(
    config: str | None, overrides: Sequence[str], url: str | None, environment: Mapping[str, str]
) -> Iterator[Note]:
    try:
        source = config or configuration.flink_folder()
    except ConfigurationError as error:
        yield NotLooked("Flink's configuration", str(error))
        yield from _without_configuration(url, environment)
        return
    # A folder, or a file itself. Of a folder's two files Flink 1.20 and 2 read different ones.
    file, *unused = [file.removeprefix("./") for file in config_files.files_in(source)] or [source]
    for other in unused:
        yield Finding(
            "configuration",
            "which of two configuration files counts depends on Flink's version: 1.20 reads the first, 2 the second",
            f"{file} and {other}",
            f"remove the one that you do not mean; here {file} was looked at",
            severity=WARNING,
        )
    try:
        settings = configuration.settings(file, overrides=overrides)
    except ConfigurationError as error:
        remedy = "correct it, or name another configuration"
        yield Finding("configuration", "Flink's configuration cannot be read", str(error), remedy)
        yield from _without_configuration(url, environment)
        return
    yield Looked(f"configuration {file}")
    yield from keys.findings(settings, file)
    yield from _complaints(file, overrides, settings)
    resources = configuration.written(settings)
    flink = installation.home(os.path.dirname(file), environment)
    for resource in resources:
        yield from installation.script(resource, flink, environment)
    yield from installation.properties(environment)
    yield from installation.plugins(resources, flink, environment)
    for resource in resources or [host.GPUS]:
        yield from _host(resource, settings, environment)
    yield from cluster.notes(url or cluster.address(settings), resources)


def _without_configuration(url: str | None, environment: Mapping[str, str]) -> Iterator[Note]:
    yield from installation.properties(environment)
    yield from host.devices(host.GPUS, environment, None)
    yield from host.coordination(host.GPUS)
    if url is not None:
        yield from cluster.notes(url, [])
    else:
        yield NotLooked("REST API", "no configuration tells its address; see --rest")


def _complaints(file: str, overrides: Sequence[str], settings: Settings) -> Iterator[Finding]:
    """Yield what else a strict reading refuses: what was told already is mended first, so that the rest is seen."""
    resources = configuration.written(settings)
    mended = [f"external-resource.{resource.name}.amount=1" for resource in resources]
    if keys.asks_for_nothing(settings):
        mended.append("external-resources=none")
    for message, refused in configuration.complaints(file, overrides=[*overrides, *mended]):
        yield Finding(
            "configuration",
            "Flink does not start with this" if refused else "Flink passes this over, with a warning at most",
            message,
            "correct what stands there, or remove it",
        )


def _host(resource: Written, settings: Settings, environment: Mapping[str, str]) -> Iterator[Note]:
    told = keys.are_mangled(resource)  # which are options that are refused
    for note in host.devices(resource, environment, keys.text(settings.get(_ORDER)) or None):
        if not (told and isinstance(note, Finding) and note.check == "options"):
            yield note
    yield from host.coordination(resource)
