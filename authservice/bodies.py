"""The bodies of requests: where each ends, how large it may be, and what of it is kept.

`Sized` counts bytes (RFC 9112 §6.2), `Chunked` takes chunks apart (§7.1), as strict as gunicorn's own
reader: an extension must be well formed, a line must end in CRLF. A judge never reads a body, so only
its beginning is kept. They take bytes out of a buffer and never one beyond the body's end.
"""

from __future__ import annotations

import re
from typing import Protocol

MOST_BODY = 10 * 1024 * 1024
"""Bytes of a body that are read at all; more is 413."""

KEPT_BODY = 65536
"""Bytes of a body that an application may see. One more is kept, so that it can tell."""

MOST_CHUNK_LINE = 8190
"""Bytes of a chunk's first line, extensions included; more is 400."""

FREE_CHUNKS = 1024
SMALLEST_CHUNK = 64
"""Bytes that chunks must hold on average once there were `FREE_CHUNKS`; less is 413: to take a body of
single bytes apart would keep everybody else waiting."""

MOST_TRAILERS = 65536
"""Bytes of all trailer fields; more is 431."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION = rb"[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:" + _EXTENSION + rb")*")


class Refusal(Exception):
    """The connection's bytes are no request that is served; ``status`` is what to answer before closing."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Body(Protocol):
    """A body on its way in."""

    kept: bytearray

    def take(self, buffer: bytearray) -> bool:
        """Takes out of the buffer what belongs to the body; whether that is all. Raises `Refusal`."""


class Sized:
    """A body of ``length`` bytes. Raises `Refusal` at once when that is too much."""

    def __init__(self, length: int) -> None:
        if length > MOST_BODY:
            raise Refusal(413)
        self.kept = bytearray()
        self._left = length

    def take(self, buffer: bytearray) -> bool:
        self._left -= _take(buffer, self._left, self.kept)
        return self._left == 0


class Chunked:
    """A body in chunks. ``trailers`` is the trailer section as it came, without its last empty line."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.trailers = b""
        self._size = 0
        self._chunks = 0
        self._left = 0
        self._in_trailers = False
        self._first = True
        self._scanned = 0

    def take(self, buffer: bytearray) -> bool:
        while not self._in_trailers:
            if self._left:
                self._left -= _take(buffer, self._left, self.kept)
                if self._left:
                    return False
            if not self._next_chunk(buffer):
                return False
        return self._take_trailers(buffer)

    def _next_chunk(self, buffer: bytearray) -> bool:
        """Reads the end of a chunk's data and the next one's first line."""
        begin = 0 if self._first else 2
        if buffer[:begin] != b"\r\n"[: min(begin, len(buffer))]:
            raise Refusal(400)
        end = buffer.find(b"\r\n", max(begin, self._scanned - 1), MOST_CHUNK_LINE + 4)
        if end < 0:
            # A bare LF, or a line that has become too long, will never end well.
            if len(buffer) > MOST_CHUNK_LINE + 2 or buffer.find(b"\n", max(begin, self._scanned)) >= 0:
                raise Refusal(400)
            self._scanned = len(buffer)
            return False
        line = _CHUNK_LINE.fullmatch(buffer, begin, end)
        if line is None:
            raise Refusal(400)
        digits = line[1].lstrip(b"0")
        # More digits than any size within bounds has are not even turned into a number.
        size = int(digits, 16) if 0 < len(digits) <= 8 else 0
        if len(digits) > 8 or self._size + size > MOST_BODY:
            raise Refusal(413)
        self._chunks += 1
        if self._chunks > FREE_CHUNKS + self._size // SMALLEST_CHUNK:
            raise Refusal(413)
        del buffer[: end + 2]
        self._first = False
        self._scanned = 0
        self._size += size
        self._left = size
        self._in_trailers = size == 0
        return True

    def _take_trailers(self, buffer: bytearray) -> bool:
        if buffer[:2] == b"\r\n":
            del buffer[:2]
            return True
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end > MOST_TRAILERS or (end < 0 and len(buffer) > MOST_TRAILERS):
            raise Refusal(431)
        if end < 0:
            refuse_bare_line_feeds(buffer, self._scanned)
            self._scanned = len(buffer)
            return False
        self.trailers = bytes(buffer[: end + 2])
        del buffer[: end + 4]
        return True


def refuse_bare_line_feeds(buffer: bytearray, begin: int) -> None:
    """Raises `Refusal` when a line among those that begin at ``begin`` or later ends without CR."""
    if buffer.count(b"\n", begin) != buffer.count(b"\r\n", max(0, begin - 1)):
        raise Refusal(400)


def _take(buffer: bytearray, most: int, kept: bytearray) -> int:
    """Moves up to ``most`` bytes out of the buffer, and says how many."""
    taken = min(len(buffer), most)
    kept += buffer[: min(taken, KEPT_BODY + 1 - len(kept))]
    del buffer[:taken]
    return taken
