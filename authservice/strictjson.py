"""Reading JSON that strangers wrote: one meaning per text, or an error.

The standard library takes what two readers could understand differently (a member twice), what
is no JSON (``NaN``), and what costs more than it is worth (deep nesting, endless numbers). Here
all of that is one error, `BadJson`. Called wherever a provider's body or a part of a token is
read; how many bytes may be read at all is the caller's to say.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 64
MAX_DIGITS = 40

_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
"""A whole string, a quote that begins none, or a bracket."""


class BadJson(ValueError):
    """Not JSON, or JSON that is refused. The text never quotes the input."""


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object in UTF-8 ``data`` (RFC 8259, in the interoperable form of RFC 7493).

    Raises `BadJson` for another encoding, a byte order mark, a repeated member, ``NaN`` and
    ``Infinity``, numbers beyond a float or of more than `MAX_DIGITS` digits, lone surrogates,
    nesting beyond `MAX_DEPTH`, and anything that is not an object.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadJson("not UTF-8") from None
    _limit_depth(text)
    try:
        value = _DECODER.decode(text)
    except BadJson:
        raise
    except (ValueError, RecursionError) as error:
        raise BadJson(f"not JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise BadJson("not a JSON object")
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def _limit_depth(text: str) -> None:
    """Before parsing, so that no parser's own stack is ever put to the test."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _STRUCTURE.finditer(text):
        first = token[0][0]
        if first in "[{":
            depth += 1
        elif first in "]}":
            depth -= 1
        elif token[0] == '"':
            raise BadJson("a string without end")
        if depth > MAX_DEPTH:
            raise BadJson("nested too deep")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadJson("a member appears twice")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise BadJson("a number is too long")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits) if len(digits) <= 4 * MAX_DIGITS else math.inf
    if not math.isfinite(number):
        raise BadJson("a number is too large")
    return number


def _constant(name: str) -> NoReturn:
    raise BadJson("NaN and Infinity are no JSON")


def _refuse_surrogates(value: dict[str, Any]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise BadJson("half a surrogate pair") from None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
