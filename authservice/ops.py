"""Is the service alive, and is it ready?

Alive means that a worker answers at all. Ready means that a login could succeed now: the
provider's metadata is known and the session store answers. Asked by ``/readyz``, by the
readiness listener (``READINESS_PROBE_PORT``) and by nobody on the path of a check.
"""

from __future__ import annotations

from collections.abc import Callable

from authservice.errors import Unavailable

OK = "ok"


class Readiness:
    """Looks at each part that a login needs. A probe returns, or raises `errors.Unavailable`."""

    def __init__(self, probes: dict[str, Callable[[], None]]) -> None:
        self._probes = probes

    def report(self) -> dict[str, str]:
        """Each part with ``"ok"`` or the reason why not."""
        return {name: self._ask(probe) for name, probe in self._probes.items()}

    @staticmethod
    def _ask(probe: Callable[[], None]) -> str:
        try:
            probe()
        except Unavailable as error:
            return error.reason.value
        return OK


def is_ready(report: dict[str, str]) -> bool:
    """Whether every part of a report is well."""
    return all(state == OK for state in report.values())
