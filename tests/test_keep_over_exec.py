"""What a program is told by the contexts that outlast the exec by which it began."""

import json
import os
import subprocess
import sys
from pathlib import Path

import externalresource
from tests.support.processes import in_child


def claimed(folder: Path) -> externalresource.RuntimeContext:
    return externalresource.claim("gpu", options={"simulate": 3, "coordination-file": str(folder / "claims")})


def grants(variables: dict[str, str]) -> list[set[str]]:
    """Return the grants of each run that a program with these variables is inside of."""
    return [set(run.split(",")) for run in variables.get("EXTERNALRESOURCE_RUN", "").split(";") if run]


def test_variables_of_the_last_context_tell_of_all_that_are_kept(tmp_path: Path) -> None:
    with claimed(tmp_path) as first, claimed(tmp_path) as second:
        told = dict(os.environ) | first.keep_over_exec() | second.keep_over_exec()
        [both] = grants(told)
        assert len(both) == 2
        assert dict(os.environ) | first.keep_over_exec() == told


def test_program_gets_shares_of_what_each_context_has_kept(tmp_path: Path) -> None:
    options = {"simulate": 3, "coordination-file": str(tmp_path / "claims")}
    program = f"import externalresource; externalresource.claim('gpu', 2, options={options!r})"
    with claimed(tmp_path) as first, claimed(tmp_path) as second:
        told = dict(os.environ) | first.keep_over_exec() | second.keep_over_exec()
        subprocess.run([sys.executable, "-P", "-c", program], env=told, check=True)


def test_context_that_is_closed_is_not_told_of(tmp_path: Path) -> None:
    with claimed(tmp_path) as first:
        [of_the_first] = grants(first.keep_over_exec())
    with claimed(tmp_path) as second:
        [told] = grants(second.keep_over_exec())
    assert len(told) == 1
    assert told.isdisjoint(of_the_first)


def test_fork_that_keeps_its_own_is_not_told_of_its_parents(tmp_path: Path) -> None:
    with claimed(tmp_path) as first:
        [of_the_parent] = grants(first.keep_over_exec())

        def fork() -> str:
            return json.dumps(claimed(tmp_path).keep_over_exec())

        [of_the_fork] = grants(json.loads(in_child(fork)))
    assert len(of_the_fork) == 1
    assert of_the_fork.isdisjoint(of_the_parent)
