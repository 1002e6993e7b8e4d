"""Policies, requests and claims at random, so that they meet: what the differential run compares.

A set is made from a number: first its requests, then policies whose values are taken from one of these
requests more often than not, whole, cut, with a wildcard or slightly wrong. The same number gives the same
set on every machine and in every order.

What the service decides differently on purpose is left out, or can be told apart (`Sent.is_plain`): see
`tests.test_policy_differential`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.policy_envoy import claim_names

Json = dict[str, Any]

ISSUERS = ("https://id.example/realms/one", "https://id.example/two/", "issuer-three")
AUDIENCES = ("my-backend-client", "api", "https://api.example/", "http://api.example")
METHODS = ("GET", "GET", "GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS")
HOSTS = tuple(
    """app.example app.example App.Example app.example:8443 APP.example:8443 app.example. wild.example
    a.wild.example a.b.wild.example a.wild.example:80 127.0.0.1:8080 [::1]:443""".split()
)
PORTS = (80, 443, 8080, 8443)
SOURCES = ("127.0.0.1", "127.0.0.2", "127.0.0.77", "127.1.2.3")
FORWARDED = tuple("203.0.113.7 203.0.113.200 198.51.100.3 10.0.0.1 2001:db8::7 2001:db8:1::1 fe80::".split())
SEGMENTS = tuple(
    r"""a b c d A api v1 users 7 b.txt .txt %2e%2e .. . b%2Fx b=1 b;x=1 b*c a* * ** b|c [x] b@c ~b a%20b b:c b,c
    index.html %41 %7eb %5Cb b\c %3bx %C3%A9 b'c b"c b<c %7Cc b^c b`c (b) $b b! b&c""".split()
)
QUERIES = ("", "", "", "?x=1", "?next=/a/b&y=%2F", "?")
HEADERS = ("x-env", "x-role", "x-version", "user-agent", "accept")
WORDS = tuple(
    "admin,dev,ops,read,write,prod,prod-eu,Prod,eu,1.2.3,*,a*n,a b,read write,größe,"
    "user@example.com,other@example.com".split(",")
)
CLAIMS = tuple(
    "email groups scope permission azp role a.b https://ex.example/role a]b level permissions".split()
)
SPLIT = ("scope", "permission", "role", "permissions", "groups", "a.b")
TO_SPLIT = ("read write", " read  write ", "dev ops", "admin", "  ", " ", "", "read\twrite")
ODD: tuple[Any, ...] = (*TO_SPLIT, "line\nbreak", "\n", ["\n", 7], 7, 1.5, True, None, [], [""], [1, None])
ODD += ([["admin"]], {}, {"x": "admin"}, [{"x": "admin"}], "a" * 300)
NESTED = (("realm_access", "roles"), ("resource_access", "api", "roles"), ("a", "b"), ("list", "x"))

# Policies' paths are compared in one spelling, in which these are written so; requests have both.
_SPELLED = {
    "|": "%7C",
    "[": "%5B",
    "]": "%5D",
    '"': "%22",
    "<": "%3C",
    "^": "%5E",
    "`": "%60",
    "\\": "%5C",
    "%2e": ".",
    "%41": "A",
    "%7e": "~",
    "%3b": "%3B",
}


@dataclass(frozen=True)
class Sent:
    """One request as it goes over the wire, and the token with it.

    ``claims`` are those of a good token, ``None`` for a request without one. ``forwarded`` is the value of
    X-Forwarded-For, empty when there is none. ``tokens`` counts those that the headers and the target hold.
    """

    method: str
    target: str
    host: str
    headers: tuple[tuple[str, str], ...]
    source: str
    port: int
    forwarded: str = ""
    claims: Mapping[str, Any] | None = None
    tokens: int = 0

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def remote(self) -> str:
        """The client's address as a sidecar sees it (M32)."""
        return self.forwarded.rpartition(",")[2].strip() or self.source

    @property
    def is_plain(self) -> bool:
        """Whether no header comes twice or holds a comma. Where it does, lines and lists cannot be told
        apart, and the service may be stricter than Envoy."""
        names = [name.lower() for name, _ in self.headers]
        return len(set(names)) == len(names) and not any("," in value for _, value in self.headers)

    def bytes(self) -> bytes:
        """The request as HTTP/1.1."""
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.forwarded:
            lines.append(f"X-Forwarded-For: {self.forwarded}")
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("utf-8")


@dataclass(frozen=True)
class PolicySet:
    """The policies of one set as the YAML's plain values, and the requests to ask them about."""

    seed: int
    documents: tuple[Json, ...]
    requests: tuple[Sent, ...]

    @property
    def on_trial(self) -> bool:
        """Whether a policy is a dry run."""
        return any("annotations" in document["metadata"] for document in self.documents)


def policy_set(seed: int, key_set: Callable[[str], Json], requests: int) -> PolicySet:
    """The set of a number. ``key_set`` gives an issuer's keys, ``requests`` is how many to make."""
    return Maker(random.Random(seed), key_set).make(seed, requests)


class Maker:
    """Makes one set. ``around`` is the request that values are taken from at the moment."""

    def __init__(self, draw: random.Random, key_set: Callable[[str], Json]) -> None:
        self.draw = draw
        self.key_set = key_set
        self.around: Sent

    def make(self, seed: int, number: int) -> PolicySet:
        issuers = self.draw.sample(ISSUERS, self.draw.choice((1, 1, 2)))
        tokens = [self.jwt_rule(issuer) for issuer in issuers] if self.maybe(0.92) else []
        cores = [self._request(tokens) for _ in range(max(2, number // 8))]
        documents = [
            self._policy(f"p{index}", cores) for index in range(self.draw.choice((1, 1, 2, 2, 3, 4)))
        ]
        if tokens:
            split = self.draw.randint(0, len(tokens))
            for index, part in enumerate(filter(None, (tokens[:split], tokens[split:]))):
                documents.append(document("RequestAuthentication", f"r{index}", {"jwtRules": part}))
        self.draw.shuffle(documents)
        asked = [
            core if self.maybe(0.35) else self._changed(core, tokens)
            for core in (self.draw.choice(cores) for _ in range(number))
        ]
        return PolicySet(seed, tuple(documents), tuple(self.finished(sent, tokens) for sent in asked))

    def finished(self, sent: Sent, rules: Sequence[Json]) -> Sent:
        """The request as it is sent."""
        return sent

    # ---- chances

    def maybe(self, chance: float) -> bool:
        return self.draw.random() < chance

    def some(self, of: Sequence[Any], counts: Sequence[int]) -> list[Any]:
        return self.draw.sample(of, min(len(of), self.draw.choice(counts)))

    # ---- requests

    def _request(self, tokens: Sequence[Json]) -> Sent:
        names = self.some(HEADERS, (1, 2, 3))
        names += names[:1] if self.maybe(0.04) else []
        headers = tuple((self._any_case(name), self._header_value()) for name in names)
        return Sent(
            self.draw.choice(METHODS),
            self._path() + self.draw.choice(QUERIES),
            self.draw.choice(HOSTS),
            headers,
            self.draw.choice(SOURCES),
            self.draw.choice(PORTS),
            self._forwarded(),
            self.claims(tokens) if tokens and self.maybe(0.88) else None,
        )

    def _changed(self, core: Sent, tokens: Sequence[Json]) -> Sent:
        """The request with one or two things as in another one."""
        other = self._request(tokens)
        if core.claims is not None and other.claims is not None and self.maybe(0.7):
            kept = ("iss", "aud") if any("audiences" in rule for rule in tokens) else ("iss",)
            names = self.some([name for name in other.claims if name not in kept], (1, 2))
            claims = {**core.claims, **{name: other.claims[name] for name in names}}
            for name in self.some([name for name in claims if name not in kept], (0, 0, 1)):
                del claims[name]
            other = replace(other, claims=claims)
        parts = ("method", "target", "host", "headers", "source", "port", "forwarded", "claims", "claims")
        changes = {name: getattr(other, name) for name in self.some(parts, (1, 1, 2))}
        return replace(core, **changes)

    def _path(self) -> str:
        segments = [
            self.draw.choice(SEGMENTS[: 10 if self.maybe(0.7) else None])
            for _ in range(self.draw.randint(0, 4))
        ]
        path = "/" + "/".join(segments)
        if self.maybe(0.1):
            path += "/"
        return path.replace("/", "//", 2) if self.maybe(0.05) else path

    def _header_value(self) -> str:
        if self.maybe(0.1):
            return ""
        if self.maybe(0.04):
            return f"{self.draw.choice(WORDS[:9])}, {self.draw.choice(WORDS[:9])}"
        return self.draw.choice(WORDS)

    def _any_case(self, name: str) -> str:
        return self.draw.choice((name, name.title(), name.upper()))

    def _forwarded(self) -> str:
        return ", ".join(self.some(FORWARDED, (0, 1, 1, 1, 2)))

    # ---- claims

    def claims(self, tokens: Sequence[Json]) -> Json:
        rule = self.draw.choice(tokens)
        claims: Json = {"iss": rule["issuer"]}
        if self.maybe(0.95):
            claims["sub"] = self.draw.choice(("alice", "bob", "alice/x", "al*", "*", "", " ", "alice bob"))
        audiences = rule.get("audiences")
        if audiences or self.maybe(0.6):
            one = self.draw.choice(audiences or AUDIENCES)
            others = self.some(AUDIENCES, (0, 1, 2))
            claims["aud"] = one if self.maybe(0.5) else self.draw.sample([one, *others], 1 + len(others))
        for name in self.some(CLAIMS, (1, 2, 3, 5)):
            texts = name in SPLIT and self.maybe(0.5)
            claims[name] = self.draw.choice(TO_SPLIT) if texts else self._claim_value()
        for path in self.some(NESTED, (0, 1, 1, 2)):
            _put(claims, path, self._claim_value(), in_a_list=path[0] == "list")
        return claims

    def _claim_value(self) -> Any:
        if self.maybe(0.5):
            return self.draw.choice(WORDS)
        if self.maybe(0.55):
            return [self.draw.choice((*WORDS, "", 7)) for _ in range(self.draw.randint(1, 3))]
        return self.draw.choice(ODD)

    # ---- policies

    def jwt_rule(self, issuer: str) -> Json:
        rule: Json = {"issuer": issuer, "jwks": json.dumps(self.key_set(issuer))}
        if self.maybe(0.3):
            rule["audiences"] = self.some(AUDIENCES, (1, 2))
        if self.maybe(0.3):
            rule["spaceDelimitedClaims"] = self.some(("role", "groups", "permissions", "a.b", "sub"), (1, 2))
        if self.maybe(0.5):
            rule["forwardOriginalToken"] = self.maybe(0.5)
        return rule

    def _policy(self, name: str, cores: Sequence[Sent]) -> Json:
        action = self.draw.choice(("ALLOW", "ALLOW", "ALLOW", "DENY", "AUDIT"))
        spec: Json = {} if action == "ALLOW" and self.maybe(0.3) else {"action": action}
        if not (action == "ALLOW" and self.maybe(0.04)):
            spec["rules"] = [self._rule(cores, action) for _ in range(self.draw.choice((1, 1, 2, 3)))]
        made = document("AuthorizationPolicy", name, spec)
        if self.maybe(0.1):
            made["metadata"]["annotations"] = {
                "istio.io/dry-run": self.draw.choice(("true", "1", "T", "false"))
            }
        return made

    def _rule(self, cores: Sequence[Sent], action: str) -> Json:
        self.around = self.draw.choice(cores)
        if self.maybe(0.02 if action == "DENY" else 0.04):
            return {}
        parts: Json = {}
        if self.maybe(0.35):
            parts["from"] = [
                {"source": self._fields(self._source_fields(), (1, 1, 2))} for _ in range(self.one_or_two())
            ]
        if self.maybe(0.6):
            parts["to"] = [
                {"operation": self._fields(self._operation_fields(), (1, 1, 2, 3))}
                for _ in range(self.one_or_two())
            ]
        if self.maybe(0.65) or not parts:
            parts["when"] = [self._condition() for _ in range(self.draw.choice((1, 1, 2)))]
        return parts

    def one_or_two(self) -> int:
        return self.draw.choice((1, 1, 2))

    def _fields(self, fields: Mapping[str, Callable[[bool], str]], counts: Sequence[int]) -> Json:
        """Some fields of a source or an operation, each as itself, as its ``not…``, or both."""
        found: Json = {}
        for name in self.some(list(fields), counts):
            found.update(self._yes_and_no(name, f"not{name[0].upper()}{name[1:]}", fields[name]))
        return found

    def _yes_and_no(self, yes: str, no: str, value: Callable[[bool], str]) -> Json:
        kind = self.draw.choice(("yes", "yes", "yes", "no", "no", "both"))
        found: Json = {}
        if kind != "no":
            found[yes] = [value(self.maybe(0.85))] + [
                value(self.maybe(0.4)) for _ in range(self.draw.choice((0, 0, 1, 2)))
            ]
        if kind != "yes":
            found[no] = [value(self.maybe(0.2)) for _ in range(self.draw.choice((1, 1, 2)))]
        return found

    def _operation_fields(self) -> dict[str, Callable[[bool], str]]:
        return {
            "hosts": lambda fits: self._form(self._host(fits), fits),
            "ports": lambda fits: str(self.around.port if fits else self.draw.choice(PORTS)),
            "methods": lambda fits: self._form(
                self.around.method if fits else self.draw.choice(METHODS), fits
            ),
            "paths": self._path_value,
        }

    def _source_fields(self) -> dict[str, Callable[[bool], str]]:
        fields: dict[str, Callable[[bool], str]] = {
            "requestPrincipals": self._principal,
            "ipBlocks": lambda fits: self._block(self.around.source if fits else self.draw.choice(SOURCES)),
            "remoteIpBlocks": lambda fits: self._block(
                self.around.remote if fits else self.draw.choice(FORWARDED)
            ),
        }
        if self.maybe(0.06):
            return {
                "principals": lambda fits: self.draw.choice(
                    ("*", "cluster.local/ns/default/sa/web", "*/sa/web")
                )
            }
        if self.maybe(0.06):
            return {"namespaces": lambda fits: self.draw.choice(("*", "default", "pro*"))}
        return (
            {"serviceAccounts": lambda fits: self.draw.choice(("web", "prod/web"))}
            if self.maybe(0.04)
            else fields
        )

    def _host(self, fits: bool) -> str:
        host = self.around.host if fits else self.draw.choice(HOSTS)
        return self.draw.choice((host, host.lower(), host.upper()))

    def _block(self, address: str) -> str:
        """The address itself, or a block of it or of its neighbour."""
        whole = 128 if ":" in address else 32
        length = self.draw.choice((0, 8, 16, 24, 28, whole))
        return address if self.maybe(0.4) else f"{address}/{length}"

    def _condition(self) -> Json:
        key, value = self.draw.choice(list(self._conditions()))
        return {"key": key, **self._yes_and_no("values", "notValues", value)}

    def _conditions(self) -> Iterator[tuple[str, Callable[[bool], str]]]:
        """Kinds of conditions with equal chances, claims and headers several times."""
        for _ in range(2):
            yield self._header_condition()
        for _ in range(4):
            yield self._claim_condition()
        yield "request.auth.principal", self._principal
        yield "request.auth.audiences", lambda fits: self._word(self._claimed(["aud"]), fits)
        yield "request.auth.presenter", lambda fits: self._word(self._claimed(["azp"]), fits)
        yield "source.ip", lambda fits: self._block(self.around.source if fits else self.draw.choice(SOURCES))
        yield (
            "remote.ip",
            lambda fits: self._block(self.around.remote if fits else self.draw.choice(FORWARDED)),
        )
        yield "destination.port", lambda fits: str(self.around.port if fits else self.draw.choice(PORTS))

    def _header_condition(self) -> tuple[str, Callable[[bool], str]]:
        name = self.draw.choice(HEADERS)
        sent = next((value for header, value in self.around.headers if header.lower() == name), "")
        return f"request.headers[{self._any_case(name)}]", lambda fits: self._word(sent, fits)

    def _claim_condition(self) -> tuple[str, Callable[[bool], str]]:
        paths = [[name] for name in CLAIMS] + [list(path) for path in NESTED] + [["iss"], ["sub"], ["aud"]]
        had = [path for path in paths if self._claimed(path) is not None]
        path = self.draw.choice(had if had and self.maybe(0.85) else paths)
        key = "".join(f"[{name}]" for name in path)
        return f"request.auth.claims{key}", lambda fits: self._word(self._claimed(claim_names(key)), fits)

    def _claimed(self, path: Sequence[str]) -> Any:
        found: Any = self.around.claims or {}
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    # ---- values

    def _word(self, having: Any, fits: bool) -> str:
        """A value for a claim or a header that has this one; now and then a piece of it."""
        having = self.draw.choice(having) if isinstance(having, list) and having else having
        text = having if isinstance(having, str) and having and fits else self.draw.choice(WORDS)
        if " " in text.strip() and self.maybe(0.5):
            text = self.draw.choice(text.split())
        return self._form(text, fits)

    def _form(self, text: str, fits: bool) -> str:
        """The text as one of the forms of a value (M16, M17), true to it where it is to fit."""
        cut = self.draw.randint(0, len(text))
        true = (text, text, f"{text[:cut]}*", f"*{text[cut:]}", f"{text}*", f"*{text}", "*")
        wrong = (
            text.swapcase(),
            text + "x",
            "x" + text,
            text[:-1] or "x",
            f"{text[:cut]}*{text[cut:]}",
            f"*{text}*",
            f"{text[:cut]}x*",
            f"*x{text[cut:]}",
            "**",
        )
        return self.draw.choice(true if fits or self.maybe(0.5) else wrong)

    def _path_value(self, fits: bool) -> str:
        path = self.around.path if fits else self._path()
        if self.maybe(0.35):
            return self._template(path)
        for raw, spelled in _SPELLED.items():
            path = path.replace(raw, spelled)
        return self._form(path, fits)

    def _template(self, path: str) -> str:
        """A template made of a path: operators for some of its segments (M30)."""
        made = [
            self.draw.choice((segment, segment, "{*}")) if segment.replace(".", "").isalnum() else "{*}"
            for segment in path.split("/")
            if segment
        ] or ["a"]
        last = made[-1]
        if self.maybe(0.4):
            where = self.draw.randrange(len(made))
            made = [*made[:where], "{**}", *(literal for literal in made[where + 1 :] if literal != "{*}")]
        elif "." in last and last != "{*}":
            made[-1] = self.draw.choice(("{*}", "{**}")) + last[last.index(".") :]
        elif "{*}" not in made:
            made[self.draw.randrange(len(made))] = "{*}"
        return "/" + "/".join(made)

    def _principal(self, fits: bool) -> str:
        """A request principal in any of its forms: ``<iss>/<sub>``, and its cuts."""
        claims = self.around.claims or {}
        issuer = str(claims.get("iss") if fits and claims else self.draw.choice(ISSUERS))
        subject = str(claims.get("sub", "") if fits else self.draw.choice(("alice", "bob", "carol")))
        cut = self.draw.randint(1, len(issuer) - 1)
        forms = [
            "*",
            f"{issuer}/{subject}",
            f"{issuer}/{subject}",
            f"{issuer}/*",
            f"{issuer}/{subject[:2]}*",
            issuer,
            f"{issuer[:cut]}*",
            f"*/{subject}",
            f"*{issuer[cut:]}/{subject}",
            f"*{subject[1:]}",
            f"*{issuer[cut:]}/*",
            f"{issuer}*",
            f"{issuer}*/{subject}",
            f"*/{subject}*",
        ]
        return self.draw.choice(forms)


def document(kind: str, name: str, spec: Json) -> Json:
    """A resource as the YAML says it."""
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _put(claims: Json, path: Sequence[str], value: Any, *, in_a_list: bool) -> None:
    inside = claims
    for name in path[:-1]:
        inside = inside.setdefault(name, {})
        if not isinstance(inside, dict):
            return
    inside[path[-1]] = value
    if in_a_list:
        claims[path[0]] = [claims[path[0]]]


def as_text(claims: Mapping[str, Any] | None) -> str:
    """Claims for a person to read."""
    return "none" if claims is None else json.dumps(claims, ensure_ascii=False)
