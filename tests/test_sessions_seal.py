"""Sealing: only what was sealed for this purpose under one of our keys opens, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from secrets import token_urlsafe

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authservice.sessions import seal
from authservice.sessions.seal import (
    MAX_SEALED,
    Keyring,
    is_secret,
    mark_key,
    new_secret,
    open_record,
    seal_record,
    store_key,
)
from tests.sample_sessions import checked

KEYRING = Keyring([b"the secret of one deployment"])
patiently = settings(deadline=None)  # two cores, and other tests beside this one
BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


@patiently
@given(st.text(max_size=50), st.binary(max_size=3000))
def test_what_is_sealed_opens_again(purpose: str, plaintext: bytes) -> None:
    sealed = KEYRING.seal(purpose, plaintext)
    assert BASE64URL.fullmatch(sealed)
    assert KEYRING.open(purpose, sealed) == plaintext


def test_sealing_twice_gives_two_values_that_share_nothing_but_version_and_key_id() -> None:
    sealed = {KEYRING.seal("p", b"same") for _ in range(50)}
    assert len(sealed) == 50
    assert len({value[:6] for value in sealed}) == 1
    assert len({value[7:12] for value in sealed}) > 40


@patiently
@given(st.binary(max_size=100), st.data())
def test_k05_one_flipped_bit_never_opens(plaintext: bytes, data: st.DataObject) -> None:
    sealed = KEYRING.seal("p", plaintext)
    raw = bytearray(base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4)))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    assert KEYRING.open("p", base64.urlsafe_b64encode(raw).rstrip(b"=").decode()) is None


@patiently
@given(st.binary(max_size=100), st.data())
def test_k05_one_changed_character_never_opens(plaintext: bytes, data: st.DataObject) -> None:
    """Also not one that only touches the bits that base64 leaves unused."""
    sealed = KEYRING.seal("p", plaintext)
    at = data.draw(st.integers(0, len(sealed) - 1))
    character = data.draw(st.characters().filter(lambda c: c != sealed[at]))
    assert KEYRING.open("p", sealed[:at] + character + sealed[at + 1 :]) is None


@patiently
@given(st.binary(max_size=60), st.data())
def test_k05_cut_or_extended_never_opens(plaintext: bytes, data: st.DataObject) -> None:
    sealed = KEYRING.seal("p", plaintext)
    cut = data.draw(st.integers(0, len(sealed) - 1))
    more = data.draw(st.text(min_size=1, max_size=5))
    for changed in (sealed[:cut], sealed[cut + 1 :], sealed + more, more + sealed, sealed + sealed):
        assert KEYRING.open("p", changed) is None


@patiently
@given(st.text() | st.text("ABCabc019-_=", max_size=200))
def test_whatever_else_never_opens_and_never_raises(text: str) -> None:
    assert KEYRING.open("p", text) is None


def test_every_short_length_is_refused() -> None:
    raw = base64.urlsafe_b64decode(KEYRING.seal("p", b""))
    assert len(raw) == 45
    for length in range(45):
        assert KEYRING.open("p", base64.urlsafe_b64encode(raw[:length]).rstrip(b"=").decode()) is None


def test_a_value_is_bound_to_its_purpose() -> None:
    sealed = KEYRING.seal("pending login", b"x")
    assert KEYRING.open("pending login", sealed) == b"x"
    for other in ("pending logi", "pending login ", "", "state", "pending login\0"):
        assert KEYRING.open(other, sealed) is None


@patiently
@given(st.text(max_size=8), st.text(max_size=8))
def test_no_two_purposes_share_a_key(one: str, other: str) -> None:
    assert (KEYRING.open(other, KEYRING.seal(one, b"x")) is not None) is (one == other)


def test_k05_the_first_secret_seals_and_every_secret_opens() -> None:
    old, new, foreign = Keyring([b"old"]), Keyring([b"new", b"old"]), Keyring([b"other deployment"])
    from_old, from_new = old.seal("p", b"x"), new.seal("p", b"y")
    assert new.open("p", from_old) == b"x"
    assert new.open("p", from_new) == b"y"
    assert old.open("p", from_new) is None
    assert foreign.open("p", from_old) is None
    assert Keyring([b"new"]).open("p", from_new) == b"y"
    assert Keyring([b"new"]).open("p", from_old) is None


def test_two_secrets_with_one_key_id_are_both_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bytes of id may meet by chance; what counts is the key."""
    keyring = Keyring([b"one", b"two"])
    one, two = keyring._keys
    sealed_by_two = Keyring([b"two"])
    sealed_by_two._keys[0].key_id = two.key_id = one.key_id
    assert keyring.open("p", sealed_by_two.seal("p", b"x")) == b"x"


def test_an_over_long_value_is_not_even_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = MAX_SEALED * 3 // 4 - 45
    sealed = KEYRING.seal("p", bytes(longest))
    assert len(sealed) <= MAX_SEALED
    assert KEYRING.open("p", sealed) == bytes(longest)
    with pytest.raises(ValueError, match="too long"):
        KEYRING.seal("p", bytes(longest + 1))
    monkeypatch.setattr(seal, "MAX_SEALED", len(sealed) - 1)
    assert KEYRING.open("p", sealed) is None


@pytest.mark.parametrize("secrets", [[], [b""], [b"one", b""]])
def test_a_keyring_without_a_secret_is_refused(secrets: list[bytes]) -> None:
    with pytest.raises(ValueError, match="secret"):
        Keyring(secrets)


# --- a session's secret -----------------------------------------------------------------------


def test_a_secret_is_32_random_bytes_and_what_tells_it_from_others() -> None:
    secrets = {new_secret() for _ in range(200)}
    assert len(secrets) == 200
    for secret in secrets:
        assert len(secret) == 49 and secret == checked(secret[:43])
        assert is_secret(secret)
        assert len(base64.urlsafe_b64decode(secret[:43] + "=")) == 32


def test_a_token_of_a_provider_is_no_secret_whatever_its_length() -> None:
    for length in (42, 43, 44, 48, 49, 50):
        assert not any(is_secret(token_urlsafe(64)[:length]) for _ in range(200))


@patiently
@given(st.binary(min_size=32, max_size=32))
def test_every_32_bytes_have_one_spelling_only(raw: bytes) -> None:
    body = base64.urlsafe_b64encode(raw).decode()[:43]
    secret = checked(body)
    assert is_secret(secret) and not is_secret(body)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert sum(is_secret(checked(body[:42] + last)) for last in alphabet) == 16  # of 64: 4 bits count
    for other in (
        secret[:48],
        secret + "A",
        " " + secret[1:],
        secret[:20] + "\n" + secret[21:],
        checked(body[:42] + "="),
        body + secret[43:].swapcase(),
    ):
        assert other == secret or not is_secret(other)


@patiently
@given(st.text() | st.text(min_size=49, max_size=49))
def test_is_secret_never_raises(text: str) -> None:
    if is_secret(text):
        assert BASE64URL.fullmatch(text)


def test_plus_and_slash_are_not_another_spelling() -> None:
    body = base64.urlsafe_b64encode(b"\xfb\xff" * 16).decode()[:43]
    assert is_secret(checked(body))
    for other in (body.replace("-", "+"), body.replace("_", "/")):
        assert not is_secret(checked(other)) and not is_secret(other + checked(body)[43:])


def test_b29_a_store_key_is_no_secret_and_does_not_show_it() -> None:
    secret = new_secret()
    key = store_key(secret)
    raw = base64.urlsafe_b64decode(secret[:43] + "=")
    assert store_key(secret) == key != store_key(new_secret())
    assert not is_secret(key)
    assert secret not in key
    assert raw.hex() not in key
    assert hashlib.sha256(raw).hexdigest() not in key
    assert hashlib.sha256(secret.encode()).hexdigest() not in key
    assert re.fullmatch(r"session-[0-9a-f]{64}", key)


def test_marks_and_sessions_never_share_a_key() -> None:
    secret = new_secret()
    assert mark_key(secret) != store_key(secret)
    assert mark_key("a") != mark_key("b")
    assert re.fullmatch(r"spent-[0-9a-f]{64}", mark_key("any 😀 name"))


@patiently
@given(st.binary(max_size=500))
def test_a_record_opens_with_its_own_secret_only(plaintext: bytes) -> None:
    secret = new_secret()
    sealed = seal_record(secret, plaintext)
    assert open_record(secret, sealed) == plaintext
    assert open_record(new_secret(), sealed) is None
    assert seal_record(secret, plaintext) != sealed


@patiently
@given(st.binary(max_size=60), st.data())
def test_a_changed_record_never_opens(plaintext: bytes, data: st.DataObject) -> None:
    secret = new_secret()
    sealed = seal_record(secret, plaintext)
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    flipped = bytearray(sealed)
    flipped[bit // 8] ^= 1 << bit % 8
    cut = data.draw(st.integers(0, len(sealed) - 1))
    for changed in (bytes(flipped), sealed[:cut], sealed[cut + 1 :], sealed + b"\0", b""):
        assert open_record(secret, changed) is None


@patiently
@given(st.binary(max_size=300))
def test_foreign_bytes_are_no_record(foreign: bytes) -> None:
    assert open_record(new_secret(), foreign) is None


@pytest.mark.parametrize("text", ["", "x", "A" * 43, "A" * 48, "A" * 50, "B" * 49, "é" * 49, "\ud800" * 49])
def test_what_is_no_secret_gives_no_key(text: str) -> None:
    for use in (
        store_key,
        lambda secret: seal_record(secret, b""),
        lambda secret: open_record(secret, b"\x01" * 99),
    ):
        with pytest.raises(ValueError, match="secret"):
            use(text)


def test_a_guess_of_the_secret_is_expensive_and_using_it_is_not() -> None:
    """Everybody who begins a login has a sealed value to try guesses on."""
    began = time.process_time()
    keyring = Keyring([b"a secret that no other test has"])
    made = time.process_time() - began
    began = time.process_time()
    again = Keyring([b"a secret that no other test has"])
    assert again.open("p", keyring.seal("p", b"x")) == b"x"
    assert made > 0.02 > time.process_time() - began


def test_the_root_key_is_made_by_scrypt() -> None:
    """By another implementation (RFC 7914); OpenSSL's default limit of memory is just too small."""
    root = hashlib.scrypt(
        b"a secret", salt=b"authservice keyring", n=2**15, r=8, p=1, dklen=32, maxmem=2**26
    )
    key_id = hmac.digest(root, b"key id\x01", "sha256")[:4]  # HKDF-Expand, RFC 5869 §2.3
    sealed = Keyring([b"a secret"]).seal("p", b"")
    assert base64.urlsafe_b64decode(sealed[:8])[1:5] == key_id


def test_known_values_stay_what_they_are() -> None:
    """What an older version sealed must open, and be found, after an upgrade."""
    secret = checked("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")
    assert store_key(secret) == KNOWN_STORE_KEY
    assert mark_key("state") == KNOWN_MARK_KEY
    assert open_record(secret, bytes.fromhex(KNOWN_RECORD)) == b"record"
    assert Keyring([b"a secret"]).open("purpose", KNOWN_SEALED) == b"value"


KNOWN_STORE_KEY = "session-5e077ca2925bc0583e60986b964a689230396b17301a5aea0ddc8106112f443c"
KNOWN_MARK_KEY = "spent-991917b94fb98f7ca9bd87dfaa154ab8b40e0068ec48c49e3ef994df1e491ef7"
KNOWN_RECORD = "01b9ef475b2806b87d8f24a88d918776337ae59888c5b285f7c4cc82f18774edac05f9"
KNOWN_SEALED = "AWWCcv68j2C2t6DV-v49u3Y-Wl3ClATeyIbTitNROfQfXnDXwT1c1pMfKdeItVGYsbg"


# --- names without keys -------------------------------------------------------------------------


def test_a_hash_is_the_same_each_time_and_another_one_for_each_key_purpose_and_text() -> None:
    old, new = Keyring([b"old"]), Keyring([b"new", b"old"])
    assert new.hashes("p", "alice") == new.hashes("p", "alice")
    assert new.hashes("p", "alice")[1:] == old.hashes("p", "alice")
    names = [*new.hashes("p", "alice"), *new.hashes("q", "alice"), *new.hashes("p", "Alice"), *new.hashes("p", "")]
    assert len(set(names)) == 8
    assert all(len(name) == 22 and BASE64URL.fullmatch(name) for name in names)
    assert new.hashes("p", "\ud800") != new.hashes("p", "?")


def test_a_key_is_named_as_sealed_values_name_it() -> None:
    keyring = Keyring([b"new", b"old"])
    sealed = base64.urlsafe_b64decode(keyring.seal("p", b"x" * 11)[:8] + "====")
    assert sealed[1:5].hex() == keyring.key_ids[0]
    assert Keyring([b"old"]).key_ids == keyring.key_ids[1:]
