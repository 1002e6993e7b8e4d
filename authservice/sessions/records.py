"""A session's record as bytes: written as text, sealed with its secret, and read back.

Owns the plaintext's form and nothing else; `sessions.seal` is what makes it unreadable without the
cookie. Called by `sessions.live`.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from authservice.errors import ProviderWrong
from authservice.sessions import Session
from authservice.sessions.seal import open_record, seal_record

_DECODER = msgspec.json.Decoder(Session)


def encode(session: Session) -> bytes:
    """The record's plaintext. JSON, because claims come from JSON: msgpack has no integers beyond 64
    bits. Raises `errors.ProviderWrong` when the claims hold what no encoding can keep."""
    try:
        return msgspec.json.encode(session)
    except (TypeError, UnicodeError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise ProviderWrong(f"the claims cannot be stored ({type(error).__name__})") from None


def sealed(secret: str, session: Session) -> bytes:
    """What a store keeps. Raises as `encode`."""
    return seal_record(secret, encode(session))


def opened(secret: str, value: bytes) -> Session | None:
    """The session that was kept so under this secret; ``None`` for all else."""
    plaintext = open_record(secret, value)
    if plaintext is None:
        return None
    try:
        return _DECODER.decode(plaintext)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def but_for_marks(session: Session) -> Session:
    """What of a record is not changed by marking it as seen, or by a new label."""
    return msgspec.structs.replace(session, last_seen=session.created, label_key="", labelled=None)


def seen_at(session: Session, at: datetime) -> Session:
    """Never seen earlier than before: another process's clock, or ours, may have been ahead."""
    return msgspec.structs.replace(session, last_seen=max(session.last_seen, at))
