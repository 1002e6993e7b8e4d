"""What every gateway does with the answers of the service: one table of situations and outcomes.

`ROWS` is run against each gateway with its shipped configuration (`tests.e2e.test_contract`), and
the page of each gateway in docs/gateways/ shows it (`markdown`). Where a gateway cannot do as the
others do, the row says what it does instead, and why.

``python -m tests.contract_table`` writes the tables into the pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

PAGES = Path(__file__).resolve().parents[1] / "docs" / "gateways"
GATEWAYS = ("envoy", "nginx", "traefik", "caddy")

BEGIN, END = "<!-- contract:begin -->", "<!-- contract:end -->"

Headers = tuple[tuple[str, str], ...]


class Who(Enum):
    """Who asks. The value is how the pages name them."""

    LOGGED_IN = "somebody logged in"
    NOBODY = "a stranger"
    EXPIRED = "somebody whose session has expired"
    MANY_GROUPS = "somebody in so many groups that their names take 15 KB"
    NOT_ALLOWED = "somebody logged in, in none of the groups allowed"
    TOKEN = "a program with a good token"
    BAD_TOKEN = "a program with a bad token"


class Service(Enum):
    """How AuthService is at that moment."""

    RUNS = ""
    DOWN = "down"
    SLOW = "slow"


class Identity(Enum):
    """The identity headers at the application: user, groups, method. The value is how the pages say it."""

    COOKIE = "the person"
    MANY_GROUPS = "the person, with all groups"
    HEADER = "the program"
    NONE = "nobody"
    EMPTY = "nobody (empty headers)"


@dataclass(frozen=True)
class Gets:
    """What whoever asked gets: a status, headers by how their values begin (``""``: none such), and a
    text in the body. ``told`` is how the pages say it."""

    status: int
    told: str
    headers: Headers = ()
    holds: str = ""


@dataclass(frozen=True)
class Sees:
    """What reaches the application."""

    identity: Identity
    target: str = ""
    """As sent, where empty."""


@dataclass(frozen=True)
class Outcome:
    gets: Gets
    sees: Sees | None = None
    because: str = ""
    """Why this gateway's outcome is another one."""


@dataclass(frozen=True)
class Row:
    """One situation. ``name`` is its heading; ``headers`` are sent besides the cookie or token of ``who``.

    With ``chunk``, the body comes in pieces of that size, and nothing says how long it is.
    ``cookies`` come on the same line as the person's own, or on a line before it (``pieces``). ``before``
    is done first, and its own outcome is looked at, too: ``log in`` from this very address, or ``log out``.
    """

    name: str
    who: Who
    outcome: Outcome
    method: str = "GET"
    target: str = "/page?x=1&y=%2F"
    headers: Headers = ()
    body: bytes = b""
    chunk: int = 0
    cookies: Headers = ()
    pieces: int = 1
    before: str = ""
    service: Service = Service.RUNS
    but: Mapping[str, Outcome] = field(default_factory=dict)

    def outcome_at(self, gateway: str) -> Outcome:
        return self.but.get(gateway, self.outcome)


PAGE: Headers = (
    ("Accept", "text/html,*/*;q=0.8"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Dest", "document"),
)
SCRIPT: Headers = (("Accept", "*/*"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty"))
CURL: Headers = (("Accept", "*/*"), ("User-Agent", "curl/8.0"))
WEBSOCKET: Headers = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)
H2C: Headers = (
    ("Connection", "Upgrade, HTTP2-Settings"),
    ("Upgrade", "h2c"),
    ("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
)
PREFLIGHT: Headers = (("Origin", "https://elsewhere.example"), ("Access-Control-Request-Method", "PUT"))
FORGED: Headers = (
    ("kubeflow-userid", "evil"),
    ("Kubeflow-Groups", "evil"),
    ("Auth-Method", "evil"),
    ("kubeflow_userid", "evil"),
)
GROUPS_OF_15_KB = ("a", *(f"group-{number:04}-of-many" for number in range(830)))
COOKIES_OF_30_KB: Headers = tuple((f"other{number}", "v" * 985) for number in range(30))

APPLICATION = Gets(200, "the application's answer", (("Set-Cookie", ""),), "Application")
TO_THE_LOGIN = Gets(302, "302 to the login", (("Location", "{provider}/auth?"),))
CHALLENGED = Gets(
    401,
    "401, challenge, JSON with the login's address",
    (
        ("WWW-Authenticate", "Bearer"),
        ("Content-Type", "application/json"),
        ("Location", ""),
        ("Set-Cookie", ""),
    ),
    '"login_url"',
)
BODY = b"\x00\xff" * 50_000
BODY_OF_3_MB = bytes(range(256)) * 12_000
BAD = Gets(
    401,
    "401, `Bearer error=\"invalid_token\"`",
    (("WWW-Authenticate", 'Bearer error="invalid_token"'), ("Location", ""), ("Set-Cookie", "")),
)
FORBIDDEN = Gets(
    403,
    "403 and a page that says so",
    (("Content-Type", "text/html"), ("Set-Cookie", "")),
    "none of your groups may see this page",
)
UNAVAILABLE = Gets(503, "503", (("Set-Cookie", ""),))

PASSES = Outcome(APPLICATION, Sees(Identity.COOKIE))
OPEN = Outcome(APPLICATION, Sees(Identity.NONE))
NOT_UPGRADED = replace(PASSES, gets=replace(APPLICATION, told="the application's answer, no upgrade"))
LOGIN = Outcome(TO_THE_LOGIN)
REFUSED = Outcome(CHALLENGED)
OWN = Outcome(Gets(200, "AuthService's page", (("Set-Cookie", ""),), ">Log in</a>"))
OWN_404 = Outcome(Gets(404, "AuthService's 404"))

EMPTY_AT_TRAEFIK = {
    "traefik": Outcome(
        APPLICATION,
        Sees(Identity.EMPTY),
        "Traefik writes the answer's empty headers over the client's own, and takes none away.",
    )
}
CLEANED = "check and application get the path without its dot segments"
CLEANED_FIRST = {
    "envoy": Outcome(APPLICATION, Sees(Identity.COOKIE, "/b/c"), f"`normalize_path`: {CLEANED}."),
    "traefik": Outcome(APPLICATION, Sees(Identity.COOKIE, "/b/c"), f"Traefik cleans paths first: {CLEANED}."),
}
AT_CADDY = "Caddy's own status for whom it asked and got no answer from, as for the application."

ROWS: tuple[Row, ...] = (
    Row("logged in", Who.LOGGED_IN, PASSES, headers=PAGE),
    Row("not logged in, a page", Who.NOBODY, LOGIN, headers=PAGE),
    Row("not logged in, a script", Who.NOBODY, REFUSED, headers=SCRIPT),
    Row("not logged in, a form is sent", Who.NOBODY, LOGIN, "POST", headers=PAGE, body=b"a=b"),
    Row("session expired", Who.EXPIRED, LOGIN, headers=PAGE),
    Row("session expired, a script", Who.EXPIRED, REFUSED, headers=SCRIPT),
    Row("not allowed", Who.NOT_ALLOWED, Outcome(FORBIDDEN), headers=PAGE),
    Row("good bearer token", Who.TOKEN, Outcome(APPLICATION, Sees(Identity.HEADER)), headers=CURL),
    Row("bad bearer token", Who.BAD_TOKEN, Outcome(BAD), headers=CURL),
    Row("bad bearer token, a body", Who.BAD_TOKEN, Outcome(BAD), "POST", headers=CURL, body=b"{}"),
    Row("skipped path", Who.NOBODY, OPEN, target="/public/page?x=1", headers=PAGE, but=EMPTY_AT_TRAEFIK),
    Row("preflight", Who.NOBODY, OPEN, "OPTIONS", headers=PREFLIGHT, but=EMPTY_AT_TRAEFIK),
    Row(
        "WebSocket",
        Who.LOGGED_IN,
        Outcome(Gets(101, "101, and the socket", (("Set-Cookie", ""),)), Sees(Identity.COOKIE)),
        headers=WEBSOCKET,
    ),
    Row("WebSocket, not logged in", Who.NOBODY, REFUSED, headers=WEBSOCKET),
    Row("upgrade to h2c", Who.LOGGED_IN, NOT_UPGRADED, headers=H2C),
    Row("HEAD", Who.LOGGED_IN, PASSES, "HEAD", headers=CURL),
    Row("HEAD, not logged in", Who.NOBODY, LOGIN, "HEAD", headers=CURL),
    Row("PUT with a body", Who.LOGGED_IN, PASSES, "PUT", headers=CURL, body=BODY),
    Row(
        "PUT with `Expect: 100-continue`",
        Who.LOGGED_IN,
        PASSES,
        "PUT",
        headers=(*CURL, ("Expect", "100-continue")),
        body=BODY,
    ),
    Row("PUT with a body, not logged in", Who.NOBODY, REFUSED, "PUT", headers=CURL, body=BODY),
    Row("PUT with a body in chunks", Who.LOGGED_IN, PASSES, "PUT", headers=CURL, body=BODY, chunk=7_000),
    Row("PUT with a body of 3 MB", Who.LOGGED_IN, PASSES, "PUT", headers=CURL, body=BODY_OF_3_MB),
    Row(
        "PUT with a body of 3 MB in chunks",
        Who.LOGGED_IN,
        PASSES,
        "PUT",
        headers=CURL,
        body=BODY_OF_3_MB,
        chunk=100_000,
    ),
    Row(
        "PUT with a body of 3 MB in chunks, not logged in",
        Who.NOBODY,
        REFUSED,
        "PUT",
        headers=CURL,
        body=BODY_OF_3_MB,
        chunk=100_000,
    ),
    Row("15 KB of groups", Who.MANY_GROUPS, Outcome(APPLICATION, Sees(Identity.MANY_GROUPS)), headers=PAGE),
    Row("30 KB of cookies", Who.LOGGED_IN, PASSES, headers=PAGE, cookies=COOKIES_OF_30_KB),
    Row("30 KB of cookies, not logged in", Who.NOBODY, LOGIN, headers=PAGE, cookies=COOKIES_OF_30_KB),
    Row("encoded slash", Who.LOGGED_IN, PASSES, target="/a%2Fb?c=%2F", headers=PAGE),
    Row("dot segments", Who.LOGGED_IN, PASSES, target="/a/../b/./c", headers=PAGE, but=CLEANED_FIRST),
    Row("dot segments, skipped path", Who.NOBODY, LOGIN, target="/public/../admin", headers=PAGE),
    Row("encoded dot segments, skipped path", Who.NOBODY, LOGIN, target="/public/%2e%2e/admin", headers=PAGE),
    Row("forged identity headers", Who.LOGGED_IN, PASSES, headers=PAGE + FORGED),
    Row(
        "forged identity headers, skipped path",
        Who.NOBODY,
        OPEN,
        target="/public/page",
        headers=PAGE + FORGED,
        but=EMPTY_AT_TRAEFIK,
    ),
    Row(
        "two Cookie headers",
        Who.LOGGED_IN,
        PASSES,
        headers=PAGE,
        cookies=(("a", "1"), ("b", "2")),
        pieces=2,
    ),
    Row(
        "AuthService's own paths",
        Who.NOBODY,
        OWN,
        target="/authservice/site/homepage",
        headers=PAGE + FORGED,
    ),
    Row(
        "its prefix alone",
        Who.NOBODY,
        OWN_404,
        target="/authservice",
        headers=PAGE,
        but={"nginx": Outcome(Gets(301, "301 to the same with a slash"), None, "nginx does so by itself.")},
    ),
    Row(
        "login from a deep link",
        Who.LOGGED_IN,
        PASSES,
        target="/deep/a%2Fb;c=1?x=%C3%A9&y=//z",
        headers=PAGE,
        before="log in",
    ),
    Row("after a logout", Who.LOGGED_IN, LOGIN, headers=PAGE, before="log out"),
    Row(
        "service slow",
        Who.LOGGED_IN,
        Outcome(UNAVAILABLE),
        target="/slow",
        headers=PAGE,
        service=Service.SLOW,
        but={
            "caddy": Outcome(replace(UNAVAILABLE, status=504, told="504"), None, AT_CADDY),
            "traefik": Outcome(
                replace(APPLICATION, told="the application's answer, late"),
                Sees(Identity.COOKIE),
                "Traefik waits for up to 30 seconds and says 500 then; neither can be set.",
            ),
        },
    ),
    Row(
        "service down",
        Who.LOGGED_IN,
        Outcome(UNAVAILABLE),
        headers=PAGE,
        service=Service.DOWN,
        but={
            "caddy": Outcome(replace(UNAVAILABLE, status=502, told="502"), None, AT_CADDY),
            "traefik": Outcome(
                replace(UNAVAILABLE, status=500, told="500"),
                None,
                "Traefik's own status, which cannot be set.",
            ),
        },
    ),
)


HTTP_2 = (
    "logged in",
    "not logged in, a page",
    "not logged in, a script",
    "not logged in, a form is sent",
    "not allowed",
    "good bearer token",
    "bad bearer token",
    "skipped path",
    "preflight",
    "HEAD",
    "PUT with a body",
    "PUT with a body, not logged in",
    "PUT with a body in chunks",
    "PUT with a body of 3 MB",
    "PUT with a body of 3 MB in chunks",
    "PUT with a body of 3 MB in chunks, not logged in",
    "30 KB of cookies",
    "encoded slash",
    "dot segments",
    "dot segments, skipped path",
    "forged identity headers",
    "forged identity headers, skipped path",
    "two Cookie headers",
    "AuthService's own paths",
    "login from a deep link",
    "after a logout",
)
"""The rows that are run over TLS and HTTP/2 as well, with the same outcomes."""

AS_INTENDED = "No row is otherwise than it should be; other gateways cannot do all of this."


def markdown(gateway: str) -> str:
    """The table as the page of this gateway shows it, and what is not as with the others."""
    lines: list[str] = ["| situation | who asks gets | the application sees |", "| --- | --- | --- |"]
    otherwise: dict[str, list[str]] = {}
    for row in ROWS:
        outcome = row.outcome_at(gateway)
        mark = " (*)" if outcome.because else ""
        lines.append(f"| {row.name}{mark} | {outcome.gets.told} | {_seen(outcome)} |")
        if outcome.because:
            usual = f"{row.outcome.gets.told}; the application sees {_seen(row.outcome)}"
            otherwise.setdefault(f"{outcome.because} Elsewhere: {usual}.", []).append(f"**{row.name}**")
    reasons = [f"- {', '.join(names)}: {reason}" for reason, names in otherwise.items()]
    told = ["(*) What is otherwise with other gateways:", "", *reasons] if reasons else [AS_INTENDED]
    return "\n".join([*lines, "", *told])


def _seen(outcome: Outcome) -> str:
    if outcome.sees is None:
        return "nothing"
    at = f" at `{outcome.sees.target}`" if outcome.sees.target else ""
    return f"{outcome.sees.identity.value}{at}"


def replaced(page: str, gateway: str) -> str:
    """The page with its table up to date. It has to have the two markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no {BEGIN} … {END} on the page of {gateway}")
    return f"{before}{BEGIN}\n\n{markdown(gateway)}\n\n{END}{after}"


def main() -> None:
    for gateway in GATEWAYS:
        page = PAGES / f"{gateway}.md"
        page.write_text(replaced(page.read_text("utf-8"), gateway), "utf-8")


if __name__ == "__main__":
    main()
