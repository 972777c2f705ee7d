"""The command `externalresource`: arguments in, text and an exit status out."""

import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import click

from externalresource.cli import devices
from externalresource.cli.tables import printable, table
from externalresource.context import RuntimeContext
from externalresource.coordination import Holding, pid_here, whereabouts
from externalresource.drivers.containment import printing_to_stderr
from externalresource.drivers.contract import ExternalResourceDriver
from externalresource.drivers.loading import create_driver
from externalresource.errors import ConfigurationError, ExternalResourceError, PluginError, cause
from externalresource.flink import forwarding
from externalresource.flink.doctor.findings import ERROR, Report

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130

_HELP = """Give each process on this host its own GPUs, or any other device.

\b
externalresource discover                      what is here
externalresource run gpu=1 -- python train.py  start a program on a GPU of its own
externalresource status                        who holds what
externalresource plugins                       which drivers are installed, and their options
externalresource doctor                        why a Flink cluster has no GPUs
externalresource demo                          see processes share a host

RESOURCE is the name of an installed plugin (gpu) or an import path (package.module:Class).
"""

_F = TypeVar("_F", bound=Callable[..., Any])


def main() -> NoReturn:
    """Run the command line; every error is one line on stderr: status 1, or 2 if the arguments are not allowed."""
    try:
        status = cli.main(sys.argv[1:] or ["--help"], prog_name="externalresource", standalone_mode=False)
    except ConfigurationError as error:
        status = _complain(str(error), _USAGE)
    except ExternalResourceError as error:
        status = _complain(str(error), _FAILED)
    except click.ClickException as error:
        status = _complain(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        status = _INTERRUPTED
    except OSError as error:
        if error.errno != errno.EPIPE:  # the reader had enough, as in `externalresource status | head -1`
            _complain(f"cannot write the answer: {error.strerror}", _FAILED)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for what the interpreter flushes at its end
        status = _FAILED
    sys.exit(status)


class _RunFailed(click.ClickException):
    """What `run` itself failed at, with the statuses by which env(1) tells its failures from the command's."""

    exit_code = 125


class _NotExecutable(_RunFailed):
    exit_code = 126


class _NotFound(_RunFailed):
    exit_code = 127


class _Run(click.Command):
    """`run NAME=AMOUNT ... -- COMMAND`: click itself forgets where `--` stood."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        own, command = args[:end], args[end + 1 :]
        ctx.obj = command
        if not command and not set(ctx.help_option_names) & set(own):
            raise _RunFailed("no command: write `externalresource run gpu=1 -- COMMAND ...`")
        return super().parse_args(ctx, own)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _RunFailed(error.format_message()) from None


def _absolute(_ctx: click.Context, _option: click.Parameter, path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)


def _driver_options(command: _F) -> _F:
    """Add the options that say which devices are meant."""
    options = [
        click.option("--simulate", metavar="MACHINE", help="Devices that are not there: 8, dgx-a100, machine.yaml."),
        click.option("--coordination-file", metavar="PATH", callback=_absolute, help="Where the claims are kept."),
        click.option("--timeout", metavar="SECONDS", help="How long the driver and the lock may take."),
        click.option("-o", "--option", metavar="KEY=VALUE", multiple=True, help="Any other option of the driver."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_format = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or JSON for programs.",
)
_resource = click.argument("resource", default="gpu")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, help=_HELP)
@click.version_option(package_name="externalresource", message="%(version)s")
def cli() -> None:
    """Collect the commands below."""


@cli.command()
@_resource
@_format
@click.option("--topology", is_flag=True, help="Also how they are connected, in the words of `nvidia-smi topo -m`.")
@click.option("--record", metavar="FILE", help="Write this host to a file for --simulate, with its UUIDs masked.")
@_driver_options
def discover(resource: str, form: str, *, record: str | None, **given: Any) -> None:
    """Show the devices of this host, their health and who holds them."""
    driver = _driver(resource, _options(given))
    if record is not None:
        _write(record, _asked(driver, "record", resource)())
        click.echo(f"wrote {record}; to see it: externalresource discover --simulate {record}")
        return
    found = list(_asked(driver, "devices", resource)())
    held = _held(driver, resource)
    if form == "json":
        _show([devices.record(info, held) for info in found], form, nothing="")
        return
    columns = getattr(driver, "columns", None)
    lines = [devices.line(info, held, columns) for info in found]
    _show(lines, form, nothing=f"This host has no {resource} device.")
    if given["topology"] and found:
        click.echo()
        _show(devices.matrix(found), form, nothing="Nothing is known of how they are connected.")


@cli.command(cls=_Run, options_metavar="[OPTIONS]")
@click.argument("resources", nargs=-1, required=True, metavar="NAME=AMOUNT... -- COMMAND...")
@click.option("--wait", metavar="SECONDS", help="Queue for devices that others hold, a day at most.")
@click.option("--until-children-exit", is_flag=True, help="Keep the devices until the last descendant has ended.")
@_driver_options
@click.pass_obj
def run(command: Sequence[str], /, resources: Sequence[str], **given: Any) -> None:
    """Become COMMAND, on devices that no other process has.

    Claims the devices, sets the environment (CUDA_VISIBLE_DEVICES, ...) and then becomes the command: same process, so
    signals and exit status are its own. The devices are free again when it ends, however it ends. Of several resources
    it gets all or none; -o NAME.KEY=VALUE is an option of one of them. Failures of `run` itself are 125, a command that
    cannot be executed is 126, one that does not exist 127.
    """
    try:
        with printing_to_stderr():
            context = _claimed(resources, _options(given))
    except ExternalResourceError as error:
        raise _RunFailed(str(error)) from None
    with context:  # left by an error only: then the devices are given back
        environment = os.environ | context.environment() | context.keep_over_exec()
        try:
            os.execvpe(command[0], list(command), environment)  # noqa: S606 - to become the command is the point
        except FileNotFoundError:
            raise _NotFound(f"{command[0]}: command not found") from None
        except OSError as error:
            raise _NotExecutable(f"{command[0]}: {error.strerror}") from None


@cli.command()
@_resource
@_format
@click.option("--watch", is_flag=True, help="Look again each second, until Ctrl-C.")
@_driver_options
def status(resource: str, form: str, *, watch: bool, **given: Any) -> None:
    """Show who holds which device, by the coordination file.

    PID is the process as this host sees it, PROGRAM what it runs now. A dead owner's device is free: its claim is
    struck out when the device is wanted, or by `release --dead`.
    """
    held = _asked(_driver(resource, _options(given)), "held", resource)
    while True:
        if watch:
            click.clear()
        _show([whereabouts.row(holding) for holding in held()], form, nothing=f"No {resource} device is held.")
        if not watch:
            return
        time.sleep(1)


@cli.command()
@_resource
@click.option("--dead", is_flag=True, help="All that dead owners hold. Harmless: it is free anyway.")
@click.option("--device", metavar="DEVICE", help="One device, by its name or UUID.")
@click.option("--owner", type=click.IntRange(min=1), metavar="PID", help="All that one process holds.")
@click.option("--force", is_flag=True, help="Also of living owners, which go on using it, if you may signal them.")
@_driver_options
def release(resource: str, *, dead: bool, device: str | None, owner: int | None, force: bool, **given: Any) -> None:
    """Strike out the claims of dead owners, a device or an owner."""
    if not (dead or device or owner):
        raise click.UsageError("nothing to release: name --dead, --device DEVICE or --owner PID")
    driver = _driver(resource, _options(given))

    def named(holding: Holding) -> bool:
        return (
            (not dead or not holding.living)
            and device in (None, holding.claim.token, holding.claim.uuid)
            and owner in (None, holding.owner.pid, pid_here(holding.owner))
        )

    def struck_out(holding: Holding) -> bool:
        return named(holding) and whereabouts.may_strike(holding, force=force)

    dropped = _asked(driver, "drop", resource)(struck_out)
    for holding in dropped:
        click.echo(f"released {holding.claim.token}, held by pid {holding.owner.pid}")
    if not dropped:
        click.echo("nothing to release: no such claim")


@cli.command()
@_format
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
        _show([inspection.record(plugin) for plugin in found], form, nothing="")
        return
    _show([inspection.line(plugin) for plugin in found], form, nothing="No plugin is installed.")
    for remark in inspection.remarks(found):
        click.echo(remark)
    if options := inspection.option_lines(found):
        click.echo()
        _show(options, form, nothing="")


@cli.command()
@click.argument("config", required=False, type=click.Path())
@click.option("--to", required=True, type=click.Choice(forwarding.TARGETS), help="Who is asked for the containers.")
@click.option("-D", "dynamic", metavar="KEY=VALUE", multiple=True, help="As for Flink: wins over the file.")
@_format
def forward(config: str | None, *, to: str, dynamic: Sequence[str], form: str) -> None:
    """Show what Flink requests for each TaskManager.

    CONFIG is a config.yaml, or a folder with one; by default that of FLINK_CONF_DIR. For Kubernetes the part of a pod
    template that says the same, for YARN the resources of a container request.
    """
    requested = forwarding.forwarded(config, to=to, overrides=dict(_pair(text, "property", "a=b") for text in dynamic))
    if form == "json" or not requested or to == forwarding.YARN:
        rows = [{"key": key, "amount": amount} for key, amount in requested.items()]
        _show(rows, form, nothing=f"Nothing is requested of {to}: no resource has a {to}.config-key.")
        return
    click.echo(forwarding.template(requested), nl=False)


@cli.command()
@click.argument("config", required=False, type=click.Path())
@click.option("-D", "dynamic", metavar="KEY=VALUE", multiple=True, help="As for Flink: wins over the file.")
@click.option("--rest", metavar="URL", help="Flink's REST API, if the configuration does not tell: http://host:8081.")
@_format
def doctor(config: str | None, *, dynamic: Sequence[str], rest: str | None, form: str) -> None:
    """Find what leaves a Flink cluster without GPUs.

    To be run where a TaskManager runs: on its host, or in its container, as its user. CONFIG is a config.yaml, or a
    folder with one; by default that of FLINK_CONF_DIR. The exit status is 1 if there is a problem.
    """
    from externalresource.flink.doctor import examination

    for text in dynamic:
        _pair(text, "property", "a=b")
    with printing_to_stderr():
        report = examination.examine(config, overrides=dynamic, rest=rest)
    if form == "json":
        click.echo(json.dumps(report.record(), indent=2))
    else:
        _tell(report)
    sys.exit(_FAILED if report.errors else 0)


@cli.command()
@click.option("--task-managers", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes to start.")
@click.option(
    "--gpus", type=click.IntRange(1, 64), default=2, show_default=True, help="Simulated if the host has fewer."
)
@click.option(
    "--flink", is_flag=True, help="Real TaskManagers, and a PyFlink job on them. Needs apache-flink and Java."
)
def demo(task_managers: int, gpus: int, *, flink: bool) -> None:
    """Watch TaskManagers get different GPUs, die and be replaced."""
    from externalresource.demo import on_flink, stand_ins

    demonstration = on_flink if flink else stand_ins
    sys.exit(demonstration.run(task_managers, gpus, click.echo))


def _options(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the driver's options: those of the command line that every driver understands, and its own."""
    named = {
        key.replace("_", "-"): "true" if value is True else value
        for key, value in given.items()
        if key != "option" and value not in (None, False)
    }
    return named | dict(_pair(text, "option", "backend=nvml") for text in given["option"])


def _claimed(resources: Iterable[str], options: Mapping[str, str]) -> RuntimeContext:
    amounts: dict[str, int] = {}
    for name, amount in [_pair(text, "resource", "gpu=1") for text in resources]:
        if name in amounts:
            raise ConfigurationError(f"resource {name!r} is given twice")
        if not (re.fullmatch("[0-9]{1,18}", amount) and int(amount)):
            raise ConfigurationError(f"the amount of {name!r} must be a positive integer, not {amount!r}")
        amounts[name] = int(amount)
    drivers = {name: create_driver(name, _own_options(name, amounts, options)) for name in amounts}
    return RuntimeContext({name: (driver, amounts[name]) for name, driver in drivers.items()})


def _own_options(name: str, names: Iterable[str], options: Mapping[str, str]) -> dict[str, str]:
    """Return the options of one of several resources: those for all, and those that are written NAME.KEY=VALUE."""
    prefixes = tuple(f"{each}." for each in names)
    common = {key: value for key, value in options.items() if not key.startswith(prefixes)}
    own = {key.removeprefix(f"{name}."): value for key, value in options.items() if key.startswith(f"{name}.")}
    return {"enable-coordination-mode": "true"} | common | own


def _pair(text: str, what: str, example: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigurationError(f"{text!r} is no {what}: write it like {example}")
    return name, value


def _driver(resource: str, options: Mapping[str, str]) -> ExternalResourceDriver:
    with printing_to_stderr():
        return create_driver(resource, options)


def _asked(driver: ExternalResourceDriver, method: str, resource: str) -> Callable[..., Any]:
    """Return a method that a driver may have; PluginError if this one has not, or if it breaks."""
    found = getattr(driver, method, None)
    if found is None:
        raise PluginError(f"the driver of {resource!r} cannot answer this: it has no {method}()")

    def asked(*arguments: object) -> Any:
        try:
            with printing_to_stderr():
                answer = found(*arguments)
                return list(answer) if isinstance(answer, Iterator) else answer  # a generator may still break
        except ExternalResourceError:
            raise
        except Exception as error:
            raise PluginError(f"the driver of {resource!r} failed: {cause(error)}") from error

    return asked


def _held(driver: ExternalResourceDriver, resource: str) -> list[Holding]:
    """Return who holds what, if that can be told: the devices are shown in any case."""
    if not hasattr(driver, "held"):
        return []
    try:
        return list(_asked(driver, "held", resource)())
    except ExternalResourceError as error:
        click.echo(f"externalresource: who holds what is not known: {error}", err=True)
        return []


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ExternalResourceError(f"cannot write {path}: {error.strerror}") from None


def _show(rows: Sequence[Mapping[str, object]], form: str, *, nothing: str) -> None:
    if form == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo(nothing)
        return
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    (heading, *lines), left_out = table(rows, room)
    click.echo(click.style(heading, bold=True))
    for row, line in zip(rows, lines, strict=True):
        click.echo(click.style(line, dim=True) if row.get("state") == "dead" else line)
    if left_out:
        click.echo(f"(no room for {', '.join(left_out)}: see --format json)", err=True)


def _tell(report: Report) -> None:
    for finding in report.findings:
        word, colour = ("problem", "red") if finding.severity == ERROR else ("warning", "yellow")
        click.echo(f"{click.style(word, fg=colour, bold=True)}: {printable(finding.problem)}")
        click.echo(f"  evidence: {printable(finding.evidence)}\n  remedy:   {printable(finding.remedy)}\n")
    for note in report.not_looked:
        click.echo(printable(f"not looked at: {note.at}: {note.because}"))
    click.echo(click.style(printable(report.summary), bold=True))


def _complain(message: str, status: int) -> int:
    click.echo(f"externalresource: {message}", err=True)
    return status


if __name__ == "__main__":
    main()
