"""Start-up checks: files, folders and templates that the settings name."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest
import trustme

from authservice import startup
from authservice.errors import SettingsError
from authservice.sessions.sqlite_file import foreign_content
from authservice.settings import Settings, load
from tests.test_settings import REQUIRED

BOLT = bytes(16) + (0xED0CDAED).to_bytes(4, "little") + bytes(4076)


def settings(tmp_path: Path, **environ: str) -> Settings:
    return load({**REQUIRED, "SESSION_STORE_PATH": str(tmp_path / "data.db"), **environ})


def only_problem(tmp_path: Path, **environ: str) -> str:
    (line,) = startup.problems(settings(tmp_path, **environ))
    return line


def test_nothing_to_say_and_nothing_created(tmp_path: Path) -> None:
    fine = settings(tmp_path, SESSION_STORE_PATH=str(tmp_path / "not" / "yet" / "data.db"))
    assert startup.problems(fine) == startup.warnings(fine) == ()
    assert list(tmp_path.iterdir()) == []


def test_certificates(tmp_path: Path) -> None:
    good, bad = tmp_path / "ca.pem", tmp_path / "bad.pem"
    trustme.CA().cert_pem.write_to_path(str(good))
    bad.write_text("no certificate")
    assert startup.problems(settings(tmp_path, CA_BUNDLE=str(good))) == ()
    assert (
        only_problem(tmp_path, CA_BUNDLE=str(bad)) == f"CA_BUNDLE: {bad} holds no certificates in PEM form."
    )
    line = only_problem(tmp_path, CA_BUNDLE=str(tmp_path / "absent.pem"))
    assert line.startswith("CA_BUNDLE: ") and "No such file" in line
    assert only_problem(tmp_path, CA_BUNDLE=str(tmp_path)).startswith("CA_BUNDLE: ")


def test_the_certificates_of_a_further_issuer(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.pem")
    issuers = f'[{{"issuer": "https://ci.example", "audiences": ["a"], "ca_bundle": "{absent}"}}]'
    line = only_problem(tmp_path, BEARER_ISSUERS=issuers)
    assert line.startswith("BEARER_ISSUERS: ca_bundle of https://ci.example: ") and "No such file" in line


@pytest.mark.parametrize("option", ["no_such=1", "socket_timeout=soon", "ssl_cert_reqs=s3cr3t"])
def test_options_of_the_address_of_redis(tmp_path: Path, option: str) -> None:
    redis = {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": f"rediss://u:s3cr3t@redis.example?{option}"}
    (problem,) = startup.problems(settings(tmp_path, **redis))
    assert problem.startswith("SESSION_STORE_REDIS_ADDR: an option in the URL") and "s3cr3t" not in problem


def test_certificates_for_redis(tmp_path: Path) -> None:
    authority, good, bad = trustme.CA(), tmp_path / "ca.pem", tmp_path / "bad.pem"
    authority.cert_pem.write_to_path(str(good))
    ours, pair = authority.issue_cert("authservice"), tmp_path / "pair.pem"
    ours.private_key_and_cert_chain_pem.write_to_path(str(pair))
    key, other = tmp_path / "key.pem", tmp_path / "other.pem"
    ours.private_key_pem.write_to_path(str(key))
    authority.issue_cert("other").private_key_pem.write_to_path(str(other))
    bad.write_text("no certificate")
    tls = {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": "rediss://redis.example"}
    ca, cert, private = (f"SESSION_STORE_REDIS_{name}" for name in ("CA_BUNDLE", "CLIENT_CERT", "CLIENT_KEY"))
    assert startup.problems(settings(tmp_path, **tls, **{ca: str(good), cert: str(pair)})) == ()
    assert startup.problems(settings(tmp_path, **tls, **{cert: str(pair), private: str(key)})) == ()
    for wrong in ({ca: str(bad)}, {ca: "/no/ca"}):
        assert only_problem(tmp_path, **tls, **wrong).startswith(f"{ca}: ")
    for wrong in ({cert: str(good)}, {cert: str(pair), private: str(other)}, {cert: "/no/cert"}):
        assert only_problem(tmp_path, **tls, **wrong).startswith(f"{cert}: ")


def test_a_private_key_that_cannot_be_read(tmp_path: Path) -> None:
    body = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEA"
    broken = f"-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"
    line = only_problem(tmp_path, OIDC_CLIENT_AUTH_METHOD="private_key_jwt", CLIENT_PRIVATE_KEY=broken)
    assert line.startswith("CLIENT_PRIVATE_KEY: ") and body not in line


def test_a_folder_of_the_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = only_problem(tmp_path, SESSION_STORE_PATH=str(tmp_path / "file" / "data.db"))
    assert line == f"SESSION_STORE_PATH: {tmp_path / 'file'} is not a folder."


def test_a_folder_of_the_store_that_is_not_ours(tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o500)
    where = str(sealed / "data.db") if os.geteuid() else "/proc/data.db"  # root may write to any other
    line = only_problem(tmp_path, SESSION_STORE_PATH=where)
    assert line.startswith("SESSION_STORE_PATH: nothing can be written in ")


@pytest.mark.parametrize("code,stops", [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EROFS, True)])
def test_a_full_disk_does_not_stop_a_start(
    code: int, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("authservice.startup.tempfile.TemporaryFile", fails)
    assert bool(startup.problems(settings(tmp_path))) is stops


def test_b61_a_loop_of_links_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert only_problem(tmp_path, SESSION_STORE_PATH=str(tmp_path / "a")).startswith("SESSION_STORE_PATH: ")


def test_an_old_boltdb_file_is_recognised_and_does_not_stop_the_start(tmp_path: Path) -> None:
    old = tmp_path / "data.db"
    old.write_bytes(BOLT)
    fine = settings(tmp_path)
    assert startup.problems(fine) == ()
    (line,) = startup.warnings(fine)
    assert "a BoltDB file of the former service and is left untouched" in line and "data.db.sqlite" in line
    assert old.read_bytes() == BOLT


def test_the_store_does_what_the_warning_says(tmp_path: Path) -> None:
    from datetime import datetime, timezone

    from authservice.sessions.sqlite import SqliteStore

    (tmp_path / "data.db").write_bytes(BOLT)
    (line,) = startup.warnings(settings(tmp_path))
    store = SqliteStore(tmp_path / "data.db", lambda: datetime.now(timezone.utc))
    store.ping()
    store.close()
    assert (tmp_path / "data.db").read_bytes() == BOLT
    assert store.path.name in line and store.path.is_file()


def test_a_session_file_of_ours_is_nothing_to_speak_of(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "data.db")
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    fine = settings(tmp_path)
    assert startup.problems(fine) == startup.warnings(fine) == ()


def test_start_and_store_read_a_file_alike() -> None:
    assert foreign_content(b"SQLite format 3\0" + bytes(48)) == ""
    assert foreign_content(BOLT[:64]) == "a BoltDB file of the former service"
    for head in (b"", b"SQLite format 3", bytes(64), BOLT[1:65]):
        assert foreign_content(head) == "not an SQLite file"


def test_the_file_is_not_looked_at_for_redis(tmp_path: Path) -> None:
    elsewhere = settings(tmp_path, SESSION_STORE_TYPE="redis", SESSION_STORE_PATH="/proc/data.db")
    assert startup.problems(elsewhere) == startup.warnings(elsewhere) == ()


def test_templates_are_tried(tmp_path: Path) -> None:
    assert only_problem(tmp_path, TEMPLATE_PATH="/no/such/folder").startswith("TEMPLATE_PATH: ")
    (tmp_path / "homepage.html").write_text("{% if %}")
    line = only_problem(tmp_path, TEMPLATE_PATH=str(tmp_path))
    assert line.startswith("TEMPLATE_PATH: ") and "homepage.html" in line


def test_a_start_tells_everything_at_once(tmp_path: Path) -> None:
    environ = {
        **REQUIRED,
        "CA_BUNDLE": "/no/ca",
        "TEMPLATE_PATH": "/no/templates",
        "SESSION_STORE_PATH": "/proc/x",
        "PORT": "8080",
    }
    with pytest.raises(SettingsError) as stopped:
        startup.checked(environ)
    text = startup.explain(stopped.value)
    for name in ("CA_BUNDLE", "TEMPLATE_PATH", "SESSION_STORE_PATH", "PORT"):
        assert f"  - {name}: " in text
    assert text.startswith("AuthService cannot start: 3 problems in its settings.")
    with pytest.raises(SettingsError) as stopped:
        startup.checked({"OIDC_CLIENT_ID": "x"})
    assert "CLIENT_ID" in startup.explain(stopped.value)
    assert (
        startup.checked({**REQUIRED, "SESSION_STORE_PATH": str(tmp_path / "data.db")}).client_id
        == "authservice"
    )
