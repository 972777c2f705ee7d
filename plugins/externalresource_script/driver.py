"""Devices that somebody's script finds: the rest, from the amount to the environment, is the framework's."""

import logging
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from externalresource.api import (
    LONGEST,
    Device,
    ExternalResourceDriver,
    Option,
    driver,
    find_script,
    hookimpl,
    run_script,
)
from externalresource.errors import ConfigurationError, DiscoveryError
from externalresource_script import answer

_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")  # a part of the coordination file's name


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of whom."""

    #: The script: an absolute path, or one in FLINK_HOME or FLINK_PLUGINS_DIR.
    path: str = field(metadata={"option": "discovery-script.path"})
    #: As a shell would split them.
    args: str = field(default="", metadata={"option": "discovery-script.args"})
    #: Seconds; what `timeout` leaves, if that is less.
    seconds: float | None = field(default=None, metadata={"option": "discovery-script.timeout"})
    #: Who has the same class shares the devices; by default the name of the script's file, without its last suffix.
    device_class: str | None = None
    #: Tells a process its devices, if the script has not said how; by default CLASS_DEVICES.
    environment_variable: str | None = None

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ValueError("option 'discovery-script.path' is empty")
        try:
            shlex.split(self.args)
        except ValueError as error:
            raise ValueError(f"option 'discovery-script.args' cannot be split as a shell would: {error}") from None
        if self.seconds is not None and not 0 < self.seconds <= LONGEST:
            most = f"a number of seconds up to {LONGEST:g}"
            raise ValueError(f"option 'discovery-script.timeout' must be {most}, not {self.seconds:g}")
        if not answer.VARIABLE.fullmatch(self.variable):
            raise ValueError(f"option 'environment-variable' must be a variable's name, not {self.variable!r}")

    @property
    def words(self) -> Sequence[str]:
        return shlex.split(self.args)

    @property
    def variable(self) -> str:
        return variable_of(class_of(self.path, self.device_class), self.environment_variable)


class ScriptDriverFactory:
    """Devices of any kind, found by a script in any language."""

    api_version = 1

    @property
    def options(self) -> Sequence[Option]:
        return driver("CLASS", Options)(enumerate_devices).options

    @hookimpl
    def create_external_resource_driver(self, options: Mapping[str, str]) -> ExternalResourceDriver:
        """Return the driver of a class of devices that only the options tell."""
        device_class = class_of(options.get("discovery-script.path", ""), options.get("device-class"))
        if "discovery-script.timeout" in options:
            options = {"timeout": options["discovery-script.timeout"], **options}
        variable = variable_of(device_class, options.get("environment-variable"))
        made = driver(device_class, Options, environment=lambda variables: variables or {variable: ""})
        return made(enumerate_devices).create_external_resource_driver(options)


def class_of(path: str, device_class: str | None) -> str:
    """Return the class of the devices that a script finds. ConfigurationError if it can be no file's name."""
    if device_class is None:
        device_class = os.path.splitext(os.path.basename(path.strip()))[0] or "script"
    if not _CLASS.fullmatch(device_class):
        raise ConfigurationError(
            "the script driver: option 'device-class' (by default the name of the script's file without its suffix) "
            f"must be a letter, then at most 63 letters, digits and . _ -, not {device_class[:80]!r}"
        )
    return device_class


def variable_of(device_class: str, variable: str | None) -> str:
    """Return by which variable a process knows its devices, if the script does not say; `variable` if that is given."""
    return re.sub(r"[^A-Z0-9]", "_", device_class.upper()) + "_DEVICES" if variable is None else variable


def enumerate_devices(options: Options, *, deadline: float) -> list[Device]:
    """Return what the script found."""
    script = find_script(options.path)
    ended = run_script(
        [script, *options.words],
        deadline if options.seconds is None else min(deadline, time.monotonic() + options.seconds),
        name=script,
        option="discovery-script.timeout and timeout",
    )
    if ended.status != 0:
        raise DiscoveryError(f"{script} {ended.failure}")
    if warning := " ".join(ended.err.split()):
        logging.getLogger("externalresource").warning("%s: %s", script, warning[:2000])
    try:
        found = answer.devices(ended.out)
    except ValueError as error:
        raise DiscoveryError(f"{script} {error}") from None
    return [
        device if device.environment else replace(device, environment={options.variable: device.index})
        for device in found
    ]
