"""No input makes a parser fail: it answers, or refuses with an error of ours, in one line."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

import fuzz
import fuzzed
import mutations
from externalresource.errors import DiscoveryError
from externalresource.records import replace

_FOLDER = tempfile.TemporaryDirectory()
PARSERS = fuzzed.parsers(_FOLDER.name)
each_parser = pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[None]:
    yield
    _FOLDER.cleanup()


def failures(parser: fuzzed.Parser, *texts: str) -> dict[str, str]:
    """Return an example of each failure."""
    report = fuzz.Report()
    for text in texts:
        fuzz.take(parser, text, report)
    assert report.inputs == len(texts)
    return report.examples


# Always the same inputs: others, and more of them, are what benchmarks/fuzz.py is for.
@each_parser
@settings(max_examples=50, derandomize=True)
@given(st.data())
def test_real_lines_that_were_changed_are_answered_or_refused(parser: fuzzed.Parser, data: st.DataObject) -> None:
    chance = data.draw(st.randoms(use_true_random=False))
    assert not failures(parser, *(mutations.mutate(parser.seeds, chance) for _ in range(5)))


@each_parser
@settings(max_examples=50)
@given(st.text())
def test_any_text_is_answered_or_refused(parser: fuzzed.Parser, text: str) -> None:
    assert not failures(parser, text)


@each_parser
def test_lines_that_were_not_changed_are_answered_or_refused(parser: fuzzed.Parser) -> None:
    assert not failures(parser, "", "\n", *parser.seeds)


@each_parser
def test_parser_is_fed_with_what_it_answers_and_with_what_it_does_not(parser: fuzzed.Parser) -> None:
    report = fuzz.feed(parser, 300, seed=1)
    assert report.inputs == 300
    assert report.refused < 300
    assert len(report.outcomes) > 3


@each_parser
def test_same_seed_makes_the_same_inputs(parser: fuzzed.Parser) -> None:
    seen: list[str] = []
    for seed in (1, 1, 2):
        fuzz.feed(replace(parser, read=seen.append), 20, seed)
    assert seen[:20] == seen[20:40] != seen[40:]


def read_badly(text: str) -> int:
    if text == "line":
        raise DiscoveryError("first\nsecond")
    return int(text)


def test_fuzzer_sees_foreign_errors_and_errors_of_several_lines_and_keeps_the_shortest_input() -> None:
    bad = fuzzed.Parser("bad", ["1"], read_badly)
    found = failures(bad, "xxx", "1", "x", "xx", "line")
    assert sorted(found.values()) == ["line", "x"]
    assert any(failure.startswith("ValueError in test_fuzz.py:") for failure in found)


@pytest.mark.parametrize("words", [["--inputs", "600"], ["--inputs", "50", "--parser", "topo", "--seed", "x"]])
def test_fuzzer_counts_inputs_outcomes_and_failures(words: list[str]) -> None:
    program = Path(fuzz.__file__)
    done = subprocess.run([sys.executable, program, *words], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done
    *rows, total = done.stdout.splitlines()[1:]
    assert int(total.split()[1]) >= int(words[1])
    assert len(rows) == (1 if "--parser" in words else len(PARSERS))
    assert all(row.split()[-2] == "0" for row in rows)


def test_fuzzer_knows_its_parsers() -> None:
    done = subprocess.run(
        [sys.executable, fuzz.__file__, "--parser", "no such"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no parser has any of this in its name: no such" in done.stderr


def test_changes_keep_to_a_bounded_size() -> None:
    chance = Random(1)
    assert max(len(mutations.mutate(["a b\nc"], chance)) for _ in range(500)) < 200_000
