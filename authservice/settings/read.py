"""From environment variables to settings, or to everything that is wrong with them.

`examine` finds the text of each setting (the variable, the file that ``NAME_FILE`` names, or the
default), parses it, completes what depends on other settings, and applies the rules between
settings. It never stops at the first problem, and shows no value that is, or could hold, a secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from authservice.errors import SettingsError
from authservice.settings import rules
from authservice.settings.addresses import derive
from authservice.settings.derived import Settings
from authservice.settings.names import strange_names
from authservice.settings.table import CONTEXT_PREFIX, ROWS, Row

MAX_FILE_BYTES = 65536
_SHOWN = 60


@dataclass(frozen=True)
class Examined:
    """What the environment says. ``settings`` is there exactly when there are no problems."""

    settings: Settings | None
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in these environment variables (the process's own by default).

    Raises `errors.SettingsError` with all problems and warnings.
    """
    found = examine(environ)
    if found.settings is None:
        raise SettingsError(list(found.problems), list(found.warnings))
    return found.settings


def examine(environ: Mapping[str, str] | None = None) -> Examined:
    """Like `load`, but tells problems and warnings instead of raising."""
    return _Reading(os.environ if environ is None else environ).examine()


def some(names: Collection[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """The values of these settings by themselves, under their names in lower case, whatever is wrong with
    others. Raises `errors.SettingsError`."""
    reading = _Reading(environ)
    for row in (row for row in ROWS if row.name in names):
        reading.find(row)
    if reading.problems:
        raise SettingsError(reading.problems)
    return reading.values


@dataclass
class _Reading:
    """One pass over the environment."""

    environ: Mapping[str, str]
    texts: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)

    def examine(self) -> Examined:
        for row in ROWS:
            self._find_text(row)
        for row in ROWS:
            self._parse(row)
        self._complete()
        self.problems += self._apply(rules.PROBLEMS)
        known, secrets = [row.name for row in ROWS], [row.name for row in ROWS if row.secret]
        warnings = [*strange_names(self.environ, known, secrets), *self._apply(rules.WARNINGS)]
        settings = None
        if not self.problems:
            settings = Settings(**self.values, warnings=tuple(warnings))
        return Examined(settings, tuple(self.problems), tuple(warnings))

    def find(self, row: Row) -> None:
        """Reads one setting."""
        self._find_text(row)
        self._parse(row)

    def _find_text(self, row: Row) -> None:
        """Puts the setting's text into ``texts``; leaves it out when it is not set at all."""
        file = self.environ.get(f"{row.name}_FILE", "") if row.secret else ""
        if not file:
            if row.name in self.environ:
                self.texts[row.name] = self.environ[row.name]
        elif row.name in self.environ:
            self.unreadable.add(row.name)
            self.problems.append(f"{row.name}: both {row.name} and {row.name}_FILE are set. Set one of them.")
        else:
            try:
                self.texts[row.name] = _file_text(Path(file))
            except OSError as error:
                self._file_problem(row, error.strerror or type(error).__name__)
            except ValueError as error:
                self._file_problem(row, str(error))

    def _file_problem(self, row: Row, reason: str) -> None:
        self.unreadable.add(row.name)
        self.problems.append(f"{row.name}_FILE: the file cannot be used ({reason}). Takes a readable one.")

    def _parse(self, row: Row) -> None:
        if row.name in self.unreadable:
            return
        text = self.texts.get(row.name, row.default)
        if text is None:
            if not self._excused(row.name):
                self.problems.append(_missing(row))
                return
            text = ""
        try:
            text.encode()
            self.values[row.name.lower()] = row.kind.parse(text)
        except UnicodeEncodeError:
            self.problems.append(self._problem(row, text, "not UTF-8 text"))
        except ValueError as error:
            self.problems.append(self._problem(row, text, "; ".join(str(error).splitlines())))

    def _excused(self, name: str) -> bool:
        """A client that authenticates with a private key needs no client secret."""
        return name == "CLIENT_SECRET" and self.texts.get("OIDC_CLIENT_AUTH_METHOD") == "private_key_jwt"

    def _problem(self, row: Row, text: str, reason: str) -> str:
        hint = ""
        if text[:1] in ("'", '"') and text[-1:] == text[:1] and len(text) > 1:
            hint = " (the quotes are part of the value)"
        elif text != text.strip():
            hint = " (there are blanks around it)"
        elif text.startswith("tcp://"):
            hint = " (from a Kubernetes Service of this name? enableServiceLinks: false keeps them out)"
        return f"{row.name}: {self._shape(row, text)}: {reason}{hint}. Takes {row.kind.takes}."

    def _shape(self, row: Row, text: str) -> str:
        """What a value looks like; the value itself only when there is nothing to hide in it."""
        if not text:
            return "set to nothing"
        count = f"{len(text)} character" + ("s" if len(text) > 1 else "")
        if row.secret or self._may_hold_secret(text):
            return count
        return f"{ascii(text)}, {count}" if len(text) <= _SHOWN else f"{ascii(text[:_SHOWN])}..., {count}"

    def _may_hold_secret(self, text: str) -> bool:
        secrets = [self.texts.get(row.name, "") for row in ROWS if row.secret]
        alike = any(
            (len(secret) > 3 and secret in text) or (len(text) > 3 and text in secret) for secret in secrets
        )
        return alike or "@" in text or "-----BEGIN" in text

    def _complete(self) -> None:
        """Fills in what depends on other settings."""
        values = self.values
        values["template_context"] = MappingProxyType({
            name[len(CONTEXT_PREFIX):]: text
            for name, text in self.environ.items()
            if name.startswith(CONTEXT_PREFIX) and name != CONTEXT_PREFIX
        })
        values["kubernetes_environ"] = MappingProxyType({
            name: self.environ[name] for name in _OF_KUBERNETES if name in self.environ
        })
        prefix = values.get("authservice_url_prefix")
        if prefix is not None:
            for name, tail in _BELOW_PREFIX.items():
                if values.get(name) == "":
                    values[name] = derive(prefix, tail)
        if values.get("post_logout_redirect_url") == "":
            values["post_logout_redirect_url"] = values.get("after_logout_url", "")
        if self.texts.get("ACCESS_TOKEN_AUTHN_ENABLED") is not None and "access_token_authn" not in values:
            self._forgive_unused_access_token_kind()
        if "session_store_redis_addr" in values:
            self._spread_redis_address()

    def _forgive_unused_access_token_kind(self) -> None:
        """As ever: ``ACCESS_TOKEN_AUTHN`` is looked at only where access tokens are accepted."""
        if self.values.get("access_token_authn_enabled") is False:
            self.values["access_token_authn"] = "jwt"
            self.problems = [line for line in self.problems if not line.startswith("ACCESS_TOKEN_AUTHN:")]

    def _spread_redis_address(self) -> None:
        """Moves what the Redis URL says beside the address to the settings of their own."""
        redis = self.values["session_store_redis_addr"]
        self.values["session_store_redis_addr"] = redis.address
        parts = {
            "session_store_redis_username": redis.username,
            "session_store_redis_pwd": redis.password,
            "session_store_redis_db": redis.db,
        }
        for name, told in parts.items():
            if told is None or (name != "session_store_redis_db" and not told) or name not in self.values:
                continue
            if self.texts.get(name.upper()) and self.values[name] != told:
                self.problems.append(
                    f"{name.upper()}: differs from what the URL in SESSION_STORE_REDIS_ADDR says. "
                    "Set one of them."
                )
            self.values[name] = told

    def _apply(self, wanted: tuple[Callable[..., Iterator[str]], ...]) -> list[str]:
        """The lines of all rules whose settings could be read. A rule names them as its parameters."""
        known = {**self.values, "texts": self.texts}
        lines: list[str] = []
        for rule in wanted:
            names = rule.__code__.co_varnames[: rule.__code__.co_argcount]
            if all(name in known for name in names):
                lines += rule(*(known[name] for name in names))
        return lines


# Not settings of ours: what pods and people's shells have anyway. `authservice.kubernetes` reads them.
_OF_KUBERNETES = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBECONFIG", "HOME")

_BELOW_PREFIX = {
    "redirect_url": "oidc/callback",
    "verify_auth_url": "verify",
    "homepage_url": "site/homepage",
    "after_logout_url": "site/after_logout",
}


def _missing(row: Row) -> str:
    example = f", for example {row.example}" if row.example else ""
    file = f" {row.name}_FILE may name a file instead." if row.secret else ""
    return f"{row.name}: not set. Takes {row.kind.takes}{example}.{file}"


def _file_text(path: Path) -> str:
    """A file's text without one line break at its end. Raises OSError and ValueError."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    if "\0" in text:
        raise ValueError("not text")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
