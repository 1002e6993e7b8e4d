"""Is the service alive, is it ready, and what has it done since it began?

Alive means that a worker answers at all. Ready means that a login could succeed now: the
provider's metadata is known and the session store answers. What it has done is told in numbers,
each declared once in `Metric`; counting takes no lock and no I/O, since checks do it. How the
numbers of several workers come together is `authservice.scrape`'s work.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from authservice.errors import Reason, Unavailable
from authservice.identity import AuthMethod

OK = "ok"
OPEN = "none"
"""The method of an allowed check that nobody had to log in for."""


class Readiness:
    """Looks at each part that a login needs. A probe returns, or raises `errors.Unavailable`.

    A note is a sentence about what is not as somebody meant it to be, empty when all is well. Nobody is
    sent elsewhere for it.
    """

    def __init__(
        self, probes: Mapping[str, Callable[[], object]], notes: Mapping[str, Callable[[], str]] | None = None
    ) -> None:
        self._probes = probes
        self._notes = notes or {}

    def report(self) -> dict[str, str]:
        """Each part with ``"ok"`` or the reason why not."""
        return {name: self._ask(probe) for name, probe in self._probes.items()}

    def notes(self) -> dict[str, str]:
        """Each note, or ``"ok"``: for people who look, and no part of the verdict."""
        return {name: note() or OK for name, note in self._notes.items()}

    @staticmethod
    def _ask(probe: Callable[[], object]) -> str:
        try:
            probe()
        except Unavailable as error:
            return error.reason.value
        return OK


def is_ready(report: dict[str, str]) -> bool:
    """Whether every part of a report is well."""
    return all(state == OK for state in report.values())


class EndedBy(str, Enum):
    """Who asked for the end of a session."""

    BEARER = "bearer"
    BROWSER = "browser"
    BACK_CHANNEL = "back_channel"
    FRONT_CHANNEL = "front_channel"


class Sent(str, Enum):
    """What a check has to bring of the request that it is about."""

    COOKIE = "cookie"
    ACCEPT = "accept"
    SCHEME = "x_forwarded_proto"
    AUTHORIZATION = "authorization"
    ORIGINAL_URL = "original_url"


_METHODS = (*(method.value for method in AuthMethod), OPEN)
_REASONS = tuple(reason.value for reason in Reason)


QUESTIONS = ("refresh", "validation")
POLICY_OUTCOMES = ("allow", "deny", "trial_allow", "trial_deny", "audit")


class Metric(Enum):
    """Every number that is told: what it counts and, where it is counted apart, by what. The values
    of a label are a closed list too: nothing that a client sent becomes part of a name."""

    ALLOWED = ("checks_allowed_total", "Checks that passed", "method", _METHODS)
    DENIED = (
        "checks_denied_total", "Checks that did not pass, other than by a redirect to the login", "reason", _REASONS,
    )
    LOGINS_BEGUN = ("logins_begun_total", "Redirects to the provider")
    LOGINS_FINISHED = ("logins_finished_total", "Logins that succeeded")
    LOGINS_REFUSED = ("logins_refused_total", "Logins that failed", "reason", _REASONS)
    LOGOUTS = ("logouts_total", "Logouts", "by", tuple(by.value for by in EndedBy))
    NOTICES_REFUSED = ("logout_notices_refused_total", "Logout notices of the provider that nothing was done about", "by",
                       (EndedBy.BACK_CHANNEL.value, EndedBy.FRONT_CHANNEL.value))
    SESSION_HITS = ("live_session_hits_total", "Sessions found in memory")
    SESSION_MISSES = ("live_session_misses_total", "Sessions looked for in the store")
    SESSION_INVALIDATIONS = (
        "live_session_invalidations_total", "Changes that dropped a session in memory, or all of them",
    )
    BEARER_HITS = ("bearer_cache_hits_total", "Verdicts about bearer tokens found in memory")
    REFRESHES = ("refreshes_total", "Refreshes that brought new tokens")
    REFRESH_FAILURES = ("refresh_failures_total", "Refreshes that brought none, without ending the session", "reason", _REASONS)
    SESSIONS_ENDED = ("sessions_ended_by_provider_total", "Sessions that the provider lets go on no longer, by the question that told", "question", QUESTIONS)
    VALIDATIONS = ("session_validations_total", "Questions whether a session still holds, by what came of them", "outcome", ("holds", "over", "unknown"))
    PROVIDER_OUTAGE = ("provider_outage", "Workers for which the provider does not work now")
    SESSIONS_UNSAVED = ("sessions_unsaved", "Sessions whose new tokens the store did not take yet")
    MARKS_WAITING = ("session_marks_waiting", "Sessions in use that are not marked so in the store yet")
    MARKS_LOST = ("session_marks_lost_total", "Uses of a session that could not be marked in the store")
    POLICY_VERDICTS = (
        "policy_verdicts_total", "What policies said of checks, on trial where nothing was enforced", "outcome",
        POLICY_OUTCOMES,
    )
    POLICY_RELOADS = (
        "policy_reloads_total", "Changed policies that were taken or refused, once in each worker", "outcome",
        ("taken", "refused"),
    )
    POLICIES = ("policies", "Policies that count now, added up over all workers")
    POLICIES_REFUSED = ("policies_refused", "Workers that go on with older policies, since the new ones are faulty")
    GATEWAY_LACKS = (
        "gateway_lacks_total", "What the gateway was found not to send with its checks, once in each worker", "what",
        tuple(sent.value for sent in Sent),
    )
    STORE_FAILURES = ("store_failures_total", "Questions to the session store that brought no answer")
    PROVIDER_FAILURES = (
        "provider_failures_total", "Requests to the provider that brought no answer, or one of status 5xx",
    )
    POOL_REFUSALS = ("pool_refusals_total", "Requests answered 503 because too many were waiting for a thread")
    UNEXPECTED = ("unexpected_errors_total", "Requests answered 500 because of a fault in the service itself")
    SESSIONS_HELD = ("live_sessions", "Sessions held in memory now, in all workers together")
    WORKERS = ("workers", "Worker processes that these numbers come from and that are running")

    def __init__(self, name: str, text: str, label: str = "", values: tuple[str, ...] = ("",)) -> None:
        self.full_name = f"authservice_{name}"
        self.help = text
        self.label = label
        self.values = values
        self.kind = "counter" if name.endswith("_total") else "gauge"

    def series(self) -> Iterator[str]:
        """The names of its numbers, as Prometheus writes them: one, or one for each value."""
        for value in self.values:
            yield self.one(value)

    def one(self, value: str = "") -> str:
        """The name of one number."""
        return f'{self.full_name}{{{self.label}="{value}"}}' if self.label else self.full_name


Numbers = Mapping[str, int]
"""Numbers by the names of `Metric.series`."""


class Counts:
    """The numbers of one process. Safe for threads; counting never waits."""

    def __init__(self) -> None:
        self._gauges: dict[str, Callable[[], int]] = {Metric.WORKERS.one(): lambda: 1}
        names = [name for metric in Metric if metric.kind == "counter" for name in metric.series()]
        self._counters = {name: _Counter() for name in names}

    def forget(self) -> None:
        """Begins at nothing again, as a process forked from this one must. Not for use while others count."""
        for counter in self._counters.values():
            counter.forget()

    def add(self, metric: Metric, value: str = "") -> None:
        """Counts one more."""
        self._counters[metric.one(value)].add()

    def adder(self, metric: Metric, value: str = "") -> Callable[[], object]:
        """What counts one more when it is called, for whoever cannot afford to look it up each time."""
        return self._counters[metric.one(value)].add

    def gauge(self, metric: Metric, ask: Callable[[], int]) -> None:
        """Names who can say what the number is now."""
        self._gauges[metric.one()] = ask

    def counters(self) -> dict[str, int]:
        """What was counted until now."""
        return {name: counter.value() for name, counter in self._counters.items()}

    def gauges(self) -> dict[str, int]:
        """What is so now."""
        return {name: ask() for name, ask in self._gauges.items()}


class _Counter:
    """A number that threads raise without a lock and without losing one: ``next`` of an
    `itertools.count` is a single step of the interpreter, unlike ``+= 1``."""

    def __init__(self) -> None:
        self._next = itertools.count().__next__
        self.add: Callable[[], object] = self._next
        self._reads = 0
        self._reading = threading.Lock()

    def forget(self) -> None:
        """Begins at nothing again: what was counted so far is subtracted. Who was reading at a fork is not here."""
        self._reading = threading.Lock()
        self._reads = self._next() + 1

    def value(self) -> int:
        """Reading takes a number, too: those are subtracted."""
        with self._reading:
            self._reads += 1
            return self._next() - (self._reads - 1)
