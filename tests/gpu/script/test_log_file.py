"""The log file is none of those in which claims are kept: one line of it would ruin them."""

import os
from pathlib import Path

import pytest

import externalresource
from externalresource.errors import ConfigurationError
from tests.support.discovery_host import COORDINATED, Host

FILES = ["ledger", "ledger.lock", "ledger.queue", "ledger.new", "ledger.queue.new", "ledger.witness-0123456789abcdef"]


def written(host: Host) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in host.path.glob("ledger*")}


def refused(host: Host, log: Path | str, *words: str) -> None:
    before = written(host)
    said = host.ask("1", *words, f"--log-file={log}").refusal(2)
    assert said == f"option --log-file must not be {str(log)!r}, where claims are kept: choose another file"
    assert written(host) == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("words", [COORDINATED, ["--backend=nvidia-smi"]], ids=["coordinated", ""])
def test_file_in_which_claims_are_kept_is_refused(host: Host, name: str, words: list[str]) -> None:
    refused(host, host.path / name, *words)
    host.ask("1", *COORDINATED)
    refused(host, host.path / name, *words)


def other_name(host: Host, what: str) -> Path | str:
    """Return a name of the lock file."""
    file, folder = host.path / "ledger.lock", host.path / "links"
    if what == "another way of writing it":
        return f"{host.path}/../{host.path.name}//ledger.lock"
    if what == "link to its folder":
        folder.symlink_to(host.path)
        return folder / "ledger.lock"
    folder.mkdir()
    if what == "hard link":
        os.link(file, folder / "log")
    else:
        (folder / "log").symlink_to(file)
    return folder / "log"


@pytest.mark.parametrize("what", ["another way of writing it", "symbolic link", "link to its folder", "hard link"])
def test_file_in_which_claims_are_kept_is_refused_under_any_name(host: Host, what: str) -> None:
    host.ask("1", *COORDINATED)
    refused(host, other_name(host, what), *COORDINATED)


@pytest.mark.parametrize("name", ["ledger.log", "ledger.witness", "log", "links/ledger"])
def test_file_beside_it_is_none_of_them(host: Host, name: str) -> None:
    (host.path / "links").mkdir()
    answer = host.ask("1", *COORDINATED, f"--log-file={host.path / name}")
    assert (answer.out, answer.err) == ("0\n", "")
    assert "granted 0" in (host.path / name).read_text()


def test_driver_refuses_it_too(tmp_path: Path) -> None:
    options = {"simulate": "1", "coordination-file": f"{tmp_path}/ledger", "log-file": f"{tmp_path}/ledger"}
    with pytest.raises(ConfigurationError, match=r"^option --log-file must not be .*/ledger', where claims are kept"):
        externalresource.claim("gpu", options=options)
    assert not any(tmp_path.iterdir())
