"""The composition root: the only place that reads `Settings` and constructs things.

`build` puts a `Service` together out of plain values; `create_app` gives it to Flask as two
blueprints, `judge` and `site`, told apart by the port a request came in on. Threads and
connections begin in `Service.start`, which must run in the process that serves.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import flask
from flask import Flask, Request, Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import MapAdapter

from authservice import authenticators, authorizers, completions, doors, judge, logs, policies, site, startup, upkeep
from authservice.bodies import KEPT_BODY, MOST_BODY
from authservice.browsers import request_log_fields
from authservice.check import CheckRequest
from authservice.clock import Clock, utc_now
from authservice.entrance import Entrance, Rounds
from authservice.errors import AuthServiceError, SettingsError
from authservice.gateways import Gateways, OwnPaths
from authservice.identity import ClaimRules, IdentityHeaders
from authservice.incoming import MOST_HEADER_BYTES
from authservice.logs import Event
from authservice.navigation import is_navigation
from authservice.oidc.client import Client, Credentials
from authservice.oidc.login import LoginFlow
from authservice.oidc.metadata import Overrides
from authservice.oidc.provider import Provider
from authservice.ops import Counts, Metric, Readiness
from authservice.outbound import Http
from authservice.pages import Pages
from authservice.pipeline import Pipeline
from authservice.policy.current import Policies
from authservice.policy.resources import PolicyErrors
from authservice.scrape import Ledger
from authservice.sessions import Store
from authservice.sessions.cookies import CookieRules
from authservice.sessions.counted import CountedStore
from authservice.sessions.directory import Directory
from authservice.sessions.interface import SessionInterface
from authservice.sessions.labels import Labels
from authservice.sessions.live import Sessions
from authservice.sessions.redis import RedisStore
from authservice.sessions.refresh import Refresher
from authservice.sessions.seal import Keyring
from authservice.sessions.sqlite import SqliteStore
from authservice.sessions.sweeping import Sweeper
from authservice.settings import Secret, Settings
from authservice.trust import Trust
from authservice.urls import PathPrefixes, ReturnAddresses
from authservice.wiring import Wiring

log = logging.getLogger(__name__)

SCHEME_UNKNOWN = (
    "Nothing tells whether browsers come over https, so cookies are made without Secure. Set SESSION_COOKIE_SECURE, "
    "or make REDIRECT_URL absolute, or let the gateway send X-Forwarded-Proto and name it in TRUSTED_PROXIES."
)
JUDGE, SITE, PROBE = "judge", "site", "probe"


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that serves, put together."""

    judge: judge.Judge
    doors: doors.Doors
    pages: Pages
    readiness: Readiness
    provider: Provider
    store: Store
    sweeper: Sweeper
    sessions: Sessions
    directory: Directory
    cookie_rules: CookieRules
    secure: Callable[[str | None], bool]
    trust: Trust
    counts: Counts
    ledger: Ledger
    refresher: Refresher
    policies: Policies | None

    def start(self) -> None:
        """Starts the background work of this process, and again in each process forked from it."""
        os.register_at_fork(after_in_child=self._start_threads)
        self._start_threads()

    def _start_threads(self) -> None:
        self.provider.start()
        self.sweeper.start()
        self.sessions.start()
        self.refresher.start()
        if self.policies is not None:
            self.policies.start()
        self.ledger.start()

    def stop(self) -> None:
        """Ends the background work and lets go of the store. Waits for refreshes under way: what the
        provider gave is to be kept, and counted."""
        self.refresher.stop()
        if self.policies is not None:
            self.policies.stop()
        self.provider.stop()
        self.sweeper.stop()
        self.sessions.stop()
        self.ledger.stop()
        self.store.close()


def build(settings: Settings, now: Clock = utc_now, shared: Path | None = None) -> Service:
    """The service that these settings describe. Nothing here waits for the network. Raises
    `policy.resources.PolicyErrors`."""
    trust = Trust(settings.trusted_proxies, settings.outside_scheme)
    secure = cookie_security(settings)
    counts = Counts()
    store = CountedStore(build_store(settings, now), counts)
    keyring = Keyring(settings.sealing_key_material())
    labels = Labels(keyring)
    sessions = Sessions(
        store,
        now=now,
        max_age=settings.session_max_age,
        idle_timeout=settings.session_idle_timeout,
        cache_size=settings.session_cache_size,
        counts=counts,
        labels=labels,
        refresh_ahead=settings.refresh_ahead_seconds,
        ends_with_token=settings.session_ends_with_token,
        keep_tokens=settings.upstream_tokens.keep_those_of if settings.upstream_tokens.names else None,
    )
    directory = Directory(store, labels, forget=sessions.forget)
    provider, client = build_provider(settings, now, counts)
    flow = LoginFlow(
        provider,
        client,
        keyring,
        spend=sessions.spend,
        now=now,
        cookie_prefix=settings.session_cookie_name,
        algorithms=settings.oidc_signing_algs,
    )
    rounds = Rounds(keyring, settings.session_cookie_name, now)
    cookie_rules = CookieRules(
        settings.session_cookie_name, settings.session_max_age, settings.session_cookie_domain,
        settings.session_cookie_httponly, settings.session_same_site,
    )
    entrance = Entrance(flow, rounds, sessions, cookie_rules, secure)
    claim_rules = ClaimRules(
        settings.userid_claim, settings.groups_claim, settings.userid_lowercase, settings.require_verified_email
    )
    headers = IdentityHeaders(
        settings.userid_header, settings.groups_header, settings.auth_method_header,
        settings.userid_prefix, settings.userid_transformers, settings.further_headers,
    )
    return_addresses = ReturnAddresses(
        settings.outside_scheme,
        settings.outside_host,
        settings.allowed_redirect_hosts,
        default=settings.homepage_url,
        after_login_url=settings.after_login_url,
    )
    pages = startup.build_pages(settings)
    keepers = upkeep.build(
        settings, upkeep.Parts(store, sessions, provider, client, claim_rules, headers, now, counts)
    )
    ruling = policies.build(settings, counts, shared)
    judges = authorizers.build(settings, ruling, trust, now)
    enforced = None if settings.policy_dry_run else ruling
    completed = completions.build(settings, enforced, keyring, headers, now)
    pipeline = Pipeline(
        open_paths=PathPrefixes(settings.skip_prefixes),
        preflights_pass=settings.allow_cors_preflight,
        authenticators=authenticators.build(
            settings, authenticators.Parts(sessions, provider, client, claim_rules, now, counts, keepers.all, enforced)
        ),
        authorizers=judges.all,
        headers=headers,
        ready=provider.metadata,
        redirects=redirects(settings),
        return_addresses=return_addresses,
        outputs=completed.complete,
        admits_anonymous=judges.admits_anonymous,
        policies=partial(attrgetter("current"), ruling) if ruling else None,
    )
    own = OwnPaths(
        settings.callback_path,
        settings.login_path,
        settings.logout_path,
        settings.verify_path,
        settings.forward_auth_path,
        doors.further_paths(settings),
        frozenset(settings.compat_paths("auth")),
    )
    wiring = Wiring(
        settings.gateway, settings.prefix_path, sealer=keyring, session_cookie=settings.session_cookie_name,
        wants_scheme=settings.outside_scheme is None, now=now, counts=counts,
    )
    judging = judge.Judge(
        Gateways(
            settings.gateway, trust, own, settings.check_path_prefix,
            auth_needs_original=bool(settings.policy_path or settings.external_authz_url),
        ),
        pipeline,
        entrance,
        pages,
        login_path=settings.login_path,
        logout_path=settings.logout_path,
        homepage_url=settings.homepage_url,
        counts=counts,
        log_allowed=settings.log_allowed,
        wiring=wiring,
    )
    readiness = Readiness(
        {"provider": provider.ensure_known, "store": store.ping, **keepers.probes},
        {"policies": lambda: ruling.problem} if ruling else {},
    )
    opened = doors.build(
        settings,
        doors.Parts(
            flow, entrance, rounds, provider, client, sessions, directory, pipeline.authenticate, claim_rules, headers,
            return_addresses, trust, secure, pages, now, counts, wiring, judging.answer, readiness, completed.key_set,
        ),
    )
    return Service(
        judging, opened, pages, readiness, provider, store, Sweeper(store), sessions, directory, cookie_rules,
        secure, trust, counts, Ledger(counts), keepers.refresher, ruling,
    )


def build_provider(settings: Settings, now: Clock, counts: Counts) -> tuple[Provider, Client]:
    """The provider, and the service as its client."""
    http = Http(
        settings.ca_bundle, settings.provider_timeout_seconds, settings.provider_max_bytes,
        failed=counts.adder(Metric.PROVIDER_FAILURES),
    )
    overrides = Overrides(
        authorization_endpoint=settings.oidc_auth_url,
        token_endpoint=settings.oidc_token_url,
        jwks_uri=settings.oidc_jwks_url,
        userinfo_endpoint=settings.oidc_userinfo_url,
        revocation_endpoint=settings.oidc_revocation_url,
        introspection_endpoint=settings.introspection_url,
        end_session_endpoint=settings.oidc_end_session_url,
    )
    credentials = Credentials(
        client_id=settings.client_id,
        client_secret=settings.client_secret.reveal(),
        auth_method=settings.oidc_client_auth_method,
        private_key=settings.client_private_key.reveal(),
    )
    provider = Provider(
        settings.oidc_provider, http, overrides, now=now, auth_method=settings.oidc_client_auth_method
    )
    client = Client(
        provider, http, credentials, redirect_uri=settings.redirect_url, scopes=settings.oidc_scopes, now=now
    )
    return provider, client


def build_store(settings: Settings, now: Clock, *, create: bool = True) -> Store:
    """The session store of ``SESSION_STORE_TYPE``. Without ``create``, one of which nothing is there
    yet is not made, but fails at each call."""
    if settings.session_store_type == "redis":
        return build_redis_store(settings, now)
    return SqliteStore(settings.session_store_path, now, create=create)


def build_redis_store(settings: Settings, now: Clock) -> Store:
    """The store in the Redis servers that the settings name."""
    return RedisStore(
        settings.session_store_redis_addr,
        now=now,
        mode=settings.session_store_redis_mode,
        username=settings.session_store_redis_username,
        password=settings.session_store_redis_pwd.reveal(),
        db=settings.session_store_redis_db,
        master=settings.session_store_redis_master,
        sentinel_username=settings.session_store_redis_sentinel_username,
        sentinel_password=settings.session_store_redis_sentinel_pwd.reveal(),
        ca_bundle=str(settings.session_store_redis_ca_bundle or settings.ca_bundle or ""),
        client_cert=str(settings.session_store_redis_client_cert or ""),
        client_key=str(settings.session_store_redis_client_key or ""),
        prefix=settings.session_store_redis_key_prefix,
    )


def cookie_security(settings: Settings) -> Callable[[str | None], bool]:
    """``SESSION_COOKIE_SECURE`` as a question about the outside scheme of one request."""
    fixed = settings.session_cookie_secure
    if fixed is not None:
        return lambda scheme: fixed
    told = threading.Event()

    def by_the_outside(scheme: str | None) -> bool:
        if scheme is None and not told.is_set():
            told.set()
            log.warning(Event.SCHEME_UNKNOWN.value, extra={"note": SCHEME_UNKNOWN})
        return scheme == "https"

    return by_the_outside


def redirects(settings: Settings) -> Callable[[CheckRequest], bool]:
    """``UNAUTHENTICATED_RESPONSE`` as a question about one check."""
    if settings.unauthenticated_response == "auto":
        return lambda check: is_navigation(check.method, check.headers)
    always = settings.unauthenticated_response == "redirect"
    return lambda check: always


def create_app(
    environ: Mapping[str, str] | None = None, *, now: Clock = utc_now, shared: Path | None = None
) -> Flask:
    """The WSGI application for these environment variables (the process's own by default). ``shared`` is a
    folder of all workers of a server, in which one that comes later finds the last good policies.

    Raises `errors.SettingsError` with every problem at once. ``app.extensions["authservice"]`` is
    the `Service`; its background work begins when its ``start`` is called.
    """
    settings = startup.checked(environ, shared)
    logs.configure(settings.log_level, known_secrets(settings))
    try:
        service = build(settings, now, shared)
    except PolicyErrors as errors:
        # Changed since they were looked at a moment ago.
        raise SettingsError(list(policies.told(errors, settings))) from None
    notes = (
        *settings.warnings,
        *startup.kubernetes_warnings(settings),
        *service.pages.warnings,
        *service.store.notices,
    )
    for note in notes:
        log.warning(Event.SETTING_NOTE.value, extra={"note": note})
    ports = {str(settings.server_port): JUDGE, str(settings.web_server_port): SITE}
    if settings.readiness_probe_port:
        ports[str(settings.readiness_probe_port)] = PROBE
    return flask_app(service, settings, ports)


def known_secrets(settings: Settings) -> list[str]:
    """The texts that must never be seen in a log, whatever line they got into."""
    values = [getattr(settings, field.name) for field in fields(settings)]
    values += settings.secret_keys
    return [value.reveal() for value in values if isinstance(value, Secret)]


class PortApp(Flask):
    """A Flask application in which the port that a request came in on decides what may answer it.

    The routing map's sub-domains are the ports' names; no header, not even ``Host``, takes part.
    """

    def __init__(self, ports: Mapping[str, str]) -> None:
        super().__init__("authservice", static_folder=None, template_folder=None, subdomain_matching=True)
        self._ports = dict(ports)
        # Whoever reads a larger body is answered 413; judges never read one.
        self.config["MAX_CONTENT_LENGTH"] = KEPT_BODY
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = False
        self.url_map.redirect_defaults = False

    def judges(self, port: int) -> bool:
        """Whether requests on this port are checks."""
        return self._ports.get(str(port)) == JUDGE

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return super().create_url_adapter(None)
        environ = request.environ
        port = self._ports.get(environ.get("SERVER_PORT", ""), "")
        return self.url_map.bind(
            "authservice",
            subdomain=port,
            url_scheme=environ["wsgi.url_scheme"],
            default_method=environ["REQUEST_METHOD"],
            # The site has paths of its own, the probe one; the judge reads the target as it was sent.
            path_info=request.path if port == SITE or (port == PROBE and request.path == site.METRICS) else "/",
            query_args=environ.get("QUERY_STRING", ""),
        )

    def wsgi_app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        size = sum(len(name) + len(value) for name, value in environ.items() if name.startswith("HTTP_"))
        if size > MOST_HEADER_BYTES:
            return _too_large("431 Request Header Fields Too Large", start_response)
        if int(environ.get("CONTENT_LENGTH") or 0) > MOST_BODY:
            return _too_large("413 Content Too Large", start_response)
        return super().wsgi_app(environ, start_response)


def _too_large(status: str, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """What the event loop's worker says by itself, for the servers that count single lines only."""
    start_response(status, [("Content-Length", "0"), ("Connection", "close")])
    return []


def flask_app(service: Service, settings: Settings, ports: Mapping[str, str]) -> Flask:
    """Flask with the two blueprints, each on its own port."""
    app = PortApp(ports)
    app.extensions["authservice"] = service

    def secure_now() -> bool:
        return service.secure(service.trust.scheme(judge.parts_of(flask.request.environ)))

    app.session_interface = SessionInterface(app, service.sessions, service.cookie_rules, secure_now)
    opened = service.doors
    app.register_blueprint(judge.blueprint(service.judge, opened.on_judge, JUDGE))
    app.register_blueprint(
        site.blueprint(
            service.pages, opened.browsers, service.readiness, opened.on_site, settings.prefix_path, SITE
        )
    )
    app.register_blueprint(site.probe_blueprint(service.readiness, service.ledger, PROBE))

    def http_error(error: HTTPException) -> Response:
        sentences = {404: "There is nothing at this address.",
                     405: "This address does not take this kind of request."}
        answer = opened.browsers.error_page(error.code or 500, sentences.get(error.code or 500, "That did not work."))
        if isinstance(error, MethodNotAllowed):
            answer.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return answer

    def unexpected(error: Exception) -> Response:
        service.counts.add(Metric.UNEXPECTED)
        log.error(Event.UNEXPECTED.value, exc_info=error, extra=request_log_fields())
        return opened.browsers.error_page(500, AuthServiceError.public)

    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, unexpected)
    return app
