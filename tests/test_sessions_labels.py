"""What the service keeps to know a session by: readable with its keys, and telling nothing without."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authservice.sessions import Labelled, Session
from authservice.sessions.labels import LONGEST_TEXT, LONGEST_USER_AGENT, Labels
from authservice.sessions.seal import Keyring, new_secret, public_id, session_key, store_key
from tests.contracts import Clock
from tests.sample_sessions import a_session

OLD, NEW, OTHER = b"an old key", b"a new key", b"a key of others"
KEY = store_key(new_secret())
patiently = settings(deadline=None)


def labelled(labels: Labels, session: Session, address: str = "", user_agent: str = "", key: str = KEY) -> Labelled:
    return Labelled(key, labels.make(key, session, address, user_agent).metadata, session.expires)


@pytest.fixture
def labels() -> Labels:
    return Labels(Keyring([NEW, OLD]))


def test_a_label_says_who_since_when_and_from_where(labels: Labels) -> None:
    session = a_session(Clock(), last_seen=Clock()() + timedelta(minutes=3))
    about = labels.read(labelled(labels, session, "203.0.113.7", "Firefox"))
    assert about is not None
    assert (about.user_id, about.issuer) == (session.user_id, session.issuer)
    assert (about.created, about.last_seen) == (session.created, session.last_seen)
    assert (about.address, about.user_agent) == ("203.0.113.7", "Firefox")
    assert "alice" not in repr(about)


@patiently
@given(st.text(), st.text(), st.text(), st.text())
def test_whatever_is_told_a_label_can_be_made_and_is_fit_to_be_shown(
    user: str, issuer: str, address: str, user_agent: str
) -> None:
    labels = Labels(Keyring([NEW]))
    session = a_session(Clock(), user_id=user, issuer=issuer)
    about = labels.read(labelled(labels, session, address, user_agent))
    assert about is not None
    for text in (about.user_id, about.issuer, about.address, about.user_agent):
        assert text.isprintable()
    assert len(about.user_agent) <= LONGEST_USER_AGENT


def test_what_is_too_long_is_cut_and_escapes_lose_their_power(labels: Labels) -> None:
    session = a_session(Clock(), user_id="u" * 100_000, issuer="\U0001f600" * 100_000)
    about = labels.read(labelled(labels, session, "\x1b[2Jhello\r\n", "\u202eabc\ud800" + "x" * 100_000))
    assert about is not None
    assert len(about.user_id) == len(about.issuer) == LONGEST_TEXT
    assert about.address == "\ufffd[2Jhello\ufffd\ufffd"
    assert about.user_agent[:6] == "\ufffdabc\ufffdx"


def test_a_copy_of_a_label_shows_nothing(labels: Labels) -> None:
    """Neither a name nor a length tells one person from another."""
    clock = Clock()
    made = [
        labels.make(KEY, a_session(clock, user_id=user, subject=user, provider_sid=user), "203.0.113.7", "Firefox")
        for user in ("alice@example.com", "bob", "alice@example.com")
    ]
    for label in made:
        text = label.metadata + "".join(label.tags).encode()
        for hidden in (b"alice", b"bob", b"example", b"203", b"Firefox", b"248289761001"):
            assert hidden not in text
        assert len(label.tags) == 3 and all(len(tag) == 22 for tag in label.tags)
    assert len({len(label.metadata) for label in made}) == 1
    assert len({label.metadata for label in made}) == 3
    assert made[0].tags == made[2].tags and not set(made[0].tags) & set(made[1].tags)


@pytest.mark.parametrize("key", [OTHER, NEW + b" ", OLD])
def test_k05_a_label_opens_under_its_own_key_only(labels: Labels, key: bytes) -> None:
    theirs = Labels(Keyring([key]))
    assert theirs.read(labelled(labels, a_session(Clock()))) is None
    assert not set(theirs.of_user("alice@example.com")) & set(labels.of_user("alice@example.com")[:1])


def test_a_label_under_another_sessions_key_says_nothing(labels: Labels) -> None:
    label = labelled(labels, a_session(Clock()))
    assert labels.read(Labelled(store_key(new_secret()), label.metadata, label.expires)) is None


@pytest.mark.parametrize("metadata", [b"", b"\xff", b"x" * 100, b"A" * 20_000])
def test_what_is_no_label_says_nothing(labels: Labels, metadata: bytes) -> None:
    assert labels.read(Labelled(KEY, metadata, Clock()())) is None
    sealed = Keyring([NEW]).seal(f"session label: {KEY}", b"{}" + metadata[:100])
    assert labels.read(Labelled(KEY, sealed.encode(), Clock()())) is None


def test_s34_labels_of_an_old_key_are_read_and_found_and_new_ones_are_under_the_first() -> None:
    clock = Clock()
    before, between, after = (Labels(Keyring(keys)) for keys in ([OLD], [NEW, OLD], [NEW]))
    old = labelled(before, a_session(clock))
    assert between.read(old) and not after.read(old)
    assert set(before.make(KEY, a_session(clock), "", "").tags) & set(between.of_user("alice@example.com"))
    assert after.read(labelled(between, a_session(clock)))
    assert (between.knows(before.key_id), between.key_id) == (True, after.key_id)
    assert not after.knows(before.key_id)


def test_a_subject_means_nothing_without_its_issuer(labels: Labels) -> None:
    tags = {
        labels.of_subject("https://a", "b"),
        labels.of_subject("https://ab", ""),
        labels.of_subject("https://a", "b "),
        labels.of_provider_session("https://a", "b"),
        labels.of_provider_session("https://a/", "b"),
        labels.of_user('["https://a", "b"]'),
    }
    assert len(tags) == 6


def test_a_login_without_a_sid_has_no_tag_for_one(labels: Labels) -> None:
    label = labels.make(KEY, a_session(Clock(), provider_sid=""), "", "")
    assert not set(label.tags) & set(labels.of_provider_session("https://id.example.com/", ""))


def test_a_public_id_is_the_store_key_and_leads_to_no_mark() -> None:
    assert session_key(public_id(KEY)) == KEY
    for text in ("", "x", KEY, "A" * 64, public_id(KEY)[:-1], public_id(KEY) + "\n", "spent-" + "0" * 58):
        assert session_key(text) is None


def test_a_field_of_a_newer_version_is_passed_over(labels: Labels) -> None:
    session = a_session(Clock())
    newer = {**msgspec.to_builtins(session), "user_id": "alice", "something": [1]}
    sealed = Keyring([NEW]).seal(f"session label: {KEY}", msgspec.json.encode(newer))
    about = labels.read(Labelled(KEY, sealed.encode(), session.expires))
    assert about is not None and about.user_id == "alice"
