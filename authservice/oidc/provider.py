"""The OpenID provider: its metadata and keys, and a thread that waits for it at the start.

While the provider was never reached, a thread asks again and again with growing pauses. Once it is
known, it is asked only when a request needs it; the rules for that are `oidc.source`'s. Called by
everything that speaks with the provider; the calls themselves are `oidc.client`.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from authservice.check import Reach
from authservice.errors import ProviderMisdescribed
from authservice.oidc.metadata import BASIC, Metadata, Overrides, read_metadata
from authservice.oidc.source import IssuerSource
from authservice.outbound import Http

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class Provider(IssuerSource[Metadata]):
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
        self._overrides = overrides
        self._auth_method = auth_method
        self._jitter = jitter
        super().__init__(issuer, http, now=now)

    def _renew_process_state(self) -> None:
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        super()._renew_process_state()

    def metadata(self, reach: Reach = Reach.NETWORK) -> Metadata:
        """The provider's metadata, asked for on demand when it is unknown or old.

        Raises `errors.NotReady` when it is unknown and cannot be had now, and `check.NeedsIO`
        under `Reach.MEMORY` when it is time to ask.
        """
        return self._know(reach).description

    def ensure_known(self) -> None:
        """Returns at once when the provider is known, and asks otherwise; for readiness probes,
        which may be the only requests that come to a service that is not ready. Raises
        `errors.NotReady`."""
        if not self.ready:
            self.metadata(Reach.NETWORK)

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

    def _describe(self, timeout: timedelta | None) -> Metadata:
        document, zone = self._discover(timeout)
        return read_metadata(document, self.issuer, self._overrides, self._auth_method, zone)
