"""Which runs a process is inside of: those whose grants its environment carries as a mark."""

import os
from collections.abc import Iterable, Sequence

_MARK = "EXTERNALRESOURCE_RUN"


def runs_around() -> Sequence[frozenset[str]]:
    """Return in which runs this process is, the outermost first: of each its grants, one for each of its resources."""
    return [frozenset(grants.split(",")) for grants in os.environ.get(_MARK, "").split(";") if grants]


def run_variable(grants: Iterable[str]) -> dict[str, str]:
    """Return the variable that tells a program that it runs on these grants of this process."""
    around = [",".join(sorted(run)) for run in runs_around()]
    return {_MARK: ";".join([*around, ",".join(sorted(grants))])}
