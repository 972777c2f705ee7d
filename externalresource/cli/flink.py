"""`forward` and `doctor`: what Flink makes of a configuration, and what it leaves without GPUs."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from externalresource.cli import arguments, output
from externalresource.errors import printable
from externalresource.flink import forwarding

if TYPE_CHECKING:
    from externalresource.flink.doctor.findings import Report

_config = click.argument("config", required=False, type=click.Path())


@click.command()
@_config
@click.option("--to", required=True, type=click.Choice(forwarding.TARGETS), help="Who is asked for the containers.")
@arguments.dynamic
@arguments.form
def forward(config: str | None, *, to: str, dynamic: Sequence[str], form: str) -> None:
    """Show what Flink requests for each TaskManager.

    CONFIG is a config.yaml, or a folder with one; by default that of FLINK_CONF_DIR. For Kubernetes the part of a pod
    template that says the same, for YARN the resources of a container request.
    """
    overrides = dict(arguments.pair(text, "property", "a=b") for text in dynamic)
    requested = forwarding.forwarded(config, to=to, overrides=overrides)
    if form == "json" or not requested or to == forwarding.YARN:
        rows = [{"key": key, "amount": amount} for key, amount in requested.items()]
        output.show(rows, form, nothing=f"Nothing is requested of {to}: no resource has a {to}.config-key.")
        return
    click.echo(forwarding.template(requested), nl=False)


@click.command()
@_config
@arguments.dynamic
@click.option("--rest", metavar="URL", help="Flink's REST API, if the configuration does not tell: http://host:8081.")
@arguments.form
def doctor(config: str | None, *, dynamic: Sequence[str], rest: str | None, form: str) -> None:
    """Find what leaves a Flink cluster without GPUs.

    Run it where a TaskManager runs: on its host, or in its container, as its user. CONFIG is a config.yaml, or a
    folder with one; by default that of FLINK_CONF_DIR. The exit status is 1 if there is a problem.
    """
    from externalresource.drivers import printing_to_stderr
    from externalresource.flink.doctor import examination

    for text in dynamic:
        arguments.pair(text, "property", "a=b")
    with printing_to_stderr():
        report = examination.examine(config, overrides=dynamic, rest=rest)
    if form == "json":
        output.json(report.record())
    else:
        _tell(report)
    sys.exit(1 if report.errors else 0)


def _tell(report: "Report") -> None:
    for finding in report.findings:
        word, colour = ("problem", "red") if finding.severity == "error" else ("warning", "yellow")
        click.echo(f"{click.style(word, fg=colour, bold=True)}: {printable(finding.problem)}")
        click.echo(f"  evidence: {printable(finding.evidence)}\n  remedy:   {printable(finding.remedy)}\n")
    for note in report.not_looked:
        click.echo(printable(f"not looked at: {note.at}: {note.because}"))
    click.echo(click.style(printable(report.summary), bold=True))
