"""The doctor finds nothing behind any real gateway that is set up as shipped."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from authservice import doctor
from authservice.doctor import Part, State
from tests.e2e.stack import Stack

pytestmark = pytest.mark.external

CERTAIN = {Part.GATEWAY, Part.WIRING, Part.CALLBACK, Part.PAGES, Part.CLIENT, Part.STORE}


@pytest.mark.usefixtures("names_as_in_browsers")
def test_the_doctor_finds_nothing_behind_a_shipped_gateway(gated: Stack) -> None:
    found = list(doctor.examine(gated.service.settings, lambda: datetime.now(timezone.utc), gated.url))
    assert [one for one in found if one.state is State.PROBLEM] == []
    assert {one.part for one in found if one.state is State.OK} >= CERTAIN
    (wiring,) = (one for one in found if one.part is Part.WIRING)
    for name in ("Accept", "Cookie", "the original address", "Authorization"):
        assert name in wiring.sentence, wiring
