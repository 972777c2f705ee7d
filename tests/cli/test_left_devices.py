"""Devices that a command of `run` has left to others: without its watchers, what is said of them, what can be done."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import (
    ANN,
    BOB,
    Left,
    Started,
    as_root,
    as_user,
    call,
    column,
    contained,
    end,
    is_taken,
    refusal,
    unreadable,
    watchers,
)
from tests.support.processes import wait_until
from tests.support.taskmanager import COMMAND_LINE, Folder

# Without watchers


def kill_watchers(folder: Folder) -> None:
    for pid in watchers(folder):
        end(pid)
    wait_until(lambda: not watchers(folder))


def test_killing_one_watcher_frees_nothing(folder: Folder, started: Started, left: Left) -> None:
    asker = started("host")
    pid = left(asker)
    end(watchers(folder)[0])
    assert is_taken(asker, folder)
    end(pid)
    wait_until(lambda: not is_taken(asker, folder))


@pytest.mark.parametrize("place", ["host", pytest.param("container", marks=[contained, as_root])])
def test_who_may_look_finds_what_was_left_where_both_watchers_were_killed(
    folder: Folder, started: Started, left: Left, place: str
) -> None:
    asker = started("host")
    pid = left(started(place))
    kill_watchers(folder)
    assert is_taken(asker, folder)
    end(pid)
    wait_until(lambda: not is_taken(asker, folder))


@pytest.mark.parametrize("place", ["host", pytest.param("container", marks=contained)])
def test_command_whose_watchers_were_killed_frees_its_device_when_it_ends(
    folder: Folder, started: Started, place: str
) -> None:
    where, asker = started(place), started("host")
    command = where.tell("run", *folder.run(), "--", "sh", "-c", "echo; exec sleep 600")
    kill_watchers(folder)
    assert is_taken(asker, folder)
    where.tell("end", command)
    wait_until(lambda: not is_taken(asker, folder))


def test_device_without_watchers_is_free_when_whom_it_was_left_to_has_stepped_out(
    folder: Folder, started: Started, left: Left
) -> None:
    asker = started("host")
    pid = left(asker, "note(); time.sleep(2); os.execvp('env', ['env', '-u', 'EXTERNALRESOURCE_RUN', 'sleep', '600'])")
    wait_until(lambda: column(folder) == pid)
    kill_watchers(folder)
    assert is_taken(asker, folder)
    wait_until(lambda: not is_taken(asker, folder))
    assert Path(f"/proc/{pid}").exists()


@as_root
def test_who_may_not_look_counts_it_as_held_and_says_who_may(folder: Folder, started: Started, left: Left) -> None:
    left_by_ann = left(started("host"), "sleep", uid=ANN)
    wait_until(lambda: column(folder) == left_by_ann)
    kill_watchers(folder)
    end(left_by_ann)
    said = refusal(folder, BOB)
    assert f"only its user, uid {ANN}, and root see what it has left: by `externalresource status gpu`" in said
    assert call("status", "--coordination-file", folder.file, uid=ANN).returncode == 0
    assert call(*folder.run(), "--", "true", uid=BOB).returncode == 0


@contained
@as_root
def test_killed_container_frees_the_device_of_its_command_whatever_hides_its_environment_on_the_host(
    folder: Folder, started: Started
) -> None:
    where, asker = started("container"), started("host")
    where.tell("run", *folder.run(), "--", "sh", "-c", "echo; exec sleep 600")
    note = folder.path / "note"
    adopted = ["setsid", "--fork", "sh", "-c", f"echo $$ >{note}; exec {unreadable(folder)} 600"]
    subprocess.run([*as_user(ANN), *adopted], check=True)
    wait_until(lambda: note.exists() and note.read_text())
    stranger = int(note.read_text())
    try:
        where.kill()
        wait_until(lambda: folder.states() in ([], ["dead"]))
        assert not is_taken(asker, folder)
    finally:
        end(stranger)


# What is said, and done by hand


def test_refusal_names_what_keeps_the_device_who_left_it_and_what_to_type(
    folder: Folder, started: Started, left: Left
) -> None:
    pid = left(started("host"))
    wait_until(lambda: column(folder) == pid)
    said = refusal(folder)
    assert re.search(rf"held by pid {pid} \(python[0-9.]*\), left by pid \d+ \(python[0-9.]*\), since .*Z: 0 ", said)
    [command] = re.findall(r"\(end it; if it does not use the device, `externalresource (.*)` frees it\)$", said)
    assert call(*command.split(), "--coordination-file", folder.file).stdout == f"released 0, held by pid {pid}\n"
    assert call(*folder.run(), "--", "true").returncode == 0


@as_root
def test_only_its_user_releases_what_a_command_has_left(folder: Folder, started: Started, left: Left) -> None:
    left(started("host"), "sleep", uid=ANN)
    words = ["release", "--device", "0", "--force", "--coordination-file", folder.file]
    refused = call(*words, uid=BOB)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "you may not signal it" in refused.stderr
    assert call(*words, uid=ANN).stdout.startswith("released 0")


def test_process_inside_of_a_run_whose_command_has_ended_is_told_how_to_step_out(
    folder: Folder, started: Started, left: Left
) -> None:
    pid = left(started("host"))
    wait_until(lambda: column(folder) == pid)
    [mark] = [
        word
        for word in Path(f"/proc/{pid}/environ").read_text().split("\0")
        if word.startswith("EXTERNALRESOURCE_RUN=")
    ]
    inside_of_it = subprocess.run(
        ["env", mark, *COMMAND_LINE, "run", "gpu=2", *folder.run(2)[2:], "--", "true"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert inside_of_it.returncode == 125
    assert "; `env -u EXTERNALRESOURCE_RUN -u CUDA_VISIBLE_DEVICES` steps out of it" in inside_of_it.stderr
