"""The service's relying-party half put together without the rest, against the fake provider."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from authservice.errors import AuthServiceError
from authservice.oidc.client import Client, Credentials
from authservice.oidc.login import Begun, Finished, LoginFlow
from authservice.oidc.logout import BackChannel
from authservice.oidc.metadata import BASIC, Overrides
from authservice.oidc.provider import Provider
from authservice.oidc.renewal import Held, Renewal, Renewed
from authservice.outbound import Http
from authservice.sessions.seal import Keyring
from tests.provider import FakeProvider

CALLBACK = "https://app.example/authservice/oidc/callback"
DEEP_LINK = "https://app.example/notebooks/7?x=1&y=%2F"
KEYRING = Keyring([b"a key for the tests only, 32 bytes"])


class MovableClock:
    """Real time plus what a test adds."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(timezone.utc) + self.offset

    def advance(self, **by: float) -> None:
        self.offset += timedelta(**by)


class RelyingParty:
    """Everything a login needs. ``spent`` stands for the store's one-time marks."""

    def __init__(
        self,
        fake: FakeProvider,
        *,
        clock: MovableClock | None = None,
        http: Http | None = None,
        overrides: Overrides = Overrides(),
        credentials: Credentials | None = None,
        redirect_uri: str = CALLBACK,
        scopes: tuple[str, ...] = ("openid", "email"),
        spend: Callable[[str, timedelta], bool] | None = None,
        **flow: Any,
    ) -> None:
        self.fake = fake
        self.clock = clock or MovableClock()
        self.spent: set[str] = set()
        self.http = http or Http(timeout=timedelta(seconds=5))
        credentials = credentials or Credentials(fake.client_id, fake.client_secret)
        self.provider = Provider(
            fake.issuer, self.http, overrides, now=self.clock, auth_method=credentials.auth_method or BASIC
        )
        self.client = Client(
            self.provider, self.http, credentials, redirect_uri=redirect_uri, scopes=scopes, now=self.clock
        )
        self.flow = LoginFlow(
            self.provider,
            self.client,
            KEYRING,
            spend=spend or self._spend,
            now=self.clock,
            cookie_prefix="authservice_session",
            **flow,
        )

        self.renewal = Renewal(self.provider, self.client, now=self.clock)
        self.back_channel = BackChannel(self.provider, fake.client_id, now=self.clock)

    def _spend(self, name: str, lifetime: timedelta) -> bool:
        assert lifetime > timedelta(0)
        if name in self.spent:
            return False
        self.spent.add(name)
        return True

    def begin(self, return_to: str = DEEP_LINK, cookies: list[tuple[str, str]] | None = None) -> Begun:
        return self.flow.begin(return_to, cookies or [])

    def at_provider(self, begun: Begun) -> str:
        """The browser logs in at the provider; the callback's query."""
        return self.fake.authorize(begun.url)

    def finish(self, query: str, begun: Begun) -> Finished:
        return self.flow.finish(query, [cookie(begun)])

    def login(self) -> Finished:
        begun = self.begin()
        return self.finish(self.at_provider(begun), begun)

    def refused_login(self, error: type[AuthServiceError], *misbehaviours: str) -> AuthServiceError:
        """A whole login that must end in exactly this error."""
        for name in misbehaviours:
            self.fake.misbehave(name)
        with pytest.raises(AuthServiceError) as caught:
            self.login()
        assert type(caught.value) is error or issubclass(type(caught.value), error), repr(caught.value)
        return caught.value

    def called(self, endpoint: str) -> int:
        return len(self.fake.calls(endpoint))


def held(finished: Finished) -> Held:
    """What a session holds after a login."""
    claims = finished.claims
    return Held(claims["iss"], claims["sub"], claims, finished.id_token, finished.refresh_token)


def held_on(before: Held, renewed: Renewed) -> Held:
    """What it holds after a renewal."""
    return Held(before.issuer, before.subject, renewed.claims, renewed.id_token, renewed.refresh_token)


def cookie(begun: Begun) -> tuple[str, str]:
    """The pending cookie as the browser sends it back."""
    return begun.set_cookie[0], begun.set_cookie[1]
