"""A host with a stand-in for nvidia-smi, and the discovery script as a real process on it."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULE = [sys.executable, "-P", "-m", "externalresource_gpu.script.main"]
INSTALLED = [str(Path(sysconfig.get_path("scripts")) / "nvidia-gpu-discovery")]
COORDINATED = ("--backend=nvidia-smi", "--enable-coordination-mode")
INITIAL_PID_NAMESPACE = 0xEFFFFFFC

# Answers any query for two GPUs.
NVIDIA_SMI = """\
#!/bin/sh
{first}
for index in 0 1; do
  row=
  IFS=,
  for field in ${{1#--query-gpu=}}; do
    case $field in
      index) cell=$index ;;
      uuid) cell=GPU-$index ;;
      name) cell="NVIDIA A100" ;;
      *) cell="[N/A]" ;;
    esac
    row="$row${{row:+, }}$cell"
  done
  echo "$row"
done
"""

Claims = list[tuple[str, int]]


class Host:
    """A host with two GPUs, as far as nvidia-smi says, and a coordination file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "ledger"
        self.log = path / "log"
        self.began = path / "began"
        self.go = path / "go"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EXTERNALRESOURCE_")},
            "PATH": f"{path}:{os.environ['PATH']}",
            "EXTERNALRESOURCE_GPU_COORDINATION_FILE": str(self.ledger),
        }
        self.nvidia_smi()

    def nvidia_smi(self, first: str = "") -> None:
        """Let nvidia-smi run this first."""
        (self.path / "nvidia-smi").write_text(NVIDIA_SMI.format(first=first))
        (self.path / "nvidia-smi").chmod(0o755)

    def hold_nvidia_smi(self) -> None:
        """Let nvidia-smi say that it has begun, and wait for the word to go on."""
        self.nvidia_smi(f"echo $$ > {self.began}.new; mv {self.began}.new {self.began}\n{until(self.go)}")

    def start(
        self, *words: str, command: list[str] = MODULE, stdout: Any = subprocess.PIPE, **variables: str
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*command, *words],
            env=self.environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(
        self, *words: str, command: list[str] = MODULE, stdout: Any = subprocess.PIPE, **variables: str
    ) -> "Answer":
        return Answer(self.start(*words, command=command, stdout=stdout, **variables))

    def claims(self) -> Claims:
        if not self.ledger.exists():
            return []
        rows = [line.split(" ", 2) for line in self.ledger.read_text().splitlines()]
        return [(token, int(pid)) for token, pid, _ in rows]

    def logged(self) -> list[str]:
        """Return what the log file says after the time, which each line begins with."""
        matches = [
            re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (.+)", line) for line in self.log.read_text().split("\n")
        ]
        assert matches.pop() is None  # the last line is ended
        assert None not in matches
        return [match[1] for match in matches if match]

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        with open(f"{self.ledger}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file.fileno()


class Answer:
    """What the script said, once it has ended."""

    def __init__(self, script: "subprocess.Popen[str]") -> None:
        self.out, self.err = script.communicate(timeout=60)
        self.status = script.returncode
        assert "Traceback" not in self.err

    @property
    def devices(self) -> str:
        """The line of a script that had nothing else to say."""
        assert (self.status, self.err) == (0, "")
        assert self.out.count("\n") == 1
        return self.out.removesuffix("\n")

    @property
    def reason(self) -> str:
        """The one line with which it granted nothing."""
        return self.refusal(1)

    def refusal(self, status: int) -> str:
        assert (self.status, self.out or "") == (status, "")
        assert self.err.count("\n") == 1
        assert self.err.startswith("nvidia-gpu-discovery: ")
        return self.err.removeprefix("nvidia-gpu-discovery: ").removesuffix("\n")


def until(path: Path) -> str:
    """Return the shell's words for waiting until there is such a file."""
    return f"while [ ! -e {path} ]; do sleep 0.01; done"


def waits_for_nvidia_smi(pid: int) -> bool:
    """Whether the script knows its owner and reads from nvidia-smi: it lets no read of those pipes block."""
    try:
        return any(is_unblocked_pipe(pid, descriptor) for descriptor in os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_unblocked_pipe(pid: int, descriptor: str) -> bool:
    flags = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().split()[3]
    return os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("pipe:") and bool(int(flags, 8) & os.O_NONBLOCK)


def waits_for_the_lock(pid: int) -> bool:
    """Whether the script has asked all its questions, and lets three signals no longer end it."""
    try:
        blocked = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return blocked is not None and signals(int(blocked[1], 16)) == {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def signals(mask: int) -> set[int]:
    return {number for number in range(1, 65) if mask >> number - 1 & 1}
