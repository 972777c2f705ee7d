"""The arguments that commands share, and what a driver is told of them."""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from externalresource.errors import ConfigurationError

_F = TypeVar("_F", bound=Callable[..., Any])


def _absolute(_ctx: click.Context, _option: click.Parameter, path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)


_DRIVER_OPTIONS = (
    click.option(
        "--simulate",
        metavar="MACHINE",
        help="Pretend that this host has these devices: a count, a machine's name or a YAML file.",
    ),
    click.option("--coordination-file", metavar="PATH", callback=_absolute, help="The file in which claims are kept."),
    click.option("--timeout", metavar="SECONDS", help="How long the driver and the lock may take."),
    click.option("-o", "--option", metavar="KEY=VALUE", multiple=True, help="Any other option of the driver."),
)
form = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or JSON for programs.",
)
resource = click.argument("resource", default="gpu")
dynamic = click.option("-D", "dynamic", metavar="KEY=VALUE", multiple=True, help="As for Flink: wins over the file.")


def driver_options(command: _F) -> _F:
    """Add the options that say which devices are meant."""
    for option in reversed(_DRIVER_OPTIONS):
        command = option(command)
    return command


def options(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the driver's options: those of the command line that every driver understands, and its own."""
    named = {
        key.replace("_", "-"): "true" if value is True else value
        for key, value in given.items()
        if key != "option" and value not in (None, False)
    }
    return named | dict(pair(text, "option", "backend=nvml") for text in given["option"])


def pair(text: str, what: str, example: str) -> tuple[str, str]:
    """Return NAME and VALUE of `NAME=VALUE`; ConfigurationError if it is not written so."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigurationError(f"{text!r} is no {what}: write it like {example}")
    return name, value
