"""The command `externalresource`: its commands, each imported when it is used; its errors and its exit status."""

import atexit
import contextlib
import errno
import os
import sys
from typing import NoReturn, cast

import click

from externalresource.cli.terminal import columns
from externalresource.errors import ConfigurationError, ExternalResourceError, printable
from externalresource.faces import face

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130
_WIDEST = 100  # characters in a line of help

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

#: The commands in each module.
_COMMANDS = {
    "demo": "demo",
    "devices": "discover",
    "flink": "doctor forward",
    "holders": "release status",
    "plugins": "plugins",
    "run": "run",
}
_command, _, _names = face("externalresource.cli", _COMMANDS)


class _Commands(click.Group):
    """The commands, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return _names

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _names:
            return cast("click.Command", _command(cmd_name))
        self.commands = {name: cast("click.Command", _command(name)) for name in _names}  # click names the nearest
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, help=_HELP)
@click.version_option(package_name="externalresource", message="%(version)s")
def cli() -> None:
    """Collect the commands."""


def main() -> NoReturn:
    """Run the command line; every error is one line on stderr: status 1, or 2 if the arguments are not allowed."""
    try:
        status = cli.main(
            sys.argv[1:] or ["--help"],
            prog_name="externalresource",
            standalone_mode=False,
            terminal_width=max(min(columns(), _WIDEST) - 2, 50),  # as click has it, which imports shutil for that
        )
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
        status = _FAILED
    _leave(status or 0)


def _leave(status: int) -> NoReturn:
    """End the process as sys.exit does, but for taking each module apart, which takes a tenth of a short command."""
    atexit._run_exitfuncs()  # noqa: SLF001 - a driver may have left something for the end
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _complain(message: str, status: int) -> int:
    click.echo(f"externalresource: {printable(message)}", err=True)
    return status
