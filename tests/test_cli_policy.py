"""``authservice policy``: what it says of policies and requests, and that the live service says the same.

The corpus is the files of `tests/data/policies/corpus` and the recipes of `docs/policies.md`: each case is asked
of ``explain`` and of a whole service, to which its claims come as a cookie session's.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask

from authservice.cli import main
from authservice.cli_policy import SENTENCES
from authservice.ops import Metric
from authservice.policy.question import Ground
from authservice.rehearsal.answers import Rehearsal
from authservice.rehearsal.asked import Asked, joined, parts_of
from authservice.rehearsal.cases import Case, read_cases
from authservice.rehearsal.means import gather, load
from authservice.sessions import Session
from authservice.settings.table import ROWS
from tests.conftest import Answer, ask
from tests.policy_generator import policy_set
from tests.policy_tokens import key_set
from tests.provider import FakeProvider, rsa_key

ROOT = Path(__file__).parent.parent
CORPUS = Path(__file__).parent / "data" / "policies" / "corpus"
DOCUMENT = ROOT / "docs" / "policies.md"
FILES = {
    name: text for text, name in re.findall(r"```yaml\n(# (\S+\.yaml)\n.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
}
"""What the document says can be saved under these names."""

TRICKS = [
    json.loads(line) for line in (CORPUS.parent.parent / "path_tricks.txt").read_text("utf-8").splitlines()
    if line.startswith('"/') and re.fullmatch(r"[!-~]+", json.loads(line)) and "#" not in line
]  # fmt: skip
"""Targets of which a person can write a URL."""

PROXIES = "127.0.0.1,10.0.0.0/8"
POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: default}
spec:
  rules:
  - to: [{operation: {methods: [GET]}}]
    when: [{key: "request.auth.claims[team]", values: [red]}]
"""


@dataclass(frozen=True)
class Said:
    """What the command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with these arguments, in an environment that has these variables and no others."""

    def run_it(*argv: str | Path, **environ: str) -> Said:
        capsys.readouterr()
        try:
            status = main(["policy", *map(str, argv)], environ)
        except SystemExit as left:
            status = int(left.code or 0)
        printed = capsys.readouterr()
        return Said(status, printed.out, printed.err)

    return run_it


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document's files in one folder."""
    folder = tmp_path_factory.mktemp("recipes")
    for name, text in FILES.items():
        (folder / name).write_text(text, "utf-8")
    return folder


# --- the same as the live service -------------------------------------------------------------------

TABLES = [
    *(pytest.param(path.name, False, id=path.stem) for path in sorted(CORPUS.glob("*-cases.yaml"))),
    *(pytest.param(name, True, id=f"docs-{name[:-5]}") for name in FILES if name.endswith("-cases.yaml")),
]
VERDICTS = {200: "allow", 403: "deny", 302: "authenticate", 401: "authenticate"}


@pytest.mark.parametrize("name,documented", TABLES)
def test_cases_hold(name: str, documented: bool, recipes: Path, run: Run) -> None:
    said = run("test", (recipes if documented else CORPUS) / name)
    assert (said.status, said.err) == (0, ""), said.out


@pytest.mark.parametrize("name,documented", TABLES)
def test_explain_and_the_live_service_agree(
    name: str, documented: bool, recipes: Path, run: Run, make_app: Callable[..., Flask]
) -> None:
    cases = read_cases((recipes if documented else CORPUS) / name)
    settings = dict(cases.settings)
    app = make_app(TRUSTED_PROXIES=PROXIES, **settings)
    for case in cases.cases:
        said = run("explain", "--json", *arguments(case), **settings)
        assert said.status == 0, said
        with told() as records:
            answer = live(app, case)
        assert VERDICTS[answer.status] == said.json["verdict"], (case, said.json)
        causes = [record.__dict__["cause"] for record in records if record.__dict__.get("reason") == "policy_denied"]
        assert causes == ([cause_of(said.json, causes)] if answer.status == 403 else []), case


def arguments(case: Case) -> list[str]:
    """A case as the command's arguments."""
    asked = case.asked
    given = ["--method", asked.method, "--url", asked.url]
    if asked.claims is not None:
        given += ["--claims", json.dumps(asked.claims)]
    for option, value in (("--source", asked.source), ("--remote", asked.remote), ("--peer", asked.peer)):
        given += [option, value] if value else []
    for name, value in asked.headers.items():
        given += ["--header", f"{name}: {value}"]
    return given


def live(app: Flask, case: Case) -> Answer:
    """The answer of a whole service behind a trusted Envoy."""
    asked, parts = case.asked, parts_of(case.asked.url)
    headers = {"Host": urlsplit(asked.url).netloc, "X-Forwarded-Proto": parts.scheme, **asked.headers}
    if asked.remote and asked.source:
        headers["X-Forwarded-For"] = f"{asked.remote}, {asked.source}"
    if asked.peer:
        headers["X-Forwarded-Client-Cert"] = f"Hash=0;URI=spiffe://{asked.peer}"
    if asked.claims is not None:
        headers["Cookie"] = f"authservice_session={session(app, asked.claims)}"
    return ask(app, asked.method, parts.target, port=8080, headers=headers)


def session(app: Flask, claims: Any) -> str:
    """The cookie of somebody who logged in with these claims."""
    now = datetime.now(timezone.utc)
    issuer = claims.get("iss")
    secret: str = app.extensions["authservice"].sessions.begin(
        Session(
            user_id="somebody", claims=dict(claims), issuer=issuer if isinstance(issuer, str) else "", subject="s",
            created=now, last_seen=now, expires=now + timedelta(hours=1),
        )
    )  # fmt: skip
    return secret


def cause_of(said: Any, causes: list[str]) -> str:
    """What the log must say; which policies had no rule that matches is the log's alone."""
    if said["policy"] is not None:
        return f"policy {said['policy']} rule {said['rule']} ({said['reason']})"
    assert len(causes) == 1 and causes[0].endswith(f"({said['reason']})"), (said, causes)
    return causes[0]


@contextmanager
def told() -> Iterator[list[logging.LogRecord]]:
    """The judge's lines."""
    records: list[logging.LogRecord] = []
    ear = logging.Handler()
    ear.emit = records.append  # type: ignore[method-assign]
    log = logging.getLogger("authservice.judge")
    log.addHandler(ear)
    try:
        yield records
    finally:
        log.removeHandler(ear)


@pytest.mark.parametrize("name", ["order", "workloads", "anonymous", "requests"])
def test_both_agree_about_paths_and_hosts_that_are_meant_to_deceive(name: str, make_app: Callable[..., Flask]) -> None:
    settings = dict(read_cases(CORPUS / f"{name}-cases.yaml").settings)
    app = make_app(TRUSTED_PROXIES=PROXIES, **settings)
    means = gather(settings)
    rehearsal = Rehearsal(load(means), means, lambda: datetime.now(timezone.utc))
    hosts = {"order": "shop.example", "workloads": "web.example", "anonymous": "site.example"}
    host = hosts.get(name, "one.example")
    authorities = (host, f"{host}.", host.upper(), f"{host}:443", f"{host}:8443", f"x.{host}")
    cookie = f"authservice_session={session(app, {'iss': 'i', 'sub': 'ann'})}"
    asked = 0
    for number, target in enumerate(TRICKS):
        authority = authorities[number % len(authorities)]
        for claims in ({"iss": "i", "sub": "ann"}, None):
            answer = rehearsal.ask(Asked("GET", f"https://{authority}{target}", {}, claims))
            headers = {"Host": authority, "X-Forwarded-Proto": "https", **({"Cookie": cookie} if claims else {})}
            status = ask(app, "GET", target, port=8080, headers=headers).status
            assert VERDICTS[status] == answer.verdict, (authority, target, claims, answer)
            asked += 1
    assert asked > 300


@pytest.mark.parametrize("seed", range(12))
def test_both_agree_about_what_is_drawn_at_random(seed: int, tmp_path: Path, make_app: Callable[..., Flask]) -> None:
    drawn = policy_set(700_000 + seed, key_set, 60)
    policies = [json.dumps(one) for one in drawn.documents if one["kind"] == "AuthorizationPolicy"]
    (tmp_path / "drawn.yaml").write_text("\n---\n".join(policies))
    settings = {"POLICY_PATH": str(tmp_path / "drawn.yaml"), "POLICY_PEER_HEADER": "x-forwarded-client-cert"}
    app = make_app(TRUSTED_PROXIES="127.0.0.1", **settings)
    means = gather(settings)
    rehearsal = Rehearsal(load(means), means, lambda: datetime.now(timezone.utc))
    asked = 0
    for sent in drawn.requests:
        url = f"https://{sent.host}{sent.target}"
        headers = joined([(name.lower(), value) for name, value in sent.headers if name.lower() != "authorization"])
        if not re.fullmatch("[!-~]+", url) or "#" in url or "access_token" in url or not " ".join(headers.values()).isascii():
            continue
        claims = dict(sent.claims) if sent.claims is not None else None
        answer = rehearsal.ask(Asked(sent.method, url, headers, claims, source=sent.remote, remote=sent.remote))
        live = {**headers, "Host": sent.host, "X-Forwarded-Proto": "https", "X-Forwarded-For": sent.remote}
        if claims is not None:
            live["Cookie"] = f"authservice_session={session(app, claims)}"
        status = ask(app, sent.method, sent.target, port=8080, headers=live).status
        assert VERDICTS[status] == answer.verdict, (sent, answer)
        asked += 1
    assert asked > 20, "too few of these requests have a URL"


def test_the_corpus_meets_every_ground(run: Run) -> None:
    met = set()
    for path in CORPUS.glob("*-cases.yaml"):
        cases = read_cases(path)
        met |= {run("explain", "--json", *arguments(case), **cases.settings).json["reason"] for case in cases.cases}
    assert met >= {ground.value for ground in Ground}


# --- check ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(("-cases.yaml", "workloads.yaml"))])
def test_every_recipe_is_taken(name: str, recipes: Path, run: Run) -> None:
    for more in ([], ["--workloads", str(recipes / "workloads.yaml")]):
        said = run("check", recipes / name, *more)
        assert said.status == 0 and "Nothing is wrong." in said.out, said


def test_what_is_there_is_counted(run: Run, tmp_path: Path) -> None:
    for name in ("order.yaml", "tokens.yaml"):
        (tmp_path / name).write_text((CORPUS / name).read_text())
    said = run("check", tmp_path)
    assert said.status == 0
    assert said.out.splitlines() == [
        "AuthorizationPolicy: 9 (5 ALLOW, 3 DENY, 1 AUDIT; 2 on trial). RequestAuthentication: 1. 11 rules. Nothing is wrong.",
        "Which workloads they select was not looked at: --workloads or POLICY_WORKLOADS names them.",
    ]


def test_all_problems_of_all_files_come_at_once_with_their_lines(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(POLICY.replace("methods", "method").replace("when", "wenn"))
    second.write_text(POLICY.replace("kind: AuthorizationPolicy", "kind: Deployment"))
    said = run("check", first, second)
    assert (said.status, said.err) == (2, "")
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{first}:6: spec.rules[0].to[0].operation.method: ")
    assert any(line.startswith(f"{first}:7: spec.rules[0].wenn: ") for line in lines)
    assert any(line.startswith(f"{second}:2: kind: ") for line in lines)
    assert lines[-1] == f"{len(lines) - 1} problems."


def test_the_environment_names_what_the_arguments_do_not(run: Run, policy: Path) -> None:
    assert "1 rule. Nothing is wrong.\n" in run("check", POLICY_PATH=str(policy)).out
    named = run("check", POLICY_PATH=str(policy), POLICY_WORKLOADS="a.example: {namespace: default}")
    assert named.status == 0 and "was not looked at" not in named.out


def test_a_selection_that_finds_nothing_is_a_problem_once_workloads_are_named(run: Run, policy: Path) -> None:
    said = run("check", policy, "--workloads", '{"a.example": {"namespace": "elsewhere"}}')
    assert said.status == 2 and said.out.startswith(f"{policy}:")


def test_two_of_one_name_are_a_problem_without_workloads_too(run: Run, policy: Path) -> None:
    policy.write_text(f"{POLICY}---\n{POLICY}")
    assert run("check", policy).status == 2


def test_what_the_service_needs_besides_is_said(run: Run) -> None:
    said = run("check", CORPUS / "requests.yaml")
    assert said.status == 0 and "TRUSTED_PROXIES" in said.out and "POLICY_PEER_HEADER" in said.out


@pytest.mark.parametrize("workloads", ["/no/such/file", "{", '{"a.example": {"lables": {}}}'])
def test_faulty_workloads_are_a_problem(workloads: str, run: Run, policy: Path) -> None:
    for action in (["check", policy], ["explain", "--url", "https://a.example", "--policy", policy]):
        said = run(*action, "--workloads", workloads)
        assert said.status == 2 and said.out.startswith("POLICY_WORKLOADS: "), said


def test_problems_of_policies_and_of_workloads_come_together(run: Run, policy: Path, tmp_path: Path) -> None:
    policy.write_text(POLICY.replace("when", "wenn"))
    said = run("check", policy, "--workloads", tmp_path / "absent.yaml")
    assert said.status == 2 and said.out.endswith("\n2 problems.\n")
    assert said.out.startswith("POLICY_WORKLOADS: ") and f"\n{policy}:7: " in said.out


def test_a_folder_without_policies_is_a_problem(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("---\n")
    assert "there is no policy in this file" in run("check", tmp_path).out
    assert run("check", tmp_path / "absent").status == 2


def test_a_header_of_ours_is_nobodys_to_set(run: Run, tmp_path: Path) -> None:
    policy = tmp_path / "outputs.yaml"
    policy.write_text(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: a}\nspec:\n"
        "  jwtRules:\n  - {issuer: 'https://idp.example', outputPayloadToHeader: Kubeflow-Userid}\n"
    )
    said = run("check", policy)
    assert said.status == 2 and said.out.startswith(f"{policy}:6: spec.jwtRules[0].outputPayloadToHeader: ")
    assert run("check", policy, USERID_HEADER="x-user").status == 0


# --- explain ----------------------------------------------------------------------------------------

URL = "https://a.example/x"


def test_an_explanation_in_words(run: Run, recipes: Path) -> None:
    claims = {"iss": "https://keycloak.example.com/realms/myrealm", "sub": "s", "azp": "batch"}
    said = run(
        "explain", "--method", "DELETE", "--url", "https://backend.example.com/orders/17/x",
        "--claims", json.dumps(claims), "--policy", recipes / "services.yaml", "--workloads", recipes / "workloads.yaml",
    )  # fmt: skip
    assert said.status == 0
    assert said.out == (
        "deny (no_allow_rule): there are ALLOW policies for this workload, and no rule of theirs matches\n"
        "workload: backend.example.com\n"
        "\n"
        "ALLOW default/backend-callers\n"
        '  rule 0: to[0].operation.methods: "DELETE" is none of "GET", "POST"\n'
        '  rule 1: to[0].operation.paths: "/orders/17/x" is none of "/orders/{*}"\n'
    )


def test_trials_and_audits_are_said(run: Run) -> None:
    cases = read_cases(CORPUS / "order-cases.yaml")
    said = run("explain", "--url", "https://shop.example/", "--claims", "{}", **cases.settings)
    assert said.out.startswith(
        "allow (allow_rule): a rule of an ALLOW policy matches: shop/readers rule 0\n"
        "workload: shop.example\n"
        "with the policies on trial: deny: a rule of a DENY policy matches: shop/on-trial rule 0\n"
        "audited by shop/watched rule 0\n"
    )
    assert "\nDENY shop/on-trial (on trial)\n  rule 0: matches\n" in said.out


def test_an_explanation_for_programs(run: Run, policy: Path) -> None:
    said = run("explain", "--json", "--url", URL, "--claims", '{"team": "blue"}', "--policy", policy)
    assert (said.status, said.err) == (0, "")
    failed = said.json["trace"][0].pop("failed")
    assert failed.startswith("when[0] request.auth.claims[team]: ")
    assert said.json | {"trace": []} == {
        "verdict": "deny", "reason": "no_allow_rule", "policy": None, "rule": None, "trace": [],
    }  # fmt: skip
    (step,) = said.json["trace"]
    assert {name: step[name] for name in step if name != "failed"} == {
        "policy": "default/readers", "action": "ALLOW", "rule": 0, "matched": False, "dry_run": False,
    }  # fmt: skip


def test_without_a_credential_it_is_asked_to_authenticate(run: Run, policy: Path) -> None:
    policy.write_text(POLICY[: POLICY.index("    when")])
    asked = ("explain", "--json", "--url", URL, "--policy", policy)
    said = run(*asked).json
    assert (said["verdict"], said["reason"], said["policy"]) == ("authenticate", "not_authenticated", None)
    assert said["trace"][0]["matched"] is True
    said = run(*asked, POLICY_ALLOWS_ANONYMOUS="true").json
    assert (said["verdict"], said["policy"], said["rule"]) == ("allow", "default/readers", 0)


def test_claims_come_from_a_file_or_from_standard_input(
    run: Run, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "claims.json").write_text('{"team": "red"}')
    asked = ("explain", "--json", "--url", URL, "--policy", policy, "--claims")
    assert run(*asked, f"@{tmp_path / 'claims.json'}").json["verdict"] == "allow"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"team": ["red"]}')))
    assert run(*asked, "-").json["verdict"] == "allow"


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--url", "a.example/x"], "a URL with scheme and host"),
        (["--url", "https://a b.example/"], "write other characters as %XX"),
        (["--url", "https://a..b/"], "host cannot be read"),
        (["--url", URL, "--method", "G T"], "an HTTP method"),
        (["--url", URL, "--header", "X"], "Name: value"),
        (["--url", URL, "--header", "X Y: z"], "no header's name"),
        (["--url", URL, "--source", "10.0.0.0/8"], "an IP address"),
        (["--url", URL, "--remote", "me"], "an IP address"),
        (["--url", URL, "--claims", "[]"], "a JSON object"),
        (["--url", URL, "--claims", '{"a": 1, "a": 2}'], "a JSON object"),
        (["--url", URL, "--claims", "@/no/such/file"], "No such file"),
        (["--url", URL, "--token", "/no/such/file"], "No such file"),
        (["--url", URL, "--claims", "{}", "--token", "x"], "not allowed with"),
        ([], "--url"),
    ],
)
def test_wrong_uses_of_explain_say_what_is_taken(arguments: list[str], words: str, run: Run, policy: Path) -> None:
    said = run("explain", "--policy", policy, *arguments)
    assert (said.status, said.out) == (2, "") and words in said.err


@pytest.mark.parametrize("token", ["e30.e30.c2ln", "e30.e30." + "c2ln" * 200])
def test_a_token_in_the_place_of_its_file_is_not_printed(token: str, run: Run, policy: Path) -> None:
    said = run("explain", "--policy", policy, "--url", URL, "--token", token)
    assert said.status == 2 and "--token: a file" in said.err
    assert "e30.e30" not in said.out + said.err


def test_nor_is_one_in_a_header_without_quotes(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = ["--header", "Authorization:", "Bearer", "e30.e30.c2ln"]
    with pytest.raises(SystemExit) as left:
        main(["policy", "explain", "--policy", str(policy), "--url", URL, *header, "--polcy=x"], {})
    told = capsys.readouterr().err
    assert left.value.code == 2 and "unrecognized arguments: --polcy" in told and "e30" not in told
    with pytest.raises(SystemExit):
        main(["policy", "explain", "--policy", str(policy), "--url", URL, *header], {})
    assert "put in quotes" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["check"], ["explain", "--url", URL], ["test", str(CORPUS / "claims-cases.yaml")]])
def test_policies_have_to_be_named(arguments: list[str], run: Run, tmp_path: Path) -> None:
    if arguments[0] == "test":
        (tmp_path / "cases.yaml").write_text("cases: [{name: a, method: GET, url: 'http://a', expect: deny}]")
        arguments = ["test", str(tmp_path / "cases.yaml")]
    said = run(*arguments)
    assert said.status == 2 and "POLICY_PATH" in said.err


def test_only_settings_of_policies_count(run: Run, policy: Path) -> None:
    said = run("explain", "--url", URL, POLICY_PATH=str(policy), SERVER_PORT="x", POLICY_ALLOWS_ANONYMOUS="perhaps")
    assert said.status == 2
    assert said.out.startswith("POLICY_ALLOWS_ANONYMOUS: ") and "SERVER_PORT" not in said.out


def test_that_the_service_enforces_nothing_is_said(run: Run, policy: Path) -> None:
    said = run("explain", "--json", "--url", URL, "--claims", "{}", "--policy", policy, POLICY_DRY_RUN="true")
    assert said.json["verdict"] == "deny" and "POLICY_DRY_RUN is set" in said.err


def test_nothing_that_is_printed_moves_the_cursor(run: Run, policy: Path) -> None:
    said = run("explain", "--url", URL, "--claims", '{"team": "\\u001b[2J"}', "--policy", policy)
    assert said.status == 0 and "\x1b" not in said.out


def test_every_reason_has_its_words() -> None:
    assert {ground.value for ground in Ground} | {"not_authenticated", "invalid_token", "invalid_audience"} == set(SENTENCES)
    document = DOCUMENT.read_text("utf-8")
    assert not [reason for reason in SENTENCES if f"`{reason}`" not in document]


# --- explain, with a token --------------------------------------------------------------------------


@dataclass
class Tokens:
    """A policy of an issuer's tokens, and how they are made."""

    provider: FakeProvider
    folder: Path
    run: Run

    def write(self, **rule: Any) -> Path:
        """The policy, with these members of its jwtRule."""
        resources = [
            {"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": "p"}, "spec": spec}
            for kind, spec in (
                ("RequestAuthentication", {"jwtRules": [{"issuer": self.provider.issuer, **rule}]}),
                ("AuthorizationPolicy", {"rules": [{"from": [{"source": {"requestPrincipals": ["*"]}}]}]}),
            )
        ]
        file = self.folder / "tokens.yaml"
        file.write_text("\n---\n".join(map(json.dumps, resources)))
        return file

    def explain(self, token: str, policy: Path, *more: str) -> Said:
        (self.folder / "token").write_text(f"{token}\n")
        return self.run("explain", "--json", "--url", URL, "--policy", policy, "--token", self.folder / "token", *more)


@pytest.fixture
def tokens(provider: FakeProvider, tmp_path: Path, run: Run) -> Tokens:
    return Tokens(provider, tmp_path, run)


PLACES: list[dict[str, Any]] = [
    {},
    {"fromHeaders": [{"name": "X-Jwt", "prefix": "Token "}]},
    {"fromParams": ["token"]},
    {"fromCookies": ["session-token"]},
]


@pytest.mark.parametrize("places", PLACES, ids=["usual", "header", "parameter", "cookie"])
def test_a_good_token_is_verified_wherever_the_rule_looks(places: dict[str, Any], tokens: Tokens) -> None:
    said = tokens.explain(tokens.provider.access_token("api"), tokens.write(audiences=["api"], **places))
    assert said.status == 0 and "NOT VERIFIED" not in said.err
    assert (said.json["verdict"], said.json["policy"]) == ("allow", "default/p")


def test_a_bad_token_is_asked_to_authenticate(tokens: Tokens) -> None:
    said = tokens.explain(tokens.provider.access_token("api", key=rsa_key(9)), tokens.write())
    assert said.status == 1
    assert said.json == {"verdict": "authenticate", "reason": "invalid_token", "policy": None, "rule": None, "trace": []}


def test_of_another_issuer_it_is_bad(tokens: Tokens) -> None:
    said = tokens.explain(tokens.provider.access_token("api", iss="https://elsewhere.example"), tokens.write())
    assert (said.status, said.json["reason"]) == (1, "invalid_token")


def test_for_another_audience_it_is_denied(tokens: Tokens) -> None:
    said = tokens.explain(tokens.provider.access_token("web"), tokens.write(audiences=["api"]))
    assert (said.status, said.json["verdict"], said.json["reason"]) == (1, "deny", "invalid_audience")


def test_where_keys_cannot_be_had_nothing_is_said(tokens: Tokens) -> None:
    policy = tokens.write(jwksUri="http://127.0.0.1:1/keys")
    said = tokens.explain(tokens.provider.access_token("api"), policy)
    assert (said.status, said.out) == (3, "") and "a token cannot be verified now: " in said.err


def test_a_token_comes_from_standard_input(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tokens.provider.access_token("api").encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Bearer " + token + b"\n")))
    said = tokens.run("explain", "--json", "--url", URL, "--policy", tokens.write(), "--token", "-")
    assert said.json["verdict"] == "allow"


def test_a_header_of_the_request_counts_as_in_the_service(tokens: Tokens) -> None:
    token = tokens.provider.access_token("api")
    said = tokens.run("explain", "--json", "--url", URL, "--policy", tokens.write(), "--header", f"Authorization: bearer {token}")
    assert said.json["verdict"] == "allow"


def test_without_a_rule_for_the_workload_the_claims_are_unverified_and_that_is_said(tokens: Tokens, policy: Path) -> None:
    said = tokens.explain(tokens.provider.access_token("api", team="red", key=rsa_key(9)), policy)
    assert (said.status, said.json["verdict"]) == (0, "allow")
    assert "THE TOKEN WAS NOT VERIFIED" in said.err
    said = tokens.run("explain", "--url", URL, "--policy", policy, "--token", tokens.folder / "token")
    assert said.out.startswith("THE TOKEN WAS NOT VERIFIED: ") and "\nallow (allow_rule): " in said.out
    said = tokens.explain("abc", policy)
    assert (said.status, said.json["verdict"], said.json["reason"]) == (1, "authenticate", "invalid_token")


def test_explain_and_the_live_service_agree_about_tokens(tokens: Tokens, make_app: Callable[..., Flask]) -> None:
    provider = tokens.provider
    policy = tokens.write(audiences=["api"])
    app = make_app(POLICY_PATH=str(policy))
    past = int(datetime.now(timezone.utc).timestamp()) - 3600
    for token in (
        provider.access_token("api"),
        provider.access_token("web"),
        provider.access_token("api", exp=past),
        provider.access_token("api", iss="https://elsewhere.example"),
        provider.access_token("api", key=rsa_key(9)),
    ):
        said = tokens.explain(token, policy)
        answer = ask(app, "GET", "/x", port=8080, headers={"Host": "a.example", "Authorization": f"Bearer {token}"})
        assert VERDICTS[answer.status] == said.json["verdict"], (answer.status, said)


# --- test -------------------------------------------------------------------------------------------


def test_what_does_not_hold_is_explained_and_counted(run: Run, policy: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(
        "- {name: red reads, method: GET, url: 'https://a.example/', claims: {team: red}, expect: allow}\n"
        "- {name: blue reads, method: GET, url: 'https://a.example/', claims: {team: blue}, expect: allow}\n"
        "- {name: by whom, method: GET, url: 'https://a.example/', claims: {team: red}, expect: allow, policy: default/other, rule: 1}\n"
    )
    said = run("test", cases, "--policy", policy)
    assert said.status == 1
    assert said.out == (
        f"{cases}:2: blue reads: expected allow, and it is deny\n"
        "    deny (no_allow_rule): there are ALLOW policies for this workload, and no rule of theirs matches\n"
        "    workload: *\n"
        "\n"
        "    ALLOW default/readers\n"
        '      rule 0: when[0] request.auth.claims[team]: "blue" is none of "red"\n'
        "\n"
        f"{cases}:3: by whom: expected default/other to decide, and it is default/readers; "
        "expected rule 1 to decide, and it is 0\n"
        "    allow (allow_rule): a rule of an ALLOW policy matches: default/readers rule 0\n"
        "    workload: *\n"
        "\n"
        "    ALLOW default/readers\n"
        "      rule 0: matches\n"
        "\n"
        "3 cases: 2 do not hold.\n"
    )


GOOD = "- {name: a, method: GET, url: 'https://a.example/', expect: deny}"
FAULTY = {
    "": ":1: there are no cases",
    "[]": ":1: cases: there are no cases",
    "a": ":1: a mapping is taken here",
    "cases: []": ":1: cases: there are no cases",
    "settings: {}": ":1: cases are missing",
    f"{GOOD}\n---\n{GOOD}": ":3: a file of cases is a single document",
    "cases: [": ":2: this is not YAML",
    f"case:\n{GOOD}": ':1: case: there is no field "case" here; did you mean cases?',
    f"settings: {{SERVER_PORT: 1}}\ncases:\n{GOOD}": ':1: settings.SERVER_PORT: there is no field "SERVER_PORT" here',
    f"settings: {{POLICY_PATH: [a]}}\ncases:\n{GOOD}": ":1: settings.POLICY_PATH: a setting's text is taken here",
    f"{GOOD}\n{GOOD}": ":2: cases[1].name: the case of line 1 has this name, too",
    "- a": ":1: cases[0]: a mapping is taken here",
    "- {method: GET, url: 'http://a', expect: deny}": ":1: cases[0]: name is missing",
    "- {name: a, url: 'http://a', expect: deny}": ":1: cases[0]: method is missing",
    "- {name: a, method: GET, expect: deny}": ":1: cases[0]: url is missing",
    "- {name: a, method: GET, url: 'http://a'}": ":1: cases[0]: expect is missing",
    "- {name: a, method: GET, url: /a, expect: deny}": ":1: cases[0].url: a URL with scheme and host",
    "- {name: a, method: 'G T', url: 'http://a', expect: deny}": ":1: cases[0].method: an HTTP method",
    "- {name: a, method: GET, url: 'http://a', expect: denied}": ":1: cases[0].expect: taken are allow, deny, authenticate",
    "- name: a\n  method: GET\n  url: http://a\n  expected: deny": ':4: cases[0].expected: there is no field "expected" here; did you mean expect?',
    "- {name: a, method: GET, url: 'http://a', expect: deny, claims: []}": ":1: cases[0].claims: a mapping is taken here",
    "- {name: a, method: GET, url: 'http://a', expect: deny, claims: {}, anonymous: true}": ":1: cases[0].anonymous: who is anonymous has no claims",
    "- {name: a, method: GET, url: 'http://a', expect: deny, anonymous: 1}": ":1: cases[0].anonymous: a boolean is taken here",
    "- {name: a, method: GET, url: 'http://a', expect: deny, headers: {x y: z}}": ":1: cases[0].headers[x y]: this is no header's name",
    "- {name: a, method: GET, url: 'http://a', expect: deny, headers: {x: 1}}": ":1: cases[0].headers.x: text is taken here",
    "- {name: a, method: GET, url: 'http://a', expect: deny, source: x}": ":1: cases[0].source: an IP address is taken here",
    "- {name: a, method: GET, url: 'http://a', expect: deny, policy: readers}": ":1: cases[0].policy: a policy is named with its namespace",
    "- {name: a, method: GET, url: 'http://a', expect: deny, rule: first}": ":1: cases[0].rule: the number of a rule",
    "- {name: a, method: GET, url: 'http://a', expect: deny, rule: -1}": ":1: cases[0].rule: the number of a rule",
    f"- {{name: a, method: GET, url: 'http://a', expect: deny, rule: {'9' * 5000}}}": ":1: cases[0].rule: the number of a rule",
}


@pytest.mark.parametrize("text", FAULTY, ids=itertools.count())
def test_each_slip_in_a_table_is_told_with_its_line(text: str, run: Run, policy: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(text)
    said = run("test", cases, "--policy", policy)
    assert said.status == 2
    assert f"{cases}{FAULTY[text]}" in said.out


def test_a_table_that_is_not_there_or_no_text(run: Run, policy: Path, tmp_path: Path) -> None:
    said = run("test", tmp_path / "absent.yaml", "--policy", policy)
    assert said.status == 2 and "No such file" in said.out
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe")
    assert run("test", tmp_path / "latin.yaml", "--policy", policy).status == 2


def test_a_table_that_is_a_pipe_is_not_waited_for(run: Run, policy: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cases.yaml")
    said = run("test", tmp_path / "cases.yaml", "--policy", policy)
    assert said.status == 2 and "no regular file" in said.out


def test_options_come_before_the_tables_settings_and_these_before_the_environment(run: Run, tmp_path: Path) -> None:
    for name, methods in (("a", "GET"), ("b", "POST")):
        (tmp_path / f"{name}.yaml").write_text(POLICY.replace("GET", methods).replace("red", "blue"))
    cases = tmp_path / "cases.yaml"
    case = "{name: a, method: GET, url: 'https://a.example/', claims: {team: blue}, expect: allow}"
    cases.write_text(f"settings: {{POLICY_PATH: a.yaml}}\ncases: [{case}]")
    assert run("test", cases, POLICY_PATH=str(tmp_path / "b.yaml")).status == 0
    assert run("test", cases, "--policy", tmp_path / "b.yaml").status == 1
    assert run("test", cases, "--workloads", "b.example: {namespace: default}").status == 1


def test_several_tables_are_counted_together(run: Run) -> None:
    said = run("test", CORPUS / "tokens-cases.yaml", CORPUS / "anonymous-cases.yaml")
    assert (said.status, said.out) == (0, "13 cases: all hold.\n")


def test_numbers_and_nothing_are_claims_of_their_kind(tmp_path: Path) -> None:
    cases = tmp_path / "cases.yaml"
    claims = "{n: 1_000, h: 0x10, f: 1.5, t: true, x: null, l: [1, a, {b: c}], i: .inf}"
    cases.write_text(f"- {{name: a, method: GET, url: 'http://a', claims: {claims}, expect: deny}}")
    assert read_cases(cases).cases[0].asked.claims == {
        "n": 1000, "h": 16, "f": 1.5, "t": True, "x": None, "l": [1, "a", {"b": "c"}], "i": 0,
    }  # fmt: skip


def test_the_readmes_example_works(run: Run, tmp_path: Path) -> None:
    section = (ROOT / "README.md").read_text("utf-8").partition("## Who may do what\n")[2].partition("\n## ")[0]
    (tmp_path / "policy.yaml").write_text(section.partition("```yaml\n")[2].partition("```")[0])
    workloads = re.findall("POLICY_WORKLOADS='(.*)'", section)[0]
    url, claims = re.findall("explain --url (.*) --claims '(.*)'", section)[0]
    settings = {"POLICY_PATH": str(tmp_path / "policy.yaml"), "POLICY_WORKLOADS": workloads}
    assert run("check", **settings).status == 0
    assert run("explain", "--json", "--url", url, "--claims", claims, **settings).json["verdict"] == "allow"


def test_the_documents_explanation_is_what_is_printed(recipes: Path, run: Run) -> None:
    command, printed = re.findall(
        r"```sh\nauthservice policy (explain [^`]*)```[^`]*```\n([^`]*)```", DOCUMENT.read_text("utf-8")
    )[0]
    settings = {"POLICY_PATH": str(recipes / "services.yaml"), "POLICY_WORKLOADS": str(recipes / "workloads.yaml")}
    assert run(*shlex.split(command.replace("\\\n", "")), **settings).out == printed


def test_the_document_names_what_there_is() -> None:
    document = DOCUMENT.read_text("utf-8")
    numbers = {metric.full_name for metric in Metric} | {metric.one() for metric in Metric if not metric.values}
    assert not set(re.findall(r"`(authservice_\w+)`", document)) - numbers
    settings = {row.name for row in ROWS}
    assert not set(re.findall(r"`(POLICY_[A-Z_]*[A-Z]|EXPLAIN_\w+)", document)) - settings
    for name in settings:
        assert not name.startswith("POLICY_") or f"`{name}" in document, name


# --- as a process -----------------------------------------------------------------------------------


def test_a_real_process_needs_nothing_but_the_policies(recipes: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "authservice.cli", "policy"]

    def ran(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=recipes, env={**environ, **more}, capture_output=True, text=True, timeout=60
        )

    assert ran("check", "backend-authz.yaml").returncode == 0
    assert ran("test", "backend-authz-cases.yaml").stdout == "5 cases: all hold.\n"
    said = ran(
        "explain", "--json", "--url", "https://backend.example.com/ü".replace("ü", "%C3%BC"), "--claims", '{"email": "ü"}',
        POLICY_PATH="backend-authz.yaml", POLICY_WORKLOADS="workloads.yaml",
    )  # fmt: skip
    assert said.returncode == 0 and json.loads(said.stdout)["verdict"] == "deny", said.stderr
