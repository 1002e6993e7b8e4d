"""What is remembered about bearer tokens, for how long, and that nobody is asked twice at once."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import pytest

from authservice.authn.cache import REFUSED_LIFETIME, BearerCache, CachedAuthenticator
from authservice.check import NeedsIO, Reach
from authservice.errors import NotReady, ProviderBusy, Refused, Unavailable
from authservice.identity import AuthMethod, Identity, VerifiedClaims
from tests.waiting import until

MINUTES = timedelta(minutes=5)
START = datetime(2030, 1, 1, tzinfo=timezone.utc)
NETWORK, MEMORY = Reach.NETWORK, Reach.MEMORY


class Hands:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time

    def advance(self, **by: float) -> None:
        self.time += timedelta(**by)


def person(user_id: str = "alice", expires: datetime | None = None) -> Identity:
    return Identity(user_id, (), VerifiedClaims({}), AuthMethod.HEADER, "https://issuer.example", expires)


Answer = Identity | BaseException | None


class Remote:
    """An authenticator that has to ask elsewhere, and says what it is told to."""

    name = "remote"

    def __init__(self, answer: Answer = None) -> None:
        self.answer = answer
        self.asked: list[str] = []
        self.before: Callable[[], object] = lambda: None

    def judge(self, token: str, reach: Reach) -> Identity | None:
        if reach is MEMORY:
            raise NeedsIO
        self.asked.append(token)
        answer = self.answer
        self.before()
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Local(Remote):
    """An authenticator that knows by itself."""

    name = "local"

    def judge(self, token: str, reach: Reach) -> Identity | None:
        return super().judge(token, NETWORK)


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def cache(hands: Hands) -> BearerCache:
    return BearerCache(100, MINUTES, hands)


@pytest.fixture
def off(hands: Hands) -> BearerCache:
    return BearerCache(100, None, hands)


def outcome(authenticator: CachedAuthenticator, token: str = "t", reach: Reach = NETWORK) -> object:
    """The user id, None, or the class of what was raised."""
    try:
        identity = authenticator.judge(token, reach)
    except (Refused, Unavailable, NeedsIO) as error:
        return type(error)
    return identity and identity.user_id


class TestIdentities:
    @pytest.mark.parametrize("kind", [Remote, Local])
    def test_an_identity_is_kept_for_the_lifetime_and_hits_do_not_prolong_it(
        self, kind: type[Remote], cache: BearerCache, hands: Hands
    ) -> None:
        inner = kind(person())
        cached = CachedAuthenticator(inner, cache)
        assert cached.name == inner.name
        for _ in range(5):
            assert outcome(cached) == "alice"
            hands.advance(seconds=59.9)
        assert inner.asked == ["t"]
        hands.advance(seconds=0.5)
        inner.answer = Refused("revoked")
        assert outcome(cached) is Refused and inner.asked == ["t", "t"]

    @pytest.mark.parametrize("left", [0.000001, 0.5, 7, 299])
    def test_b13_never_past_the_tokens_own_expiry(self, cache: BearerCache, hands: Hands, left: float) -> None:
        inner = Remote(person(expires=START + timedelta(seconds=left)))
        cached = CachedAuthenticator(inner, cache)
        assert outcome(cached) == outcome(cached) == "alice" and len(inner.asked) == 1
        hands.time = START + timedelta(seconds=left) - timedelta(microseconds=1)
        assert outcome(cached) == "alice" and len(inner.asked) == 1
        hands.advance(microseconds=1)
        inner.answer = Refused("expired")
        assert outcome(cached) is Refused

    def test_a_token_past_its_expiry_is_not_kept(self, cache: BearerCache) -> None:
        inner = Remote(person(expires=START - timedelta(seconds=1)))
        cached = CachedAuthenticator(inner, cache)
        assert [outcome(cached) for _ in range(3)] == ["alice"] * 3 and len(inner.asked) == 3

    def test_b13_switched_off_nothing_is_kept(self, off: BearerCache) -> None:
        for inner in (Remote(person()), Local(person())):
            cached = CachedAuthenticator(inner, off)
            assert outcome(cached) == outcome(cached) == "alice" and len(inner.asked) == 2
            inner.answer = Refused("revoked")
            assert outcome(cached) is Refused

    def test_a_clock_that_goes_back_brings_no_older_verdict_back(self, cache: BearerCache, hands: Hands) -> None:
        inner = Remote(person())
        cached = CachedAuthenticator(inner, cache)
        assert outcome(cached) == outcome(cached) == "alice"
        hands.advance(minutes=10)
        outcome(cached, "another")
        inner.answer = Refused("revoked")
        assert outcome(cached) is Refused
        hands.advance(minutes=-10)
        assert outcome(cached) is Refused

    def test_b11_the_key_is_the_authenticator_and_the_whole_token(self, cache: BearerCache) -> None:
        remote, local = Remote(person("alice")), Local(person("bob"))
        assert outcome(CachedAuthenticator(remote, cache)) == "alice"
        assert outcome(CachedAuthenticator(local, cache)) == "bob"
        remote.answer = person("carol")
        for other in ("T", "t ", "tt", "", "t\0", "é", "\udcff"):
            assert outcome(CachedAuthenticator(remote, cache), other) == "carol"
        assert outcome(CachedAuthenticator(remote, cache)) == "alice"

    def test_tokens_are_not_kept_in_memory(self, cache: BearerCache) -> None:
        token = "".join(["a-token-", "that-nobody-may-", "find"])
        CachedAuthenticator(Local(person()), cache).judge(token, NETWORK)
        CachedAuthenticator(Local(person()), cache).judge(token, NETWORK)
        kept = [*cache._identities, *cache._lately, *cache._against]
        assert len(kept) == 2 and not any(token in str(part) for key in kept for part in key)


class TestVerdictsAgainst:
    @pytest.mark.parametrize("verdict,told", [(Refused("bad"), Refused), (None, None)])
    @pytest.mark.parametrize("lifetime", [None, MINUTES])
    def test_they_are_kept_for_a_moment_even_when_the_cache_is_off(
        self, hands: Hands, lifetime: timedelta | None, verdict: Answer, told: object
    ) -> None:
        inner = Remote(verdict)
        cached = CachedAuthenticator(inner, BearerCache(10, lifetime, hands))
        for _ in range(100):
            assert outcome(cached) is told
        assert len(inner.asked) == 1
        hands.time = START + REFUSED_LIFETIME - timedelta(microseconds=1)
        assert outcome(cached) is told and len(inner.asked) == 1
        hands.advance(microseconds=1)
        inner.answer = person()
        assert outcome(cached) == "alice"

    def test_the_log_gets_the_same_text_each_time(self, cache: BearerCache) -> None:
        cached = CachedAuthenticator(Remote(Refused("opaque: inactive")), cache)
        for _ in range(2):
            with pytest.raises(Refused, match="^opaque: inactive$"):
                cached.judge("t", NETWORK)

    def test_what_is_known_without_asking_is_not_kept(self, cache: BearerCache) -> None:
        inner = Local(Refused("forged"))
        cached = CachedAuthenticator(inner, cache)
        assert outcome(cached) is Refused
        inner.answer = None
        assert outcome(cached) is None
        inner.answer = person()
        assert outcome(cached) == "alice"

    @pytest.mark.parametrize("error", [Unavailable("down"), NotReady("no keys"), ProviderBusy("later")])
    @pytest.mark.parametrize("kind", [Remote, Local])
    def test_an_error_is_never_kept(self, cache: BearerCache, kind: type[Remote], error: Unavailable) -> None:
        inner = kind(error)
        cached = CachedAuthenticator(inner, cache)
        assert outcome(cached) is type(error)
        inner.answer = person()
        assert outcome(cached) == "alice"


class TestMemory:
    def test_what_is_kept_is_told_without_waiting(self, cache: BearerCache) -> None:
        good, bad, foreign = Remote(person()), Remote(Refused("bad")), Remote(None)
        for inner, told, name in ((good, "alice", "a"), (bad, Refused, "b"), (foreign, None, "c")):
            inner.name = name
            cached = CachedAuthenticator(inner, cache)
            assert outcome(cached, reach=MEMORY) is NeedsIO and not inner.asked
            assert outcome(cached) == told
            assert outcome(cached, reach=MEMORY) == told and len(inner.asked) == 1

    def test_who_needs_nobody_answers_and_is_kept(self, cache: BearerCache) -> None:
        inner = Local(person())
        cached = CachedAuthenticator(inner, cache)
        assert outcome(cached, reach=MEMORY) == outcome(cached, reach=MEMORY) == "alice"
        assert inner.asked == ["t"]


class TestBounds:
    def test_identities_are_bounded_and_the_least_used_goes(self, hands: Hands) -> None:
        inner = Local(person())
        cached = CachedAuthenticator(inner, BearerCache(3, MINUTES, hands))
        for token in "abcadae":
            cached.judge(token, NETWORK)
        assert inner.asked == list("abcde")
        cached.judge("a", NETWORK)
        assert len(inner.asked) == 5

    def test_what_was_asked_for_ten_seconds_later_was_used(self, hands: Hands) -> None:
        inner = Local(person())
        cached = CachedAuthenticator(inner, BearerCache(3, MINUTES, hands))
        for token in "abcabc":
            cached.judge(token, NETWORK)
            hands.advance(seconds=4)
        hands.advance(seconds=11)
        cached.judge("a", NETWORK)
        cached.judge("d", NETWORK)
        hands.advance(seconds=11)
        for token in "acdb":
            cached.judge(token, NETWORK)
        assert inner.asked == list("abcdb")

    def test_those_that_were_asked_for_lately_are_bounded(self, hands: Hands) -> None:
        inner = Local(person())
        cache = BearerCache(3, MINUTES, hands)
        for token in "aabbccddee":
            CachedAuthenticator(inner, cache).judge(token, NETWORK)
            assert len(cache._lately) <= 3
        assert inner.asked == list("abcde")
        hands.advance(seconds=11)
        CachedAuthenticator(inner, cache).judge("e", NETWORK)
        assert len(cache._lately) == 1

    def test_a_flood_of_bad_tokens_pushes_out_no_good_one(self, hands: Hands) -> None:
        inner = Remote(person())
        cache = BearerCache(3, MINUTES, hands)
        cached = CachedAuthenticator(inner, cache)
        outcome(cached, "good")
        for answer in (Refused("bad"), None):
            inner.answer = answer
            for number in range(50):
                outcome(cached, f"{answer}{number}")
        inner.asked.clear()
        assert outcome(cached, "good") == "alice" and not inner.asked
        assert len(cache._against) == 3

    def test_nothing_of_finished_questions_stays(self, off: BearerCache) -> None:
        for answer in (person(), None, Refused("bad"), Unavailable("down"), ZeroDivisionError()):
            try:
                CachedAuthenticator(Remote(answer), off).judge("t", NETWORK)
            except (Refused, Unavailable, ZeroDivisionError):
                pass
        gc.collect()
        assert not off._flights


class Gate:
    """Holds whoever passes until it is opened, and counts the waiters behind one question."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.waiting = 0
        lock, result = threading.Lock(), Future.result

        def counted(future: Future[object], timeout: float | None = None) -> object:
            with lock:
                self.waiting += threading.current_thread().name.startswith("asker")
            return result(future, timeout)

        monkeypatch.setattr(Future, "result", counted)

    def hold(self) -> None:
        assert self.opened.wait(10)


class TestOnce:
    """Eight threads, one token."""

    THREADS = 8

    @pytest.fixture
    def gate(self, monkeypatch: pytest.MonkeyPatch) -> Gate:
        return Gate(monkeypatch)

    def together(self, cached: CachedAuthenticator, gate: Gate) -> list[object]:
        def ask() -> object:
            try:
                return outcome(cached)
            except ZeroDivisionError as error:
                return type(error)

        with ThreadPoolExecutor(self.THREADS, thread_name_prefix="asker") as pool:
            futures = [pool.submit(ask) for _ in range(self.THREADS)]
            until(lambda: gate.waiting == self.THREADS - 1)
            gate.opened.set()
            return [future.result(10) for future in futures]

    @pytest.mark.parametrize(
        "answer,told",
        [(person(), "alice"), (None, None), (Refused("bad"), Refused), (ProviderBusy("later"), ProviderBusy)],
    )
    def test_one_asks_and_all_get_its_answer(self, off: BearerCache, gate: Gate, answer: Answer, told: object) -> None:
        inner = Remote(answer)
        inner.before = gate.hold
        assert self.together(CachedAuthenticator(inner, off), gate) == [told] * self.THREADS
        assert inner.asked == ["t"]

    def test_a_shared_failure_is_not_kept(self, cache: BearerCache, gate: Gate) -> None:
        inner = Remote(Unavailable("down", public="Please wait."))
        inner.before = gate.hold
        cached = CachedAuthenticator(inner, cache)
        assert self.together(cached, gate) == [Unavailable] * self.THREADS and len(inner.asked) == 1
        inner.answer = person()
        assert outcome(cached) == "alice"

    def test_each_gets_an_exception_of_its_own_with_the_same_words(self, off: BearerCache, gate: Gate) -> None:
        inner = Remote(NotReady("keys: no answer", public="Please wait."))
        inner.before = gate.hold
        cached = CachedAuthenticator(inner, off)
        errors: list[Unavailable] = []

        def ask() -> None:
            try:
                cached.judge("t", NETWORK)
            except Unavailable as error:
                errors.append(error)

        threads = [threading.Thread(target=ask, name=f"asker-{number}") for number in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: gate.waiting == 3)
        gate.opened.set()
        for thread in threads:
            thread.join(10)
        assert len({id(error) for error in errors}) == 4
        assert {(type(error), str(error), error.public) for error in errors} == {
            (NotReady, "keys: no answer", "Please wait.")
        }

    def test_when_the_first_dies_the_others_ask_themselves(self, off: BearerCache, gate: Gate) -> None:
        inner = Remote(ZeroDivisionError())

        def die_once() -> None:
            if len(inner.asked) == 1:
                gate.hold()

        inner.before = die_once
        with ThreadPoolExecutor(self.THREADS, thread_name_prefix="asker") as pool:
            futures = [pool.submit(outcome, CachedAuthenticator(inner, off)) for _ in range(self.THREADS)]
            until(lambda: gate.waiting == self.THREADS - 1)
            inner.answer = person()
            gate.opened.set()
            ends = [future.exception(10) or future.result(10) for future in futures]
        assert sorted(map(str, map(type, ends))).count("<class 'ZeroDivisionError'>") == 1
        assert ends.count("alice") == self.THREADS - 1

    def test_different_tokens_do_not_wait_for_each_other(self, off: BearerCache, gate: Gate) -> None:
        inner = Remote(person())
        inner.before = gate.hold
        slow = threading.Thread(target=outcome, args=(CachedAuthenticator(inner, off), "slow"))
        slow.start()
        until(lambda: inner.asked)
        quick = Remote(person("bob"))
        assert outcome(CachedAuthenticator(quick, off), "quick") == "bob"
        assert outcome(CachedAuthenticator(Local(person("carol")), off), "slow") == "carol"
        gate.opened.set()
        slow.join(10)

    def test_who_must_not_wait_does_not(self, off: BearerCache, gate: Gate) -> None:
        inner = Remote(person())
        inner.before = gate.hold
        cached = CachedAuthenticator(inner, off)
        first = threading.Thread(target=outcome, args=(cached,))
        first.start()
        until(lambda: inner.asked)
        assert outcome(cached, reach=MEMORY) is NeedsIO
        gate.opened.set()
        first.join(10)

    def test_who_comes_just_after_the_answer_finds_it(self, cache: BearerCache) -> None:
        """Between looking and asking somebody else may have got the answer."""
        inner = Remote(person())
        cached = CachedAuthenticator(inner, cache)
        find, looked = cache.find, []

        def late(key: object) -> object:
            if not looked:
                looked.append(key)
                cached.judge("t", NETWORK)
                raise KeyError
            return find(key)

        cache.find = late  # type: ignore[method-assign, assignment]
        assert outcome(cached) == "alice" and inner.asked == ["t"]
