"""The Python of a Flink worker: sees the devices of its TaskManager, and is Python in all else.

For `python.executable`: code that knows nothing of this project, as PyTorch's, then uses the right GPUs. It becomes the
interpreter of the environment that it is installed in, so that pid, signals, streams and exit status are that one's.
Outside a TaskManager nothing is changed, and nothing is read but the command lines of the ancestors.
"""

import os
import sys

from externalresource import task_manager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Become Python. Exit with 1 and the reason if nothing tells the TaskManager's devices: all would be too many."""
    variables = dict(os.environ)
    found = task_manager.find()
    if found is not None:
        from externalresource import flink
        from externalresource.errors import ExternalResourceError

        try:
            variables |= flink.environment(found)
        except ExternalResourceError as error:
            sys.exit(f"externalresource-python: {error}")
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], variables)  # noqa: S606 - to become Python is the point


if __name__ == "__main__":
    main()
