"""What is running during one benchmark: each thing started once, when a row first needs it.

Owns their folders and their end. Rows ask it for requests; it knows how much there is in a store,
not what is wanted of a figure.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from bench import gateways, policies, yardsticks
from bench.load import Request
from bench.machine import Cores, on_core
from bench.programs import INSTALL, BenchError, Missing
from bench.service import Service
from tests.provider import FakeProvider
from tests.servers import running_redis

T = TypeVar("T")

STRANGERS = 1_000_000
"""Sessions in a full store."""

IN_TURN = 20_000
"""Sessions that are used one after the other."""


class Stage:
    """Everything is gone when its ``with`` ends."""

    def __init__(self, cores: Cores, say: Callable[[str], None]) -> None:
        self.cores = cores
        self.say = say
        self._made: dict[object, object] = {}
        self._ending = ExitStack()
        self._folder = Path(tempfile.mkdtemp(prefix="authservice-bench-"))
        self._ending.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self.provider = self._ending.enter_context(FakeProvider())

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.close()

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What ``make`` gave the first time, or the `Missing` or `BenchError` that it raised."""
        if key not in self._made:
            try:
                self._made[key] = make()
            except (Missing, BenchError) as error:
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, (Missing, BenchError)):
            raise made
        return made  # type: ignore[return-value]

    def yardstick(self, name: str) -> Request:
        """One of those in `yardsticks`, by its function's name."""
        make = getattr(yardsticks, name)
        more = (self.provider,) if name == "apache" else ()
        return self._ends(self.once(name, lambda: make(self._folder_for(name), self.cores.server, *more)))

    def service(self, name: str = "authservice", strangers: int = 0, **changes: str) -> Service:
        """A started AuthService of this name, with so many strangers' sessions and these settings."""

        def make() -> Service:
            began = time.monotonic()
            service = Service(name, self._folder / name, self.cores.server, self.provider.issuer, changes)
            if strangers:
                fill = service.fill_redis if "SESSION_STORE_REDIS_ADDR" in changes else service.fill_file
                fill(strangers)
            service.start()
            assert service.program is not None
            self._ending.callback(service.program.stop)
            service.wait()
            filled = f" and {strangers:,} sessions in its store" if strangers else ""
            self.say(f"  started {name}{filled} in {time.monotonic() - began:.1f} s")
            return service

        return self.once(("service", name), make)

    def person(self, service: Service) -> tuple[str, str]:
        """The Cookie header of somebody who is logged in there."""
        return ("Cookie", self.once(("person", service.port), lambda: service.log_in()[0]))

    def people(self, service: Service) -> tuple[str, ...]:
        """The cookies of `IN_TURN` people with tokens, as after real logins."""
        return self.once(("people", service.port), lambda: tuple(service.log_in(IN_TURN, tokens=True)))

    def redis(self, name: str) -> Mapping[str, str]:
        """The settings that lead to a Redis of this name, which is started."""

        def make() -> Mapping[str, str]:
            program = next(filter(shutil.which, ("redis-server", "valkey-server")), None)
            if program is None:
                raise Missing(f"redis-server is not installed: {INSTALL['redis-server']}")
            folder = self._folder / name
            folder.mkdir()
            with on_core(self.cores.server):
                server = self._ending.enter_context(running_redis(program, folder))
            return {"SESSION_STORE_TYPE": "redis", "SESSION_STORE_REDIS_ADDR": server.address}

        return self.once(("redis", name), make)

    def policies(self, hosts: int) -> Mapping[str, str]:
        """The settings that lead to the policies of so many hosts (see `bench.policies.write`)."""
        return self.once(("policies", hosts), lambda: policies.write(self._folder / f"policies-{hosts}", hosts))

    def gateway(self, kind: str, *, checked: bool) -> Request:
        """A gateway of `gateways.KINDS` with the check or without; both ask the same service."""
        service = self.service(f"authservice-{kind}", GATEWAY=kind, TRUSTED_PROXIES="127.0.0.1")
        check = service.request(self.person(service))
        application = self.yardstick("application")
        name = f"{kind}-{'check' if checked else 'open'}"
        return self._ends(
            self.once(
                name,
                lambda: gateways.start(
                    kind, self._folder / name, self.cores.server, check, application, checked=checked
                ),
            ),
            only_first=True,
        )

    def _folder_for(self, name: str) -> Path:
        """nginx and Apache make theirs; the others share one."""
        return self._folder / name if name in ("nginx", "application", "apache") else self._folder

    def _ends(self, request: Request, only_first: bool = False) -> Request:
        for program in request.programs[:1] if only_first else request.programs:
            if program not in self._made:
                self._made[program] = self._ending.callback(program.stop)
        return request
