"""``BEARER_ISSUERS``: further issuers whose access tokens are accepted, as JSON.

Turns the text (or the file that it names) into `BearerIssuer` values, with every problem named by
its place in the list. What a token of such an issuer must be like is `authservice.oidc`' to know.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authservice.settings import addresses
from authservice.settings.kinds import Kind

MAX_FILE_BYTES = 1 << 20
_REQUIRED = ("issuer", "audiences")
_OPTIONAL = ("jwks_url", "userid_claim", "groups_claim", "ca_bundle")


@dataclass(frozen=True, slots=True)
class BearerIssuer:
    """One further issuer. Empty optional members stand for: discovery, ``USERID_CLAIM``,
    ``GROUPS_CLAIM``, and the authorities of ``CA_BUNDLE``."""

    issuer: str
    audiences: tuple[str, ...]
    jwks_url: str = ""
    userid_claim: str = ""
    groups_claim: str = ""
    ca_bundle: Path | None = None


def parse(text: str) -> tuple[BearerIssuer, ...]:
    """The issuers, in order; nothing for an empty text. Raises `ValueError` with every problem, one
    a line: not JSON, no list, an unknown or missing member, a member of the wrong form, two
    entries of one issuer."""
    if not text.strip():
        return ()
    entries = _read(text.strip())
    problems: list[str] = []
    issuers = []
    for position, entry in enumerate(entries, start=1):
        found = _problems(entry)
        problems += [f"entry {position}: {problem}" for problem in found]
        if not found:
            issuers.append(_issuer(entry))
    names = [issuer.issuer for issuer in issuers]
    problems += [f"an issuer is there {names.count(name)} times" for name in dict.fromkeys(names)
                 if names.count(name) > 1]
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(issuers)


BEARER_ISSUERS = Kind(
    parse,
    'a JSON list of {"issuer": …, "audiences": […]}, optionally with jwks_url, userid_claim, groups_claim and '
    "ca_bundle, or the path of a file that holds it",
)


def _read(text: str) -> list[Any]:
    if not text.startswith("["):
        try:
            with Path(text).open("rb") as file:
                text = file.read(MAX_FILE_BYTES).decode()
        except (OSError, UnicodeDecodeError, ValueError):
            raise ValueError("neither a JSON list nor a file that can be read") from None
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("this is not JSON") from None
    if not isinstance(entries, list):
        raise ValueError("this is no list")
    return entries


def _problems(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return ["no object"]
    problems = [f"{name} is missing" for name in _REQUIRED if name not in entry]
    problems += [f"unknown member {name[:40]!r}" for name in entry if name not in (*_REQUIRED, *_OPTIONAL)]
    problems += [
        f"{name} is no text" for name in entry if name in ("issuer", *_OPTIONAL) and not isinstance(entry[name], str)
    ]
    audiences = entry.get("audiences", ["x"])
    if not isinstance(audiences, list) or not audiences or not all(isinstance(a, str) and a for a in audiences):
        problems.append("audiences is no list of texts, or an empty one")
    if problems:
        return problems
    for name, kind in (("issuer", addresses.ISSUER), ("jwks_url", addresses.ENDPOINT)):
        try:
            kind.parse(entry.get(name, "https://x.example"))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return problems


def _issuer(entry: dict[str, Any]) -> BearerIssuer:
    bundle = entry.get("ca_bundle", "")
    return BearerIssuer(
        issuer=entry["issuer"],
        audiences=tuple(dict.fromkeys(entry["audiences"])),
        jwks_url=entry.get("jwks_url", ""),
        userid_claim=entry.get("userid_claim", ""),
        groups_claim=entry.get("groups_claim", ""),
        ca_bundle=Path(bundle) if bundle else None,
    )
