"""The part of the table that is about sessions and their cookie."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from authservice.settings import addresses, kinds
from authservice.settings.rows import section
from authservice.settings.secret import Secret

SECTION = "Sessions and their cookie"

_session = section(SECTION)


@dataclass(frozen=True, kw_only=True)
class OfSessions:
    """Each under its variable's name in lower case, as in `table.Declared`."""

    session_store_type: Literal["filesystem", "redis"] = _session(
        kinds.choice("filesystem", "redis", synonyms={"boltdb": "filesystem"}), "filesystem",
        "Where sessions are kept: in one file on this machine, or in Redis. The old name `boltdb` means "
        "`filesystem`.",
    )
    session_store_path: Path = _session(
        kinds.PATH, "/var/lib/authservice/data.db", "The file (SQLite) of the `filesystem` store.",
    )
    session_store_redis_mode: Literal["standalone", "sentinel", "cluster"] = _session(
        kinds.choice("standalone", "sentinel", "cluster"), "standalone",
        "How Redis runs: one server, one of several that Sentinels name, or a cluster.",
    )
    session_store_redis_addr: str = _session(
        addresses.REDIS, "127.0.0.1:6379",
        "Where Redis is: the server, the Sentinels, or some nodes of the cluster. User name, password and "
        "database may also be part of a URL.",
        example="rediss://sessions@redis.example.com:6379/0", secret=True,
    )
    session_store_redis_username: str = _session(
        kinds.TEXT, "",
        "The user name at Redis (ACL). Sessions are kept in memory only when this user also has the rights "
        "`+ping +client|id +client|tracking +subscribe &__redis__:invalidate`; else every check reads Redis.",
        otherwise="the default user",
    )
    session_store_redis_pwd: Secret = _session(kinds.SECRET, "", "The password at Redis.", secret=True)
    session_store_redis_db: int = _session(addresses.REDIS_DB, "0", "The number of the database in Redis.")
    session_store_redis_master: str = _session(
        kinds.SOME_TEXT, "mymaster", "The name under which the Sentinels know the master.",
    )
    session_store_redis_sentinel_username: str = _session(
        kinds.TEXT, "", "The user name at the Sentinels, which is not the one at Redis.", otherwise="the default user",
    )
    session_store_redis_sentinel_pwd: Secret = _session(
        kinds.SECRET, "", "The password at the Sentinels.", secret=True,
    )
    session_store_redis_ca_bundle: Path | None = _session(
        kinds.optional(kinds.PATH, None), "",
        "Certificates (PEM) trusted in addition to the system's, for Redis and its Sentinels over TLS.",
        otherwise="those of `CA_BUNDLE`", example="/etc/ssl/redis-ca.pem",
    )
    session_store_redis_client_cert: Path | None = _session(
        kinds.optional(kinds.PATH, None), "",
        "Our certificate (PEM) for Redis and its Sentinels over TLS.", otherwise="none",
    )
    session_store_redis_client_key: Path | None = _session(
        kinds.optional(kinds.PATH, None), "", "Its private key (PEM, without passphrase).",
        otherwise="in the certificate's file",
    )
    session_store_redis_key_prefix: str = _session(
        addresses.REDIS_PREFIX, "authservice:",
        "What all our keys in Redis begin with. Services that share a Redis need different ones, of which "
        "none is the beginning of another.",
    )
    session_max_age: timedelta = _session(
        kinds.seconds(), "86400", "How long a login lasts at most, in seconds.",
    )
    session_idle_timeout: timedelta | None = _session(
        kinds.SECONDS_OR_OFF, "0", "A session that was not used for so many seconds ends.",
    )
    session_ends_with_token: bool = _session(
        kinds.SWITCH, "false", "Let a session without a refresh token end with its access token.",
    )
    session_cookie_name: str = _session(
        kinds.COOKIE_NAME, "authservice_session",
        "The session cookie's name. `__Host-` and `__Secure-` names need a Secure cookie.",
    )
    session_cookie_domain: str = _session(
        kinds.DOMAIN, "",
        "The cookie's Domain. Weakens: every host below that domain gets the cookie.",
        otherwise="this host only", example="apps.example.com",
    )
    session_cookie_secure: bool | None = _session(
        kinds.SWITCH_OR_AUTO, "auto",
        "Whether browsers send the cookie over https only. `auto`: when `REDIRECT_URL` or the prefix is "
        "an https URL, or a trusted proxy says so.",
    )
    session_cookie_httponly: bool = _session(
        kinds.SWITCH, "true",
        "Keep scripts from reading the cookie. `false` weakens, and is meant for one use: dashboards "
        "whose logout button reads the cookie.",
    )
    session_same_site: Literal["Lax", "Strict", "None"] = _session(
        kinds.optional(kinds.choice("Lax", "Strict", "None", any_case=True), "Lax"), "Lax",
        "The cookie's SameSite attribute. `None` needs a Secure cookie.",
    )
    session_cache_size: int = _session(
        kinds.whole(0, 10_000_000, "sessions"), "20000",
        "How many sessions each worker keeps in memory, so that their checks need no store. `0`: none.",
    )
    secret_keys: tuple[Secret, ...] = _session(
        kinds.secrets_of(16), "",
        "The service's own keys, the same on all replicas. The first one seals, all of them open: put a new "
        "one in front, and take an old one away when nobody needs its sessions any more. With "
        "`UPSTREAM_ASSERTION_HEADER` put it at the end for a day first.",
        otherwise="derived from the client secret or private key", secret=True,
    )
    client_secret_previous: Secret = _session(
        kinds.SECRET, "",
        "The client secret before the present one. What was sealed under a key derived from it still opens.",
        otherwise="none", secret=True,
    )
