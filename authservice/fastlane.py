"""The fast lane: a check answered at once, as bytes, where nothing has to be waited for.

`FastLane.ask` asks the same `Judge.answer` as the full path, with `Reach.MEMORY`, and spells its
reply as header lines; it has no rule of its own. ``None`` means «ask the full path»: the service's
own doors, whatever would have to wait, and everything unexpected, which the full path answers and
records. Called on the event loop by `authservice.protocol`; never blocks.
"""

from __future__ import annotations

from authservice.check import NeedsIO, Reach, RequestParts, Written
from authservice.judge import Judge

Answer = Written

_MEMORY = Reach.MEMORY  # a member of an Enum is not quickly got at in every Python


class FastLane:
    """Answers for the judge port what can be answered without waiting."""

    def __init__(self, judge: Judge) -> None:
        self._place = judge.gateways.place
        self._answer = judge.answer

    def ask(self, parts: RequestParts) -> Answer | None:
        """The answer that the full path would give, or ``None``: ask that. For HEAD too the body
        is given; whoever writes the answer leaves it out."""
        try:
            place = self._place(parts.target or "")
            if place.door is not None:
                return None
            return self._answer(parts, _MEMORY, place).written
        except NeedsIO:
            return None
        except Exception:
            # Also a header that cannot be written. The full path meets it again, answers 500 and logs it.
            return None
