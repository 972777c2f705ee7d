"""`discover`: the devices of this host, what speaks against one, and who holds it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from externalresource.cli import arguments
from externalresource.cli.asking import asked, driver_of, listed
from externalresource.cli.output import show, write
from externalresource.errors import ExternalResourceError, printable

if TYPE_CHECKING:
    from externalresource.coordination import Claim
    from externalresource.drivers import ExternalResourceDriver

_Device = Mapping[str, str]


@click.command()
@arguments.resource
@arguments.form
@click.option("--topology", is_flag=True, help="Also how they are connected, in the words of `nvidia-smi topo -m`.")
@click.option("--record", metavar="FILE", help="Write this host to a file for --simulate, with its UUIDs masked.")
@arguments.driver_options
def discover(resource: str, form: str, *, record: str | None, topology: bool, **given: Any) -> None:
    """Show the devices of this host, their health and who holds them."""
    driver = driver_of(resource, arguments.options({**given, "topology": topology}))
    if record is not None:
        write(record, asked(resource, driver.record))
        click.echo(f"wrote {record}; to see it: externalresource discover --simulate {record}")
        return
    from externalresource.drivers import properties

    found = [properties(info) for info in listed(resource, driver.devices)]
    held = _held(driver, resource)
    if form == "json":
        holders = [_holder(device, held) for device in found]
        show([device | ({"held_by": it} if it else {}) for device, it in zip(found, holders, strict=True)], form)
        return
    show(
        [_line(device, held, driver.columns) for device in found], form, nothing=f"This host has no {resource} device."
    )
    if topology and found:
        click.echo()
        show(_matrix(found), form, nothing="Nothing is known of how they are connected.")


def _held(driver: "ExternalResourceDriver", resource: str) -> "list[Claim]":
    """Return who holds what, if that can be told: the devices are shown in any case."""
    from externalresource.drivers import NotOfferedError

    try:
        return listed(resource, driver.held)
    except NotOfferedError:
        return []
    except ExternalResourceError as error:
        click.echo(printable(f"externalresource: who holds what is not known: {error}"), err=True)
        return []


def _line(device: _Device, held: "Iterable[Claim]", columns: Mapping[str, Sequence[str]] | None) -> dict[str, object]:
    """Return a device for people, by heading.

    `columns` are the driver's own: of each, the first property counts that the device has. A driver without them shows
    all its properties.
    """
    known = dict(device)
    reason = known.pop("unusable", None)
    uuid, used = known.pop("uuid", None), known.pop("in_use", None)
    shown: dict[str, object] = {
        heading: next((known[key] for key in keys if key in known), None)
        for heading, keys in (columns or {key: [key] for key in known}).items()
    }
    holder = _holder(device, held)
    by = "pid {pid} {program}".format_map(holder) if holder else None
    health = reason or (f"ok, but {used}" if used and not holder else "ok")
    index, *others = shown.items()  # what a narrow terminal has no room for is left out from the right
    return dict([index, ("health", health), ("held by", by), *others, *([("uuid", uuid)] if uuid else [])])


def _matrix(devices: Iterable[_Device]) -> list[dict[str, object]]:
    """Return how the devices are connected: a row for each, a column for each; empty if no driver's answer tells."""
    links = {device.get("index", ""): device["links"].split() for device in devices if device.get("links")}
    return [{"": name, **dict(zip(links, row, strict=True))} for name, row in links.items()]


def _holder(device: _Device, held: "Iterable[Claim]") -> dict[str, object] | None:
    """Return what `status` shows of the living owner's claim of this very device."""
    from externalresource.whereabouts import row

    uuid, index = device.get("uuid"), device.get("index")
    for claim in held:
        living = [holder for holder in claim.holders if holder.living]
        if living and (claim.uuid == uuid if claim.uuid and uuid else claim.token == index):
            return row(claim, living[0])
    return None
