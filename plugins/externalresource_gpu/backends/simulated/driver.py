"""How the driver of a simulated machine answers.

A bad one is played by a child process, as a real one is asked by one: deadlines, kills and errors are the real ones.
"""

import os
import re
from signal import Signals

from externalresource.api import record
from externalresource_gpu.backends import reasons
from externalresource_gpu.backends.query import Query
from externalresource_gpu.backends.simulated.yaml_file import Entry

#: What a file may say of it.
KEYS = ("fails", "says", "crashes", "slow")
# What a driver's library has been seen to die of, and the two signals that others send.
_SIGNALS = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE", "SIGKILL", "SIGTERM")
_SECONDS = re.compile(r"\d{1,3}(\.\d{1,3})?", re.ASCII)
_TOO_LARGE = 255  # the exit status for an error code that does not fit a byte: of those that are met, Unknown Error

# $1: seconds, $2: signal or 0, $3: exit status, $4: what it says, $5: who asks. No core file is left, and no child that
# hangs for longer than that process lives: which may have ended before the shell could look for its parent.
_PLAY = """\
ulimit -c 0
if [ "$1" = forever ]; then while kill -0 "$5"; do sleep 1; done; exit; fi
sleep "$1"
[ "$2" = 0 ] || kill -"$2" $$
printf '%s' "$4"
exit "$3"
"""


@record
class Driver:
    """A driver that is healthy, unless one of these is set."""

    #: Seconds until it answers; None if it never does.
    seconds: float | None = 0.0
    #: The signal that ends whoever asks; 0 for none.
    signal: int = 0
    #: The exit status of nvidia-smi, which is NVML's error code; 0 for success.
    status: int = 0
    #: What nvidia-smi prints then.
    says: str = ""

    def ask(self) -> Query | None:
        """Begin to ask; None if the answer is there at once."""
        if self == Driver():
            return None
        seconds = "forever" if self.seconds is None else f"{self.seconds:f}"
        words = [seconds, str(int(self.signal)), str(self.status), self.says, str(os.getpid())]
        return Query("nvidia-smi", ["/bin/sh", "-c", _PLAY, "nvidia-smi", *words])


def read(entry: Entry) -> Driver:
    """Return the driver that a file describes. DiscoveryError with the line, if it describes none."""
    if entry.scalar is not None:
        word = entry.word("driver", ["healthy", "hangs", "crashes"])
        return {"healthy": Driver(), "hangs": Driver(seconds=None), "crashes": Driver(signal=Signals.SIGSEGV)}[word]
    given = entry.fields(KEYS)
    if "says" in given and "fails" not in given:
        raise given["says"].wrong("`says` needs `fails`, the exit status that comes with it")
    if "crashes" in given and "fails" in given:
        raise given["crashes"].wrong("a driver crashes or fails, not both")
    status = given["fails"].number("fails", 1, _TOO_LARGE) if "fails" in given else 0
    return Driver(
        seconds=float(given["slow"].matching("slow", _SECONDS, "seconds, like 2.5")) if "slow" in given else 0.0,
        signal=Signals[given["crashes"].word("crashes", _SIGNALS)] if "crashes" in given else 0,
        status=status,
        says=given["says"].text("says") if "says" in given else _said(status),
    )


def _said(status: int) -> str:
    code = reasons.UNKNOWN if status == _TOO_LARGE else status
    return f"Failed to initialize NVML: {reasons.words(code)}" if status else ""


def check(query: Query | None, deadline: float) -> None:
    """Return when the driver has answered. Raises what the nvidia-smi backend would raise."""
    if query is None:
        return
    status, out, err = query.answer(deadline)
    if status:
        raise reasons.nvidia_smi_failed(status, out.strip() or err)
