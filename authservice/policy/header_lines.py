"""What policies see of a header, of which several lines may have been sent (M46).

A gateway joins the lines of one name by commas, and a comma may have been in a line all along. Where the
possible lines disagree the answer is ``None``: in doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from authservice.policy.match import lines

MOST_PIECES = 256
"""Of a header; one of more is in doubt, for it would take long to read."""
MOST_ARRANGED = 16
"""Of a header that is read in every possible way: their number grows with its square."""

HeaderTest = Callable[[str], "bool | None"]


def header_values(values: Sequence[str]) -> HeaderTest:
    """Whether one of a header's lines is any of the values; ``None`` in doubt. Headers are octets, one
    character each; so are the values, which policies write in UTF-8."""
    octets = [value.encode("utf-8", "surrogatepass").decode("latin-1") for value in values]
    matches = lines(octets)
    with_comma = any("," in value for value in octets)

    def holds(header: str) -> bool | None:
        if "," not in header:
            return matches(header)
        pieces = header.split(",", MOST_PIECES)
        if len(pieces) > MOST_PIECES:
            return None
        if with_comma:
            return _whichever_lines(pieces, matches)
        # Without a comma in any value the two extremes stand for all the ways between them.
        whole = matches(header)
        return whole if any(matches(piece.strip(" \t")) for piece in pieces) is whole else None

    return holds


def _whichever_lines(pieces: Sequence[str], matches: Callable[[str], bool]) -> bool | None:
    """Whether some line matches, however the pieces made up lines."""
    count = len(pieces)
    if count > MOST_ARRANGED:
        return None
    possible = False
    evades = [True] + [False] * count  # whether the first n pieces can be lines of which none matches
    for end in range(1, count + 1):
        for start in range(end):
            hit = matches(",".join(pieces[start:end]).strip(" \t"))
            possible = possible or hit
            evades[end] = evades[end] or (evades[start] and not hit)
    return None if possible and evades[count] else possible
