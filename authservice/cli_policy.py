"""``authservice policy``: are policies right, what do they say of a request, do they keep their promises?

For those who write policies, and for their CI. Needs no service, no session store and no other setting than
those of policies; what a request would be answered is `authservice.rehearsal`'s to say, and the texts are
this module's. Called by `authservice.cli`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from authservice.clock import utc_now
from authservice.errors import SettingsError, Unavailable
from authservice.moments import counted
from authservice.policy.question import Ground, Hit, Step
from authservice.policy.read import read
from authservice.policy.resources import AuthorizationPolicy, PolicyErrors, Resource
from authservice.rehearsal import asked
from authservice.rehearsal.answers import BAD_TOKEN, NO_CREDENTIAL, WRONG_AUDIENCE, Answer, Rehearsal
from authservice.rehearsal.asked import Asked
from authservice.rehearsal.cases import Case, Cases, read_cases
from authservice.rehearsal.means import Means, gather, load, load_anywhere
from authservice.strictjson import BadJson, read_object
from authservice.terminal import carried_out, say, shown

OK, NOT_SO, USAGE_OR_PROBLEMS, NO_KEYS = 0, 1, 2, 3

SENTENCES: Mapping[str, str] = {
    Ground.NO_POLICY.value: "no policy restricts this workload",
    Ground.ALLOW_RULE.value: "a rule of an ALLOW policy matches",
    Ground.DENY_RULE.value: "a rule of a DENY policy matches",
    Ground.NO_ALLOW_RULE.value: "there are ALLOW policies for this workload, and no rule of theirs matches",
    Ground.UNKNOWN_WORKLOAD.value: "POLICY_WORKLOADS does not say what this host and path stand for",
    NO_CREDENTIAL: "nobody is logged in, so the request is asked to authenticate",
    BAD_TOKEN: "the token is not good",
    WRONG_AUDIENCE: "the token is for another audience",
}
"""What each reason means, in words."""

_UNVERIFIED = (
    "THE TOKEN WAS NOT VERIFIED: no RequestAuthentication selects this workload. Its claims are taken as "
    "they stand; the service takes them only from a token that one of its authenticators verified."
)
_MOST_READ = 1 << 20

T = TypeVar("T")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``policy`` with its actions to the command line."""
    policy = commands.add_parser(
        "policy",
        help="check policies, explain what they say of a request, test them against a table",
        description="Works on Istio's policies without a running service. Of the environment only POLICY_PATH, "
        "POLICY_WORKLOADS and the other settings of policies count.",
    )
    actions = policy.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="say everything that is wrong with policies",
        description="Reads policies as a start of the service does. Exit status: 0, or 2 when anything is wrong.",
    )
    check.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="files and folders (default: POLICY_PATH)"
    )
    explain = actions.add_parser(
        "explain",
        help="say what policies answer to one request, and why",
        description="Exit status: 0 when there is a verdict, whichever it is; 1 when the token is not good; 2 for "
        "faulty policies or usage; 3 when the keys for the token cannot be had.",
    )
    _add_request(explain)
    test = actions.add_parser(
        "test",
        help="compare verdicts with those that a table expects",
        description="Exit status: 0 when all cases hold, 1 when one does not, 2 for faulty cases, policies or "
        "usage, 3 when the keys for a token in a case's headers cannot be had.",
    )
    test.add_argument("files", nargs="+", type=Path, metavar="CASES", help="files of cases (YAML)")
    for action in (explain, test):
        action.add_argument(
            "--policy",
            action="append",
            type=Path,
            default=[],
            metavar="PATH",
            help="a file or folder of policies, in place of POLICY_PATH; may be given several times",
        )
    for action in (check, explain, test):
        action.add_argument(
            "--workloads", metavar="MAP", help="a map or a file's path, in place of POLICY_WORKLOADS"
        )
        action.set_defaults(complain=action.error)


def _add_request(explain: argparse.ArgumentParser) -> None:
    explain.add_argument(
        "--method", default="GET", type=_argument(asked.method), help="the request's method (GET)"
    )
    explain.add_argument(
        "--url", required=True, type=_argument(asked.url), help="its URL, with scheme and host"
    )
    who = explain.add_mutually_exclusive_group()
    who.add_argument("--token", metavar="FILE", help="a token, in a file; -: on standard input")
    who.add_argument(
        "--claims", metavar="JSON", help="verified claims; @FILE: in a file; -: on standard input"
    )
    explain.add_argument(
        "--header",
        action="append",
        type=_argument(_header),
        default=[],
        metavar="'NAME: VALUE'",
        help="a header of the request; may be given several times",
    )
    explain.add_argument(
        "--source", type=_argument(asked.address), metavar="ADDRESS", help="who connects to the gateway"
    )
    explain.add_argument(
        "--remote", type=_argument(asked.address), metavar="ADDRESS", help="the client's address"
    )
    explain.add_argument(
        "--peer", default="", metavar="IDENTITY", help="the peer in the mesh, as TRUST-DOMAIN/ns/NAME/sa/NAME"
    )
    explain.add_argument("--json", action="store_true", help="for programs: one JSON object")


def _argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` with its sentence shown by argparse."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError("a header looks like Name: value")
    return asked.header(name.strip(), value)


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Carries out one action; gives the exit status."""
    # What the service would log about keys that cannot be had is told in our own words.
    logging.getLogger("authservice").addHandler(logging.NullHandler())
    return carried_out(lambda: _carry_out(arguments, environ))


def _carry_out(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    action = {"check": _check, "explain": _explain, "test": _test}[arguments.action]
    try:
        return action(arguments, environ)
    except Unavailable as error:
        _tell(f"a token cannot be verified now: {error}")
        return NO_KEYS
    except PolicyErrors as errors:
        _tell_problems([f"{place}: {sentence}" for place, sentence in errors.problems])
    except SettingsError as error:
        _tell_problems(error.problems)
    return USAGE_OR_PROBLEMS


def _options(arguments: argparse.Namespace) -> Mapping[str, str]:
    return {} if arguments.workloads is None else {"POLICY_WORKLOADS": arguments.workloads}


# --- check ------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    means = gather(environ, _options(arguments), policies=arguments.files)
    if not means.paths:
        arguments.complain("name files, or set POLICY_PATH")
    found = load(means) if means.tells_hosts_apart else load_anywhere(means)
    print(_counts(read(means.paths)))
    if not means.tells_hosts_apart:
        print("Which workloads they select was not looked at: --workloads or POLICY_WORKLOADS names them.")
    if found.uses_addresses:
        print("They look at addresses: the service needs the gateway in TRUSTED_PROXIES.")
    if found.uses_peers:
        print("They look at identities in the mesh: the service needs POLICY_PEER_HEADER.")
    return OK


def _counts(resources: Sequence[Resource]) -> str:
    authorization = [one for one in resources if isinstance(one, AuthorizationPolicy)]
    actions = [
        f"{sum(one.action is action for one in authorization)} {action.value}"
        for action in dict.fromkeys(one.action for one in authorization)
    ]
    trial = sum(one.dry_run for one in authorization)
    rules = counted(sum(len(one.rules) for one in resources), "rule")
    kinds = f" ({', '.join(actions)}{f'; {trial} on trial' if trial else ''})" if actions else ""
    return (
        f"AuthorizationPolicy: {len(authorization):,}{kinds}. "
        f"RequestAuthentication: {len(resources) - len(authorization):,}. {rules}. Nothing is wrong."
    )


# --- explain ----------------------------------------------------------------------------------


def _explain(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    means = gather(environ, _options(arguments), policies=arguments.policy)
    _need_policies(means, arguments)
    question = Asked(
        method=arguments.method,
        url=arguments.url,
        headers=asked.joined(arguments.header),
        claims=_claims(arguments),
        token=_token(arguments),
        source=arguments.source,
        remote=arguments.remote,
        peer=arguments.peer,
    )
    answer = Rehearsal(load(means), means, utc_now).ask(question)
    warnings = _warnings(answer, means)
    if arguments.json:
        for warning in warnings:
            _tell(warning)
        print(json.dumps(as_json(answer), ensure_ascii=False))
    else:
        print("\n".join([*warnings, *map(shown, in_words(answer))]))
    return NOT_SO if answer.reason in (BAD_TOKEN, WRONG_AUDIENCE) else OK


def _need_policies(means: Means, arguments: argparse.Namespace) -> None:
    if not means.paths:
        arguments.complain("name policies with --policy, or set POLICY_PATH")


def _claims(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
    if arguments.claims is None:
        return None
    text: str = arguments.claims
    file = text[1:] if text.startswith("@") else text if text == "-" else ""
    try:
        return read_object(_read(arguments, file) if file else os.fsencode(text))
    except BadJson as error:
        arguments.complain(f"argument --claims: a JSON object is taken here ({error})")
        raise


def _token(arguments: argparse.Namespace) -> str:
    if arguments.token is None:
        return ""
    # Whoever gives the token itself for the file's name is not to find it in the log of a CI.
    called = "argument --token: a file's name is taken here, or -"
    text = _read(arguments, arguments.token, called).decode("utf-8", "replace").strip()
    text = text.removeprefix("Bearer ").strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        arguments.complain("argument --token: a single token is taken here, and nothing else")
    return text


def _read(arguments: argparse.Namespace, name: str, called: str = "") -> bytes:
    """A file's bytes, or standard input's for ``-``; ``called`` is what a problem names in place of the file."""
    try:
        if name == "-":
            return sys.stdin.buffer.read(_MOST_READ)
        with open(name, "rb") as file:
            return file.read(_MOST_READ)
    except OSError as error:
        arguments.complain(f"{called or shown(name)}: {error.strerror}")
        raise


def _warnings(answer: Answer, means: Means) -> list[str]:
    said = [_UNVERIFIED] if answer.unverified else []
    if means.dry_run:
        said.append("POLICY_DRY_RUN is set: the service answers as if there were no policies.")
    return said


def as_json(answer: Answer) -> dict[str, Any]:
    """An answer for programs."""
    return {
        "verdict": answer.verdict,
        "reason": answer.reason,
        "policy": answer.hit.policy if answer.hit else None,
        "rule": answer.hit.rule if answer.hit else None,
        "trace": [
            {
                "policy": step.policy,
                "action": step.action,
                "rule": step.rule,
                "matched": step.matched,
                "failed": step.failed,
                "dry_run": step.dry_run,
            }
            for step in answer.steps
        ],
    }


def in_words(answer: Answer) -> list[str]:
    """An answer for people, line by line."""
    decided = f": {_rule_of(answer.hit)}" if answer.hit else ""
    lines = [f"{answer.verdict} ({answer.reason}): {SENTENCES[answer.reason]}{decided}"]
    lines += [f"  {answer.detail}"] if answer.detail else []
    if answer.workload:
        lines.append(f"workload: {answer.workload}")
    if answer.would is not None:
        word = "allow" if answer.would.allowed else "deny"
        by = f": {_rule_of(answer.would.hit)}" if answer.would.hit else ""
        lines.append(f"with the policies on trial: {word}: {SENTENCES[answer.would.ground.value]}{by}")
    lines += [f"audited by {_rule_of(hit)}" for hit in answer.audited]
    policy = ""
    for step in answer.steps:
        if step.policy != policy:
            policy = step.policy
            lines += ["", f"{step.action} {policy}{' (on trial)' if step.dry_run else ''}"]
        lines.append(f"  {_step(step)}")
    return lines


def _rule_of(hit: Hit) -> str:
    return f"{hit.policy} rule {hit.rule}"


def _step(step: Step) -> str:
    name = "no rules" if step.rule is None else f"rule {step.rule}"
    return f"{name}: {'matches' if step.matched else step.failed or 'does not match'}"


# --- test -------------------------------------------------------------------------------------


def _test(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    failed = total = 0
    for path in arguments.files:
        cases = read_cases(path)
        means = gather(environ, _options(arguments), cases.settings, policies=arguments.policy)
        _need_policies(means, arguments)
        failed += _failures(cases, Rehearsal(load(means), means, utc_now))
        total += len(cases.cases)
    does_not = f"{failed} {'does' if failed == 1 else 'do'} not hold"
    print(f"{counted(total, 'case')}: {does_not if failed else 'all hold'}.")
    return NOT_SO if failed else OK


def _failures(cases: Cases, rehearsal: Rehearsal) -> int:
    """How many do not hold; each is printed with what came instead, and why."""
    failed = 0
    for case in cases.cases:
        answer = rehearsal.ask(case.asked)
        wrong = _differences(case, answer)
        if wrong:
            failed += 1
            print(shown(f"{case.place.file}:{case.place.line}: {case.name}: {wrong}"))
            print("".join(f"    {shown(line)}\n" if line else "\n" for line in in_words(answer)))
    return failed


def _differences(case: Case, answer: Answer) -> str:
    """What is not as expected; empty when all is."""
    wrong = []
    if answer.verdict != case.expect:
        wrong.append(f"expected {case.expect}, and it is {answer.verdict}")
    decided = answer.hit
    if case.policy and (decided is None or decided.policy != case.policy):
        wrong.append(
            f"expected {case.policy} to decide, and it is {decided.policy if decided else 'no policy'}"
        )
    if case.rule is not None and (decided is None or decided.rule != case.rule):
        wrong.append(f"expected rule {case.rule} to decide, and it is {decided.rule if decided else 'none'}")
    return "; ".join(wrong)


# --- telling ----------------------------------------------------------------------------------


def _tell_problems(problems: Sequence[str]) -> None:
    for problem in problems:
        print(shown(problem))
    print(f"{counted(len(problems), 'problem')}.")


def _tell(message: str) -> None:
    say(f"authservice policy: {shown(message)}\n")
