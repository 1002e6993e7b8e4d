"""A person at a browser without a screen: follows redirects, keeps cookies, fills in the login form.

Every answer is kept, so that tests can look at each ``Set-Cookie`` line and each page afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

from tests.e2e import secure
from tests.e2e.secure import Tls
from tests.e2e.wire import Answer, Headers, request

# What a browser says of itself when somebody opens a page.
NAVIGATION: tuple[tuple[str, str], ...] = (
    ("Accept", "text/html,application/xhtml+xml,*/*;q=0.8"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Dest", "document"),
    ("Sec-Fetch-Site", "none"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) end-to-end tests"),
)


@dataclass
class Cookie:
    name: str
    value: str
    path: str


@dataclass(frozen=True)
class Visit:
    """One step: what was asked, and what came back."""

    method: str
    url: str
    answer: Answer

    @property
    def location(self) -> str:
        return urljoin(self.url, self.answer.header("location"))


@dataclass
class Person:
    """``jar`` holds cookies by the host *and port* that set them, which is narrower than a browser's.
    With ``tls``, addresses with https are asked over HTTP/2; without, as if something in front had ended TLS."""

    name: str
    connect: Mapping[str, int] = field(default_factory=dict)
    tls: Tls | None = None
    jar: dict[str, list[Cookie]] = field(default_factory=dict)
    history: list[Visit] = field(default_factory=list)

    # --- cookies -----------------------------------------------------------------------------

    def cookies(self, url: str) -> dict[str, str]:
        """The cookies that would go with a request to this address."""
        place = urlsplit(url)
        return {c.name: c.value for c in self.jar.get(place.netloc, []) if _covers(c.path, place.path or "/")}

    def keep(self, url: str, name: str, value: str, path: str = "/") -> None:
        cookies = self.jar.setdefault(urlsplit(url).netloc, [])
        cookies[:] = [c for c in cookies if (c.name, c.path) != (name, path)]
        cookies.append(Cookie(name, value, path))

    def forget(self, url: str) -> None:
        """Drops all cookies of one host and port."""
        self.jar.pop(urlsplit(url).netloc, None)

    def _store(self, url: str, line: str) -> None:
        pair, *attributes = [part.strip() for part in line.split(";")]
        name, _, value = pair.partition("=")
        settings = {key.lower(): given for key, _, given in (part.partition("=") for part in attributes)}
        path = settings.get("path") or "/"
        self.keep(url, name, value, path)
        if settings.get("max-age") == "0" or "1970" in settings.get("expires", ""):
            cookies = self.jar[urlsplit(url).netloc]
            cookies[:] = [c for c in cookies if (c.name, c.path) != (name, path)]

    # --- requests ----------------------------------------------------------------------------

    def send(
        self,
        url: str,
        method: str = "GET",
        *,
        headers: Headers = NAVIGATION,
        body: bytes = b"",
        seconds: float = 20,
    ) -> Visit:
        """One request with this person's cookies; redirects are not followed."""
        place = urlsplit(url)
        target = url.split("#")[0].split(place.netloc, 1)[1] or "/"
        lines = list(headers)
        cookies = self.cookies(url)
        if cookies:
            lines.append(("Cookie", "; ".join(f"{name}={value}" for name, value in cookies.items())))
        port = self.connect.get(place.netloc) or place.port
        assert port, f"nobody listens for {url}"
        if place.scheme == "https" and self.tls is not None:
            answer = secure.request(
                self.tls, port, method, target, host=place.netloc, headers=lines, body=body, seconds=seconds
            )
        else:
            answer = request(
                port, method, target, host=place.netloc, headers=lines, body=body, seconds=seconds
            )
        visit = Visit(method, url, answer)
        self.history.append(visit)
        for line in answer.values("set-cookie"):
            self._store(url, line)
        return visit

    def visit(self, url: str, *, until: str | None = None, limit: int = 20) -> Visit:
        """Opens an address and follows redirects to the end, or stops *before* asking an address
        that holds the text ``until`` (the visit returned is the redirect that leads there)."""
        visit = self.send(url)
        for _ in range(limit):
            if visit.answer.status not in (301, 302, 303, 307, 308):
                return visit
            if until is not None and until in visit.location:
                return visit
            visit = self.send(visit.location)
        raise AssertionError(f"more than {limit} redirects, at last to {visit.location}")

    def log_in(self, url: str, *, until: str | None = None, answer: str = "yes", error: str = "") -> Visit:
        """Opens an address, logs in at the provider's form when one is shown, and follows to the end.

        ``until="/oidc/callback?"`` stops with the callback's address in hand, not yet asked.
        """
        visit = self.visit(url, until=until)
        form = re.search(r'<form method="post" action="(/login/[^"]+)"', visit.answer.text)
        if form is None:
            return visit
        fields = {"login": self.name, "answer": answer, **({"error": error} if error else {})}
        sent = self.send(
            urljoin(visit.url, form[1]),
            "POST",
            body=urlencode(fields).encode(),
            headers=[*NAVIGATION, ("Content-Type", "application/x-www-form-urlencoded")],
        )
        assert sent.answer.status == 303, sent.answer
        return self.visit_from(sent, until=until)

    def log_out_at_provider(self, url: str) -> Visit:
        """Opens the provider's logout page and says yes there; the visit that leads back from it."""
        page = self.visit(url)
        shown = r'method="post" action="([^"]+)"><input type="hidden" name="xsrf" value="([^"]+)"'
        form = re.search(shown, page.answer.text)
        assert form is not None, page
        return self.send(
            form[1],
            "POST",
            body=urlencode({"xsrf": form[2], "logout": "yes"}).encode(),
            headers=[*NAVIGATION, ("Content-Type", "application/x-www-form-urlencoded")],
        )

    def visit_from(self, redirect: Visit, *, until: str | None = None) -> Visit:
        """Goes on from a redirect."""
        if until is not None and until in redirect.location:
            return redirect
        return self.visit(redirect.location, until=until)

    # --- what must stay secret -----------------------------------------------------------------

    def secrets(self, site: str) -> set[str]:
        """Cookie values that the site at this address set, and codes and states seen on the way."""
        found: set[str] = set()
        for visit in self.history:
            for url in (visit.url, visit.location):
                query = parse_qs(urlsplit(url).query)
                found |= {
                    value for name in ("code", "state") for value in query.get(name, []) if len(value) > 20
                }
            if visit.url.startswith(site):
                for line in visit.answer.values("set-cookie"):
                    value = line.split(";", 1)[0].partition("=")[2].strip('"')
                    found |= {value} if len(value) > 20 else set()
        return found


def _covers(cookie_path: str, path: str) -> bool:
    return path == cookie_path or path.startswith(cookie_path.rstrip("/") + "/")
