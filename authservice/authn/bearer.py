"""Reading the credential of a bearer header (RFC 6750 §2.1), in one place for all who need it."""

from __future__ import annotations

from authservice.errors import Refused

AUTHORIZATION = "authorization"


def bearer_credential(header: str, value: str) -> str | None:
    """The credential in a header, or ``None`` when there is none of this kind.

    ``header`` is the lower-case name. ``Authorization`` must name the scheme ``Bearer``, in any
    letter case (RFC 9110 §11.1); any other header may carry the bare value too. Two header lines
    arrive joined by a comma, which no bearer credential contains: they raise `errors.Refused`,
    since nobody can tell which of the two the application would believe.
    """
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() == "bearer":
        credential = rest.strip()
    elif header == AUTHORIZATION:
        return None
    else:
        credential = value.strip()
    if "," in credential:
        raise Refused(f"more than one {header} header")
    return credential or None
