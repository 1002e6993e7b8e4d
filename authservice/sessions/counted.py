"""A store whose failures are counted: one place for whoever asks it, sessions, sweeps and probes.

Owns nothing: every call goes to the store within, and what it answers or raises comes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from authservice.errors import StoreDown
from authservice.ops import Counts, Metric
from authservice.sessions import Entry, Forget, Inspection, Label, Labelled, Store, Watch


class CountedStore:
    """A `Store` in front of another one."""

    def __init__(self, inner: Store, counts: Counts) -> None:
        self.notices = inner.notices
        self._inner = inner
        self._failed = counts.adder(Metric.STORE_FAILURES)

    @contextmanager
    def _counting(self) -> Iterator[Store]:
        try:
            yield self._inner
        except StoreDown:
            self._failed()
            raise

    def load(self, key: str) -> Entry | None:
        with self._counting() as store:
            return store.load(key)

    def save(
        self,
        key: str,
        value: bytes,
        expires: datetime,
        *,
        if_absent: bool = False,
        if_version: int | None = None,
        label: Label | None = None,
    ) -> bool:
        with self._counting() as store:
            return store.save(key, value, expires, if_absent=if_absent, if_version=if_version, label=label)

    def delete(self, key: str) -> bool:
        with self._counting() as store:
            return store.delete(key)

    def find(self, tag: str) -> list[str]:
        with self._counting() as store:
            return store.find(tag)

    def label(self, key: str) -> Labelled | None:
        with self._counting() as store:
            return store.label(key)

    def labels(self) -> Iterator[Labelled]:
        with self._counting() as store:
            yield from store.labels()

    def inspect(self, *, thorough: bool | None = None) -> Inspection:
        with self._counting() as store:
            return store.inspect(thorough=thorough)

    def sweep(self) -> int:
        with self._counting() as store:
            return store.sweep()

    def ping(self) -> None:
        with self._counting() as store:
            store.ping()

    def watch(self, forget: Forget) -> Watch:
        return self._inner.watch(forget)

    def close(self) -> None:
        self._inner.close()
