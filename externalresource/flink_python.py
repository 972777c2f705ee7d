"""The Python of a Flink worker: sees the devices of its TaskManager, and is Python in all else.

For `python.executable`: code that knows nothing of this project, as PyTorch's, then uses the right GPUs. It becomes the
interpreter of the environment that it is installed in, so that pid, signals, streams and exit status are that one's.
Outside a TaskManager nothing is changed, and nothing is read but the command lines of the ancestors.

With `--exclusive NAME=AMOUNT` before all that is Python's, or EXTERNALRESOURCE_EXCLUSIVE=NAME=AMOUNT,... where an
engine takes no options, it sees so many of the devices, which no other worker of the TaskManager has.
"""

import os
import sys

from externalresource import task_manager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


_OPTION, _VARIABLE = "--exclusive", "EXTERNALRESOURCE_EXCLUSIVE"


def main() -> "NoReturn":
    """Become Python. Exit with 1 and the reason if nothing tells the TaskManager's devices: all would be too many."""
    variables = dict(os.environ)
    words = sys.argv[1:]
    asked = [word for word in os.environ.get(_VARIABLE, "").split(",") if word]
    if words[:1] == [_OPTION]:
        asked, words = words[1:2], words[2:]
    found = task_manager.find()
    if found is not None:
        from externalresource import flink, flink_shares, flink_worker
        from externalresource.errors import ExternalResourceError

        try:
            variables |= flink.environment(found, _exclusive(asked))
            variables |= flink_shares.keep_over_exec()
            flink_worker.end_with_over_exec(found.pid)
        except ExternalResourceError as error:
            sys.exit(f"externalresource-python: {error}")
    os.execve(sys.executable, [sys.executable, *words], variables)  # noqa: S606 - to become Python is the point


def _exclusive(asked: "Sequence[str]") -> dict[str, int]:
    """Return the amounts by name; ConfigurationError if they are not written like gpu=1."""
    from externalresource.errors import ConfigurationError

    amounts = {}
    for text in asked:
        name, _, amount = text.partition("=")
        if not (name and amount.isascii() and amount.isdigit() and len(amount) < 10 and int(amount)):  # noqa: PLR2004
            raise ConfigurationError(f"{_OPTION} {text!r} is not allowed: write it like gpu=1")
        amounts[name] = int(amount)
    return amounts


if __name__ == "__main__":
    main()
