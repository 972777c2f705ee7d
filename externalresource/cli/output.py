"""What a command prints: tables for people, JSON for programs, files."""

import sys
from collections.abc import Mapping, Sequence

import click

from externalresource.cli.tables import table
from externalresource.cli.terminal import columns
from externalresource.errors import ExternalResourceError


def show(rows: Sequence[Mapping[str, object]], form: str, *, nothing: str = "") -> None:
    """Print rows as a table, or as JSON; `nothing` is the text for people if there are none."""
    if form == "json":
        json(rows)
        return
    if not rows:
        click.echo(nothing)
        return
    (heading, *lines), left_out = table(rows, columns() if sys.stdout.isatty() else None)
    click.echo(click.style(heading, bold=True))
    for row, line in zip(rows, lines, strict=True):
        click.echo(click.style(line, dim=True) if row.get("state") == "dead" else line)
    if left_out:
        click.echo(f"(no room for {', '.join(left_out)}: see --format json)", err=True)


def json(found: object) -> None:
    from json import dumps

    click.echo(dumps(found, indent=2))


def write(path: str, text: str) -> None:
    """Make a file of a text; ExternalResourceError if that cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ExternalResourceError(f"cannot write {path}: {error.strerror}") from None
