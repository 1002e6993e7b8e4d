"""``flask.session`` over our sessions: read late, written at login and logout only, no pickle."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask
import flask_session.base
import pytest
from flask import Flask
from werkzeug.test import TestResponse

from authservice.check import Reach
from authservice.errors import StoreDown
from authservice.sessions.copies import LiveSession
from authservice.sessions.cookies import CookieRules
from authservice.sessions.interface import BrowserSession, SessionInterface
from authservice.sessions.live import Sessions
from authservice.sessions.seal import new_secret, store_key
from authservice.sessions.sqlite import SqliteStore
from tests.contracts import Clock
from tests.sample_sessions import WatchedStore, a_session

NAME = "authservice_session"
DAY = timedelta(days=1)
NET = Reach.NETWORK


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[WatchedStore]:
    with closing(SqliteStore(tmp_path / "sessions.db", clock)) as store:
        yield WatchedStore(store)


@pytest.fixture
def sessions(store: WatchedStore, clock: Clock) -> Sessions:
    return Sessions(store, now=clock, max_age=DAY)


@pytest.fixture
def app(sessions: Sessions, clock: Clock) -> Flask:
    app = Flask(__name__)
    rules = CookieRules(name=NAME, max_age=DAY, domain="example.com")
    app.session_interface = SessionInterface(app, sessions, rules, lambda: flask.request.is_secure)

    def user() -> str:
        record = flask.session.record
        return record.by_cookie.user_id if record else "nobody"

    @app.get("/idle")
    def idle() -> str:
        return "idle"

    @app.get("/who")
    def who() -> str:
        return f"{user()} {user()}"

    @app.get("/login/<name>")
    def login(name: str) -> str:
        flask.session.log_in(a_session(clock, user_id=name))
        return user()

    @app.get("/logout")
    def logout() -> str:
        ended = flask.session.log_out(flask.request.args.get("bearer"))
        return f"{ended.user_id if ended else 'nobody'} then {user()}"

    @app.get("/again/<name>")
    def again(name: str) -> str:
        flask.session.log_in(a_session(clock, user_id="first"))
        flask.session.log_in(a_session(clock, user_id=name))
        return user()

    @app.get("/in-and-out")
    def in_and_out() -> str:
        flask.session.log_in(a_session(clock))
        flask.session.log_out()
        return user()

    @app.errorhandler(StoreDown)
    def store_down(error: StoreDown) -> tuple[str, int]:
        return error.public, error.status

    return app


Ask = Callable[..., TestResponse]


@pytest.fixture
def ask(app: Flask) -> Ask:
    """Asks with exactly this Cookie header; https unless said otherwise."""

    def ask(path: str, cookie: str | None = None, base_url: str = "https://app.example.com") -> TestResponse:
        headers = {} if cookie is None else {"Cookie": cookie}
        return app.test_client(use_cookies=False).get(path, headers=headers, base_url=base_url)

    return ask


def given(response: TestResponse) -> str:
    """The secret in the one Set-Cookie of an answer."""
    (line,) = response.headers.getlist("Set-Cookie")
    pair, *_ = line.split("; ")
    name, _, value = pair.partition("=")
    assert name == NAME
    return value


# --- reading ----------------------------------------------------------------------------------


def test_a_request_that_does_not_ask_costs_the_store_nothing(ask: Ask, store: WatchedStore) -> None:
    for path in ("/idle", "/no/such/page"):
        answer = ask(path, f"{NAME}={new_secret()}")
        assert "Set-Cookie" not in answer.headers
        assert "Vary" not in answer.headers
    assert store.calls == []


def test_asking_twice_reads_once(ask: Ask, store: WatchedStore, sessions: Sessions, clock: Clock) -> None:
    secret = sessions.begin(a_session(clock, user_id="alice"))
    store.calls.clear()
    answer = ask("/who", f"{NAME}={secret}")
    assert answer.text == "alice alice"
    assert store.calls == ["load"]
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Vary"] == "Cookie"
    store.calls.clear()
    assert ask("/who", f"{NAME}={new_secret()}").text == "nobody nobody"
    assert store.calls == ["load"]


@pytest.mark.parametrize(
    "header", [None, "", "a=1", f"{NAME}=", f"{NAME}=x; {NAME}=y", f'{NAME}="{"A" * 49}"', "\xe9"]
)
def test_k08_without_a_well_formed_cookie_nobody_is_logged_in(
    ask: Ask, store: WatchedStore, header: str | None
) -> None:
    answer = ask("/who", header)
    assert (answer.status_code, answer.text) == (200, "nobody nobody")
    assert "Set-Cookie" not in answer.headers
    assert store.calls == []


def test_k02_only_the_authentic_one_of_several_cookies_counts(
    ask: Ask, sessions: Sessions, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock, user_id="alice"))
    ours = f"{NAME}={secret}"
    for header in (
        f"{NAME}={new_secret()}; {ours}",
        f"{ours}; {NAME}={new_secret()}",
        f"{NAME}=tossed; {NAME}={new_secret()}; {NAME}={new_secret()}; {ours}",
        f"a=1; b=2,{ours}",
        f"b=2,{ours}; c=3",
        f"{ours},a=1",
        f"x=y; {NAME}=garbage,{ours}",
    ):
        assert ask("/who", header).text == "alice alice"


def test_k02_at_most_four_cookies_of_our_name_are_tried(
    ask: Ask, store: WatchedStore, sessions: Sessions, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock))
    tossed = "; ".join(f"{NAME}={new_secret()}" for _ in range(100))
    store.calls.clear()
    assert ask("/who", f"{tossed}; {NAME}={secret}").text == "nobody nobody"
    assert store.calls == ["load"] * 4


def test_k01_k09_a_planted_or_ended_or_expired_cookie_is_nobody(
    ask: Ask, sessions: Sessions, clock: Clock
) -> None:
    ended, old = sessions.begin(a_session(clock)), sessions.begin(a_session(clock))
    sessions.end(ended)
    clock.advance(DAY)
    for secret in (ended, old, new_secret(), store_key(old)[-49:]):
        assert ask("/who", f"{NAME}={secret}").text == "nobody nobody"


# --- login ------------------------------------------------------------------------------------


def test_k10_a_login_sets_one_cookie_that_works(ask: Ask, sessions: Sessions) -> None:
    answer = ask("/login/alice")
    assert answer.text == "alice"
    secret = given(answer)
    assert answer.headers["Set-Cookie"] == (
        f"{NAME}={secret}; Domain=example.com; Max-Age=86400; Secure; HttpOnly; Path=/; SameSite=Lax"
    )
    assert ask("/who", f"{NAME}={secret}").text == "alice alice"
    assert sessions.load(secret, NET) is not None


def test_secure_follows_the_request(ask: Ask) -> None:
    for path in ("/login/alice", "/logout"):
        assert "Secure" in ask(path).headers["Set-Cookie"]
        assert "Secure" not in ask(path, base_url="http://app.example.com").headers["Set-Cookie"]


@pytest.mark.parametrize("known", [True, False])
def test_k01_s16_a_planted_cookie_is_never_adopted_and_ends(
    ask: Ask, sessions: Sessions, clock: Clock, known: bool
) -> None:
    planted = sessions.begin(a_session(clock, user_id="mallory")) if known else new_secret()
    secret = given(ask("/login/alice", f"{NAME}={planted}"))
    assert secret != planted
    assert sessions.load(planted, NET) is None
    assert ask("/who", f"{NAME}={planted}; {NAME}={secret}").text == "alice alice"


def test_b44_a_new_login_ends_every_session_that_the_browser_came_with(
    ask: Ask, sessions: Sessions, clock: Clock
) -> None:
    old = [sessions.begin(a_session(clock)) for _ in range(3)]
    elsewhere = sessions.begin(a_session(clock))
    given(ask("/login/alice", ", ".join(f"{NAME}={secret}" for secret in old)))
    assert [sessions.load(secret, NET) for secret in old] == [None] * 3
    assert sessions.load(elsewhere, NET) is not None


def test_two_logins_in_one_request_leave_one_session(
    ask: Ask, store: WatchedStore, sessions: Sessions
) -> None:
    answer = ask("/again/second")
    assert answer.text == "second"
    loaded = sessions.load(given(answer), NET)
    assert loaded is not None
    assert loaded.by_cookie.user_id == "second"
    assert store.calls.count("delete") == 1


# --- logout -----------------------------------------------------------------------------------


def test_s13_logout_ends_the_session_and_takes_the_cookie(ask: Ask, sessions: Sessions, clock: Clock) -> None:
    secret = given(ask("/login/alice"))
    answer = ask("/logout", f"{NAME}={secret}")
    assert answer.text == "alice then nobody"
    assert given(answer) == ""
    assert answer.headers["Set-Cookie"] == (
        f"{NAME}=; Domain=example.com; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Secure; HttpOnly;"
        " Path=/; SameSite=Lax"
    )
    assert sessions.load(secret, NET) is None
    assert ask("/who", f"{NAME}={secret}").text == "nobody nobody"
    assert ask("/logout", f"{NAME}={secret}").text == "nobody then nobody"


def test_logout_ends_each_session_of_several_cookies(ask: Ask, sessions: Sessions, clock: Clock) -> None:
    secrets = [new_secret(), *(sessions.begin(a_session(clock, user_id="alice")) for _ in range(2))]
    assert ask("/logout", "; ".join(f"{NAME}={secret}" for secret in secrets)).text == "alice then nobody"
    assert [sessions.load(secret, NET) for secret in secrets] == [None] * 3


def test_a_bearer_logout_ends_that_session_and_not_the_cookies(
    ask: Ask, sessions: Sessions, clock: Clock
) -> None:
    bearer, cookie = sessions.begin(a_session(clock, user_id="bob")), sessions.begin(a_session(clock))
    assert ask(f"/logout?bearer={bearer}", f"{NAME}={cookie}").text == "bob then nobody"
    assert sessions.load(bearer, NET) is None
    assert sessions.load(cookie, NET) is not None
    for garbage in ("", "garbage", cookie + "x"):
        assert ask(f"/logout?bearer={garbage}", f"{NAME}={cookie}").text == "nobody then nobody"
    assert sessions.load(cookie, NET) is not None


def test_logging_in_and_out_in_one_request_leaves_nothing(ask: Ask, store: WatchedStore) -> None:
    answer = ask("/in-and-out")
    assert answer.text == "nobody"
    assert given(answer) == ""
    assert store.calls.count("save") == store.calls.count("delete") == 1


# --- a store that is down ---------------------------------------------------------------------


@pytest.mark.parametrize("failing", [{"load", "save", "delete"}, {"load"}, {"delete"}, {"save", "delete"}])
@pytest.mark.parametrize("path", ["/who", "/login/alice", "/logout"])
def test_s24_a_store_that_is_down_lets_nobody_in_and_deletes_no_cookie(
    ask: Ask, store: WatchedStore, sessions: Sessions, clock: Clock, path: str, failing: set[str]
) -> None:
    secret = sessions.begin(a_session(clock, user_id="carol"))
    store.failing = failing
    answer = ask(path, f"{NAME}={secret}")
    assert "Set-Cookie" not in answer.headers
    if path == "/who" and "load" not in failing:
        assert answer.text == "carol carol"
    else:
        assert answer.status_code == 503
    store.failing = set()
    assert ask("/who", f"{NAME}={secret}").text == "carol carol"


def test_s24_a_login_that_cannot_be_kept_leaves_the_old_session(
    ask: Ask, store: WatchedStore, sessions: Sessions, clock: Clock
) -> None:
    secret = sessions.begin(a_session(clock, user_id="carol"))
    store.failing = {"save"}
    answer = ask("/login/alice", f"{NAME}={secret}")
    assert answer.status_code == 503
    assert "Set-Cookie" not in answer.headers
    assert ask("/who", f"{NAME}={secret}").text == "carol carol"


# --- Flask-Session's own ways are closed ------------------------------------------------------

DICTIONARY_USES: list[Callable[[Any], Any]] = [
    lambda session: session["x"],
    lambda session: session.__setitem__("x", 1),
    lambda session: session.__delitem__("x"),
    lambda session: "x" in session,
    len,
    bool,
    list,
    dict,
    lambda session: session.get("x"),
    lambda session: session.pop("x"),
    lambda session: session.pop("x", None),
    lambda session: session.popitem(),
    lambda session: session.setdefault("x", 1),
    lambda session: session.update(x=1),
    lambda session: session.clear(),
    lambda session: session.keys(),
    lambda session: session.values(),
    lambda session: session.items(),
    lambda session: session == {},
    lambda session: session.permanent,
    lambda session: setattr(session, "permanent", True),
    lambda session: flask.flash("message"),
]


@pytest.mark.parametrize("use", DICTIONARY_USES)
def test_use_as_a_dictionary_fails_loudly(app: Flask, store: WatchedStore, use: Callable[[Any], Any]) -> None:
    with app.test_request_context("/", headers={"Cookie": f"{NAME}={new_secret()}"}):
        with pytest.raises(TypeError, match="keeps a login and nothing else"):
            use(flask.session)
    assert store.calls == []


def test_what_is_printed_of_it_shows_no_secret(app: Flask) -> None:
    secret = new_secret()
    with app.test_request_context("/", headers={"Cookie": f"{NAME}={secret}"}):
        for text in (repr(flask.session), str(flask.session), f"{flask.session}"):
            assert secret not in text
        assert isinstance(flask.session._get_current_object(), BrowserSession)  # type: ignore[attr-defined]


def test_stored_bytes_never_reach_the_serializer_or_pickle(
    ask: Ask, app: Flask, store: WatchedStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle planted where the record should be is not even looked at."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("pickle was asked")

    for module, name in ((pickle, "loads"), (pickle, "load"), (flask_session.base.pickle, "loads")):
        monkeypatch.setattr(module, name, never)
    for method in ("decode", "encode"):
        monkeypatch.setattr(flask_session.base.MsgSpecSerializer, method, never)
    secret = given(ask("/login/alice"))
    assert ask("/who", f"{NAME}={secret}").text == "alice alice"
    bomb = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
    store.save(store_key(secret), bomb, clock() + DAY)
    assert ask("/who", f"{NAME}={secret}").text == "nobody nobody"
    assert ask("/login/bob", f"{NAME}={secret}").text == "bob"
    assert app.session_interface.serializer is None  # type: ignore[attr-defined]
    assert app.session_interface.pickle_based is False


def test_the_inherited_hooks_are_closed(app: Flask) -> None:
    interface: Any = app.session_interface
    for hook in (
        lambda: interface._retrieve_session_data("id"),
        lambda: interface._delete_session("id"),
        lambda: interface._upsert_session(DAY, None, "id"),
        lambda: interface.regenerate(None),
    ):
        with pytest.raises(TypeError):
            hook()


def test_a_record_is_a_session(app: Flask, sessions: Sessions, clock: Clock) -> None:
    session = a_session(clock)
    with app.test_request_context("/", headers={"Cookie": f"{NAME}={sessions.begin(session)}"}):
        record: LiveSession | None = flask.session.record  # type: ignore[attr-defined]
        assert record == sessions.live(session, record.key)
