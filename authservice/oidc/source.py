"""What is known about one issuer: its description and its keys, fetched when needed and kept.

The one place that decides when an issuer is asked: at the first need, when what is known is old,
and, within a budget, when a token names a key that is not known. The last good answer outlives
every failure, and a failure is not repeated within a cool-down. How an issuer describes itself is
its kind's to say: `oidc.provider` for the provider, `oidc.issuers` for issuers that only sign.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from authservice.check import NeedsIO, Reach
from authservice.errors import NotReady, ProviderMisdescribed
from authservice.oidc.keys import KeySet, read_key_set
from authservice.oidc.metadata import MetadataWrong, discovery_address
from authservice.outbound import BadAnswer, Http, NoAnswer, Zone
from authservice.strictjson import BadJson

log = logging.getLogger(__name__)

METADATA_LIFETIME = timedelta(hours=1)
COOL_DOWN = timedelta(seconds=1)
PATIENCE = timedelta(seconds=1)
"""How old a fetch may be while others wait for it."""

ON_DEMAND_TIMEOUT = timedelta(seconds=5)
KEY_FETCH_BURST = 3
KEY_FETCH_PAUSE = timedelta(seconds=10)


class Description(Protocol):
    """What an issuer says of itself, as far as keys are concerned."""

    @property
    def jwks_uri(self) -> str: ...

    def farthest(self, address: str) -> Zone:
        """How far inside the network a call to this address may go."""
        ...


D = TypeVar("D", bound=Description)


class _Unreachable(Exception):
    """No answer, or an error status: worth asking again by the clock."""


class _Wrong(Exception):
    """An answer that cannot be used: asked again only when a request needs it."""


@dataclass(frozen=True, slots=True)
class Known(Generic[D]):
    """The last good answer. Description and keys belong together."""

    description: D
    keys: KeySet
    fetched: datetime


class IssuerSource(ABC, Generic[D]):
    """One issuer as a source of keys. Safe for threads and for processes forked at any time."""

    def __init__(self, issuer: str, http: Http, *, now: Callable[[], datetime]) -> None:
        self.issuer = issuer
        self._http = http
        self._now = now
        self._known: Known[D] | None = None
        self._failure: NotReady | None = None
        self._budget = _Budget(KEY_FETCH_BURST, KEY_FETCH_PAUSE, now)
        self._renew_process_state()

    def _renew_process_state(self) -> None:
        """Locks do not survive a fork."""
        self._fetching = threading.Lock()
        # Fetches that came to an end: who waited for one takes its result and does not fetch again.
        self._finished = 0
        self._keys_came = True
        # By the monotonic clock, which is also the one that waiting goes by; None between attempts.
        self._began: float | None = None
        self._last_attempt: datetime | None = None
        self._pause = COOL_DOWN
        self._pid = os.getpid()

    @property
    def ready(self) -> bool:
        """Whether description and keys are known. Never waits."""
        return self._known is not None

    def keys(self, reach: Reach = Reach.NETWORK) -> KeySet:
        """The issuer's keys, asked for when they are unknown or old; old ones are kept when it does
        not answer.

        Raises `errors.NotReady` when they are unknown and cannot be had now, and `check.NeedsIO`
        under `Reach.MEMORY` when it is time to ask.
        """
        return self._know(reach).keys

    def newer_keys(self, than: KeySet, reach: Reach = Reach.NETWORK) -> KeySet | None:
        """The keys after a fetch because ``than`` did not verify a token; ``None`` when they are
        the same, or when too many fetches were made lately (whoever sends tokens must not decide
        how often the issuer is called). Raises `check.NeedsIO` instead of asking under
        `Reach.MEMORY`, and `errors.NotReady` when it was time to ask and nobody answered: then the
        token is not known to be bad."""
        known = self._known
        if known is not None and known.keys is not than:
            return known.keys
        if known is None or not self._budget.left():
            return None
        if reach is Reach.MEMORY:
            raise NeedsIO
        lock, finished = self._lock(), self._finished
        if not lock.acquire(timeout=self._patience()):
            raise NotReady("key set: it is being asked for")
        try:
            if self._finished == finished and self._known is known and self._budget.take():
                self._began = time.monotonic()
                self._keys_came = self._fetch_keys(known)
                self._finished += 1
                self._began = None
        finally:
            lock.release()
        known = self._known
        if known is not None and known.keys is not than:
            return known.keys
        if not self._keys_came:
            raise NotReady("key set: not to be had at the moment")
        return None

    @abstractmethod
    def _describe(self, timeout: timedelta | None) -> D:
        """Asks the issuer for its description, with `_fetch_json`. Raises `MetadataWrong` for one that
        cannot be used."""

    # --- fetching -----------------------------------------------------------------------------

    def _know(self, reach: Reach) -> Known[D]:
        """What is known; asked for on demand when it is unknown or old."""
        known = self._known
        if reach is Reach.MEMORY:
            if known is None:
                raise self._not_ready() if self._cooling() else NeedsIO
            if self._is_old(known) and not self._is_asked():
                raise NeedsIO
            return known
        return self._fetch_on_demand(known) if known is None or self._is_old(known) else known

    def _lock(self) -> threading.Lock:
        """The lock of this process, held by who fetches."""
        if self._pid != os.getpid():
            self._renew_process_state()
        return self._fetching

    def _fetch_on_demand(self, known: Known[D] | None) -> Known[D]:
        """One caller asks; others wait a moment for it, or go on with what is known.

        However many callers there are, and whenever they come: a fetch that hangs keeps them for
        its first second only, and after that no thread but its own.
        """
        lock, finished = self._lock(), self._finished
        if not self._cooling() and lock.acquire(timeout=0 if known else self._patience()):
            try:
                if self._finished == finished and self._known is known:
                    self._attempt(min(ON_DEMAND_TIMEOUT, self._http.timeout))
            finally:
                lock.release()
        if self._known is None:
            raise self._not_ready()
        return self._known

    def _patience(self) -> float:
        """Seconds that are left of the first second of the fetch under way."""
        began = self._began
        age = 0.0 if began is None else time.monotonic() - began
        return max(0.0, PATIENCE.total_seconds() - age)

    def _attempt(self, timeout: timedelta | None) -> None:
        """Fetches description and keys, and notes how it went. Needs the lock."""
        self._began = time.monotonic()
        began = self._now()
        try:
            description = self._fetch_description(timeout)
            keys = self._fetch_key_set(description, timeout)
        except _Unreachable as error:
            self._fail(NotReady(str(error)), "provider_unreachable")
        except _Wrong as error:
            self._fail(ProviderMisdescribed(str(error)), "provider_misdescribed")
        else:
            if self._known is None:
                log.info("provider_ready", extra={"issuer": self.issuer, "keys": len(keys)})
            self._known, self._failure = Known(description, keys, self._now()), None
        self._last_attempt = self._now()
        # An issuer that hangs keeps at most every other request waiting.
        self._pause = max(COOL_DOWN, self._last_attempt - began)
        self._finished += 1
        self._began = None

    def _fail(self, failure: NotReady, event: str) -> None:
        """Remembered for those who ask within the cool-down; logged when it is news."""
        if self._failure is None or str(failure) != str(self._failure):
            log.warning(event, extra={"issuer": self.issuer, "cause": str(failure)})
        self._failure = failure

    def _fetch_keys(self, known: Known[D]) -> bool:
        """New keys from the address that is known; when that brings nothing new, the address may
        have changed, so the description is asked for as well. Whether any keys came."""
        description = known.description
        keys = self._try_key_set(description)
        if keys is None or keys.same_as(known.keys):
            try:
                description = self._fetch_description(None)
            except (_Unreachable, _Wrong) as error:
                log.warning("provider_not_refreshed", extra={"issuer": self.issuer, "cause": str(error)})
            if description.jwks_uri != known.description.jwks_uri:
                keys = self._try_key_set(description)
        if keys is not None and not keys.same_as(known.keys):
            log.info("provider_keys_changed", extra={"issuer": self.issuer, "keys": len(keys)})
            self._known = Known(description, keys, self._now())
        return keys is not None

    def _try_key_set(self, description: D) -> KeySet | None:
        try:
            return self._fetch_key_set(description, None)
        except (_Unreachable, _Wrong) as error:
            log.warning("provider_keys_not_refreshed", extra={"issuer": self.issuer, "cause": str(error)})
            return None

    def _fetch_description(self, timeout: timedelta | None) -> D:
        try:
            return self._describe(timeout)
        except MetadataWrong as error:
            raise _Wrong(f"discovery document: {error}") from None

    def _discover(self, timeout: timedelta | None) -> tuple[dict[str, object], Zone]:
        """The discovery document, and where its own host lies."""
        address = discovery_address(self.issuer)
        document = self._fetch_json(address, "discovery", Zone.LINK_LOCAL, timeout)
        return document, self._http.zone(address)

    def _fetch_key_set(self, description: D, timeout: timedelta | None) -> KeySet:
        address = description.jwks_uri
        document = self._fetch_json(address, "key set", description.farthest(address), timeout)
        try:
            keys = read_key_set(document)
        except ValueError:
            raise _Wrong("key set: no list of keys") from None
        if not len(keys):
            raise _Wrong("key set: no usable key")
        return keys

    def _fetch_json(
        self, address: str, what: str, farthest: Zone, timeout: timedelta | None
    ) -> dict[str, object]:
        try:
            answer = self._http.get(address, farthest=farthest, timeout=timeout)
        except NoAnswer as error:
            raise _Unreachable(f"{what}: {error}") from None
        except BadAnswer as error:
            raise _Wrong(f"{what}: {error}") from None
        if answer.status >= 400:
            raise _Unreachable(f"{what}: status {answer.status}")
        if answer.status != 200:
            raise _Wrong(f"{what}: status {answer.status}")
        try:
            return answer.json()
        except BadJson as error:
            raise _Wrong(f"{what}: {error}") from None

    # --- time ---------------------------------------------------------------------------------

    def _not_ready(self) -> NotReady:
        failure = self._failure
        return type(failure)(str(failure)) if failure is not None else NotReady("not asked yet")

    def _is_asked(self) -> bool:
        """Whether it is being asked, or was a moment ago in vain."""
        return self._cooling() or self._lock().locked()

    def _cooling(self) -> bool:
        # A clock that was set back must not keep us from asking.
        last = self._last_attempt
        return last is not None and timedelta(0) <= self._now() - last < self._pause

    def _is_old(self, known: Known[D]) -> bool:
        return not timedelta(0) <= self._now() - known.fetched < METADATA_LIFETIME


class _Budget:
    """So many at once, then one in every pause."""

    def __init__(self, burst: int, pause: timedelta, now: Callable[[], datetime]) -> None:
        self._burst = float(burst)
        self._pause = pause
        self._now = now
        self._tokens = float(burst)
        self._counted = now()

    def left(self) -> bool:
        """Whether `take` would succeed."""
        gained = (self._now() - self._counted) / self._pause
        return min(self._burst, self._tokens + max(0.0, gained)) >= 1

    def take(self) -> bool:
        """Takes one, if there is one. Needs the caller's lock."""
        now = self._now()
        gained = max(0.0, (now - self._counted) / self._pause)
        self._tokens, self._counted = min(self._burst, self._tokens + gained), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
