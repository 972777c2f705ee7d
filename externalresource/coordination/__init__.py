"""Who holds which device of this host: the coordination file, the processes in it, their queue."""

from externalresource.faces import face

TYPE_CHECKING = False
if TYPE_CHECKING:
    from externalresource.coordination.claims import Coordination as Coordination
    from externalresource.coordination.holders import (
        Claim as Claim,
        Holder as Holder,
        above as above,
        new_grant as new_grant,
    )
    from externalresource.coordination.inside import run_variable as run_variable, runs_around as runs_around
    from externalresource.coordination.lock import flock as flock, unshielded as unshielded
    from externalresource.coordination.matching import Claimable as Claimable, first as first
    from externalresource.coordination.own_claims import Grants as Grants
    from externalresource.coordination.process import (
        Process as Process,
        identify as identify,
        in_container as in_container,
        is_here as is_here,
        lives as lives,
        pid_here as pid_here,
        program_of as program_of,
    )

_NAMES = {
    "claims": "Coordination",
    "holders": "Claim Holder above new_grant",
    "inside": "run_variable runs_around",
    "lock": "flock unshielded",
    "matching": "Claimable first",
    "own_claims": "Grants",
    "process": "Process identify in_container is_here lives pid_here program_of",
}
__getattr__, __dir__, __all__ = face(__name__, _NAMES)
