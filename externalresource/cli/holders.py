"""`status` and `release`: who holds which device, and how that ends by hand."""

import time
from typing import TYPE_CHECKING, Any

import click

from externalresource.cli import arguments
from externalresource.cli.asking import driver_of, listed
from externalresource.cli.output import show
from externalresource.errors import printable

if TYPE_CHECKING:
    from externalresource.coordination import Claim, Holder


@click.command()
@arguments.resource
@arguments.form
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@arguments.driver_options
def status(resource: str, form: str, *, watch: bool, **given: Any) -> None:
    """Show who holds which device, by the coordination file.

    PID is the process as this host sees it, PROGRAM what it runs now. A dead owner's device is free: its claim is
    struck out when the device is wanted, or by `release --dead`.
    """
    from externalresource.whereabouts import rows

    driver = driver_of(resource, arguments.options(given))
    while True:
        if watch:
            click.clear()
        held = listed(resource, driver.held)
        show(rows(held), form, nothing=f"No {resource} device is held.")
        if form == "table" and any(holder.left_by for claim in held for holder in claim.holders):
            click.echo(
                "To free what a command has left, end the process; if it does not use the device: "
                f"externalresource release {resource} --device DEVICE --force"
            )
        if not watch:
            return
        time.sleep(1)


@click.command()
@arguments.resource
@click.option("--dead", is_flag=True, help="Remove claims of processes that have ended. Safe: the devices are free.")
@click.option("--device", metavar="DEVICE", help="Release one device, by its name or UUID.")
@click.option("--owner", type=click.IntRange(min=1), metavar="PID", help="Release all that one process holds.")
@click.option(
    "--force",
    is_flag=True,
    help="Also release devices whose owner is still running. The owner keeps using them. You need permission to signal "
    "that process.",
)
@arguments.driver_options
def release(resource: str, *, dead: bool, device: str | None, owner: int | None, force: bool, **given: Any) -> None:
    """Release devices of dead owners, by name, or by owner."""
    if not (dead or device or owner):
        raise click.UsageError("nothing to release: name --dead, --device DEVICE or --owner PID")
    from externalresource.coordination import pid_here
    from externalresource.whereabouts import may_strike

    def named(claim: "Claim", holder: "Holder") -> bool:
        return (
            (not dead or not holder.living)
            and device in (None, claim.token, claim.uuid)
            and owner in (None, holder.process.pid, pid_here(holder.process))
        )

    def struck_out(claim: "Claim", holder: "Holder") -> bool:
        return named(claim, holder) and may_strike(claim, holder, force=force)

    dropped = listed(resource, driver_of(resource, arguments.options(given)).drop, struck_out)
    for claim, holder in dropped:
        click.echo(printable(f"released {claim.token}, held by pid {holder.process.pid}"))
    if not dropped:
        click.echo("nothing to release: no such claim")
