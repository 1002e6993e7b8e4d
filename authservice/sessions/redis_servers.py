"""Which Redis servers hold the entries now, and how a command gets to the one that has its key.

Owns the present `View` of one server, of a master that Sentinels name, or of a cluster's masters; the
routing of commands over it (redirections, demoted masters); and the doubt that a watch must know of
when an answer came from a server that is not in the view. Finding out is `sessions.redis_finders`'
work. redis-py's own cluster and Sentinel clients are not used: they say nothing of such doubts, sleep
inside calls, and believe the first Sentinel that answers, even one that has not heard of a failover.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import redis
from redis.crc import key_slot

from authservice.errors import StoreDown
from authservice.sessions.redis_access import BRIEF, Access, Gate, Place

FRESH = 0.15
"""Seconds after which it is found out again which servers there are, where no watch does so: a master
that was replaced may answer on for long."""

BETWEEN_LOOKS = 0.05
"""Seconds between two attempts to find out, however many calls fail."""

_MOST_TURNS = 6

Command = tuple[Any, ...]
FAILURES = (redis.RedisError, OSError, UnicodeError, ValueError)
"""What redis-py raises: a ValueError for a length that is none, or a host's name that is none."""


class Node:
    """One server with its client and its gate."""

    def __init__(self, access: Access, place: Place, gate: Gate | None = None) -> None:
        self.place = place
        self.access = access
        self.gate = gate or Gate(str(place))
        self.client = access.client(place, self.gate)

    def ask(self, *command: Any, asking: bool = False) -> Any:
        """The answer. Raises redis.RedisError and OSError, and `errors.StoreDown` at a closed gate."""
        with self.gate.passing():
            if not asking:
                return self.client.execute_command(*command)
            with self.client.pipeline(transaction=False) as pipeline:
                pipeline.execute_command("ASKING")
                pipeline.execute_command(*command)
                return pipeline.execute()[1]

    def ask_all(self, commands: Iterable[Command]) -> list[Any]:
        """The answers, or the errors (redis.ResponseError) that stand in their place."""
        with self.gate.passing(), self.client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute(raise_on_error=False)
            return answers

    def close(self) -> None:
        self.client.connection_pool.disconnect()


@dataclass(frozen=True, slots=True)
class Found:
    """The masters there are. ``slots`` says for each hash slot which of them has it (-1: none)."""

    masters: tuple[Place, ...]
    slots: array[int] | None = None


class Finder(Protocol):
    """Finds out which masters there are."""

    def find(self) -> Found:
        """Raises `errors.StoreDown` when nobody can tell."""

    def close(self) -> None: ...

    def begin_anew(self) -> None:
        """Called in a forked process."""


class OneServer:
    """The one place that was named."""

    def __init__(self, place: Place) -> None:
        self._found = Found((place,))

    def find(self) -> Found:
        return self._found

    def close(self) -> None:
        pass

    def begin_anew(self) -> None:
        pass


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """The masters at some time, in no special order."""

    found: Found
    nodes: tuple[Node, ...]

    def holder(self, name: str) -> Node | None:
        """Who has this key; ``None`` when its slot is nobody's."""
        if self.found.slots is None:
            return self.nodes[0]
        index = self.found.slots[key_slot(name.encode())]
        return self.nodes[index] if index >= 0 else None


@dataclass(frozen=True, eq=False, slots=True)
class Vouched:
    """A view and the promise that every answer since came from one of its masters."""

    view: View


class Servers:
    """The servers of one store. Safe for threads and after a fork."""

    def __init__(self, where: str, access: Access, finder: Finder) -> None:
        """``where`` names them in the log."""
        self.where = where
        self._access = access
        self._finder = finder
        self._alone = isinstance(finder, OneServer)
        self._nodes: dict[Place, Node] = {}
        self._view: View | None = None
        self.vouched: Vouched | None = None
        """``None`` while an answer may have come from a server that is not in the view."""
        self._doubts = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        """After a fork too, which another thread may have held the locks through. When threads do this
        at the same time, each releases what it acquired."""
        self._lock = threading.Lock()
        self._looked = self._attempted = -FRESH
        self._finder.begin_anew()
        for node in list(self._nodes.values()):
            node.gate.begin_anew()
        self._process = os.getpid()

    def ask(self, name: str, *command: Any) -> Any:
        """What the server that has the key ``name`` answers. Every failure is `errors.StoreDown`; only
        the error's class is told on, since the text may come from the server."""
        view = self._present()
        node, asking, reconnected = view.holder(name), False, False
        for _ in range(_MOST_TURNS):
            if node is None:
                raise StoreDown(f"session store {self.where}: no server has this slot")
            try:
                return node.ask(*command, asking=asking)
            except (redis.exceptions.AskError, redis.exceptions.MovedError) as error:
                asking = type(error) is redis.exceptions.AskError
                node = self._redirected(view, Place(error.host or node.place.host, error.port))
            except FAILURES as error:
                fresh = self._after(error, view, node)
                again = fresh.holder(name) if fresh else None
                if again is node:  # a name that led to a demoted master may lead elsewhere by now
                    again = node if isinstance(error, redis.ReadOnlyError) and not reconnected else None
                    reconnected = True
                if fresh is None or again is None:
                    raise StoreDown(f"session store {self.where}: {type(error).__name__}") from error
                view, node, asking = fresh, again, False
        raise StoreDown(f"session store {self.where}: redirected too often")

    def ask_each(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """The answers to commands for the keys named beside them, in their order; those that one
        server has to answer are sent to it together. Fails like `ask`."""
        answers: list[Any] = [None] * len(commands)
        view = self._present()
        shares: dict[Node | None, list[int]] = {}
        for number, (name, _) in enumerate(commands):
            shares.setdefault(view.holder(name), []).append(number)
        for node, share in shares.items():
            found: list[Any] = []
            if node is not None and len(share) > 1:
                try:
                    found = node.ask_all(commands[number][1] for number in share)
                except FAILURES:
                    found = []  # asked one by one, each finds its own way
            for place, number in enumerate(share):
                answer = found[place] if found else None
                if not found or isinstance(answer, Exception):
                    name, command = commands[number]
                    answer = self.ask(name, *command)
                answers[number] = answer
        return answers

    def masters(self) -> tuple[Node, ...]:
        """The present masters. Raises `errors.StoreDown`."""
        return self._present().nodes

    def ask_master(self, node: Node, *command: Any) -> Any:
        """What this very server answers. Fails like `ask`."""
        try:
            return node.ask(*command)
        except FAILURES as error:
            self._after(error, self._view, node)
            raise StoreDown(f"session store {self.where}: {type(error).__name__}") from error

    def look(self) -> Vouched | None:
        """Finds out again which masters there are, and vouches for the view where that leaves no doubt.
        Raises `errors.StoreDown` when nobody can tell."""
        self._in_this_process()
        with self._lock:
            self._look()
        return self.vouched

    def close(self) -> None:
        """Lets go of all connections; a later call opens them anew."""
        for node in list(self._nodes.values()):
            node.close()
        self._finder.close()

    # --- the view -----------------------------------------------------------------------------

    def _in_this_process(self) -> None:
        if self._process != os.getpid():
            self._begin_anew()

    def _present(self) -> View:
        """The view to begin with. One caller now and then finds out whether it is still so."""
        self._in_this_process()
        view = self._view
        if view is not None and (self._alone or monotonic() - self._looked < FRESH):
            return view
        if view is None:
            return self._look_after(None) or self._nobody_knows()
        lock = self._lock
        if lock.acquire(blocking=False):
            try:
                self._look()
            except StoreDown:
                pass  # the servers may be there all the same
            finally:
                self._looked = monotonic()
                lock.release()
        return self._view or view

    def _nobody_knows(self) -> View:
        raise StoreDown(f"session store {self.where}: nobody says which server it is")

    def _look_after(self, seen: View | None) -> View | None:
        """What is found out after a call failed with the view that it had ``seen``; ``None`` when
        that cannot be said now. Whoever comes while another one is finding out waits only briefly."""
        lock = self._lock
        if not lock.acquire(timeout=BRIEF.total_seconds()):
            return None
        try:
            if self._view is not seen:
                return self._view
            if monotonic() - self._attempted < BETWEEN_LOOKS:
                return None
            return self._look()
        except StoreDown:
            if seen is None:
                raise
            return None
        finally:
            lock.release()

    def _look(self) -> View:
        doubts = self._doubts
        try:
            found = self._finder.find()
        except StoreDown:
            self._doubt()
            raise
        finally:
            self._attempted = monotonic()
        view = self._view
        if view is None or view.found != found:
            nodes = tuple(self._node(place) for place in found.masters)
            view = self._view = View(found, nodes)
            for place in set(self._nodes) - set(found.masters):
                self._nodes.pop(place).client.connection_pool.disconnect(inuse_connections=False)
        self._looked = monotonic()
        vouched = self.vouched
        if (vouched is None or vouched.view is not view) and doubts == self._doubts:
            self.vouched = Vouched(view)
        return view

    def _node(self, place: Place) -> Node:
        return self._nodes.get(place) or self._nodes.setdefault(place, Node(self._access, place))

    def _doubt(self) -> None:
        self._doubts += 1
        self.vouched = None

    # --- what goes wrong ----------------------------------------------------------------------

    def _redirected(self, view: View, place: Place) -> Node:
        """Where a server of the cluster says that the key is. Unless it is a master that is being
        watched, there is doubt before it is asked: nobody would tell of changes there."""
        if place not in view.found.masters:
            self._doubt()
        self._looked = -FRESH  # whoever asks next finds out
        return self._node(place)

    def _after(self, error: Exception, view: View | None, node: Node) -> View | None:
        """The view with which to try again, or ``None``."""
        if isinstance(error, redis.ReadOnlyError):
            node.client.connection_pool.disconnect(inuse_connections=False)
        if isinstance(error, redis.AuthenticationError):
            return None
        if self._alone:
            return self._view if isinstance(error, redis.ReadOnlyError) else None
        if isinstance(error, _ABOUT_THE_MASTERS):
            return self._look_after(view)
        return None


_ABOUT_THE_MASTERS = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
    OSError,
)
