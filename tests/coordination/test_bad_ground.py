"""Whatever stands, or is missing, in the places of our files: a clear line or the right devices, and no wrong grant."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from externalresource.coordination import Coordination, Holder, identify, lock
from externalresource.errors import CoordinationError, NotEnoughDevicesError
from tests.support.devices import Device
from tests.support.processes import Running, in_namespaces, mount

R = TypeVar("R")

DEAD = 999_999_999


GPUS = [Device("0"), Device("1"), Device("2")]


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # of a short name: a socket's is limited
        yield f"{folder}/gpus"


def me() -> Holder:
    return Holder(identify(os.getpid()))


def claim(path: str, amount: int = 1, wait: float = 0) -> list[str]:
    return [device.token for device in Coordination(path, "gpu").claim(GPUS, amount, me(), wait=wait)]


def held(path: str) -> list[str]:
    return [claim.token for claim in Coordination(path, "gpu").held()]


def release(path: str) -> int:
    return Coordination(path, "gpu").release(GPUS, me())


def script(path: str) -> str:
    """Ask the discovery script for a GPU; return its answer, or the reason why there is none."""
    words = ["1", "--simulate=3", "--enable-coordination-mode", f"--coordination-file={path}"]
    command = [sys.executable, "-P", "-m", "externalresource_gpu.script.main", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, bool(done.stdout)) in ((0, True), (1, False))
    assert (done.stdout + done.stderr).count("\n") == 1
    return (done.stdout or done.stderr.removeprefix("nvidia-gpu-discovery: ")).rstrip("\n")


def refusal(action: Callable[[str], object], path: str) -> str:
    with pytest.raises(CoordinationError) as caught:
        action(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def both(path: str) -> str:
    """Return why the script grants nothing, which is why Coordination does not."""
    reason = refusal(claim, path)
    assert script(path) == reason
    return reason


def folder_of(path: str) -> list[str]:
    return sorted(os.listdir(os.path.dirname(path)))


# What was planted


def link(place: str, target: str) -> None:
    os.symlink(target, place)


def dangling_link(place: str, target: str) -> None:
    os.symlink(f"{target}.missing", place)


def hard_link(place: str, target: str) -> None:
    os.link(target, place)


def fifo(place: str, target: str) -> None:
    os.mkfifo(place)


def folder(place: str, target: str) -> None:
    os.mkdir(place)


def bound_socket(place: str, target: str) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(place)


def device(place: str, target: str) -> None:
    try:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device")


PLANTS = [link, dangling_link, hard_link, fifo, folder, bound_socket, device]
CONTENT = "somebody's letter\n"


@pytest.mark.parametrize("used", [False, True], ids=["first use", "in use"])
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", ["", ".lock", ".queue"], ids=["ledger", "lock", "queue"])
def test_what_was_planted_grants_nothing_and_is_not_written_to(
    place: str, plant: Callable[[str, str], None], path: str, *, used: bool
) -> None:
    target = f"{path}-target"
    Path(target).write_text(CONTENT)
    if used:
        assert claim(path) == ["0"]
        if place != ".queue":
            os.unlink(path + place)
    plant(path + place, target)
    before, status = folder_of(path), os.lstat(path + place)
    reason = both(path)
    assert path + place in reason
    assert reason.endswith("remove it") or "No such device or address" in reason
    assert Path(target).read_text() == CONTENT
    assert os.path.samestat(os.lstat(path + place), status)
    assert set(folder_of(path)) - set(before) <= ({"gpus", "gpus.lock"} if place else set())


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant is not folder])
@pytest.mark.parametrize("place", [".new", ".queue.new"])
def test_what_was_planted_where_a_file_is_written_is_removed_and_not_written_to(
    place: str, plant: Callable[[str, str], None], path: str
) -> None:
    target = f"{path}-target"
    Path(target).write_text(CONTENT)
    holder = Running(lambda: claim(path, 3))
    assert holder.result() == ["0", "1", "2"]
    plant(path + place, target)
    ask = Coordination(path, "gpu", pause=lambda _seconds, _reason: holder.kill())
    assert len(ask.claim(GPUS, 1, me(), wait=60)) == 1
    assert held(path) == ["0"]
    assert Path(target).read_text() == CONTENT
    assert folder_of(path) == ["gpus", "gpus-target", "gpus.lock"]


@pytest.mark.parametrize("place", [".new", ".queue.new"])
def test_folder_where_a_file_is_written_is_an_error_that_grants_nothing(place: str, path: str) -> None:
    claim(path, 2)
    os.mkdir(path + place)
    if place == ".new":
        assert both(path).endswith("remove the folder that is there with .new at the end of its name")
    else:
        with pytest.raises(CoordinationError, match=r"\.queue: Is a directory; remove the folder"):
            claim(path, 2, wait=1)
    assert held(path) == ["0", "1"]


# What was removed or replaced


def lost(path: str) -> str:
    return (
        f"coordination file {path} was removed while its lock file remained, so nothing is granted: its claims are "
        f"lost, but their owners may live; once none of them does, remove {path}.lock, too"
    )


def test_ledger_that_was_removed_grants_nothing_until_its_lock_is_removed_too(path: str) -> None:
    assert claim(path) == ["0"]
    os.unlink(path)
    assert both(path) == lost(path)
    assert refusal(held, path) == lost(path)
    assert refusal(release, path) == lost(path)
    assert refusal(lambda path: Coordination(path, "gpu").drop(lambda claim, holder: True), path) == lost(path)
    assert folder_of(path) == ["gpus.lock"]
    os.unlink(f"{path}.lock")
    assert claim(path) == ["0"]


def test_ledger_that_was_removed_before_anybody_claimed_is_missed_all_the_same(path: str) -> None:
    assert release(path) == 0
    assert folder_of(path) == ["gpus", "gpus.lock"]
    assert held(path) == []
    os.unlink(path)
    assert both(path) == lost(path)


def test_ledger_that_its_user_emptied_claims_nothing(path: str) -> None:
    claim(path)
    os.truncate(path, 0)
    assert held(path) == []
    assert script(path) == "0"


def test_lock_that_somebody_else_made_says_nothing_of_a_ledger(path: str) -> None:
    Path(f"{path}.lock").touch()
    assert held(path) == []
    assert claim(path) == ["0"]
    assert Path(f"{path}.lock").read_text() == ""


@pytest.mark.parametrize("replace", [False, True], ids=["removed", "replaced"])
def test_lock_that_was_removed_or_replaced_leaves_the_claims(path: str, *, replace: bool) -> None:
    assert claim(path, 2) == ["0", "1"]
    os.unlink(f"{path}.lock")
    if replace:
        Path(f"{path}.lock").touch()
    assert script(path) == "2"
    with pytest.raises(NotEnoughDevicesError):
        claim(path)


def test_ledger_without_a_lock_is_taken_over(path: str) -> None:
    Path(path).write_text(f"0 {os.getpid()}\n")
    assert claim(path) == ["1"]
    os.unlink(path)
    assert both(path) == lost(path)


def test_first_users_that_come_at_once_see_no_lost_ledger(path: str) -> None:
    for _ in range(40):
        askers = [Running(lambda: claim(path)) for _ in range(3)]
        try:
            assert sorted(token for asker in askers for token in asker.result()) == ["0", "1", "2"]
        finally:
            for asker in askers:
                asker.kill()
        os.unlink(f"{path}.lock")  # first: until both are gone, nobody asks
        os.unlink(path)


# What stands in the ledger

RUBBISH = {
    "100 MB": b"0 7\n" * 25_000_000,
    "binary": bytes(range(256)) * 64,
    "CRLF": f"0 {DEAD}\r\n1 {DEAD}\r\n".encode(),
    "a page of zeros": b"\0" * 4096,
    "UTF-16": f"0 {DEAD}\n".encode("utf-16"),
    "a list": b"[]\n",
}


@pytest.mark.parametrize("content", RUBBISH.values(), ids=RUBBISH)
def test_ledger_that_is_none_grants_nothing_and_is_left_as_it_is(content: bytes, path: str) -> None:
    Path(path).write_bytes(content)
    reason = both(path)
    assert path in reason
    assert len(reason) < 500
    assert Path(path).read_bytes() == content


def test_lines_that_flinks_script_doubled_count_each(path: str) -> None:
    other = Running(lambda: None)
    Path(path).write_text(f"0 {DEAD}\n0 {other.pid}\n0 {DEAD}\n1 {os.getpid()}\n1 {os.getpid()}\n")
    assert claim(path) == ["2"]
    with pytest.raises(NotEnoughDevicesError):
        claim(path)
    other.kill()
    assert claim(path) == ["0"]
    assert [line.split()[0] for line in Path(path).read_text().splitlines()] == ["1", "1", "2", "0"]


def test_what_a_later_version_writes_is_kept_to_the_letter(path: str) -> None:
    lines = [
        f'1 {os.getpid()} {{"uuid":"GPU-b",  "shares":[{{"pid":9,"part":0.5}}],"until":null,"class":"gpu"}}',
        f'a%20b {os.getpid()} {{"x":{{"y":[1e400,"\\ud800"]}},"z":"\N{GREEK SMALL LETTER MU}"}}',
    ]
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    shared = Coordination(path, "gpu")
    shared.release(shared.claim([Device("0", "GPU-a")], 1, me()), me())
    assert script(path) == "0"
    assert Path(path).read_text(encoding="utf-8").splitlines()[:2] == lines


# The file system


def in_mounts(function: Callable[[], R]) -> R:
    return in_namespaces(function, 0, own_proc=False)


def system(*command: str) -> None:
    subprocess.run(command, check=True)


@pytest.mark.parametrize("used", [False, True], ids=["first use", "in use"])
def test_full_disk_grants_nothing_and_breaks_nothing(path: str, *, used: bool) -> None:
    def look() -> tuple[list[str], list[str], list[str]]:
        mount("none", os.path.dirname(path), "tmpfs", "size=32k")
        if used:
            claim(path)
        filler = Path(f"{path}-filler")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        reasons, before = [refusal(claim, path), script(path)], held(path)
        filler.unlink()
        return reasons, before, claim(path)

    reasons, before, after = in_mounts(look)
    for reason in reasons:
        assert reason.startswith(f"cannot write {path}")
        assert reason.endswith(": No space left on device; make room on its file system")
    assert (before, after) == ((["0"], ["1"]) if used else ([], ["0"]))


@pytest.mark.parametrize("used", [False, True], ids=["first use", "in use"])
def test_read_only_file_system_grants_nothing_and_can_be_looked_at(path: str, *, used: bool) -> None:
    def look() -> tuple[str, list[str]]:
        mount("none", os.path.dirname(path), "tmpfs")
        if used:
            claim(path)
        system("mount", "-o", "remount,ro", os.path.dirname(path))
        return both(path), held(path)

    reason, before = in_mounts(look)
    assert reason == f"cannot write {path}: Read-only file system; choose a file on a writable file system"
    assert before == (["0"] if used else [])


def test_file_that_is_mounted_alone_grants_nothing(path: str) -> None:
    claim(path)

    def look() -> str:
        mount(path, path)
        return both(path)

    assert in_mounts(look) == (
        f"cannot write {path}: Device or resource busy; a single file is mounted there: mount its folder instead"
    )
    assert held(path) == ["0"]


def test_missing_folder_grants_nothing(path: str) -> None:
    assert both(f"{path}/missing/gpus").startswith(f"cannot lock {path}/missing/gpus.lock: No such file or directory; ")


# The folder's file system

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


def mounted_over(path: str) -> Sequence[str]:
    """Return three folders: on a file system of another machine, over one, and not on one, whatever its name says."""
    root = os.path.dirname(path)
    for name in ("plain", "plain/deep", "a b\\040"):
        os.mkdir(f"{root}/{name}")
    mount("none", f"{root}/a b\\040", "tmpfs")
    mount("none", f"{root}/plain/deep", "tmpfs")
    mount("none", f"{root}/plain", "ramfs")  # which hides the one that lies deeper
    os.mkdir(f"{root}/plain/deep")
    return f"{root}/a b\\040", f"{root}/plain/deep"


REASON = (
    "it is on tmpfs, which other machines may use, too, and nothing is known here of their locks and processes; "
    "choose a file on a local file system"
)


def test_folder_that_other_machines_use_is_refused_and_left_as_it_is(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_NETWORK", {"tmpfs"})

    def look() -> tuple[str, list[str], list[str]]:
        shared, local = mounted_over(path)
        reason = refusal(claim, f"{shared}/gpus")
        return reason.removeprefix(f"cannot keep claims in {shared}: "), os.listdir(shared), claim(f"{local}/gpus")

    assert in_mounts(look) == (
        REASON,
        [],
        ["0"],
    )


def test_folder_is_looked_at_once_since_looking_costs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(path)
    monkeypatch.setattr(lock, "network_file_system", lambda mountinfo, mount: "nfs")
    assert claim(path) == ["1"]
    os.unlink(f"{path}.lock")
    assert "it is on nfs" in refusal(claim, path)
    assert held(path) == ["0", "1"]
