"""systemd for tests: a user's manager, whether or not systemd runs this machine."""

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# In a control group of its own: it moves all that is in its group.
_START = """
set -e
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ -e $hierarchy/cgroup.procs ] || continue
    mkdir $hierarchy/$1
    echo $$ > $hierarchy/$1/cgroup.procs
done
mount -t tmpfs none /run
mkdir -p /run/systemd/system
exec env -i PATH="$PATH" HOME="$2" XDG_RUNTIME_DIR="$2" /usr/lib/systemd/systemd --user --unit=empty.target
"""
_PATIENCE = 60.0  # seconds
_LEAVING = 10.0  # seconds


@contextmanager
def user_manager(log: Path) -> Iterator[dict[str, str]]:
    """Yield the environment by which systemd-run and systemctl find a manager that runs until the end of the block.

    Its user has an empty home, HOME. The test is skipped where none can be started.
    """
    for tool in ("systemd-run", "systemctl", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    name = f"externalresource-tests-{os.getpid()}"
    with tempfile.TemporaryDirectory() as home:  # the path of a socket has at most 107 characters
        units = Path(home, ".config/systemd/user")
        units.mkdir(parents=True)
        (units / "empty.target").write_text("[Unit]\nDefaultDependencies=no\n", encoding="ascii")
        start = ["unshare", "--mount", "--fork", "--kill-child", "sh", "-c", _START, "sh", name, home]
        environment = {"HOME": home, "XDG_RUNTIME_DIR": home, "DBUS_SESSION_BUS_ADDRESS": ""}
        with (
            _removed(name),
            log.open("w") as output,
            subprocess.Popen(start, stdout=output, stderr=output) as process,
        ):
            if not _started(process, Path(home, "systemd/private")):
                pytest.skip(f"no manager of systemd can be started here: {log.read_text()[-300:].strip()}")
            try:
                yield environment
            finally:
                subprocess.run(["systemctl", "--user", "exit"], env=os.environ | environment, check=False)
                process.wait(_PATIENCE)


@contextmanager
def _removed(name: str) -> Iterator[None]:
    """Leave no control group of that name behind, however the block ends."""
    try:
        yield
    finally:
        for group in Path("/sys/fs/cgroup").glob(f"**/{name}"):
            for inner in sorted(group.glob("**/"), reverse=True):
                _remove(inner)


def _remove(group: Path) -> None:
    """Remove a control group, which is busy until the last of its processes is quite gone."""
    end = time.monotonic() + _LEAVING
    while True:
        try:
            group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def _started(process: "subprocess.Popen[bytes]", socket: Path) -> bool:
    end = time.monotonic() + _PATIENCE
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            return False
        time.sleep(0.01)
    return True
