"""`plugins`: what is installed."""

from typing import TYPE_CHECKING

import click

from externalresource.cli import arguments
from externalresource.cli.output import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from externalresource.drivers.inspection import Plugin


@click.command()
@arguments.form
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=10, show_default=True, help="Seconds for each import."
)
def plugins(form: str, timeout: float) -> None:
    """Show the plugins, whether they load, and their options.

    Each is imported in a process of its own, so that one that hangs or crashes hides no other.
    """
    from dataclasses import asdict

    from externalresource.drivers import inspection

    found = inspection.installed(timeout)
    if form == "json":
        records = [asdict(plugin) for plugin in found]
        for option in [option for record in records for option in record["options"] or ()]:
            option["type"] = option.pop("kind")
        show(records, form)
        return
    rows = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "API": plugin.api_version,
            "loads": "yes" if plugin.loads else "no",
            "entry point": plugin.entry_point,
        }
        for plugin in found
    ]
    show(rows, form, nothing="No plugin is installed.")
    for plugin in found:  # what needs more room than a line of the table has
        for remark in filter(None, (plugin.problem, plugin.said and f"says on import: {plugin.said}")):
            click.echo(f"{plugin.name} ({plugin.distribution} {plugin.version}) {remark}")
    if options := _options(found):
        click.echo()
        show(options, form)


def _options(found: "Sequence[Plugin]") -> list[dict[str, object]]:
    """Return the options of all: once, where one plugin has several names."""
    one_name = {(plugin.distribution, plugin.entry_point): plugin for plugin in reversed(found)}
    return [
        {
            "plugin": plugin.name,
            "option": option.name,
            "type": option.kind,
            "default": "(must be given)" if option.required else option.default or None,
        }
        for plugin in found
        if plugin in one_name.values()
        for option in plugin.options or ()
    ]
