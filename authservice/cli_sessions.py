"""``authservice sessions``: who is logged in, and ending it, for those who run the service.

Reads the same environment as the service and opens the same store, also while the service runs; it
starts no thread, makes no store where there is none, and asks the provider nothing. What it knows
of a session is its label (`sessions.directory`), so it prints no secret and no token. Called by
`authservice.cli`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from authservice.app import build_store
from authservice.clock import Clock, utc_now
from authservice.errors import SettingsError, StoreDown
from authservice.moments import counted, in_words, iso
from authservice.sessions import Store
from authservice.sessions.directory import Directory, Known, deadline
from authservice.sessions.labels import Labels
from authservice.sessions.seal import Keyring, session_key
from authservice.settings import Settings, load
from authservice.terminal import carried_out, say, shown

OK, NOTHING_FOUND, USAGE_OR_SETTINGS, STORE_DOWN = 0, 1, 2, 3

SHORTEST_PREFIX = 8
"""Characters of an id that may stand for it, where only one session's begins so."""

SHOWN_ID = 12
AT_ONCE = 10_000
"""Sessions that are put in order and into columns together; a million of them fit in no terminal."""

_LONGEST_AGENT = 60
_SEALED = "(sealed under a key that is not here)"
_LIVE_ON = (
    "The sessions are refused from now on, everywhere. Tokens that the provider issued for them live on until they "
    "expire; end them there if they must not."
)

T = TypeVar("T")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds ``sessions`` with its actions to the command line."""
    sessions = commands.add_parser(
        "sessions",
        help="say who is logged in, end sessions, look the store over",
        description="Works on the session store that the settings in this environment name, also while the service "
        "runs. Exit status: 0; 1 when there is no such session; 2 for faulty settings or usage; 3 when the store does "
        "not answer, or check found something wrong.",
    )
    actions = sessions.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="one line for each session, the oldest first")
    listing.add_argument("--user", metavar="USER", help="only those of exactly this user id")
    show = actions.add_parser("show", help="everything that is known of one session")
    show.add_argument("id", metavar="ID", help=f"its id, or how that begins ({SHORTEST_PREFIX} characters or more)")
    end = actions.add_parser("end", help="end sessions: they are refused everywhere at once")
    end.add_argument("ids", nargs="*", metavar="ID", help="their ids, or how these begin")
    end.add_argument("--all-of", metavar="USER", help="all sessions of exactly this user id")
    end.add_argument("--yes", action="store_true", help="do not ask first (on a terminal, where no ids are named)")
    for some in (listing, end):
        some.add_argument(
            "--older-than", metavar="SECONDS", type=_age,
            help="only those whose login was so long ago, however recently they were used",
        )
    check = actions.add_parser("check", help="look the whole store over: is it intact, what is in it?")
    how = check.add_mutually_exclusive_group()
    how.add_argument("--thorough", action="store_const", const=True, help="the longest examination, whatever it takes")
    how.add_argument("--quick", action="store_const", const=False, dest="thorough", help="a shorter one")
    for action in (listing, show, end, check):
        what = "one JSON object a line" if action is listing else "one JSON object"
        action.add_argument("--json", action="store_true", help=f"for programs: {what}")
    end.set_defaults(complain=end.error)


def _age(text: str) -> timedelta:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise argparse.ArgumentTypeError("not a number of seconds")
    return timedelta(seconds=int(text))


def run(arguments: argparse.Namespace, environ: Mapping[str, str] | None = None, now: Clock = utc_now) -> int:
    """Carries out one action; gives the exit status."""
    if arguments.action == "end" and bool(arguments.ids) == bool(arguments.all_of or arguments.older_than is not None):
        arguments.complain("name either ids, or --all-of and --older-than")
    return carried_out(lambda: _carry_out(arguments, environ, now))


def _carry_out(arguments: argparse.Namespace, environ: Mapping[str, str] | None, now: Clock) -> int:
    try:
        settings = load(environ)
    except SettingsError as error:
        _tell("the settings in this environment cannot be used; run it with those of the service.")
        say("".join(f"\n  - {shown(problem)}" for problem in error.problems) + "\n")
        return USAGE_OR_SETTINGS
    try:
        opened = build_store(settings, now, create=False)
    except ValueError as error:
        _tell(f"SESSION_STORE_REDIS_ADDR: {error}.")
        return USAGE_OR_SETTINGS
    try:
        with closing(opened) as store:
            status = _Sessions(store, settings, now, as_json=arguments.json).carry_out(arguments)
            sys.stdout.flush()
            return status
    except StoreDown as error:
        _tell(str(error))
        return STORE_DOWN


class _Sessions:
    """The actions over one store."""

    def __init__(self, store: Store, settings: Settings, now: Clock, *, as_json: bool) -> None:
        self._store = store
        self._settings = settings
        self._now = now
        self._json = as_json
        self._progress = _Progress()
        self._directory = Directory(store, Labels(Keyring(settings.sealing_key_material())))

    def carry_out(self, arguments: argparse.Namespace) -> int:
        for notice in self._store.notices:
            _tell(notice)
        match arguments.action:
            case "list":
                return self._list(arguments.user, arguments.older_than)
            case "show":
                return self._show(arguments.id)
            case "end" if arguments.ids:
                return self._end_named(arguments.ids)
            case "end":
                return self._end_all(arguments.all_of, arguments.older_than, ask=not arguments.yes)
            case _:
                return self._check(arguments.thorough)

    def _list(self, user: str | None, age: timedelta | None) -> int:
        count = 0
        live = (known for known in self._found(user, age) if self._ends(known) > self._now())
        while batch := list(islice(live, AT_ONCE)):
            batch.sort(key=_since)
            self._progress.clear()
            if self._json:
                for known in batch:
                    print(json.dumps(self._described(known)))
            else:
                print("\n".join(_table(_HEADINGS if count == 0 else (), map(self._row, batch))))
            count += len(batch)
        if not count:
            _tell("no such session" if user is not None or age is not None else "nobody is logged in")
            return NOTHING_FOUND
        if not self._json:
            print(f"\n{counted(count, 'session')}")
        return OK

    def _show(self, prefix: str) -> int:
        ids, status = self._resolve([prefix])
        known = self._directory.show(ids[0]) if ids else None
        if known is None:
            return status or self._unknown(prefix)
        if self._json:
            print(json.dumps(self._described(known)))
            return OK
        about = known.about
        facts = {"id": known.id, "user": _SEALED if about is None else about.user_id}
        if about:
            facts |= {
                "provider": about.issuer,
                "since": self._moment(about.created),
                "last seen": self._moment(about.last_seen),
            }
        facts["ends"] = self._moment(self._ends(known))
        if about:
            facts |= {"from": about.address, "with": about.user_agent}
        print("\n".join(_table((), ([name, shown(value)] for name, value in facts.items() if value))))
        return OK

    def _end_named(self, prefixes: Sequence[str]) -> int:
        """None at all when one of the names is in doubt."""
        ids, status = self._resolve(prefixes)
        if status == USAGE_OR_SETTINGS:
            return status
        ended = self._end(ids)
        return status if status or ended == len(ids) else NOTHING_FOUND

    def _end_all(self, user: str | None, age: timedelta | None, *, ask: bool) -> int:
        ids = [known.id for known in self._found(user, age)]
        self._progress.clear()
        if not ids:
            _tell("no such session")
            if self._json:
                print(json.dumps({"ended": 0}))
            return NOTHING_FOUND
        whose = "" if user is None else f" of {shown(user)}"
        if ask and sys.stdin.isatty() and not _agreed(f"End {counted(len(ids), 'session')}{whose}?"):
            _tell("nothing was ended")
            return NOTHING_FOUND
        self._end(ids)
        return OK

    def _end(self, ids: Sequence[str]) -> int:
        """Says how many ended, also when the store fails half-way."""
        ended = 0
        try:
            for id in self._progress.over(ids):
                ended += self._directory.end([id])
        finally:
            self._progress.clear()
            print(json.dumps({"ended": ended}) if self._json else f"{counted(ended, 'session')} ended.")
            if ended:
                say(_LIVE_ON + "\n")
        return ended

    def _check(self, thorough: bool | None) -> int:
        found = self._store.inspect(thorough=thorough)
        facts, problems = dict(found.facts), list(found.problems)
        try:
            self._store.ping()
        except StoreDown as error:
            problems.append(str(error))
        if self._json:
            print(json.dumps({"facts": facts, "problems": problems}))
        else:
            rows = ([shown(name), _fact(value)] for name, value in facts.items())
            print("\n".join(_table((), rows)))
            print("".join(f"\nproblem: {shown(problem)}" for problem in problems) or "\nNothing is wrong with it.")
        return STORE_DOWN if problems else OK

    def _found(self, user: str | None, age: timedelta | None) -> Iterator[Known]:
        """Those asked for. Of a session whose label cannot be opened the age is not known."""
        everyone = self._directory.everyone() if user is None else self._directory.of_user(user)
        before = None if age is None else self._now() - age
        for known in self._progress.over(everyone):
            if before is None or (known.about and known.about.created <= before):
                yield known

    def _resolve(self, prefixes: Sequence[str]) -> tuple[list[str], int]:
        """The whole ids, and the exit status that what was not found asks for. All sessions are looked
        through once, unless every id is a whole one."""
        found: dict[str, list[str]] = {prefix.strip().lower(): [] for prefix in prefixes}
        for named in found:
            if len(named) < SHORTEST_PREFIX:
                _tell(f"{named}: too short; name at least {SHORTEST_PREFIX} characters of an id")
                return [], USAGE_OR_SETTINGS
        whole = [named for named in found if session_key(named)]
        found |= {named: [named] for named in whole if self._directory.show(named)}
        beginnings = tuple(named for named in found if named not in whole)
        for id in self._progress.over(self._directory.ids() if beginnings else ()):
            if id.startswith(beginnings):
                for named in beginnings:
                    if id.startswith(named):
                        found[named].append(id)
        self._progress.clear()
        for named, ids in found.items():
            if len(ids) > 1:
                _tell(f"{named}: {len(ids)} sessions begin so; name more of the id")
                return [], USAGE_OR_SETTINGS
        missing = [self._unknown(named) for named, ids in found.items() if not ids]
        return list(dict.fromkeys(id for ids in found.values() for id in ids)), max(missing, default=OK)

    @staticmethod
    def _unknown(prefix: str) -> int:
        _tell(f"{prefix}: no such session")
        return NOTHING_FOUND

    def _ends(self, known: Known) -> datetime:
        return deadline(known, self._settings.session_max_age, self._settings.session_idle_timeout)

    def _row(self, known: Known) -> list[str]:
        about, ends = known.about, f"{self._ends(known):{_MINUTE}}"
        if about is None:
            return [known.id[:SHOWN_ID], _SEALED, "", "", ends, "", ""]
        agent = shown(about.user_agent)
        return [
            known.id[:SHOWN_ID],
            shown(about.user_id),
            f"{about.created:{_MINUTE}}",
            f"{about.last_seen:{_MINUTE}}",
            ends,
            shown(about.address),
            agent if len(agent) <= _LONGEST_AGENT else agent[: _LONGEST_AGENT - 1] + "…",
        ]

    def _described(self, known: Known) -> dict[str, str | None]:
        about = known.about
        return {
            "id": known.id,
            "user": about.user_id if about else None,
            "issuer": about.issuer if about else None,
            "created": iso(about.created) if about else None,
            "last_seen": iso(about.last_seen) if about else None,
            "ends": iso(self._ends(known)),
            "address": about.address if about else None,
            "user_agent": about.user_agent if about else None,
        }

    def _moment(self, moment: datetime) -> str:
        span = moment - self._now()
        far = in_words(abs(span))
        return f"{moment:{_SECOND}} UTC ({'in ' + far if span > timedelta(0) else far + ' ago'})"


_MINUTE, _SECOND = "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"
_HEADINGS = ("ID", "USER", "SINCE (UTC)", "LAST SEEN (UTC)", "ENDS (UTC)", "FROM", "WITH")


@dataclass(slots=True)
class _Progress:
    """Says on standard error how far a long look has come: over and over on a terminal's one line,
    elsewhere with a line now and then, and nothing when it was quick."""

    clock: Callable[[], float] = time.monotonic
    _shown: bool = False

    def over(self, items: Iterable[T]) -> Iterator[T]:
        terminal = sys.stderr.isatty()
        every = 1.0 if terminal else 10.0
        following = self.clock() + every
        for count, item in enumerate(items, 1):
            yield item
            if count % 100 == 0 and self.clock() >= following:
                following = self.clock() + every
                say(f"\r{count:,} sessions …" if terminal else f"{count:,} sessions …\n")
                self._shown = terminal

    def clear(self) -> None:
        """Before anything else is printed."""
        if self._shown:
            say("\r\033[K")
            self._shown = False


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with aligned columns, without blanks at their ends."""
    lines = [headings, *rows] if headings else list(rows)
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _width(text: str) -> int:
    """Columns of a terminal, where some characters take two and some none."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) != 0 for character in text)


def _fact(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else shown(value)


def _since(known: Known) -> tuple[datetime, str]:
    return known.about.created if known.about else known.expires, known.id


def _agreed(question: str) -> bool:
    say(f"{question} [y/N] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _tell(message: str) -> None:
    say(f"authservice sessions: {shown(message)}\n")
