"""``authservice policy``: what it says of policies and requests, and that the live service says the same.

The corpus is the files of `tests/data/policies/corpus` and the recipes of `docs/policies.md`: each case is asked
of ``explain`` and of a whole service, to which its claims come as a cookie session's.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
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
from authservice.policy.question import Ground
from authservice.rehearsal.asked import parts_of
from authservice.rehearsal.cases import Case, read_cases
from authservice.sessions import Session
from tests.conftest import Answer, ask
from tests.provider import FakeProvider, rsa_key

ROOT = Path(__file__).parent.parent
CORPUS = Path(__file__).parent / "data" / "policies" / "corpus"
DOCUMENT = ROOT / "docs" / "policies.md"
FILES = {
    name: text for text, name in re.findall(r"```yaml\n(# (\S+\.yaml)\n.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
}
"""What the document says can be saved under these names."""

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
