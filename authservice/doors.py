"""The doors: everything of the service that people, and the provider, come to themselves.

Puts together what answers beside the checks, and says on which path and port each of it is found.
Part of the composition root; called by `app`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from flask import Response, request

from authservice.account import Account, AccountRules
from authservice.browsers import Browsers
from authservice.check import CheckRequest, Reach, Reply, RequestParts
from authservice.compat import Compat
from authservice.entrance import Entrance, Rounds
from authservice.identity import ClaimRules, Identity, IdentityHeaders
from authservice.logout import Logout, LogoutRules
from authservice.oidc.client import Client
from authservice.oidc.login import LoginFlow
from authservice.oidc.logout import BackChannel
from authservice.oidc.provider import Provider
from authservice.ops import Counts, Readiness
from authservice.pages import Pages
from authservice.sessions.directory import Directory
from authservice.sessions.live import Sessions
from authservice.settings import Settings
from authservice.settings.compat import ENDPOINTS, FOLDER
from authservice.site import Site, SiteRules
from authservice.trust import Trust
from authservice.urls import ReturnAddresses
from authservice.wiring import Wiring

Door = Callable[[], Response]


class Parts(NamedTuple):
    """What the doors are made of."""

    flow: LoginFlow
    entrance: Entrance
    rounds: Rounds
    provider: Provider
    client: Client
    sessions: Sessions
    directory: Directory
    authenticate: Callable[[CheckRequest, Reach], Identity | None]
    claim_rules: ClaimRules
    headers: IdentityHeaders
    return_addresses: ReturnAddresses
    trust: Trust
    secure: Callable[[str | None], bool]
    pages: Pages
    now: Callable[[], datetime]
    counts: Counts
    wiring: Wiring
    answer: Callable[[RequestParts], Reply]
    readiness: Readiness
    key_set: Callable[[], bytes] | None


@dataclass(frozen=True, slots=True)
class Doors:
    """``on_judge`` are the views that gateways may also reach through a check, by the words of
    `gateways.Place`; ``on_site`` all views of the site port that are no pages, by their paths."""

    browsers: Browsers
    on_judge: dict[str, Door]
    on_site: dict[str, Door]


def build(settings: Settings, parts: Parts) -> Doors:
    """The doors of a service."""
    browsers = Browsers(
        pages=parts.pages, trust=parts.trust, secure=parts.secure, homepage_url=settings.homepage_url
    )
    site = _site(settings, parts, browsers)
    logout = _logout(settings, parts, browsers)
    account = _account(settings, parts, browsers, logout.logout)
    compat = _compat(settings, parts, browsers, site, logout, account)
    return Doors(
        browsers,
        {"callback": site.callback, "login": site.login, "logout": logout.logout, **compat.doors()},
        {
            settings.callback_path: site.callback,
            settings.login_path: site.login,
            settings.logout_path: logout.logout,
            settings.backchannel_logout_path: logout.back_channel,
            settings.frontchannel_logout_path: logout.front_channel,
            settings.session_path: account.session,
            settings.userinfo_path: account.userinfo,
            **({settings.jwks_path: _published(parts.key_set, browsers)} if parts.key_set else {}),
            **{path: door for name, door in compat.doors().items() for path in settings.compat_paths(name)},
            **({"/ping": compat.ping, "/ready": compat.ready} if settings.oauth2_proxy_compat else {}),
        },
    )


def _published(key_set: Callable[[], bytes], browsers: Browsers) -> Door:
    """The keys of assertions, for whoever verifies them. A key is there long before it signs, so that the set may be
    kept for some time."""

    def door() -> Response:
        if request.method not in ("GET", "HEAD"):
            return browsers.method_not_allowed("GET, HEAD")
        answer = Response(key_set(), content_type="application/json")
        answer.headers["Cache-Control"] = "public, max-age=600"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        return answer

    return door


def further_paths(settings: Settings) -> dict[str, str]:
    """The paths of doors on the judge port besides the service's own. ``userinfo`` answers 200, which Envoy would
    take for an allow that says nothing of the client's identity headers."""
    names = {"start", "sign_in", "sign_out"} | (set() if "envoy" in settings.gateway else {"userinfo"})
    return {path: name for name in ENDPOINTS if name in names for path in settings.compat_paths(name)}


def _compat(
    settings: Settings, parts: Parts, browsers: Browsers, site: Site, logout: Logout, account: Account
) -> Compat:
    return Compat(
        answer=parts.answer,
        log_in=site.login,
        logout=logout,
        account=account,
        browsers=browsers,
        after=ReturnAddresses(
            settings.outside_scheme, settings.outside_host, settings.allowed_redirect_hosts, default=""
        ),
        readiness=parts.readiness,
        auth_path=f"{FOLDER}/auth",
        session_path=settings.session_path,
    )


def _site(settings: Settings, parts: Parts, browsers: Browsers) -> Site:
    return Site(
        flow=parts.flow,
        entrance=parts.entrance,
        rounds=parts.rounds,
        claim_rules=parts.claim_rules,
        headers=parts.headers,
        return_addresses=parts.return_addresses,
        trust=parts.trust,
        browsers=browsers,
        pages=parts.pages,
        rules=SiteRules(
            homepage_url=settings.homepage_url,
            login_path=settings.login_path,
            origin_header_tells="nginx" in settings.gateway,
            same_site_strict=settings.session_same_site == "Strict",
            session_max_age=settings.session_max_age,
            redirect_header="x-auth-request-redirect" if settings.oauth2_proxy_compat else "",
        ),
        now=parts.now,
        counts=parts.counts,
        logged_in=parts.wiring.logged_in,
    )


def _logout(settings: Settings, parts: Parts, browsers: Browsers) -> Logout:
    return Logout(
        sessions=parts.sessions,
        directory=parts.directory,
        metadata=parts.provider.metadata,
        revoke=parts.client.revoke,
        back_channel=BackChannel(
            parts.provider, settings.client_id, now=parts.now, algorithms=settings.oidc_signing_algs
        ),
        rounds=parts.rounds,
        browsers=browsers,
        pages=parts.pages,
        rules=LogoutRules(
            issuer=settings.oidc_provider,
            client_id=settings.client_id,
            prefix_path=settings.prefix_path,
            after_logout_url=settings.after_logout_url,
            post_logout_address=settings.post_logout_address,
            auth_header=settings.auth_header,
        ),
        now=parts.now,
        counts=parts.counts,
    )


def _account(settings: Settings, parts: Parts, browsers: Browsers, log_out: Door) -> Account:
    return Account(
        authenticate=parts.authenticate,
        log_out=log_out,
        directory=parts.directory,
        browsers=browsers,
        pages=parts.pages,
        trust=parts.trust,
        rules=AccountRules(
            session_path=settings.session_path,
            login_path=settings.login_path,
            session_max_age=settings.session_max_age,
            idle_timeout=settings.session_idle_timeout,
        ),
        now=parts.now,
        counts=parts.counts,
    )
