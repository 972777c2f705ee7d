"""`plugins`: what is installed."""

import click

from externalresource.cli import arguments
from externalresource.cli.output import show


@click.command()
@arguments.form
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=10, show_default=True, help="Seconds for each import."
)
def plugins(form: str, timeout: float) -> None:
    """Show the plugins, whether they load, and their options.

    Each is imported in a process of its own, so that one that hangs or crashes hides no other.
    """
    from externalresource.drivers import inspection

    found = inspection.installed(timeout)
    if form == "json":
        show([inspection.record(plugin) for plugin in found], form)
        return
    show([inspection.line(plugin) for plugin in found], form, nothing="No plugin is installed.")
    for remark in inspection.remarks(found):
        click.echo(remark)
    if options := inspection.option_lines(found):
        click.echo()
        show(options, form)
