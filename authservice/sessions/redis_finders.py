"""Finding out which Redis masters there are: from Sentinels, or from a cluster's own nodes.

Owns the questions and how much an answer counts when several disagree: the newest configuration epoch
wins, so that a Sentinel or a node that has not heard of a failover leads nobody back to the old
master. Called by `sessions.redis_servers`, which sees to it that one thread asks at a time.
"""

from __future__ import annotations

from array import array
from datetime import timedelta
from typing import Any

import redis

from authservice.errors import StoreDown
from authservice.sessions.redis_access import Access, Gate, Place
from authservice.sessions.redis_servers import FAILURES, Found, Node

_PATIENT, _BRIEF, _REST = timedelta(milliseconds=300), timedelta(milliseconds=100), timedelta(seconds=3)
"""For who only tells of others, of whom there are several: all are asked, and none may hold up much."""

_SLOTS = 16384


def _informant(access: Access, place: Place) -> Node:
    return Node(access, place, Gate(str(place), _PATIENT, _BRIEF, _REST))


class SentinelFinder:
    """The master of one name, as the Sentinels have it
    (https://redis.io/docs/latest/develop/reference/sentinel-clients/)."""

    def __init__(self, access: Access, places: tuple[Place, ...], master: str) -> None:
        """``access`` is how the Sentinels are reached, which have users of their own."""
        self._sentinels = [_informant(access, place) for place in places]
        self._master = master
        self._found: Found | None = None
        self._epoch = -1

    def find(self) -> Found:
        """While no Sentinel answers, the master stays the one that was named last: whoever asked the
        store would ask that one too."""
        answers = [answer for sentinel in self._sentinels if (answer := self._ask(sentinel))]
        if answers:
            epoch, _, place = max(answers)
            # An older epoch is one who has not heard yet, or the Sentinels were all set up anew.
            if epoch >= self._epoch or 2 * len(answers) > len(self._sentinels):
                self._epoch = epoch
                if self._found is None or self._found.masters != (place,):
                    self._found = Found((place,))
        if self._found is None:
            raise StoreDown(f"session store: no Sentinel names a master {self._master!r}")
        return self._found

    def _ask(self, sentinel: Node) -> tuple[int, bool, Place] | None:
        """The epoch, whether this Sentinel is just making another one master, and the master. In the
        middle of a failover only the address is the new one; its epoch follows a second later."""
        try:
            answer = sentinel.ask("SENTINEL", "MASTER", self._master)
            state = dict(zip(answer[::2], answer[1::2]))
            before = Place(state[b"ip"].decode(), int(state[b"port"]))
            host, port = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master)
            place = Place(host.decode(), int(port))
            return int(state[b"config-epoch"]), place != before, place
        except (StoreDown, *FAILURES, KeyError, TypeError, ValueError):
            return None

    def close(self) -> None:
        for sentinel in self._sentinels:
            sentinel.close()

    def begin_anew(self) -> None:
        for sentinel in self._sentinels:
            sentinel.gate.begin_anew()


class ClusterFinder:
    """The masters of a cluster and their slots, as the nodes have them."""

    def __init__(self, access: Access, places: tuple[Place, ...]) -> None:
        self._access = access
        self._seeds = places
        self._nodes = {place: _informant(access, place) for place in places}
        self._found: Found | None = None
        self._told: object = None
        self._asked = ""

    def find(self) -> Found:
        """All masters are asked, since one that was cut off from the others still calls itself one;
        replicas, and the nodes that were named in the beginning, only when no master answers."""
        masters = self._found.masters if self._found else ()
        answers = [answer for place in masters if (answer := self._ask(place))]
        for place in dict.fromkeys((*self._seeds, *self._nodes)):
            if answers:
                break
            answer = self._ask(place) if place not in masters else None
            answers += [answer] if answer else []
        if not answers:
            raise StoreDown("session store: no node says that the cluster is well")
        _, place, slots = max(answers, key=lambda answer: answer[0])
        if self._found is None or slots != self._told or place.host != self._asked:
            try:
                self._found, others = _read_slots(slots, place.host)
            except (ValueError, TypeError, LookupError) as error:
                raise StoreDown("session store: a node does not say who has which slots") from error
            self._told, self._asked = slots, place.host
            for other in (*self._found.masters, *others):
                if other not in self._nodes:
                    self._nodes[other] = _informant(self._access, other)
            for gone in set(self._nodes) - {*self._found.masters, *others, *self._seeds}:
                self._nodes.pop(gone).close()
        return self._found

    def _ask(self, place: Place) -> tuple[int, Place, list[Any]] | None:
        try:
            said, slots = self._nodes[place].ask_all([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")])
            state = dict(line.split(b":", 1) for line in said.splitlines() if b":" in line)
            if state[b"cluster_state"] != b"ok" or isinstance(slots, redis.ResponseError):
                return None
            return int(state[b"cluster_current_epoch"]), place, slots
        except (StoreDown, *FAILURES, KeyError, TypeError, AttributeError):
            return None

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()

    def begin_anew(self) -> None:
        for node in self._nodes.values():
            node.gate.begin_anew()


def _read_slots(ranges: list[Any], asked: str) -> tuple[Found, set[Place]]:
    """The masters with their slots, and the replicas, of an answer to CLUSTER SLOTS: a list of
    first slot, last slot, and the nodes that have them, the master first. A node that does not know
    its own address is where it was asked."""
    indexes: dict[Place, int] = {}
    others: set[Place] = set()
    slots = array("h", [-1]) * _SLOTS
    for first, last, *nodes in ranges:
        master, *replicas = (Place((node[0] or b"").decode() or asked, int(node[1])) for node in nodes)
        index = indexes.setdefault(master, len(indexes))
        slots[first : last + 1] = array("h", [index]) * (last + 1 - first)
        others.update(replicas)
    return Found(tuple(indexes), slots), others
