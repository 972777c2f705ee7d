"""One question to another program, under a deadline."""

import time

from externalresource.api import Child, Overdue
from externalresource.errors import DiscoveryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Query:
    """Under way from the moment of construction, which raises nothing: `answer` tells what went wrong."""

    def __init__(self, name: str, argv: "Sequence[str]") -> None:
        self._name, self._program, self._began = name, argv[0], time.monotonic()
        self._is_read = False
        self._child: Child | OSError
        try:
            self._child = Child(argv)
        except OSError as error:
            self._child = error

    def answer(self, deadline: float) -> tuple[int, str, str]:
        """Return the exit status, stdout and stderr.

        Raises DiscoveryError if the program could not be started, was ended by a signal or not before `deadline`;
        DriverStuckError if it was killed then, and is still there.
        """
        from externalresource_gpu.backends import reasons

        self._is_read = True
        if isinstance(self._child, OSError):
            raise reasons.not_started(self._name, self._program, self._child) from self._child
        try:
            status, out, err = self._child.result(deadline)
        except Overdue as overdue:
            error = reasons.overdue(self._name, time.monotonic() - self._began)
            if overdue.survivor is None:
                raise error from None
            from externalresource_gpu.backends.stuck import DriverStuckError

            raise DriverStuckError(
                f"{error}; its process {overdue.survivor} was killed and does not end", overdue.survivor
            ) from None
        except ChildProcessError as error:
            raise DiscoveryError(f"{self._name} ended, and how is unknown: {error}") from error
        if status < 0:
            raise reasons.crashed(self._name, -status)
        return status, out, err

    def end(self) -> None:
        """Kill what still runs, unless its answer was read: nobody would read it."""
        if not self._is_read:
            try:  # noqa: SIM105 - contextlib costs the script a millisecond
                self.answer(0)
            except DiscoveryError:
                pass
