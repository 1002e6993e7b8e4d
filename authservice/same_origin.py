"""Does a page of this very origin ask? The proof that a form which ends something must bring.

One question, asked by the logout and by the page about one's own session: a session cookie alone
does not say who wrote the form (cross-site request forgery). Knows headers and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit


def is_same_origin(headers: Mapping[str, str], scheme: str | None) -> bool:
    """Whether the browser itself says so (Fetch Metadata; RFC 6454 §7 for browsers without it).

    ``headers`` by their lower-case names; ``scheme`` as the person sees it, ``None`` when unknown.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    try:
        origin = urlsplit(headers.get("origin", ""))
    except ValueError:
        return False
    host = headers.get("host", "").lower()
    return bool(host) and origin.netloc.lower() == host and scheme in (None, origin.scheme)
