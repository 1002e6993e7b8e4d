"""A whole deployment on loopback: gateway, AuthService, strict provider, recording application.

The outside is ``http://app.localhost:<port>``: a name of its own, so that the provider's cookies
(on 127.0.0.1) and ours never mix in a browser, and one that browsers treat as trustworthy.
When a stack stops, everything that its AuthService logged is searched for the secrets that went
through it (S-33).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.e2e import gateways, secure
from tests.e2e.person import Person
from tests.e2e.processes import Program
from tests.ports import free_port
from tests.e2e.provider import CLIENT_ID, CLIENT_SECRET, StrictProvider
from tests.e2e.recorder import Recorder, Seen
from tests.e2e.secure import Tls
from tests.e2e.service import Service
from tests.e2e.wire import Answer, Headers, exchange, request

HOST = "app.localhost"


@dataclass
class Stack:
    """All parts of one deployment. Made by `start`; ended, and searched, by `stop`.

    ``port`` is the gateway's; ``url`` the outside origin, without a slash at its end.
    """

    kind: str
    folder: Path
    port: int
    url: str
    provider: StrictProvider
    application: Recorder
    service: Service
    gateway: Program | None = None
    tls: Tls | None = None
    people: list[Person] = field(default_factory=list)
    more_secrets: set[str] = field(default_factory=set)
    replicas: list[Service] = field(default_factory=list)
    _regulars: dict[str, Person] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """Host and port of the outside origin, as browsers send them."""
        return urlsplit(self.url).netloc

    def person(self, name: str = "alice") -> Person:
        """Somebody with an empty cookie jar."""
        person = Person(name, {self.host: self.port}, self.tls)
        self.people.append(person)
        return person

    def logged_in(self, name: str = "alice", target: str = "/") -> Person:
        """Somebody who went through the whole login."""
        person = self.person(name)
        done = person.log_in(self.url + target)
        assert done.answer.status == 200 and done.url == self.url + target, done
        return person

    def one_logged_in(self, name: str = "alice") -> Person:
        """Somebody who is logged in already, from an earlier test if there was one. For tests that
        only look; who logs out, or counts cookies, takes `logged_in`."""
        if name not in self._regulars:
            self._regulars[name] = self.logged_in(name)
        return self._regulars[name]

    def replica(self) -> Service:
        """One more AuthService on the same store, started; neither gateway nor provider knows of it."""
        folder = self.folder / f"replica-{len(self.replicas)}"
        folder.mkdir()
        ports = ("SERVER_PORT", "WEB_SERVER_PORT")
        same = {name: value for name, value in self.service.settings.items() if name not in ports}
        self.replicas.append(Service(folder, same))
        self.replicas[-1].start()
        return self.replicas[-1]

    def request(
        self, method: str, target: str, headers: Headers = (), body: bytes = b"", *, chunk: int = 0
    ) -> Answer:
        """One request through the gateway, with exactly these lines; over HTTP/2 where it has TLS.
        With ``chunk``, nothing says how long the body is."""
        if self.tls is not None:
            return secure.request(
                self.tls,
                self.port,
                method,
                target,
                host=self.host,
                headers=headers,
                body=body,
                streamed=bool(chunk),
            )
        return request(self.port, method, target, host=self.host, headers=headers, body=body, chunk=chunk)

    def raw(self, data: bytes) -> Answer:
        """Exactly these bytes to the gateway."""
        return exchange(self.port, data)

    def reached(self, marker: str) -> list[Seen]:
        """What reached the application with the header ``X-Marker: <marker>``."""
        return [seen for seen in list(self.application.seen) if marker in seen.values("x-marker")]

    def secrets(self) -> set[str]:
        """Everything that may stand in no log: client secret, cookies, codes, states, tokens."""
        found = {CLIENT_SECRET, *self.provider.issued(), *self.more_secrets}
        for person in self.people:
            found |= person.secrets(self.url)
        return found

    def stop(self) -> None:
        """Ends everything; then the logs and pages are searched."""
        secrets = self.secrets()
        services = [service.program for service in (self.service, *self.replicas)]
        for program in (self.gateway, *services, self.provider.program):
            if program is not None:
                program.kill_with_children()
        self.application.stop()
        log = "".join(program.log_text() for program in services)
        told = sorted(secret for secret in secrets if secret in log)
        assert not told, f"S-33: {len(told)} secrets in AuthService's log, for example {told[:3]}"
        shown = [
            visit.url
            for person in self.people
            for visit in person.history
            # Who logs out shows the provider's own ID token to the provider (RP-Initiated Logout 1.0 §2).
            if visit.url.startswith(self.url)
            and not visit.url.endswith(("/authservice/logout", "/authservice/site/session"))
            and any(secret in visit.answer.text for secret in secrets)
        ]
        assert not shown, f"S-33: secrets on the pages {shown[:3]}"


def prepare(
    kind: str,
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    outside: str = "",
    tls: bool = False,
    **of_provider: Any,
) -> Stack:
    """The parts of a stack, none of them started but the application. ``outside`` is the origin
    that the settings name, where it is not the gateway's own; with ``tls`` the gateway has a
    certificate; ``of_provider`` goes to `StrictProvider`."""
    gateways.require_program(kind)
    folder.mkdir(parents=True, exist_ok=True)
    port, site_port = free_port(), free_port()
    outside = outside or f"{'https' if tls else 'http'}://{HOST}:{port}"
    provider = StrictProvider(
        folder,
        [f"{outside}/authservice/oidc/callback"],
        post_logout_redirect_uris=[f"{outside}/authservice/site/after_logout"],
        backchannel_logout_uri=f"http://127.0.0.1:{site_port}/authservice/backchannel-logout",
        **of_provider,
    )
    service = Service(
        folder,
        {
            "GATEWAY": kind.removeprefix("lenient "),
            "OIDC_PROVIDER": provider.issuer,
            "CLIENT_ID": CLIENT_ID,
            "CLIENT_SECRET": CLIENT_SECRET,
            "AUTHSERVICE_URL_PREFIX": f"{outside}/authservice/",
            "OIDC_SCOPES": "openid,profile,email,groups",
            "SKIP_AUTH_URLS": "/public/",
            "TRUSTED_PROXIES": "127.0.0.1",
            "WEB_SERVER_PORT": str(site_port),
            **(settings or {}),
        },
    )
    of_gateway = secure.certified(folder, HOST) if tls else None
    return Stack(kind, folder, port, outside, provider, Recorder(), service, tls=of_gateway)


def start_gateway(stack: Stack) -> None:
    """Starts the gateway of a stack."""
    ports = gateways.Ports(
        stack.port, stack.service.judge_port, stack.service.site_port, stack.application.port
    )
    stack.gateway = gateways.start(stack.kind, stack.folder, ports, stack.tls)


def start(kind: str, folder: Path, settings: Mapping[str, str] | None = None, **options: Any) -> Stack:
    """A stack with everything running and AuthService ready. Options as for `prepare`."""
    stack = prepare(kind, folder, settings, **options)
    try:
        stack.provider.start()
        stack.service.start()
        start_gateway(stack)
    except BaseException:
        stack.stop()
        raise
    return stack
