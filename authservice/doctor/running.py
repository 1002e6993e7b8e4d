"""What the running service has noticed of its gateway since it began, by its own numbers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from authservice.doctor.findings import Finding, Part, good, odd, skipped
from authservice.ops import Metric, Sent
from authservice.outbound import Http, OutboundFault
from authservice.settings import Settings
from authservice.wiring import NAMES, WITHOUT, lines

_LIMIT = timedelta(seconds=3)


def examine(settings: Settings) -> Iterator[Finding]:
    """Asks the port for those who run the service, on this machine."""
    if settings.readiness_probe_port is None:
        yield skipped(
            Part.NOTICED,
            "READINESS_PROBE_PORT is not set: the running service cannot be asked what it noticed.",
            f"Set it, or look for `gateway_lacks` in the service's log and {Metric.GATEWAY_LACKS.full_name}.",
        )
        return
    address = f"http://127.0.0.1:{settings.readiness_probe_port}/metrics"
    try:
        answer = Http(timeout=_LIMIT, proxies=False).get(address)
    except OutboundFault as fault:
        yield skipped(
            Part.NOTICED, f"No service answers here: {fault}.", "Run the doctor where the service runs."
        )
        return
    told = dict(line.rsplit(" ", 1) for line in answer.body.decode("latin-1").splitlines() if " " in line)
    if Metric.WORKERS.one() not in told:
        yield skipped(
            Part.NOTICED, f"{address} is not AuthService's.", "See what READINESS_PROBE_PORT names."
        )
        return
    lacking = [sent for sent in Sent if told.get(Metric.GATEWAY_LACKS.one(sent.value), "0") != "0"]
    for sent in lacking:
        yield odd(
            Part.NOTICED,
            f"Since it began, the running service missed {NAMES[sent]} in checks: {WITHOUT[sent]}.",
            f"{lines(sent, settings.gateway, settings.prefix_path)} Then restart the service, which begins "
            "anew.",
        )
    if not lacking:
        yield good(Part.NOTICED, "Since it began, the running service missed nothing in checks.")
