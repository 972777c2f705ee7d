"""Feed the parsers of GPU discovery with what no driver should print, and count what they do not take as they should.

The inputs are real lines, changed: words exchanged for odd ones, lines lost and doubled, outputs cut off and mixed.
A parser answers, or refuses with an error of ours, in one line; anything else is a failure. So is an answer that does
not hold together: two GPUs of one index, a mask that shows other devices than those it was made of.
"""

import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from externalresource.errors import ExternalResourceError
from fuzzed import Parser, is_line, parsers
from mutations import mutate

_SHOWN = 160  # characters of an input that failed


@dataclass(slots=True)
class Report:
    inputs: int = 0
    refused: int = 0
    outcomes: set[str] = field(default_factory=set)
    #: How often, by kind and place.
    failures: Counter[str] = field(default_factory=Counter)
    #: The shortest input of each.
    examples: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def feed(parser: Parser, inputs: int, seed: object) -> Report:
    """Return what the parser made of so many inputs."""
    chance = random.Random(f"{seed} {parser.name}")
    report, began = Report(), time.monotonic()
    for _ in range(inputs):
        take(parser, mutate(parser.seeds, chance), report)
    report.seconds = time.monotonic() - began
    return report


def take(parser: Parser, text: str, report: Report) -> None:
    """Feed one input, and add what came of it."""
    report.inputs += 1
    try:
        report.outcomes.add(repr(parser.read(text))[:200])
    except ExternalResourceError as error:
        report.refused += 1
        report.outcomes.add(f"{type(error).__name__}: {_shape(str(error))}")
        if not is_line(str(error)):
            _fail(report, f"{type(error).__name__} of several lines: {_shape(str(error))}", text)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        *_, frame = traceback.extract_tb(error.__traceback__)
        _fail(report, f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno} ({frame.line})", text)


def _fail(report: Report, failure: str, text: str) -> None:
    report.failures[failure] += 1
    known = report.examples.get(failure)
    if known is None or len(text) < len(known):
        report.examples[failure] = text


def _shape(message: str) -> str:
    """Return the message without what it quotes."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "", message)[:60]


def show(reports: Mapping[str, Report]) -> None:
    click.echo(f"{'parser':<34}{'inputs':>9}{'refused':>9}{'outcomes':>9}{'failures':>9}{'seconds':>9}")
    for name, report in reports.items():
        numbers = (report.inputs, report.refused, len(report.outcomes), report.failures.total(), round(report.seconds))
        click.echo(f"{name:<34}{''.join(f'{number:>9}' for number in numbers)}")
    click.echo(
        f"{'all':<34}{sum(report.inputs for report in reports.values()):>9}{'':>18}"
        f"{sum(report.failures.total() for report in reports.values()):>9}"
    )
    for name, report in reports.items():
        for failure, number in report.failures.most_common():
            text = report.examples[failure]
            more = f"... {len(text)} characters" if len(text) > _SHOWN else ""
            click.echo(f"\n{name}, {number} times: {failure}\n    {text[:_SHOWN]!r}{more}")


@click.command(help=__doc__)
@click.option("--inputs", type=click.IntRange(1), default=100_000, show_default=True, help="For all parsers together.")
@click.option("--seed", default="1", show_default=True, help="The same seed makes the same inputs.")
@click.option("--parser", "names", multiple=True, help="Only the parsers with this in their name.")
def main(inputs: int, seed: str, names: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        fed = [parser for parser in parsers(folder) if not names or any(name in parser.name for name in names)]
        if not fed:
            raise click.UsageError(f"no parser has any of this in its name: {', '.join(names)}")
        weights = sum(parser.weight for parser in fed)
        reports = {parser.name: feed(parser, -(-inputs * parser.weight // weights), seed) for parser in fed}
    show(reports)
    sys.exit(any(report.failures for report in reports.values()))


if __name__ == "__main__":
    main()
