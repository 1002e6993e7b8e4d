"""What is known about the OpenID provider: its metadata and its keys, fetched, kept and renewed.

While the provider was never reached, a thread asks again and again with growing pauses. Once its
metadata is known, it is asked only when a request needs it: because the metadata is old, or
because a token names a key that is not known. The last good answer outlives every failure.
Called by everything that speaks with the provider; the calls themselves are `oidc.client`.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from authservice.check import NeedsIO, Reach
from authservice.errors import NotReady, ProviderMisdescribed
from authservice.oidc.keys import KeySet, read_key_set
from authservice.oidc.metadata import (
    BASIC,
    Metadata,
    MetadataWrong,
    Overrides,
    discovery_address,
    read_metadata,
)
from authservice.outbound import BadAnswer, Http, NoAnswer, Zone
from authservice.strictjson import BadJson

log = logging.getLogger(__name__)

METADATA_LIFETIME = timedelta(hours=1)
COOL_DOWN = timedelta(seconds=1)
ON_DEMAND_TIMEOUT = timedelta(seconds=5)
PATIENCE = timedelta(seconds=1)
"""How old a fetch may be while others wait for it."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
KEY_FETCH_BURST = 3
KEY_FETCH_PAUSE = timedelta(seconds=10)


class _Unreachable(Exception):
    """No answer, or an error status: worth asking again by the clock."""


class _Wrong(Exception):
    """An answer that cannot be used: asked again only when a request needs it."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The last good answer. Metadata and keys belong together."""

    metadata: Metadata
    keys: KeySet
    fetched: datetime


class Provider:
    """One OpenID provider. Safe for threads; `start` must run again in a forked process.

    ``jitter`` gives a factor from 0 up to 1 for the pauses of the background thread.
    """

    def __init__(
        self,
        issuer: str,
        http: Http,
        overrides: Overrides = Overrides(),
        *,
        now: Callable[[], datetime],
        auth_method: str = BASIC,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.issuer = issuer
        self._http = http
        self._overrides = overrides
        self._now = now
        self._auth_method = auth_method
        self._jitter = jitter
        self._known: _Known | None = None
        self._failure: NotReady | None = None
        self._budget = _Budget(KEY_FETCH_BURST, KEY_FETCH_PAUSE, now)
        self._renew_process_state()

    def _renew_process_state(self) -> None:
        """Locks and threads do not survive a fork."""
        self._pid = os.getpid()
        self._fetching = threading.Lock()
        # Fetches that came to an end: who waited for one takes its result and does not fetch again.
        self._finished = 0
        # By the monotonic clock, which is also the one that waiting goes by; None between attempts.
        self._began: float | None = None
        self._last_attempt: datetime | None = None
        self._pause = COOL_DOWN
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # --- what is known ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether metadata and keys are known. Never waits."""
        return self._known is not None

    def metadata(self, reach: Reach = Reach.NETWORK) -> Metadata:
        """The provider's metadata, asked for on demand when it is unknown or old.

        Raises `errors.NotReady` when it is unknown and cannot be had now, and `check.NeedsIO`
        when it is unknown and `Reach.MEMORY` forbids asking.
        """
        known = self._known
        if reach is Reach.MEMORY:
            if known is None:
                raise self._not_ready() if self._cooling() or self._fetching.locked() else NeedsIO
            return known.metadata
        if known is None or self._is_old(known):
            known = self._fetch_on_demand(known)
        return known.metadata

    def ensure_known(self) -> None:
        """Returns at once when the provider is known, and asks otherwise; for readiness probes,
        which may be the only requests that come to a service that is not ready. Raises
        `errors.NotReady`."""
        if not self.ready:
            self.metadata(Reach.NETWORK)

    def keys(self, reach: Reach = Reach.NETWORK) -> KeySet:
        """The provider's keys. Raises as `metadata`."""
        self.metadata(reach)
        known = self._known
        if known is None:
            raise self._not_ready()
        return known.keys

    def newer_keys(self, than: KeySet, reach: Reach = Reach.NETWORK) -> KeySet | None:
        """The keys after a fetch because ``than`` did not verify a token; ``None`` when they are
        the same, or when too many fetches were made lately (whoever sends tokens must not decide
        how often the provider is called). Raises `check.NeedsIO` instead of asking under
        `Reach.MEMORY`."""
        known = self._known
        if known is not None and known.keys is not than:
            return known.keys
        if known is None or not self._budget.left():
            return None
        if reach is Reach.MEMORY:
            raise NeedsIO
        finished = self._finished
        if self._fetching.acquire(timeout=2 * self._http.timeout.total_seconds()):
            try:
                if self._finished == finished and self._known is known and self._budget.take():
                    self._fetch_keys(known)
                    self._finished += 1
            finally:
                self._fetching.release()
        known = self._known
        return known.keys if known is not None and known.keys is not than else None

    # --- the background thread ----------------------------------------------------------------

    def start(self) -> None:
        """Begins asking in the background until the provider was reached. Call it in each process
        that serves; calling it twice does nothing more."""
        if self._pid != os.getpid():
            self._renew_process_state()
        if self._known is None and self._thread is None:
            self._thread = threading.Thread(target=self._keep_asking, name="provider", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the background thread, after the call that it is in."""
        self._stopping.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(timeout=1)

    def _keep_asking(self) -> None:
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            with self._fetching:
                if self._known is None:
                    self._attempt(None)
            if self._known is not None or isinstance(self._failure, ProviderMisdescribed):
                return
            self._stopping.wait(pause * (0.5 + self._jitter() / 2))
            pause = min(2 * pause, LONGEST_PAUSE)

    # --- fetching -----------------------------------------------------------------------------

    def _fetch_on_demand(self, known: _Known | None) -> _Known:
        """One caller asks; others wait a moment for it, or go on with what is known.

        However many callers there are, and whenever they come: a fetch that hangs keeps them for
        its first second only, and after that no thread but its own.
        """
        finished = self._finished
        if not self._cooling() and self._fetching.acquire(timeout=0 if known else self._patience()):
            try:
                if self._finished == finished and self._known is known:
                    self._attempt(min(ON_DEMAND_TIMEOUT, self._http.timeout))
            finally:
                self._fetching.release()
        if self._known is None:
            raise self._not_ready()
        return self._known

    def _patience(self) -> float:
        """Seconds that are left of the first second of the fetch under way."""
        began = self._began
        age = 0.0 if began is None else time.monotonic() - began
        return max(0.0, PATIENCE.total_seconds() - age)

    def _attempt(self, timeout: timedelta | None) -> None:
        """Fetches metadata and keys, and notes how it went. Needs the lock."""
        self._began = time.monotonic()
        began = self._now()
        try:
            metadata = self._fetch_metadata(timeout)
            keys = self._fetch_key_set(metadata, timeout)
        except _Unreachable as error:
            self._fail(NotReady(str(error)), "provider_unreachable")
        except _Wrong as error:
            self._fail(ProviderMisdescribed(str(error)), "provider_misdescribed")
        else:
            if self._known is None:
                log.info("provider_ready", extra={"issuer": self.issuer, "keys": len(keys)})
            self._known, self._failure = _Known(metadata, keys, self._now()), None
        self._last_attempt = self._now()
        # A provider that hangs is left alone for as long as it hung: at least half of the time
        # nobody waits for it.
        self._pause = max(COOL_DOWN, self._last_attempt - began)
        self._finished += 1
        self._began = None

    def _fail(self, failure: NotReady, event: str) -> None:
        """Remembered for those who ask within the cool-down; logged when it is news."""
        if self._failure is None or str(failure) != str(self._failure):
            log.warning(event, extra={"issuer": self.issuer, "cause": str(failure)})
        self._failure = failure

    def _fetch_keys(self, known: _Known) -> None:
        """New keys from the address that is known; when that brings nothing new, the address may
        have changed, so the metadata is asked for as well."""
        metadata = known.metadata
        keys = self._try_key_set(metadata)
        if keys is None or keys.same_as(known.keys):
            try:
                metadata = self._fetch_metadata(None)
            except (_Unreachable, _Wrong) as error:
                log.warning("provider_not_refreshed", extra={"issuer": self.issuer, "cause": str(error)})
            if metadata.jwks_uri != known.metadata.jwks_uri:
                keys = self._try_key_set(metadata)
        if keys is not None and not keys.same_as(known.keys):
            log.info("provider_keys_changed", extra={"issuer": self.issuer, "keys": len(keys)})
            self._known = _Known(metadata, keys, self._now())

    def _try_key_set(self, metadata: Metadata) -> KeySet | None:
        try:
            return self._fetch_key_set(metadata, None)
        except (_Unreachable, _Wrong) as error:
            log.warning("provider_keys_not_refreshed", extra={"issuer": self.issuer, "cause": str(error)})
            return None

    def _fetch_metadata(self, timeout: timedelta | None) -> Metadata:
        address = discovery_address(self.issuer)
        document = self._fetch_json(address, "discovery", Zone.LINK_LOCAL, timeout)
        zone = self._http.zone(address)
        try:
            return read_metadata(document, self.issuer, self._overrides, self._auth_method, zone)
        except MetadataWrong as error:
            raise _Wrong(f"discovery document: {error}") from None

    def _fetch_key_set(self, metadata: Metadata, timeout: timedelta | None) -> KeySet:
        address = metadata.jwks_uri
        document = self._fetch_json(address, "key set", metadata.farthest(address), timeout)
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

    def _cooling(self) -> bool:
        # A clock that was set back must not keep us from asking.
        last = self._last_attempt
        return last is not None and timedelta(0) <= self._now() - last < self._pause

    def _is_old(self, known: _Known) -> bool:
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
