"""`run`: a command on devices of its own."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from externalresource.cli import arguments
from externalresource.cli.terminal import Progress
from externalresource.errors import ConfigurationError, ExternalResourceError, cause

if TYPE_CHECKING:
    from externalresource.context import RuntimeContext

#: Programs that write a title over their command line (setproctitle: Ray, celery) then leave their environment alone.
_KEEPS_ENVIRONMENT = {"SPT_NOENV": "1"}
_DIGITS = 18  # of an amount: what Java reads into a long


class _RunFailed(click.ClickException):
    """What `run` itself failed at, with the statuses by which env(1) tells its failures from the command's."""

    exit_code = 125


class _NotExecutable(_RunFailed):
    exit_code = 126


class _NotFound(_RunFailed):
    exit_code = 127


class EndedError(SystemExit):
    """Somebody wants `run` to end: no driver has called sys.exit."""


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


@click.command(cls=_Run, options_metavar="[OPTIONS]")
@click.argument("resources", nargs=-1, required=True, metavar="NAME=AMOUNT... -- COMMAND...")
@click.option("--wait", metavar="SECONDS", help="Queue for devices that others hold, a day at most.")
@click.option(
    "--free-at-exit", is_flag=True, help="Free the devices when COMMAND ends, whatever it has left in the background."
)
@arguments.driver_options
@click.pass_obj
def run(command: Sequence[str], /, resources: Sequence[str], *, free_at_exit: bool, **given: Any) -> None:
    """Run COMMAND with devices of its own.

    No other process gets them while it runs. `run` claims them, sets the environment (CUDA_VISIBLE_DEVICES, ...) and
    then becomes the command: same process, so signals and exit status are the command's. (Pid 1 of a container stays,
    passes signals on and ends with the command's status.) The devices are free again when it has ended, however it
    ends, and everything that it has left in the background: a server, a tmux session, a build daemon, each process with
    its EXTERNALRESOURCE_RUN in the environment. Of several resources it gets all or none; -o NAME.KEY=VALUE is an
    option of one of them. The exit status is 125 if `run` itself fails, 126 if the command cannot be executed, 127 if
    there is none.
    """
    from externalresource.drivers.containment import printing_to_stderr

    if os.getpid() == 1:
        from externalresource.cli import init

        init.end_when_asked()
    try:
        context, variables = _ready(resources, arguments.options(given), marked=not free_at_exit)
        try:
            os.environ.update(variables)
            _become(command)
        except BaseException:
            with printing_to_stderr():
                context.close()
            raise
    except ExternalResourceError as error:
        raise _RunFailed(str(error)) from None
    except (click.ClickException, EndedError):
        raise
    except (Exception, SystemExit) as error:  # a driver's: the status is 125 all the same
        raise _RunFailed(f"a driver failed: {cause(error)}") from error


def _ready(
    resources: Iterable[str], options: Mapping[str, str], *, marked: bool
) -> "tuple[RuntimeContext, Mapping[str, str]]":
    """Claim, and return the variables of the command, too. What drivers print on the way goes to stderr."""
    from contextlib import ExitStack

    from externalresource.drivers.containment import printing_to_stderr

    with printing_to_stderr(), ExitStack() as undoing:
        context = undoing.enter_context(_claimed(resources, options, marked=marked))
        variables = context.environment() | context.keep_over_exec() | _KEEPS_ENVIRONMENT
        undoing.pop_all()
        return context, variables


def _become(command: Sequence[str]) -> NoReturn:
    """Become the command. Pid 1 of a container starts it instead, and ends with its status."""
    import signal

    from externalresource.coordination.own_claims import watch_over_exec

    stays = os.getpid() == 1
    if not stays:
        watch_over_exec(command[0])
    try:
        if stays:
            from externalresource.cli import init

            os._exit(init.run(command))
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], list(command))  # noqa: S606 - to become the command is the point
    except FileNotFoundError:
        raise _NotFound(f"{command[0]}: command not found") from None
    except OSError as error:
        raise _NotExecutable(f"{command[0]}: {error.strerror}") from None


def _claimed(resources: Iterable[str], options: Mapping[str, str], *, marked: bool) -> "RuntimeContext":
    from externalresource.context import RuntimeContext
    from externalresource.drivers.loading import create_driver

    amounts = _amounts(resources)
    drivers = {name: create_driver(name, _own_options(name, amounts, options)) for name in amounts}
    with Progress() as progress:
        for driver in drivers.values():
            driver.marked = marked
            if os.isatty(2):  # elsewhere each driver says once in the log that it waits
                driver.on_wait = progress.show
        return RuntimeContext({name: (driver, amounts[name]) for name, driver in drivers.items()})


def _amounts(resources: Iterable[str]) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for name, amount in [arguments.pair(text, "resource", "gpu=1") for text in resources]:
        if name in amounts:
            raise ConfigurationError(f"resource {name!r} is given twice")
        if not (amount.isascii() and amount.isdecimal() and len(amount) <= _DIGITS and int(amount)):
            raise ConfigurationError(f"the amount of {name!r} must be a positive integer, not {amount!r}")
        amounts[name] = int(amount)
    return amounts


def _own_options(name: str, names: Iterable[str], options: Mapping[str, str]) -> dict[str, str]:
    """Return the options of one of several resources: those for all, and those that are written NAME.KEY=VALUE."""
    prefixes = tuple(f"{each}." for each in names)
    common = {key: value for key, value in options.items() if not key.startswith(prefixes)}
    own = {key.removeprefix(f"{name}."): value for key, value in options.items() if key.startswith(f"{name}.")}
    return {"enable-coordination-mode": "true"} | common | own
