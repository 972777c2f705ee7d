import errno
import json
import os
import re
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from externalresource.coordination import Claim, Holder, Process, ledger, safe_files
from externalresource.errors import CoordinationError
from tests.support.devices import claim_of
from tests.support.processes import as_another_user, in_namespaces, mount

CLAIM = claim_of("0", 7, {"uuid": "GPU-a"})
HOLDERS = (Holder(Process(7)),)
OTHER = claim_of("1", 8, {"uuid": "GPU-b"})


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ledger")


@pytest.fixture
def shared() -> Iterator[Path]:
    """Yield a folder that another user can reach and write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def bytes_of(path: str) -> bytes:
    return Path(path).read_bytes()


def error_of(action: Callable[[], object]) -> str:
    with pytest.raises(CoordinationError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
details = st.fixed_dictionaries(
    {},
    optional={
        "uuid": st.text(),
        "parent_uuid": st.text(),
        "parent_token": st.text(),
        "class": st.text(),
        "since": st.text(),
        "program": st.text(),
        "boot_id": st.text(),
        "start_time": st.integers(0, 2**63),
        "pid_namespace": st.integers(0, 2**32),
        "time_namespace": st.integers(0, 2**32),
        "uid": st.integers(0, 2**32),
        "a later field": st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
    },
)
tokens = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
claims = st.lists(st.builds(claim_of, tokens, st.integers(1, 999_999_999), details))


@given(claims)
@example(
    [
        claim_of("a b", 1),
        claim_of("50%", 2),
        claim_of("%20", 3),
        claim_of("\N{GREEK SMALL LETTER MU}\n\r\t\x00\ufeff", 4),
    ]
)
@example([claim_of("#!{}", 1, {"uuid": "\u2028\x85\n"})])
def test_what_is_written_is_read(written: list[Claim]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger.write(f"{folder}/ledger", written)
        assert ledger.read(f"{folder}/ledger") == written


@given(claims)
def test_each_claim_is_one_line_of_plain_words(written: list[Claim]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger.write(f"{folder}/ledger", written)
        lines = bytes_of(f"{folder}/ledger").splitlines()
    assert len(lines) == len(written)
    for line, claim in zip(lines, written, strict=True):
        token, pid, *_ = line.split(b" ")
        assert re.fullmatch(rb"[!-~]+", token)
        assert int(pid) == claim.owner.process.pid


@pytest.mark.parametrize(
    ("claim", "line"),
    [
        (claim_of("0", 7), b"0 7\n"),
        (claim_of("0", 7, {"uuid": "GPU-a", "start_time": 5}), b'0 7 {"uuid":"GPU-a","start_time":5}\n'),
        (claim_of("MIG-1/2:3", 7), b"MIG-1/2:3 7\n"),
        (claim_of("a b%", 7), b"a%20b%25 7\n"),
        (claim_of("\N{GREEK SMALL LETTER MU}", 7), b"%CE%BC 7\n"),
    ],
)
def test_line_looks_as_documented(claim: Claim, line: bytes, path: str) -> None:
    ledger.write(path, [claim])
    assert bytes_of(path) == line


def test_lines_of_flinks_own_script_are_read(path: str) -> None:
    Path(path).write_text("0 4711\n11 4712\n", encoding="ascii")
    assert ledger.read(path) == [claim_of("0", 4711), claim_of("11", 4712)]


def test_no_file_claims_nothing(path: str) -> None:
    assert ledger.read(path) == []


@pytest.mark.parametrize("content", ["", "\n", "\n\n  \n\t\n"])
def test_blank_lines_claim_nothing(content: str, path: str) -> None:
    Path(path).write_text(content, encoding="ascii")
    assert ledger.read(path) == []


def test_last_line_needs_no_end(path: str) -> None:
    Path(path).write_text("0 4711\n1 4712", encoding="ascii")
    assert ledger.read(path) == [claim_of("0", 4711), claim_of("1", 4712)]


def test_fields_that_are_not_known_are_kept(path: str) -> None:
    line = '0 7 {"uuid":"GPU-a","shares":[{"pid":9}],"later":{"x":null}}\n'
    Path(path).write_text(line, encoding="ascii")
    ledger.write(path, ledger.append(ledger.read(path), [OTHER]))
    assert Path(path).read_text(encoding="ascii").startswith(line)


UNREADABLE = {
    "one column": "0",
    "no pid": "0 {}",
    "pid of letters": "0 x",
    "pid 0": "0 0",
    "negative pid": "0 -1",
    "pid with a leading zero": "0 07",
    "pid in other digits": "0 \N{ARABIC-INDIC DIGIT FIVE}",
    "pid that goes on in other digits": "0 1\N{ARABIC-INDIC DIGIT FIVE}",
    "endless pid": "0 1234567890",
    "no device": " 7",
    "two blanks": "0  7",
    "tab": "0\t7",
    "blank at the end": "0 7 ",
    "carriage return": "0 7\r",
    "carriage return after JSON": '0 7 {"uuid":"GPU-a"}\r',
    "third word": "0 7 more",
    "JSON cut short": '0 7 {"uuid":"GPU-',
    "JSON cut short behind a brace": '0 7 {"uuid":{}',
    "two objects": "0 7 {} {}",
    "list": "0 7 []",
    "single quotes": "0 7 {'uuid': 'GPU-a'}",
    "JSON nested too deeply": '0 7 {"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "number too long": '0 7 {"a":' + "1" * 5000 + "}",
    "byte order mark": "\ufeff0 7",
    "blank that nobody sees": "0\u200b 7",
    "no-break space": "0\u00a07",
    "NUL": "0 7\x00",
    "only NUL": "\x00" * 40,
    "merge conflict": "<<<<<<< HEAD",
}


@pytest.mark.parametrize("line", UNREADABLE.values(), ids=UNREADABLE)
def test_line_that_cannot_be_read_is_an_error_with_file_line_and_remedy(line: str, path: str) -> None:
    Path(path).write_text(f"0 5\n\n{line}\n1 6\n", encoding="utf-8", newline="")
    message = error_of(lambda: ledger.read(path))
    assert message.startswith(f"{path}, line 3: cannot read ")
    assert "nothing is granted" in message
    assert "mend the line, or empty the file once no owner lives" in message
    assert len(message) < 500


OTHER_TYPES: Sequence[Any] = (None, 1.5, [], {})


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, kind in ledger._TYPES.items() for value in OTHER_TYPES if type(value) is not kind],
)
def test_field_of_a_wrong_type_is_an_error(key: str, value: Any, path: str) -> None:
    Path(path).write_text(f"0 7 {json.dumps({key: value})}\n", encoding="ascii")
    assert "line 1: cannot read" in error_of(lambda: ledger.read(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("uuid", 5), ("start_time", "5"), ("class", 5), ("pid_namespace", "5"), ("uuid", True), ("start_time", True)],
)
def test_text_a_number_and_a_truth_are_three_things(key: str, value: Any, path: str) -> None:
    Path(path).write_text(f"0 7 {json.dumps({key: value})}\n", encoding="ascii")
    assert "line 1: cannot read" in error_of(lambda: ledger.read(path))


@pytest.mark.parametrize(
    ("content", "line"), [(b"\xff", 1), (b"\n\xff\n", 2), (b"0 5\n\xff\n", 2), (b"0 5\n1 6\n\xff\xfe\x00\n", 3)]
)
def test_bytes_that_are_no_utf8_are_an_error_with_their_line(content: bytes, line: int, path: str) -> None:
    Path(path).write_bytes(content)
    assert error_of(lambda: ledger.read(path)).startswith(f"{path}, line {line}: cannot read bytes that are not UTF-8")


@pytest.mark.parametrize("line", [1, 2, 3])
def test_line_that_cannot_be_read_is_named_by_its_number_and_its_first_80_characters(line: int, path: str) -> None:
    Path(path).write_text("0 5\n" * (line - 1) + "x" * 100, encoding="ascii")
    message = error_of(lambda: ledger.read(path))
    assert message.startswith(f"{path}, line {line}: cannot read '{'x' * 80}', so nothing is granted")


@pytest.mark.parametrize("more", [0, 1])
def test_file_of_16_mebibytes_is_the_largest_that_is_read(more: int, path: str) -> None:
    Path(path).write_bytes(b" " * ((16 << 20) + more))
    if more:
        assert "is larger than 16 MiB" in error_of(lambda: ledger.read(path))
    else:
        assert ledger.read(path) == []


def test_claim_knows_its_device_and_that_of_which_it_is_a_slice() -> None:
    claim = claim_of("MIG-x", 7, {"uuid": "MIG-x", "parent_uuid": "GPU-a", "parent_token": "0"})
    assert (claim.uuid, claim.parent_uuid, claim.parent_token) == ("MIG-x", "GPU-a", "0")
    assert (CLAIM.parent_uuid, CLAIM.parent_token, claim_of("0", 7).uuid) == (None, None, None)


def test_file_that_is_too_large_to_be_a_ledger_is_an_error(path: str) -> None:
    Path(path).touch()
    os.truncate(path, 100_000_000)
    assert error_of(lambda: ledger.read(path)) == (
        f"coordination file {path} is larger than 16 MiB, which no ledger is: look at it"
    )


def fifo(place: str) -> None:
    os.mkfifo(place)


def folder(place: str) -> None:
    os.mkdir(place)


def link(place: str) -> None:
    Path(f"{place}.target").write_text("0 7\n", encoding="ascii")
    os.symlink(f"{place}.target", place)


def dangling_link(place: str) -> None:
    os.symlink(f"{place}.missing", place)


def hard_link(place: str) -> None:
    Path(f"{place}.target").write_text("0 7\n", encoding="ascii")
    os.link(f"{place}.target", place)


def bound_socket(place: str) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(place)


PLANTED = {
    fifo: "is not a regular file; remove it",
    folder: "is not a regular file; remove it",
    link: "it is a symbolic link, which is never followed; remove it",
    dangling_link: "it is a symbolic link, which is never followed; remove it",
    hard_link: r"has 2 names \(hard links\); remove it",
    bound_socket: "No such device or address",
}


@pytest.mark.parametrize(("plant", "reason"), PLANTED.items(), ids=[plant.__name__ for plant in PLANTED])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_CREAT], ids=["opened", "created"])
def test_what_is_no_plain_file_is_not_opened(plant: Callable[[str], None], reason: str, flags: int, path: str) -> None:
    plant(path)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises((CoordinationError, OSError)):
        safe_files.open_plain(path, flags)
    assert set(os.listdir("/proc/self/fd")) == before
    assert not os.path.exists(f"{path}.missing")


@pytest.mark.parametrize(("plant", "reason"), PLANTED.items(), ids=[plant.__name__ for plant in PLANTED])
def test_ledger_that_is_no_plain_file_is_an_error(plant: Callable[[str], None], reason: str, path: str) -> None:
    plant(path)
    assert re.search(f"{re.escape(path)}.*{reason}", error_of(lambda: ledger.read(path)))


@pytest.mark.parametrize("plant", [fifo, link, dangling_link, hard_link, bound_socket])
def test_what_stands_in_the_place_of_the_new_file_is_removed_and_not_written_to(
    plant: Callable[[str], None], path: str
) -> None:
    plant(f"{path}.new")
    ledger.write(path, [CLAIM])
    assert ledger.read(path) == [CLAIM]
    assert not os.path.lexists(f"{path}.new")
    assert not os.path.exists(f"{path}.new.missing")
    if os.path.exists(f"{path}.new.target"):
        assert bytes_of(f"{path}.new.target") == b"0 7\n"


def test_folder_in_the_place_of_the_new_file_is_an_error_that_says_so(path: str) -> None:
    os.mkdir(f"{path}.new")
    message = error_of(lambda: ledger.write(path, [CLAIM]))
    assert message == (
        f"cannot write {path}: Is a directory; remove the folder that is there with .new at the end of its name"
    )
    assert not os.path.exists(path)


def test_new_file_of_a_process_that_was_killed_is_overwritten(path: str) -> None:
    ledger.write(path, [CLAIM])
    Path(f"{path}.new").write_text("0 7\n1 8 {cut sh", encoding="ascii")
    assert ledger.read(path) == [CLAIM]
    ledger.write(path, [CLAIM, OTHER])
    assert ledger.read(path) == [CLAIM, OTHER]
    assert os.listdir(os.path.dirname(path)) == ["ledger"]


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
    assert os.listdir(os.path.dirname(path)) == ["ledger"]


def test_details_that_are_no_json_leave_the_old_file(path: str) -> None:
    ledger.write(path, [CLAIM])
    with pytest.raises(TypeError):
        ledger.write(path, [Claim("0", (Holder(Process(7)),), others={"later": object()})])
    assert ledger.read(path) == [CLAIM]
    assert os.listdir(os.path.dirname(path)) == ["ledger"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENOLCK, errno.EROFS, errno.EBUSY])
def test_only_a_symbolic_link_is_called_one(number: int) -> None:
    message = str(safe_files.refusal("write", "/gpus", OSError(number, os.strerror(number))))
    assert message.startswith(f"cannot write /gpus: {os.strerror(number)}")
    assert ("; " in message) == (number != errno.EIO)
    link = str(safe_files.refusal("write", "/gpus", OSError(errno.ELOOP, os.strerror(errno.ELOOP))))
    assert link == "cannot write /gpus: it is a symbolic link, which is never followed; remove it"


def test_folder_that_is_missing_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    path = str(tmp_path / "missing" / "ledger")
    assert ledger.read(path) == []
    assert error_of(lambda: ledger.write(path, [CLAIM])) == (
        f"cannot write {path}: No such file or directory; create its folder, or choose another file"
    )


def test_folder_of_another_user_is_an_error_with_its_remedy(shared: Path) -> None:
    path = str(shared / "ledger")
    ledger.write(path, [CLAIM])
    shared.chmod(0o755)
    message = as_another_user(lambda: error_of(lambda: ledger.write(path, [OTHER])))
    assert message == (
        f"cannot write {path}: Permission denied; "
        "to share devices between users, give them a folder that they all may write and that is not sticky"
    )
    assert as_another_user(lambda: ledger.read(path)) == [CLAIM]


@pytest.mark.parametrize("leftover", [False, True], ids=["file", "leftover"])
def test_file_of_another_user_in_a_sticky_folder_is_an_error_with_its_remedy(shared: Path, *, leftover: bool) -> None:
    path = str(shared / "ledger")
    ledger.write(path, [CLAIM])
    if leftover:
        (shared / "ledger.new").touch()
    shared.chmod(0o1777)
    message = as_another_user(lambda: error_of(lambda: ledger.write(path, [OTHER])))
    assert message.startswith(f"cannot write {path}: Operation not permitted; to share devices between users")
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
    message = as_another_user(lambda: error_of(lambda: ledger.read(path)))
    assert message.startswith(f"cannot read {path}: Permission denied; ")


def on_a_tiny_disk(folder: Path) -> tuple[str, list[Claim], list[str]]:
    mount("none", str(folder), "tmpfs", "size=4k")
    path = str(folder / "ledger")
    ledger.write(path, [CLAIM])
    message = error_of(lambda: ledger.write(path, [CLAIM, OTHER]))
    return message.removeprefix(f"cannot write {path}: "), ledger.read(path), os.listdir(folder)


def test_full_disk_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    assert in_namespaces(lambda: on_a_tiny_disk(tmp_path), 0, own_proc=False) == (
        "No space left on device; make room on its file system",
        [CLAIM],
        ["ledger"],
    )


def test_read_only_file_system_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    def look() -> str:
        mount("none", str(tmp_path), "tmpfs", "ro")
        return error_of(lambda: ledger.write(str(tmp_path / "ledger"), [CLAIM]))

    message = in_namespaces(look, 0, own_proc=False)
    assert message.endswith("Read-only file system; choose a file on a writable file system")


def test_file_that_is_mounted_alone_is_an_error_with_its_remedy(path: str) -> None:
    ledger.write(path, [CLAIM])

    def look() -> str:
        mount(path, path)
        return error_of(lambda: ledger.write(path, [CLAIM, OTHER]))

    message = in_namespaces(look, 0, own_proc=False)
    assert message.endswith("; a single file is mounted there: mount its folder instead")
    assert ledger.read(path) == [CLAIM]
    assert os.listdir(os.path.dirname(path)) == ["ledger"]


def test_new_claim_has_its_own_name_where_that_is_free() -> None:
    assert ledger.append([OTHER], [CLAIM]) == [OTHER, CLAIM]


def test_name_that_stands_for_another_device_is_replaced_by_the_uuid() -> None:
    in_a_container = claim_of("0", 9, {"uuid": "GPU-c"})
    assert ledger.append([CLAIM], [in_a_container]) == [CLAIM, claim_of("GPU-c", 9, {"uuid": "GPU-c"})]


def test_two_new_claims_of_one_name_get_two() -> None:
    new = [claim_of("0", 9, {"uuid": "GPU-c"}), claim_of("0", 9, {"uuid": "GPU-d"})]
    assert [claim.token for claim in ledger.append([], new)] == ["0", "GPU-d"]


@pytest.mark.parametrize(
    "claim",
    [
        Claim("", HOLDERS),
        Claim("0", (Holder(Process(0)),)),
        Claim("0", HOLDERS, uuid=cast("str", 5)),
        Claim("0", HOLDERS, parent_uuid=cast("str", [])),
    ],
    ids=["empty token", "pid 0", "uuid that is a number", "parent that is a list"],
)
def test_claim_that_nobody_could_read_again_is_refused(claim: Claim) -> None:
    assert "the driver's device cannot be recorded as" in error_of(lambda: ledger.append([], [claim]))
