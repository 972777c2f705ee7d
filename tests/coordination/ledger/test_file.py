"""How the file is replaced, who may read and write it, and what is said where that fails."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from externalresource.coordination import Claim, Holder, Process, ledger, safe_files
from externalresource.errors import CoordinationError
from tests.support.claiming import error_of
from tests.support.devices import claim_of
from tests.support.processes import as_another_user, in_mounts, mount

CLAIM = claim_of("0", 7, {"uuid": "GPU-a"})
OTHER = claim_of("1", 8, {"uuid": "GPU-b"})


def test_new_file_of_a_process_that_was_killed_is_overwritten(path: str) -> None:
    ledger.write(path, [CLAIM])
    Path(f"{path}.new").write_text("0 7\n1 8 {cut sh", encoding="ascii")
    assert ledger.read(path) == [CLAIM]
    ledger.write(path, [CLAIM, OTHER])
    assert ledger.read(path) == [CLAIM, OTHER]
    assert os.listdir(os.path.dirname(path)) == ["gpus"]


def test_folder_in_the_place_of_the_new_file_is_an_error_that_says_so(path: str) -> None:
    os.mkdir(f"{path}.new")
    message = error_of(CoordinationError, lambda: ledger.write(path, [CLAIM]))
    assert message == (f"cannot write {path}.new: it is a folder; move it to another place")
    assert not os.path.exists(path)


def test_file_is_replaced_and_never_changed_in_place(path: str) -> None:
    ledger.write(path, [CLAIM])
    with open(path, "rb") as earlier:
        ledger.write(path, [OTHER])
        assert earlier.read() == b'0 7 {"uuid":"GPU-a"}\n'
    assert ledger.read(path) == [OTHER]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777], ids=oct)
def test_everybody_may_read_the_file_and_only_its_writer_write_it(umask: int, path: str) -> None:
    earlier = os.umask(umask)
    try:
        ledger.write(path, [CLAIM])
    finally:
        os.umask(earlier)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644


def test_write_that_fails_halfway_leaves_the_old_file(path: str) -> None:
    def claims() -> Iterator[Claim]:
        yield OTHER
        raise KeyboardInterrupt

    ledger.write(path, [CLAIM])
    with pytest.raises(KeyboardInterrupt):
        ledger.write(path, claims())
    assert ledger.read(path) == [CLAIM]
    assert os.listdir(os.path.dirname(path)) == ["gpus"]


def test_details_that_are_no_json_leave_the_old_file(path: str) -> None:
    ledger.write(path, [CLAIM])
    with pytest.raises(TypeError):
        ledger.write(path, [Claim("0", (Holder(Process(7)),), others={"later": object()})])
    assert ledger.read(path) == [CLAIM]
    assert os.listdir(os.path.dirname(path)) == ["gpus"]


@pytest.mark.parametrize("more", [0, 1])
def test_file_of_16_mebibytes_is_the_largest_that_is_read(more: int, path: str) -> None:
    Path(path).write_bytes(b" " * ((16 << 20) + more))
    if more:
        assert "is larger than 16 MiB" in error_of(CoordinationError, lambda: ledger.read(path))
    else:
        assert ledger.read(path) == []


def test_file_that_is_too_large_to_be_a_ledger_is_an_error(path: str) -> None:
    Path(path).touch()
    os.truncate(path, 100_000_000)
    assert error_of(CoordinationError, lambda: ledger.read(path)) == (
        f"coordination file {path} is larger than 16 MiB, which no ledger is: look at it"
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOLCK, errno.EROFS, errno.EBUSY])
def test_only_a_symbolic_link_is_called_one(number: int) -> None:
    message = str(safe_files.refusal("write", "/gpus", OSError(number, os.strerror(number))))
    assert message.startswith(f"cannot write /gpus: {os.strerror(number)}")
    assert ("; " in message) == (number != errno.EIO)
    link = str(safe_files.refusal("write", "/gpus", OSError(errno.ELOOP, os.strerror(errno.ELOOP))))
    assert link == (
        "cannot write /gpus: it is a symbolic link, which is never followed; name the file that it leads to, if "
        "devices are held by that, else another one"
    )


def test_folder_that_is_missing_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    path = str(tmp_path / "missing" / "ledger")
    assert ledger.read(path) == []
    assert error_of(CoordinationError, lambda: ledger.write(path, [CLAIM])) == (
        f"cannot write {path}: No such file or directory; create its folder, or choose another file"
    )


def test_folder_of_another_user_is_an_error_with_its_remedy(shared: Path) -> None:
    path = str(shared / "ledger")
    ledger.write(path, [CLAIM])
    shared.chmod(0o755)
    message = as_another_user(lambda: error_of(CoordinationError, lambda: ledger.write(path, [OTHER])))
    assert message == (
        f"cannot write {path}: Permission denied; to share devices between users, once none are held, let all use one "
        "file in a new folder that they may write and that is not sticky (install -d -g GROUP -m 2770 FOLDER)"
    )
    assert as_another_user(lambda: ledger.read(path)) == [CLAIM]


@pytest.mark.parametrize("leftover", [False, True], ids=["file", "leftover"])
def test_file_of_another_user_in_a_sticky_folder_is_an_error_with_its_remedy(shared: Path, *, leftover: bool) -> None:
    path = str(shared / "ledger")
    ledger.write(path, [CLAIM])
    if leftover:
        (shared / "ledger.new").touch()
    shared.chmod(0o1777)
    message = as_another_user(lambda: error_of(CoordinationError, lambda: ledger.write(path, [OTHER])))
    assert message.startswith(f"cannot write {path}: Operation not permitted; it belongs to root, ")
    assert ledger.read(path) == [CLAIM]
    assert os.path.exists(f"{path}.new") == leftover


def test_users_share_a_folder_that_all_may_write(shared: Path) -> None:
    path = str(shared / "ledger")
    ledger.write(path, [CLAIM])
    as_another_user(lambda: ledger.write(path, [CLAIM, OTHER]))
    assert ledger.read(path) == [CLAIM, OTHER]


def test_file_that_may_not_be_read_is_an_error(shared: Path) -> None:
    path = str(shared / "ledger")
    ledger.write(path, [CLAIM])
    os.chmod(path, 0o600)
    message = as_another_user(lambda: error_of(CoordinationError, lambda: ledger.read(path)))
    assert message.startswith(f"cannot read {path}: Permission denied; ")


def on_a_tiny_disk(folder: Path) -> tuple[str, list[Claim], list[str]]:
    mount("none", str(folder), "tmpfs", "size=4k")
    path = str(folder / "ledger")
    ledger.write(path, [CLAIM])
    message = error_of(CoordinationError, lambda: ledger.write(path, [CLAIM, OTHER]))
    return message.removeprefix(f"cannot write {path}: "), ledger.read(path), os.listdir(folder)


def test_full_disk_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    assert in_mounts(lambda: on_a_tiny_disk(tmp_path)) == (
        "No space left on device; make room on its file system",
        [CLAIM],
        ["ledger"],
    )


def test_read_only_file_system_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    def look() -> str:
        mount("none", str(tmp_path), "tmpfs", "ro")
        return error_of(CoordinationError, lambda: ledger.write(str(tmp_path / "ledger"), [CLAIM]))

    message = in_mounts(look)
    assert message.startswith(
        f"cannot write {tmp_path}/ledger: Read-only file system; mount its file system writable: "
    )


def test_file_that_is_mounted_alone_is_an_error_with_its_remedy(path: str) -> None:
    ledger.write(path, [CLAIM])

    def look() -> str:
        mount(path, path)
        return error_of(CoordinationError, lambda: ledger.write(path, [CLAIM, OTHER]))

    message = in_mounts(look)
    assert message.endswith("; a single file is mounted there: mount its folder instead")
    assert ledger.read(path) == [CLAIM]
    assert os.listdir(os.path.dirname(path)) == ["gpus"]
