"""A folder that other machines use, too, is refused: nothing is known here of their locks and processes."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from externalresource.coordination import lock
from externalresource.errors import CoordinationError
from tests.support.claiming import (
    claim,
    error_of,
    tokens,
)
from tests.support.processes import in_child, in_mounts, mount

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:30 / /proc rw - proc proc rw
41 22 0:41 / /srv/a\040b rw,relatime shared:7 master:2 - nfs4 server:/x rw,vers=4.2
42 22 0:42 / /mnt/-\040-\040nfs rw - ext4 /dev/sdb rw
43 22 0:43 /sub /gpu rw - fuse.sshfs me@host:/ rw
44 22 0:44 / /home rw - cifs //host/share rw
45 22 0:45 / /ceph rw - ceph 10.0.0.1:/ rw
46 22 0:46 / /host rw - 9p host rw,trans=virtio
47 22 0:47 / /luster rw - lustre mds@tcp:/fs rw
48 22 0:48 / /afs rw - afs none rw
49 22 0:49 / /gluster rw - fuse.glusterfs host:/vol rw
50 22 0:50 / /kata rw - virtiofs kataShared rw
51 22 0:51 / /smb rw - smb3 //host/share rw
52 22 0:52 / /nfs rw - nfs server:/y rw
53 22 0:53 / /run rw - tmpfs tmpfs rw
54 22 0:54 / /layers rw - overlay overlay rw,lowerdir=/nfs
55 22 0:55 / /fuse rw - fuse.fuse-overlayfs nfs rw
56 22 0:56 / /nfsd rw - nfsd nfsd rw
"""


@pytest.mark.parametrize(
    ("mounted", "kind"),
    [
        ("41", "nfs4"), ("43", "fuse.sshfs"), ("44", "cifs"), ("45", "ceph"), ("46", "9p"), ("47", "lustre"),
        ("48", "afs"), ("49", "fuse.glusterfs"), ("50", "virtiofs"), ("51", "smb3"), ("52", "nfs"),
        ("22", None), ("42", None), ("53", None), ("54", None), ("55", None), ("56", None), ("5", None), ("", None),
        ("999", None),
    ],
)  # fmt: skip
def test_file_system_that_other_machines_use_is_told_by_its_mount(mounted: str, kind: str | None) -> None:
    assert lock.network_file_system(MOUNTINFO, mounted) == kind


REMOTE = Path(__file__).parents[1] / "support" / "file_systems" / "remote.py"


@contextlib.contextmanager
def on_another_machine(folder: str) -> Iterator[None]:
    """Mount what lies on another machine, and see to it that nobody asks for a change there."""
    with subprocess.Popen([sys.executable, REMOTE, folder], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "mounted\n"
        try:
            yield
        finally:
            server.kill()
        assert server.stdout.read() == ""


REASON = (
    "it is on fuse.sshfs, which other machines may use, too, and nothing is known here of their locks and processes; "
    "choose a file on a local file system"
)


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse, for a file system"
)
def test_folder_that_other_machines_use_is_refused_and_left_as_it_is(path: str) -> None:
    root = os.path.dirname(path)
    shared, local = f"{root}/a b\\040", f"{root}/plain/deep"

    def look() -> tuple[str, list[str], list[str]]:
        for name in (shared, f"{root}/plain", local):
            os.mkdir(name)
        with on_another_machine(shared), on_another_machine(local):
            mount("none", f"{root}/plain", "ramfs")  # which hides the one that lies deeper
            os.mkdir(local)
            message = error_of(CoordinationError, lambda: claim(f"{shared}/gpus"))
            reason = message.removeprefix(f"cannot keep claims in {shared}: ")
            return reason, os.listdir(shared), tokens(claim(f"{local}/gpus"))

    assert in_mounts(look) == (REASON, [], ["0"])


def test_folder_is_looked_at_once_since_looking_costs(path: str) -> None:
    looks: list[str] = []

    def note(event: str, arguments: Sequence[object]) -> None:
        if event == "open" and arguments[0] == "/proc/self/mountinfo":
            looks.append(event)

    def claims() -> list[int]:
        sys.addaudithook(note)
        seen = []
        for remove in (False, False, True):
            if remove:
                os.unlink(f"{path}.lock")
            claim(path)
            seen.append(len(looks))
        return seen

    assert in_child(claims) == [1, 1, 2]
