"""How the driver of a simulated machine answers.

A bad one is played by a child process, as a real one is asked by one: deadlines, kills and errors are the real ones.
"""

from dataclasses import dataclass

from externalresource_gpu.backends import reasons
from externalresource_gpu.backends.query import Query

#: What a driver's library has been seen to die of, and the two signals that others send.
SIGNALS = {"SIGSEGV": 11, "SIGBUS": 7, "SIGABRT": 6, "SIGILL": 4, "SIGFPE": 8, "SIGKILL": 9, "SIGTERM": 15}

# $1: seconds, $2: signal or 0, $3: exit status, $4: what it says. No core file is left, and no child that hangs for
# longer than whoever started it lives.
_PLAY = """\
ulimit -c 0
if [ "$1" = forever ]; then while kill -0 "$PPID"; do sleep 1; done; fi
sleep "$1"
[ "$2" = 0 ] || kill -"$2" $$
printf '%s' "$4"
exit "$3"
"""


@dataclass(frozen=True, slots=True)
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
        return Query(
            "nvidia-smi",
            ["/bin/sh", "-c", _PLAY, "nvidia-smi", seconds, str(self.signal), str(self.status), self.says],
        )


def check(query: Query | None, deadline: float) -> None:
    """Return when the driver has answered. Raises what the nvidia-smi backend would raise."""
    if query is None:
        return
    status, out, err = query.answer(deadline)
    if status:
        raise reasons.nvidia_smi_failed(status, out.strip() or err)
