"""What the service itself may know of a session without the person's cookie, and how it is found.

Owns the label that a store keeps beside a session's record: metadata sealed by the service's
`Keyring`, and tags that are keyed hashes, so that a copy of the store shows neither who is logged in
nor how many users there are behind one address. Only that two sessions bear the same tag is seen.
Called by `sessions.live`, which writes labels, and `sessions.directory`, which reads them.
"""

from __future__ import annotations

import json

import msgspec

from authservice.sessions import Label, Labelled, Moment, Session
from authservice.sessions.seal import Keyring

LONGEST_USER_AGENT = 200
LONGEST_TEXT = 1000
"""Characters; a label is for people to read, and has to fit into what can be sealed."""

_BLOCK = 256
"""Bytes of metadata come in multiples of this: their number says little about what they say."""

_SEALED = "session label: "
_USER, _SUBJECT, _PROVIDER_SESSION = "session tag: user", "session tag: subject", "session tag: provider session"


class About(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a session. Times are aware UTC datetimes; ``address`` and ``user_agent`` are
    those of the login, without unprintable characters, and empty where they were not told."""

    user_id: str
    issuer: str
    created: Moment
    last_seen: Moment
    address: str = ""
    user_agent: str = ""

    def __repr__(self) -> str:
        """Says when, never who: text ends up in logs."""
        return f"<About a session since {self.created.isoformat()}>"


class Labels:
    """Makes and reads labels with the keys of this service: the first one seals, all of them open."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._decoder = msgspec.json.Decoder(About)
        self.key_id = keyring.key_ids[0]
        """The key under which labels are made now."""

    def knows(self, key_id: str) -> bool:
        """Whether labels made under this key can be read here."""
        return key_id in self._keyring.key_ids

    def make(self, key: str, session: Session, address: str, user_agent: str) -> Label:
        """The label of the session under this store key. Bound to the key: another session's
        metadata says nothing there."""
        about = About(
            user_id=_readable(session.user_id, LONGEST_TEXT),
            issuer=_readable(session.issuer, LONGEST_TEXT),
            created=session.created,
            last_seen=session.last_seen,
            address=_readable(address, LONGEST_USER_AGENT),
            user_agent=_readable(user_agent, LONGEST_USER_AGENT),
        )
        text = msgspec.json.encode(about)
        padded = text.ljust(-(-len(text) // _BLOCK) * _BLOCK)  # white space ends no JSON text
        tags = {self.of_user(session.user_id)[0], self.of_subject(session.issuer, session.subject)[0]}
        if session.provider_sid:
            tags.add(self.of_provider_session(session.issuer, session.provider_sid)[0])
        return Label(self._keyring.seal(_SEALED + key, padded).encode(), tuple(sorted(tags)))

    def read(self, labelled: Labelled) -> About | None:
        """What the label says; ``None`` when it was not made for this session under a key of ours."""
        try:
            plaintext = self._keyring.open(_SEALED + labelled.key, labelled.metadata.decode())
            return self._decoder.decode(plaintext) if plaintext is not None else None
        except (UnicodeError, msgspec.MsgspecError):
            return None

    def of_user(self, user_id: str) -> tuple[str, ...]:
        """The tags of this user's sessions: one under each key."""
        return self._keyring.hashes(_USER, user_id)

    def of_subject(self, issuer: str, subject: str) -> tuple[str, ...]:
        """The tags of the sessions of a provider's ``sub`` (it means nothing without the issuer)."""
        return self._keyring.hashes(_SUBJECT, json.dumps([issuer, subject]))

    def of_provider_session(self, issuer: str, sid: str) -> tuple[str, ...]:
        """The tags of the sessions of a provider's ``sid``."""
        return self._keyring.hashes(_PROVIDER_SESSION, json.dumps([issuer, sid]))


def _readable(text: str, longest: int) -> str:
    """What a terminal may be sent: a browser chooses its own user agent."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:longest])
