"""The names that new claims get beside those that are there."""

from typing import cast

import pytest

from externalresource.coordination import Claim, Holder, Process, ledger
from externalresource.errors import CoordinationError
from tests.support.claiming import error_of
from tests.support.devices import claim_of

HOLDERS = (Holder(Process(7)),)
CLAIM = claim_of("0", 7, {"uuid": "GPU-a"})
OTHER = claim_of("1", 8, {"uuid": "GPU-b"})


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
    message = error_of(CoordinationError, lambda: ledger.append([], [claim]))
    assert "the driver's device cannot be recorded as" in message
