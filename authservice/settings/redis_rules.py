"""Rules between the settings of Redis, in the form that `settings.rules` explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from authservice.settings.secret import Secret

Lines = Iterator[str]


def as_many_addresses_as_there_may_be(session_store_redis_mode: str, session_store_redis_addr: str) -> Lines:
    if session_store_redis_mode == "standalone" and "," in session_store_redis_addr:
        yield (
            "SESSION_STORE_REDIS_ADDR: several hosts, but SESSION_STORE_REDIS_MODE is standalone. Takes one, or "
            "set the mode to sentinel or cluster."
        )
    if session_store_redis_mode != "standalone" and session_store_redis_addr.startswith("unix:"):
        yield (
            f"SESSION_STORE_REDIS_ADDR: a socket, but SESSION_STORE_REDIS_MODE is {session_store_redis_mode}. "
            "Takes hosts."
        )


def a_cluster_has_one_database(session_store_redis_mode: str, session_store_redis_db: int) -> Lines:
    if session_store_redis_mode == "cluster" and session_store_redis_db:
        yield f"SESSION_STORE_REDIS_DB: {session_store_redis_db}, but a cluster has database 0 only. Leave it out."


def a_key_needs_a_certificate(
    session_store_redis_client_cert: Path | None, session_store_redis_client_key: Path | None
) -> Lines:
    if session_store_redis_client_key and not session_store_redis_client_cert:
        yield (
            "SESSION_STORE_REDIS_CLIENT_CERT: not set, but SESSION_STORE_REDIS_CLIENT_KEY is. Takes the "
            "certificate of that key."
        )


def sentinels_are_asked_in_one_mode(
    session_store_redis_mode: str, session_store_redis_sentinel_pwd: Secret, texts: Mapping[str, str]
) -> Lines:
    """The password is a parameter so that this is not said when its file cannot be read."""
    if session_store_redis_mode == "sentinel":
        return
    for name in ("MASTER", "SENTINEL_USERNAME", "SENTINEL_PWD"):
        if texts.get(f"SESSION_STORE_REDIS_{name}"):
            yield f"SESSION_STORE_REDIS_{name}: has no effect without SESSION_STORE_REDIS_MODE=sentinel."


def certificates_are_for_tls(session_store_redis_addr: str, texts: Mapping[str, str]) -> Lines:
    if session_store_redis_addr.startswith("rediss:"):
        return
    for name in ("CA_BUNDLE", "CLIENT_CERT", "CLIENT_KEY"):
        if texts.get(f"SESSION_STORE_REDIS_{name}"):
            yield f"SESSION_STORE_REDIS_{name}: has no effect without a rediss:// address in SESSION_STORE_REDIS_ADDR."


def a_name_needs_a_password(
    session_store_redis_sentinel_username: str, session_store_redis_sentinel_pwd: Secret
) -> Lines:
    if session_store_redis_sentinel_username and not session_store_redis_sentinel_pwd:
        yield "SESSION_STORE_REDIS_SENTINEL_USERNAME: set without SESSION_STORE_REDIS_SENTINEL_PWD."


PROBLEMS: tuple[Callable[..., Lines], ...] = (
    as_many_addresses_as_there_may_be,
    a_cluster_has_one_database,
    a_key_needs_a_certificate,
)

WARNINGS: tuple[Callable[..., Lines], ...] = (
    sentinels_are_asked_in_one_mode,
    certificates_are_for_tls,
    a_name_needs_a_password,
)
