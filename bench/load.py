"""One measurement with wrk: a request that is sent again and again, and what came of it.

Owns the load generator alone; what it is pointed at was started and verified by others.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import randrange

from bench import machine
from bench.programs import BenchError, Program, ask, found

_REPORT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  local form = '\\n{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "refused": %d, "failed": %d}\\n'
  io.write(string.format(form, summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""
_IN_TURN = """
local requests, last, at = {}, 0, %d
init = function(arguments)
  for cookie in io.lines("%s") do
    last = last + 1
    wrk.headers["Cookie"] = cookie
    requests[last] = wrk.format()
  end
end
request = function()
  at = at %% last + 1
  return requests[at]
end
"""
_LONGEST_SECONDS = 3600

FILLING = 16
"""Connections that keep a core busy all the time."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, to whom, and what must come back.

    ``tells`` is a header (lower-case name) and how its value begins. ``programs`` are those whose
    processor time counts. ``cookies`` are sent in turn in place of one cookie.
    """

    port: int
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 200
    tells: tuple[str, str] | None = None
    programs: tuple[Program, ...] = ()
    connections: int = FILLING
    close: bool = False
    cookies: tuple[str, ...] = ()
    host: str = "127.0.0.1"

    def with_load(self, connections: int, close: bool = False) -> Request:
        return replace(self, connections=connections, close=close)

    def with_headers(self, *headers: tuple[str, str]) -> Request:
        return replace(self, headers=headers)

    def verify(self) -> None:
        """One request, which must be answered as it should; else `BenchError`."""
        if self.host != "127.0.0.1":
            return
        cookie = (("Cookie", self.cookies[0]),) if self.cookies else ()
        status, headers = ask(self.port, self.target, self.headers + cookie)
        name, beginning = self.tells or ("", "")
        if status != self.status or (name and not headers.get(name, "").startswith(beginning)):
            raise BenchError(f"answered {status} {headers}, wanted {self.status} {self.tells or ''}")


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement: requests per second, latencies in seconds, processor time of the server's
    processes for one request in seconds (0 when they are not ours), which part of the two cores
    others used meanwhile, and how slow the slower core was just before or after (`machine.slowness`)."""

    rate: float
    p50: float
    p99: float
    cpu: float
    disturbed: float
    slowness: float = 0.0


def measure(request: Request, seconds: float, cores: machine.Cores) -> Figures:
    """Sends the request over and over for so long. `BenchError` when an answer is not the right one."""
    pids = [pid for program in request.programs for pid in program.pids()]
    both = {cores.server, cores.load}
    own, busy = machine.cpu_seconds(pids), sum(map(machine.busy_seconds, both))
    said, generator = _run_wrk(request, seconds)
    own = machine.cpu_seconds(pids) - own
    busy = sum(map(machine.busy_seconds, both)) - busy
    count, duration = said["requests"], said["microseconds"] / 1e6
    if not count:
        raise BenchError(f"no answer within {seconds:g} s, {said['failed']} connections failed")
    wrong = said["refused"] if request.status < 400 else count - said["refused"]
    # A connection that wrk was about to reopen when it ended counts as failed there.
    if wrong or said["failed"] > (request.connections if request.close else 0):
        raise BenchError(f"{wrong} of {count} answers have another status, {said['failed']} failed")
    return Figures(
        rate=count / duration,
        p50=said["p50"] / 1e6,
        p99=said["p99"] / 1e6,
        cpu=own / count,
        disturbed=max(0.0, busy - own - generator) / duration if request.programs else 0.0,
    )


def _run_wrk(request: Request, seconds: float) -> tuple[dict[str, int], float]:
    """What wrk counted, and the processor time that it used itself."""
    with tempfile.TemporaryDirectory(prefix="authservice-bench-") as folder:
        script = Path(folder) / "report.lua"
        text = _REPORT
        if request.cookies:
            cookies = Path(folder) / "cookies"
            cookies.write_text("\n".join(request.cookies))
            text += _IN_TURN % (randrange(len(request.cookies)), cookies)
        script.write_text(text)
        headers = [*request.headers, *([("Connection", "close")] if request.close else [])]
        command = [found("wrk"), "-t", "1", "-c", str(request.connections), "-d", f"{_LONGEST_SECONDS}s"]
        command += ["-s", str(script), *(f"-H{name}: {value}" for name, value in headers)]
        command.append(f"http://{request.host}:{request.port}{request.target}")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
            used = machine.cpu_seconds([process.pid])
            # wrk takes whole seconds only; interrupted, it reports as it does in the end.
            process.send_signal(signal.SIGINT)
            output = process.stdout.read().decode() if process.stdout else ""
    try:
        return json.loads(output.splitlines()[-1]), used
    except (IndexError, ValueError):
        raise BenchError(f"wrk: {output}") from None


def until_count(
    request: Request, count: int, cores: machine.Cores, after: Callable[[int], None], piece: float = 10
) -> int:
    """Sends at least so many requests, in pieces of so many seconds; ``after`` is told the number so far,
    and the last one is given."""
    done = 0
    while done < count:
        done += round(measure(request, piece, cores).rate * piece)
        after(done)
    return done
