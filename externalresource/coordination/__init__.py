"""Who holds which device of this host: the coordination file, the processes in it, their queue."""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.coordination.claims import Coordination, first, new_grant
    from externalresource.coordination.holders import Claim, Holder, above
    from externalresource.coordination.inside import run_variable, runs_around
    from externalresource.coordination.lock import flock, unshielded
    from externalresource.coordination.matching import Claimable
    from externalresource.coordination.own_claims import Grants
    from externalresource.coordination.process import (
        Process,
        identify,
        in_container,
        is_here,
        lives,
        pid_here,
        program_of,
    )

__all__ = [
    "Claim",
    "Claimable",
    "Coordination",
    "Grants",
    "Holder",
    "Process",
    "above",
    "first",
    "flock",
    "identify",
    "in_container",
    "is_here",
    "lives",
    "new_grant",
    "pid_here",
    "program_of",
    "run_variable",
    "runs_around",
    "unshielded",
]

_NAMES = {
    "claims": "Coordination first new_grant",
    "holders": "Claim Holder above",
    "inside": "run_variable runs_around",
    "lock": "flock unshielded",
    "matching": "Claimable",
    "own_claims": "Grants",
    "process": "Process identify in_container is_here lives pid_here program_of",
}
__getattr__, __dir__ = face(__name__, _NAMES)
