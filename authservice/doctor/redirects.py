"""Where an answer sends a browser."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from authservice.outbound import Response


def leads_to(answer: Response) -> SplitResult:
    """The address of a redirect; one without anything where there is none, or none that can be read."""
    try:
        return urlsplit(answer.headers.get("location", ""))
    except ValueError:
        return urlsplit("")
