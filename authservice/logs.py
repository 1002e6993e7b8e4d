"""One JSON object per line, on standard error: what happened, to which request, and why.

Lines are made here and nowhere else, so that a newline in a header cannot forge one and a known
secret cannot slip into one. The words of events are a closed list (`Event`); the word for why is
`errors.Reason`. What is never logged: queries, cookies, tokens, codes, claims, provider bodies.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from enum import Enum

from authservice.check import CheckRequest

LEVELS = {
    "FATAL": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARN": logging.WARNING,
    "INFO": logging.INFO,
    "DEBUG": logging.DEBUG,
}
"""The names of ``LOG_LEVEL`` (the original's), as the standard library's levels."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_SHORTEST_REDACTED = 6


class Event(str, Enum):
    """What a line of the service's own log can be about."""

    SETTING_NOTE = "setting_note"
    SCHEME_UNKNOWN = "outside_scheme_unknown"
    ALLOWED = "check_allowed"
    DENIED = "check_denied"
    LOGIN_BEGUN = "login_begun"
    LOGIN_LOOP = "login_loop"
    LOGGED_IN = "logged_in"
    LOGIN_REFUSED = "login_refused"
    LOGGED_OUT = "logged_out"
    LOGOUT_REFUSED = "logout_refused"
    NOTICE_REFUSED = "logout_notice_refused"
    NOT_REVOKED = "tokens_not_revoked"
    REVIEWS_FORBIDDEN = "token_reviews_forbidden"
    INVALIDATION_REFUSED = "session_invalidation_refused"
    POLICY_TRIAL = "policy_trial"
    POLICY_AUDIT = "policy_audit"
    POLICIES_TAKEN = "policies_taken"
    POLICIES_REFUSED = "policies_refused"
    OUTAGE_BEGAN = "provider_outage_began"
    OUTAGE_OVER = "provider_outage_over"
    SESSION_OVER = "session_ended_by_provider"
    GATEWAY_LACKS = "gateway_lacks"
    SESSIONS_LOST = "new_tokens_lost"
    UNEXPECTED = "unexpected_error"


class JsonLines(logging.Formatter):
    """Formats a record, and the fields of its ``extra``, as one line of JSON."""

    def __init__(self, known_secrets: Iterable[str] = ()) -> None:
        super().__init__()
        # JSON escapes some characters: look for a secret in the form in which the line holds it.
        spelt = (json.dumps(secret)[1:-1] for secret in known_secrets if len(secret) >= _SHORTEST_REDACTED)
        self._secrets = sorted(spelt, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        line.update((key, _plain(value)) for key, value in fields.items() if value not in (None, ""))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = json.dumps(line)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def configure(level: str, known_secrets: Iterable[str] = ()) -> None:
    """Sends the service's log to standard error at a level of `LEVELS`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(known_secrets))
    logger = logging.getLogger("authservice")
    logger.handlers[:] = [handler]
    logger.setLevel(LEVELS[level])
    logger.propagate = False


def request_id(sent: str) -> str:
    """The gateway's ``X-Request-Id`` where it is one, else a new one."""
    return sent if _REQUEST_ID.fullmatch(sent) else secrets.token_hex(8)


def request_fields(check: CheckRequest, identifier: str) -> dict[str, object]:
    """What a line may tell about a request: never its query."""
    return {
        "request_id": identifier,
        "method": check.method,
        "host": check.host,
        "path": check.target.partition("?")[0][:512],
        "client": check.client,
        "dialect": check.dialect,
    }


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return str(value)
