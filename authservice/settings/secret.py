"""A text that must not be seen.

Every setting that is a secret has this type from the moment it is read, so that printing it,
logging it or showing it in an error message by mistake shows nothing.
"""

from __future__ import annotations

import hmac


class Secret:
    """A text whose ``repr`` and ``str`` are ``***``. Empty ones are false."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself. Call this where it is used, and nowhere earlier."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __repr__(self) -> str:
        return "***"
