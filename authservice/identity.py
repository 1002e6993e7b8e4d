"""Who somebody is, how claims become that, and how it is told to the application.

`Identity` carries everything that authorizers and header rendering need, so nobody reads
credentials twice. Claims that passed verification have their own type, `VerifiedClaims`; only
the code that verified a signature, or asked the provider over an authenticated channel, makes one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Protocol
from urllib.parse import quote

import re2

from authservice.errors import IdentityUnusable

MAX_USER_ID = 255  # characters (OpenID Connect Core 1.0 §2, "sub")
MAX_GROUPS = 10_000
MAX_GROUP = 1024  # characters of one group's name
MAX_HEADER = 16 * 1024  # bytes of one header's value
MOST_JOINTS = 5
"""Dashes and underscores in the name of a header that nobody else may send: each doubles its spellings."""


class AuthMethod(str, Enum):
    """How the credential came: the value of the ``AUTH_METHOD_HEADER``."""

    COOKIE = "cookie"
    HEADER = "header"

    # They equal their texts, so they hash like them; Enum's own hash is that of the name, and slow.
    __hash__ = str.__hash__


class VerifiedClaims(Mapping[str, Any]):
    """Claims whose origin was proven. A read-only mapping; made by `authservice.oidc` only
    (and from a stored session, which holds nothing else)."""

    __slots__ = ("_claims",)

    def __init__(self, claims: Mapping[str, Any]) -> None:
        self._claims = dict(claims)

    def __getitem__(self, name: str) -> Any:
        return self._claims[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._claims)

    def __len__(self) -> int:
        return len(self._claims)

    def get(self, name: str, default: Any = None) -> Any:
        return self._claims.get(name, default)

    def whole(self) -> Mapping[str, Any]:
        """All of them, for who looks for more than one or two."""
        return self._claims


@dataclass(frozen=True, slots=True)
class Identity:
    """A person or program that proved who it is.

    ``user_id`` is the claim's value before transformers and prefix. ``expires`` (aware) is when
    the proof stops being one, or ``None`` when only its carrier knows. ``uid`` tells accounts of one
    name apart that came after each other: only Kubernetes has it.
    """

    user_id: str
    groups: tuple[str, ...]
    claims: VerifiedClaims
    method: AuthMethod
    issuer: str
    expires: datetime | None = None
    uid: str = ""
    made: dict[object, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What others made of this identity once and need at each check, by its maker."""


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """Which claims make an identity, and what they must be like.

    ``userid_claim`` and ``groups_claim`` are claim names or dotted paths (``realm_access.roles``);
    an empty ``groups_claim`` means that nobody has groups.
    """

    userid_claim: str
    groups_claim: str
    lowercase: bool = False
    require_verified_email: bool = False


_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def from_claims(
    claims: VerifiedClaims,
    rules: ClaimRules,
    *,
    method: AuthMethod,
    issuer: str,
    expires: datetime | None = None,
) -> Identity:
    """The identity that verified claims prove: the one rule for every kind of credential.

    The user id is compared and kept exactly, without trimming; ``lowercase`` changes ASCII letters
    only, so that no look-alike letter ends up as another account. Groups may be a list, one string,
    ``null`` or absent; whatever in them is not text names no group.

    Raises `IdentityUnusable`: with ``login_status`` 502 when the user id is missing, is not text,
    is longer than `MAX_USER_ID` or has control characters; with 403 for a mail address with blanks
    or more than one ``@`` (as user id or as claim ``email``), for one that is not verified where
    that is required (only the boolean true counts), and for more than `MAX_GROUPS` groups or one
    longer than `MAX_GROUP`: to cut them would change what they grant.
    """
    user_id = _user_id(find_claim(claims, rules.userid_claim), rules.userid_claim)
    for address in (user_id, claims.get("email")):
        if isinstance(address, str) and "@" in address and not _is_plain_address(address):
            raise IdentityUnusable(
                "a mail address has blanks, control characters or more than one @",
                public="The e-mail address of your account cannot be used here.",
            )
    if rules.require_verified_email and claims.get("email_verified") is not True:
        raise IdentityUnusable(
            "the claim email_verified is not true",
            public="The e-mail address of your account is not verified.",
        )
    return Identity(
        user_id=user_id.translate(_ASCII_LOWER) if rules.lowercase else user_id,
        groups=_groups(find_claim(claims, rules.groups_claim)) if rules.groups_claim else (),
        claims=claims,
        method=method,
        issuer=issuer,
        expires=expires,
    )


def find_claim(claims: Mapping[str, Any], path: str) -> Any:
    """The value of a claim by its name or dotted path; ``None`` when there is none.

    At each level a claim whose name is the whole rest of the path wins over a path through it
    (``https://x.example/groups``), and a longer name over a shorter one.
    """
    if path in claims:
        return claims[path]
    dot = path.rfind(".")
    while dot > 0:
        inner = claims.get(path[:dot])
        if isinstance(inner, Mapping):
            found = find_claim(inner, path[dot + 1 :])
            if found is not None:
                return found
        dot = path.rfind(".", 0, dot)
    return None


_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # controls, line ends, half pairs
_HALF_PAIR = re.compile(r"[\ud800-\udfff]")
_TOO_MUCH = "Your account has more groups, or longer names, than this site can pass on."


def _user_id(value: Any, claim: str) -> str:
    problem = None
    if value is None or value == "":
        problem = "is missing or empty"
    elif not isinstance(value, str):
        problem = "is not text"
    elif len(value) > MAX_USER_ID:
        problem = f"has more than {MAX_USER_ID} characters"
    elif _UNFIT.search(value) or value.isspace():
        problem = "has control characters or nothing but blanks"
    if problem:
        raise IdentityUnusable(f"the user id claim {claim} {problem}", login_status=502)
    return value


def _is_plain_address(text: str) -> bool:
    return text.count("@") == 1 and not _UNFIT.search(text) and not any(map(str.isspace, text))


def _groups(value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    if len(names) > MAX_GROUPS:
        raise IdentityUnusable(f"there are more than {MAX_GROUPS} groups", public=_TOO_MUCH)
    groups = tuple(dict.fromkeys(name for name in names if isinstance(name, str) and _is_text(name)))
    if any(len(name) > MAX_GROUP for name in groups):
        raise IdentityUnusable(f"a group's name has more than {MAX_GROUP} characters", public=_TOO_MUCH)
    return groups


def _is_text(name: str) -> bool:
    """Not empty, and without half a surrogate pair: JSON can hold one, UTF-8 cannot."""
    return name != "" and not _HALF_PAIR.search(name)


class Transformers:
    """The rules of ``USERID_TRANSFORMERS``: the first whose pattern is found anywhere is applied
    to all its matches. Go's regular expressions and replacement language, in linear time."""

    def __init__(self, rules: Iterable[_Rule] = ()) -> None:
        self._rules = tuple(rules)

    @classmethod
    def parse(cls, json_text: str) -> Transformers:
        """Reads a JSON array of ``{"matches": pattern, "replaces": replacement}``; ``null`` has no
        rules and other keys are ignored. Raises `ValueError` with every problem, one a line."""
        try:
            entries = json.loads(json_text)
        except json.JSONDecodeError as error:
            raise ValueError(f"this is not JSON (at position {error.pos})") from None
        except RecursionError:
            raise ValueError("this is nested too deeply") from None
        if entries is None:
            return cls()
        if not isinstance(entries, list):
            raise ValueError("this must be a JSON array of rules")
        problems: list[str] = []
        rules = []
        for position, entry in enumerate(entries, start=1):
            try:
                rules.append(_Rule.read(entry))
            except ValueError as error:
                problems.append(f"rule {position}: {error}")
        if problems:
            raise ValueError("\n".join(problems))
        return cls(rules)

    def apply(self, user_id: str) -> str:
        """The user id as applications shall see it; possibly empty."""
        for rule in self._rules:
            replaced = rule.replace(user_id)
            if replaced is not None:
                return replaced
        return user_id


# What follows a "$" in Go's Regexp.Expand: another one, or a name in braces or without.
_REFERENCE = re.compile(r"\$(?:(\$)|\{(\w+)\}|(\w+))")
_QUIET = re2.Options()
_QUIET.log_errors = False


class _Rule:
    """One pattern with its replacement, as literal pieces and numbers of groups."""

    def __init__(self, pattern: Any, pieces: list[str | int]) -> None:
        self._pattern = pattern
        self._pieces = pieces

    @classmethod
    def read(cls, entry: Any) -> _Rule:
        if not isinstance(entry, dict):
            raise ValueError("a rule is an object with matches and replaces")
        matches, replaces = entry.get("matches"), entry.get("replaces")
        if not isinstance(matches, str) or not isinstance(replaces, str):
            raise ValueError("matches and replaces must both be there and be strings")
        if _HALF_PAIR.search(matches + replaces):
            raise ValueError("half of a surrogate pair")
        if "C" in re.findall(r"\\(.)", matches, re.DOTALL):
            raise ValueError("matches is no regular expression (RE2): \\C would cut characters into bytes")
        try:
            pattern = re2.compile(matches, _QUIET)
        except re2.error as error:
            raise ValueError(f"matches is no regular expression (RE2): {_explain(error, matches)}") from None
        return cls(pattern, _pieces(replaces, pattern))

    def replace(self, text: str) -> str | None:
        """The text with all matches replaced, or ``None`` when there is none. Of an empty match
        right behind another one Go takes no notice."""
        parts: list[str] = []
        end = 0
        found = False
        for match in self._pattern.finditer(text):
            found = True
            start, stop = match.span()
            if stop == start == end and start > 0:
                continue
            parts.append(text[end:start])
            parts += [piece if isinstance(piece, str) else match.group(piece) or "" for piece in self._pieces]
            end = stop
        return "".join(parts) + text[end:] if found else None


def _explain(error: Exception, pattern: str) -> str:
    """The engine's words, and where in the pattern the piece that they quote begins."""
    words = error.args[0] if error.args else ""
    words = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
    at = pattern.rfind(words.partition(": ")[2])
    return f"{words} (at position {at})" if at >= 0 else words


def _pieces(replacement: str, pattern: Any) -> list[str | int]:
    """Go's replacement language: ``$name`` takes the longest run of letters, digits and ``_``, a
    group that does not exist is empty, and a ``$`` that begins no reference is itself."""
    pieces: list[str | int] = []
    end = 0
    for match in _REFERENCE.finditer(replacement):
        pieces.append(replacement[end : match.start()])
        end = match.end()
        dollar, braced, bare = match.groups()
        name = braced or bare
        if dollar:
            pieces.append("$")
        elif name.isascii() and name.isdigit() and (name == "0" or name[0] != "0"):
            if len(name) < 9 and int(name) <= pattern.groups:
                pieces.append(int(name))
        elif name in pattern.groupindex:
            pieces.append(pattern.groupindex[name])
    pieces.append(replacement[end:])
    return [piece for piece in pieces if piece != ""]


_JOINT = re.compile("[-_]")
_VISIBLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_VISIBLE_IN_GROUPS = _VISIBLE.replace(",", "")
_PLAIN_VALUE = re.compile(r"[!-$&-~](?:[ -$&-~]*[!-$&-~])?")
_PLAIN_GROUP = re.compile(r"[!-$&-+\--~](?:[ -$&-+\--~]*[!-$&-+\--~])?")


def header_value(text: str) -> str:
    """Text as a header's value: UTF-8 bytes outside printable ASCII, ``%``, and blanks at either
    end as ``%XX``. Percent-decoding gives the text back, so no two texts look the same."""
    return text if _PLAIN_VALUE.fullmatch(text) else _escape(text, _VISIBLE)


def group_value(name: str) -> str:
    """One group in the groups header: as `header_value`, and ``,`` escaped too, so that splitting
    the header at its commas and decoding gives exactly the groups (B18)."""
    return name if _PLAIN_GROUP.fullmatch(name) else _escape(name, _VISIBLE_IN_GROUPS)


def _escape(text: str, visible: str) -> str:
    core = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    after = len(text) - before - len(core) if core else 0
    try:
        return "%20" * before + quote(core, safe=visible) + "%20" * after
    except UnicodeEncodeError:
        raise IdentityUnusable("an identity holds half of a surrogate pair") from None


class FurtherHeaders(Protocol):
    """Headers that tell more of an identity than who it is."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def values(self, identity: Identity) -> Iterable[tuple[str, str]]:
        """Those of the names that this identity has a value for, printable ASCII on one line, each once. Raises
        `IdentityUnusable`."""


class IdentityHeaders:
    """What the application is told, and what nobody else may tell it (B7, G07, G39).

    A header with an empty name is switched off. Raises `ValueError` when two have one name.
    """

    def __init__(
        self,
        userid_header: str,
        groups_header: str,
        auth_method_header: str,
        userid_prefix: str = "",
        transformers: Transformers | None = None,
        further: Sequence[FurtherHeaders] = (),
    ) -> None:
        self._further = tuple(further)
        self._further_names = tuple(name.lower() for one in further for name in one.names)
        names = [name.lower() for name in (userid_header, groups_header, auth_method_header) if name]
        names += self._further_names
        if len(set(names)) != len(names):
            raise ValueError("two identity headers have the same name")
        self._userid_header = userid_header
        self._groups_header = groups_header
        self._auth_method_header = auth_method_header
        self._prefix = userid_prefix
        self._transformers = transformers or Transformers()
        self._spellings = other_spellings(names)
        self.names = (*names, *self._spellings)
        """Every name that is an identity header to some application."""

    def render(self, identity: Identity | None) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
        """The headers to set, each once, and the names to remove; never one name in both.

        Values are printable ASCII on one line (see `header_value`, `group_value`). Without an
        identity every header is to be removed, and with one those that there is no value for. Raises
        `IdentityUnusable` for a value of more than `MAX_HEADER` bytes and for a user id that the
        transformers leave empty.
        """
        if identity is None:
            return (), self.names
        headers = []
        if self._userid_header:
            headers.append((self._userid_header, header_value(self.told_user_id(identity))))
        if self._groups_header:
            headers.append((self._groups_header, ",".join(map(group_value, filter(None, identity.groups)))))
        if self._auth_method_header:
            headers.append((self._auth_method_header, identity.method.value))
        for one in self._further:
            headers += one.values(identity)
        for name, value in headers:
            if len(value) > MAX_HEADER:
                raise IdentityUnusable(f"{name} would have more than {MAX_HEADER} bytes", public=_TOO_MUCH)
        if not self._further:
            return tuple(headers), self._spellings
        told = {name.lower() for name, _ in headers}
        return tuple(headers), (*(name for name in self._further_names if name not in told), *self._spellings)

    def told_user_id(self, identity: Identity) -> str:
        """The user id as the application knows it. Raises `IdentityUnusable` for one that the transformers
        leave empty."""
        user_id = self._transformers.apply(identity.user_id)
        if not user_id:
            raise IdentityUnusable("the user id is empty after its transformers")
        return self._prefix + user_id


def other_spellings(names: Iterable[str]) -> tuple[str, ...]:
    """Names that an application behind CGI or WSGI takes for these: each dash may be an underscore and
    the reverse, in both cases for gateways that compare exactly. Never one of the names themselves
    (in lower case), for in Envoy removal wins over setting whatever the case."""
    names = tuple(names)
    spellings = dict.fromkeys(spelling for name in names for spelling in _spellings(name))
    others = [spelling for spelling in spellings if spelling not in names]
    return tuple(case for spelling in others for case in (spelling, spelling.upper()))


def has_too_many_spellings(name: str) -> bool:
    """Whether a header's name has more than `MOST_JOINTS` dashes and underscores."""
    return len(_JOINT.findall(name)) > MOST_JOINTS


def _spellings(name: str) -> list[str]:
    first, *words = _JOINT.split(name)
    found = [first]
    for word in words:
        found = [f"{before}{joint}{word}" for before in found for joint in "-_"]
    return found
