"""Strict validation: the provider is asked at each check whether the session's access token still holds.

`StrictValidation` looks after a session once its tokens are as fresh as they can be. Who asks at the
same time about one session shares the answer, and only so many questions are under way at once. A
refusal ends the session; whatever else comes back means that nobody knows, and nobody passes then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from authservice.authn.cache import BearerCache, Refusal, Verdict
from authservice.check import NeedsIO, Reach
from authservice.errors import ProviderDown, SessionOver, StoreDown, Unavailable
from authservice.identity import Identity
from authservice.logs import Event
from authservice.ops import Counts, Metric
from authservice.sessions import Session
from authservice.sessions.copies import LiveSession
from authservice.sessions.lease import Leases
from authservice.sessions.live import Record, Sessions
from authservice.sessions.seal import public_id

log = logging.getLogger(__name__)

NAME = "strict"
MOST_ASKED = 8
"""Of one process at once: each question may wait for a provider that hangs."""
MOST_REMEMBERED = 100_000

_MOST_TRIES = 3

Ask = Callable[[Session], None]
"""Asks the provider about a session's access token (OpenID Connect Core 1.0 §5.3). Returns when it
holds and is the same person's; raises `errors.SessionOver` when it does not, and
`errors.Unavailable` when the provider does not tell."""


class StrictValidation:
    """An upkeep of the session authenticator. Safe for threads. With ``remember``, an answer that
    the session holds stands for so long; without it, for those who asked meanwhile."""

    at_every_check = True

    def __init__(
        self,
        sessions: Sessions,
        leases: Leases,
        ask: Ask,
        *,
        now: Callable[[], datetime],
        remember: timedelta | None = None,
        counts: Counts | None = None,
    ) -> None:
        self._sessions = sessions
        self._leases = leases
        self._ask = ask
        self._now = now
        self._counts = counts or Counts()
        self._answers = BearerCache(MOST_REMEMBERED, remember, now, most_asked=MOST_ASKED)

    def keep(self, secret: str, live: LiveSession, reach: Reach) -> LiveSession | None:
        """The session where the provider says that it holds, ``None`` where it ended it just now.
        Raises `check.NeedsIO` under `Reach.MEMORY`, and `errors.Unavailable` when nobody knows."""
        key = (NAME, live.key.encode())
        try:
            verdict = self._answers.find(key)
        except KeyError:
            if reach is Reach.MEMORY:
                raise NeedsIO from None
            verdict = self._answers.once(key, lambda: self._counted(secret, live))
        return live if isinstance(verdict, Identity) else None

    def _counted(self, secret: str, live: LiveSession) -> Verdict:
        outcome = "unknown"
        try:
            holds = self._holds(secret, live.key)
            outcome = "holds" if holds else "over"
        finally:
            self._counts.add(Metric.VALIDATIONS, outcome)
        return live.by_cookie if holds else Refusal("the session has ended")

    def _holds(self, secret: str, key: str) -> bool:
        record = self._sessions.record(secret)
        for _ in range(_MOST_TRIES):
            if record is None:
                return False
            session = record.session
            if session.refresh_token and session.access_token_expires and self._now() >= session.access_token_expires:
                # A refusal would only tell what is known: the session lives on its refresh token.
                raise ProviderDown("the access token has expired and is not refreshed yet")
            try:
                self._ask(session)
                return True
            except SessionOver as over:
                record = self._end(secret, key, record, over)
        raise Unavailable("the session's tokens keep changing")

    def _end(self, secret: str, key: str, refused: Record, over: SessionOver) -> Record | None:
        """Ends the session, or gives it as it is now when it has another access token. Not while it is
        being refreshed: some providers withdraw the old access token before the new one is here."""
        lease = self._leases.take(key)
        if lease is None:
            raise ProviderDown("the session is being refreshed")
        try:
            found = self._sessions.record(secret)
            if found is None or found.session.access_token != refused.session.access_token:
                return found
            if not self._sessions.end_unchanged(secret, found):
                return self._sessions.record(secret)
        finally:
            with suppress(StoreDown):  # it ends by itself
                lease.release()
        self._counts.add(Metric.SESSIONS_ENDED, "validation")
        log.warning(Event.SESSION_OVER.value, extra={"session": public_id(key), "cause": str(over)})
        return None
