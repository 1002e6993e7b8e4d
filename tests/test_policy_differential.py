"""Our verdicts beside those of a real Envoy: 10 000 policies, requests and claims at random.

What is compared is the whole way: policies as YAML text through reader and compiler, against the same
policies translated to Envoy's jwt_authn and rbac filters (`tests.policy_envoy`). Both see the path as it was
sent. In every triple the status (200, 401, 403) is equal; so is whether an AUDIT rule matched, that a
DENY rule which Envoy names matched for us, too, and what would be if dry runs were enforced.

Stricter on purpose, and therefore only shown never to be laxer: a header that comes twice or holds a comma
(lines and lists look alike when they have been joined, so both readings must allow), and live paths that can
be read in more than one way. Not generated are ``Bearer`` in other spellings, two good tokens at a time,
tokens without a subject (the service has to know who it is), mesh identities other than none at all, the
header ``host`` (any letter case for us, as in ``hosts``), and paths in policies spelled otherwise than
canonically.

``POLICY_SEED`` chooses other policies, requests and claims; a disagreement names its own set, which
``POLICY_SET`` asks about alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from authservice.urls import policy_path
from tests.policy_comparison import Comparison, Tally, TokenComparison, compare_all
from tests.policy_envoy import JudgingEnvoy
from tests.policy_generator import ISSUERS, PolicySet, Sent, document, policy_set
from tests.policy_tokens import key_set, token_set

pytestmark = [
    pytest.mark.external,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 to ask from"),
]

SEED = int(os.environ.get("POLICY_SEED", "1"))
ALONE = os.environ.get("POLICY_SET", "")
SHARDS, TRIPLES = 4, 2_500
REQUESTS = 25
SETS = TRIPLES * 12 // 10 // REQUESTS  # some more than needed, for those that may differ on purpose


def seeds(shard: int) -> Sequence[int]:
    """The numbers of a shard's sets."""
    first = SEED * 1_000_000 + shard * SETS
    return [int(ALONE)] if ALONE else range(first, first + SETS)


def assert_agreed(reports: Sequence[str]) -> None:
    told = "\n\n".join(f"POLICY_SEED={SEED} {report}" for report in reports[:3])
    assert not reports, f"{len(reports)} disagreements, for example\n\n{told}"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_verdicts_are_those_of_envoy(shard: int, tmp_path: Path) -> None:
    tally = Tally()
    assert_agreed(
        compare_all([policy_set(seed, key_set, REQUESTS) for seed in seeds(shard)], tmp_path, tally)
    )
    if not ALONE:
        assert tally.triples >= TRIPLES
        assert_meets(tally)


def assert_meets(tally: Tally) -> None:
    """That policies and requests have to do with each other: without that, agreeing would mean nothing."""
    allowed = tally.statuses[200] / tally.triples
    assert 0.4 <= allowed <= 0.65, tally.statuses
    for ground in ("allow_rule", "no_allow_rule", "deny_rule", "no_policy"):
        assert tally.grounds[ground] >= 50, tally.grounds
    assert tally.on_trial >= 100
    seldom = [name for name in MET if not (tally.decided[name, True] and tally.decided[name, False])]
    assert len(seldom) <= len(MET) // 12, f"never both matched and not: {seldom}"


def test_live_paths_get_the_verdicts_of_an_envoy_that_normalises_them(tmp_path: Path) -> None:
    """What the service makes of paths, dot segments and all, beside Istio's usual normalisation (M26)."""
    tally = Tally()
    sets = [without_brackets(policy_set(seed, key_set, REQUESTS)) for seed in seeds(SHARDS)]
    beside = partial(Comparison, path_of=policy_path)
    assert_agreed(compare_all(sets, tmp_path, tally, normalises=True, beside=beside))
    assert ALONE or tally.stricter >= 200


def without_brackets(drawn: PolicySet) -> PolicySet:
    """Without the characters that Envoy leaves as they were sent where we have one spelling for both."""
    return replace(drawn, requests=tuple(sent for sent in drawn.requests if not {*"[]"} & {*sent.path}))


def test_tokens_are_judged_as_envoy_judges_them(tmp_path: Path) -> None:
    """Good and bad ones in right and wrong places, and preflights, by our authenticator (M49 to M60, M64)."""
    tally = Tally()
    sets = [token_set(seed, REQUESTS) for seed in seeds(SHARDS + 1)]
    assert_agreed(compare_all(sets, tmp_path, tally, beside=TokenComparison))
    assert ALONE or min(tally.statuses[200], tally.statuses[401], tally.statuses[403]) >= 300, tally.statuses


FORMS = {
    "exact prefix suffix present template": ("paths",),
    "exact prefix suffix template": ("notPaths",),
    "exact prefix suffix present": (
        "hosts",
        "methods",
        "requestPrincipals",
        "request.auth.claims values",
        "request.headers notValues",
    ),
    "exact prefix suffix": (
        "notHosts",
        "notMethods",
        "notRequestPrincipals",
        "request.auth.claims notValues",
    ),
    "exact": (
        "ports",
        "notPorts",
        "ipBlocks",
        "notIpBlocks",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "source.ip values",
        "source.ip notValues",
        "remote.ip values",
        "remote.ip notValues",
        "destination.port values",
        "destination.port notValues",
    ),
}
MET = [f"{name} {form}" for forms, names in FORMS.items() for name in names for form in forms.split()]
"""What has to be in rules that match, and in rules that do not; a shard may do without one or two."""


def path(value: str) -> dict[str, Any]:
    return {"to": [{"operation": {"paths": [value]}}]}


def to(**fields: list[str]) -> dict[str, Any]:
    return {"to": [{"operation": fields}]}


def claim(name: str, value: str = "", *, but_not: str = "") -> dict[str, Any]:
    values = {"values": [value]} if value else {}
    return {
        "when": [
            {"key": f"request.auth.claims{name}", **values, **({"notValues": [but_not]} if but_not else {})}
        ]
    }


def principal(value: str) -> dict[str, Any]:
    return {"from": [{"source": {"requestPrincipals": [value]}}]}


PLAIN = Sent("GET", "/", "app.example", (), "127.0.0.1", 80)
IDENTITY = {"iss": ISSUERS[0], "sub": "alice"}

ODD: list[Any] = [[], [""], 1, True, None, {}, ["", "a"], ["b"], ["b", "a"]]

MEASURED: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("M09", {}, {}, True),
    ("M17", claim("[x]", "a*n"), {"claims": {"x": "a*n"}}, True),
    ("M17", claim("[x]", "a*n"), {"claims": {"x": "aXn"}}, False),
    ("M17", claim("[x]", "*a*"), {"claims": {"x": "ba*"}}, True),
    ("M17", claim("[x]", "*a*"), {"claims": {"x": "bab"}}, False),
    ("M20", claim("[x]", "*"), {"claims": {"x": ""}}, False),
    ("M20", claim("[x]", "*"), {"claims": {"x": "a\nb"}}, False),
    ("M20", {"when": [{"key": "request.headers[x-e]", "values": ["*"]}]}, {"headers": (("X-E", ""),)}, True),
    ("M22", to(hosts=["app.example"]), {"host": "APP.example"}, True),
    ("M22", to(hosts=["app.example"]), {"host": "app.example:8443"}, False),
    ("M22", to(hosts=["app.example:*"]), {"host": "app.example"}, False),
    ("M22", to(hosts=["app.example"]), {"host": "app.example."}, False),
    ("M22", to(hosts=["*.wild.ex"]), {"host": "wild.ex"}, False),
    ("M22", to(hosts=["*.wild.ex"]), {"host": "a.wild.ex:80"}, False),
    ("M23", to(methods=["GET"]), {"method": "HEAD"}, False),
    ("M25", path("/a/b"), {"target": "/a/b?x=1"}, True),
    *[
        ("M25", path("/a/b"), {"target": target}, False)
        for target in ("/a%2Fb", "/a//b", "/a/./b", "/a/b/", "/a/b;x=1", "/A/b")
    ],
    *[
        ("M28", path("/a/{*}/c"), {"target": target}, True)
        for target in ("/a/b/c", "/a/b%2Fx/c", "/a/b=1/c", "/a/b;1/c", "/a/../c")
    ],
    *[("M28", path("/a/{*}/c"), {"target": target}, False) for target in ("/a//c", "/a/b/d/c", "/a/b/c/")],
    *[
        ("M28", path("/a/{**}"), {"target": target}, target != "/a")
        for target in ("/a/", "/a/b/c", "/a//b", "/a")
    ],
    *[
        ("M28", path("/a/{**}/c"), {"target": target}, target not in ("/a/c", "/a/b/c/"))
        for target in ("/a/b/c", "/a/b/d/c", "/a//c", "/a/c", "/a/b/c/")
    ],
    *[
        ("M28", path("/a/{*}.txt"), {"target": target}, target == "/a/b.txt")
        for target in ("/a/b.txt", "/a/.txt", "/a/b/c.txt")
    ],
    *[
        ("M29", path("/a/{*}"), {"target": f"/a/{character}"}, character not in "[|")
        for character in "-._~%!$&'()*+,;=:@[|"
    ],
    (
        "M32",
        {"from": [{"source": {"remoteIpBlocks": ["203.0.113.0/24"]}}]},
        {"forwarded": "10.0.0.1, 203.0.113.7"},
        True,
    ),
    ("M37", {"from": [{"source": {"notPrincipals": ["*"]}}]}, {}, True),
    ("M38", principal("*"), {"claims": {"sub": None}}, False),
    ("M40", claim("[a][b]", "x"), {"claims": {"a": {"b": "x"}}}, True),
    ("M40", claim("[a][b]", "x"), {"claims": {"a": [{"b": "x"}]}}, False),
    ("M40", claim("[a.b]", "x"), {"claims": {"a.b": "x"}}, True),
    ("M40", claim("[a]b]", "x"), {"claims": {"a]b": "x"}}, True),
    ("M41", claim("[x]", "1"), {"claims": {"x": 1}}, False),
    ("M41", claim("[x]", "a"), {"claims": {"x": [1, "a"]}}, True),
    ("M41", claim("[x]", "a"), {"claims": {"x": [["a"]]}}, False),
    *[
        ("M42", claim("[x]", "*"), {"claims": {"x": value}}, value in (["", "a"], ["b"], ["b", "a"]))
        for value in ODD
    ],
    *[
        ("M43", claim("[x]", but_not="a"), {"claims": {"x": value}}, value not in (["", "a"], ["b", "a"]))
        for value in ODD
    ],
    ("M43", claim("[x]", but_not="a"), {"claims": None}, True),
    ("M45", claim("[scope]", "read"), {"claims": {"scope": " read  write "}}, True),
    ("M45", claim("[scope]", "read write"), {"claims": {"scope": "read write"}}, False),
    ("M45", claim("[scope]", "read write"), {"claims": {"scope": ["read write"]}}, True),
    *[("M45", claim("[scope]", "*"), {"claims": {"scope": value}}, value != "") for value in ("", " ", "a")],
    ("M45", principal(f"{ISSUERS[0]}/"), {"claims": {"sub": ""}}, True),
    ("M45", claim("[a][scope]", "read"), {"claims": {"a": {"scope": "read write"}}}, False),
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgingEnvoy]:
    """One Envoy for all measured rules: the number of each names its set."""
    sets = {str(number): one_rule(rule) for number, (_, rule, _, _) in enumerate(MEASURED)}
    with JudgingEnvoy(tmp_path_factory.mktemp("measured"), sets) as envoy:
        yield envoy


def one_rule(rule: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """An ALLOW policy of this rule, and where tokens come from."""
    issuer = {"issuer": ISSUERS[0], "jwks": json.dumps(key_set(ISSUERS[0]))}
    return (
        document("AuthorizationPolicy", "p0", {"rules": [rule]}),
        document("RequestAuthentication", "r0", {"jwtRules": [issuer]}),
    )


@pytest.mark.parametrize("number", range(len(MEASURED)), ids=lambda number: f"{number}-{MEASURED[number][0]}")
def test_what_was_measured_is_so_for_both(measured: JudgingEnvoy, number: int) -> None:
    """The translation itself is held to what is known of Envoy."""
    _, rule, changes, allowed = MEASURED[number]
    claims = changes.get("claims", {})
    claims = (
        None
        if claims is None
        else {k: v for k, v in {**IDENTITY, **claims}.items() if (k, v) != ("sub", None)}
    )
    sent = replace(PLAIN, **{**changes, "claims": claims})
    comparison = Comparison(PolicySet(number, one_rule(rule), (sent,)), measured, Tally())
    assert comparison.compare(sent) == []
    assert comparison.ask_envoy(sent).status == (200 if allowed else 403)
