"""A server's certificate: whether it is trusted, why not, and how long it lasts."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from authservice.doctor.findings import Finding, Part, bad, good, odd, skipped
from authservice.outbound import Http

SOON = timedelta(days=14)
"""How long before its end a certificate should have been renewed."""

_EXPIRED, _NOT_YET, _OTHER_NAME, _OTHER_ADDRESS = 10, 9, 62, 64
"""OpenSSL's numbers (X509_V_ERR_*)."""


def certificate(http: Http, address: str, now: Callable[[], datetime]) -> Iterator[Finding]:
    """The certificate of an https address. Whoever cannot be reached at all is left to those who ask it."""
    host = urlsplit(address).hostname or ""
    if urlsplit(address).scheme != "https":
        yield _without_tls(host)
        return
    try:
        until = http.certificate_end(address)
    except ssl.SSLCertVerificationError as error:
        yield bad(
            Part.TLS,
            f"The certificate of {host} is not trusted: {error.verify_message}.",
            _remedy(error, host),
        )
        return
    except ssl.SSLError as error:
        yield bad(
            Part.TLS,
            f"{host} does not speak TLS with us ({error.reason}).",
            "Let it speak TLS 1.2 or later on this port.",
        )
        return
    except OSError:
        return
    if until is None:
        yield skipped(Part.TLS, f"{host} is asked through a proxy.")
        return
    left = until - now()
    if left < SOON:
        yield odd(Part.TLS, f"The certificate of {host} ends in {max(0, left.days)} days.", "Renew it.")
    else:
        yield good(Part.TLS, f"The certificate of {host} is trusted, for {left.days} days more.")


def _without_tls(host: str) -> Finding:
    if _is_here(host):
        return skipped(Part.TLS, f"{host} is this machine, and asked without TLS.")
    return odd(
        Part.TLS,
        f"{host} is asked without TLS: whoever is on the way reads secrets and tokens.",
        "Give the provider a certificate, and OIDC_PROVIDER an https address.",
    )


def _is_here(host: str) -> bool:
    return host in ("localhost", "::1") or host.endswith(".localhost") or host.startswith("127.")


def _remedy(error: ssl.SSLCertVerificationError, host: str) -> str:
    if error.verify_code == _EXPIRED:
        return "Renew the certificate of that server."
    if error.verify_code == _NOT_YET:
        return "See whether this machine's clock is right."
    if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
        return f"Ask it by a name that its certificate has, or give it a certificate for {host}."
    return "Name its authority (PEM) in CA_BUNDLE, or let the server send its intermediate certificates."
