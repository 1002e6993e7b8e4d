"""The service's clock, as it is passed around: a function that says what time it is, in UTC.

Whoever decides anything by time is given one, so that tests can move it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial

Clock = Callable[[], datetime]

utc_now: Clock = partial(datetime.now, timezone.utc)
"""The service's own."""


def seconds_of(now: Clock) -> Callable[[], float]:
    """The same clock in seconds since 1970, for who asks at every check: of the service's own that is several
    times quicker."""
    return time.time if now is utc_now else lambda: now().timestamp()
