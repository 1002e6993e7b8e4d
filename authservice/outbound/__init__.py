"""The only HTTP client: every call that the service makes to somebody else goes through `Http`.

One connection pool per process over requests; one limit on the time of the whole exchange and one
on the size of the answer; no redirects, no cookies, no credentials from files; proxies from the
environment. What an answer means is its caller's business.
"""

from __future__ import annotations

import http.client
import logging
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import get_environ_proxies
from urllib3.exceptions import DecodeError, HTTPError, InvalidHeader
from urllib3.util import Retry

from authservice import strictjson
from authservice.outbound.exchange import (
    POOLS,
    BadAnswer,
    NoAnswer,
    OutboundFault,
    TooLarge,
    Zone,
    addresses_of,
    connected,
    exchanging,
)

__all__ = ["BadAnswer", "Http", "NoAnswer", "OutboundFault", "Response", "TooLarge", "Zone"]

MAX_BYTES = 1024 * 1024
TIMEOUT = timedelta(seconds=10)
_POOL_SIZE = 16
_BACKOFF = 0.05  # seconds, doubled with each further try but the first
_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, read to its end. ``headers`` has lower-case names; lines of one name are joined."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> dict[str, Any]:
        """The body as a JSON object, whatever its Content-Type says. Raises `strictjson.BadJson`
        (a ValueError) for everything that `strictjson.read_object` refuses."""
        return strictjson.read_object(self.body)


class Http:
    """Sends requests. Safe for threads, and for processes forked at any time.

    ``ca_bundle`` is a PEM file of authorities that are trusted besides the system's, or alone where
    ``system_authorities`` is false; ``certificate`` and ``key`` tell who we are in TLS. ``timeout``
    holds for a whole exchange, from the name look-up to the last byte of the body; ``max_bytes``
    for the body after decompression, and much the same for what comes over the wire. Where no
    connection comes about, it is tried ``connect_retries`` times more within that time. ``failed``
    is told of each exchange that brought no answer, none that can be used, or one of status 5xx.
    Without ``proxies`` those of the environment are passed by, as for a port of this very machine.
    """

    def __init__(
        self,
        ca_bundle: Path | None = None,
        timeout: timedelta = TIMEOUT,
        max_bytes: int = MAX_BYTES,
        *,
        connect_retries: int = 0,
        system_authorities: bool = True,
        certificate: Path | None = None,
        key: Path | None = None,
        proxies: bool = True,
        failed: Callable[[], object] = lambda: None,
    ) -> None:
        """Raises OSError (ssl.SSLError is one) when one of the files cannot be used."""
        # Its lines quote what servers sent and name addresses with their queries.
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)
        self.timeout = timeout
        self._context = _tls_context(ca_bundle, system_authorities)
        if certificate is not None:
            # The password keeps OpenSSL from asking for one at a terminal.
            self._context.load_cert_chain(certificate, key, password="")
        self._max_bytes = max_bytes
        self._connect_retries = connect_retries
        self._proxies = proxies
        self._failed = failed
        self._session: tuple[int, requests.Session] | None = None

    def get(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        farthest: Zone = Zone.LINK_LOCAL,
        timeout: timedelta | None = None,
    ) -> Response:
        """GET; asked once more if the connection breaks before an answer (RFC 9110 §9.2.2).

        ``farthest`` is how far inside the network the address may lie. Raises `NoAnswer` when
        nothing complete came in time, `BadAnswer` when something came that cannot be used.
        """
        return self._send("GET", url, headers, None, farthest, timeout)

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        farthest: Zone = Zone.LINK_LOCAL,
        timeout: timedelta | None = None,
    ) -> Response:
        """POST; never sent twice, though a connection may be tried for again. Raises as `get`."""
        return self._send("POST", url, headers, body, farthest, timeout)

    def zone(self, url: str) -> Zone:
        """How far inside the network a URL's host lies, by the addresses that its name has now;
        `Zone.PUBLIC` when it has none (a proxy may know it)."""
        try:
            found = addresses_of(urlsplit(url).hostname or "", 0, self.timeout.total_seconds())
        except (OSError, ValueError):
            return Zone.PUBLIC
        return max((Zone.of(address[0]) for _, address in found), default=Zone.PUBLIC)

    def certificate_end(self, url: str) -> datetime | None:
        """When the certificate ends that the URL's server shows, once it is found good; ``None`` where a proxy is
        asked in its place. Raises OSError (ssl.SSLError is one)."""
        parts = urlsplit(url)
        if not {"https", "all"}.isdisjoint(get_environ_proxies(url, no_proxy=None)):
            return None
        host = parts.hostname or ""
        with (
            exchanging(self.timeout.total_seconds(), self._max_bytes, Zone.LINK_LOCAL),
            connected(host, parts.port or 443) as plain,
            self._context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = (secured.getpeercert() or {}).get("notAfter", "")
            return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown)), timezone.utc)

    def close(self) -> None:
        """Closes the idle connections of this process. The object stays usable."""
        if self._session is not None and self._session[0] == os.getpid():
            self._session[1].close()

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        farthest: Zone,
        timeout: timedelta | None,
    ) -> Response:
        try:
            response = self._exchange(method, url, headers, body, farthest, timeout)
        except OutboundFault:
            self._failed()
            raise
        if response.status >= 500:
            self._failed()
        return response

    def _exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        farthest: Zone,
        timeout: timedelta | None,
    ) -> Response:
        try:
            with exchanging((timeout or self.timeout).total_seconds(), self._max_bytes, farthest) as exchange:
                answer = self._session_of_this_process().request(
                    method,
                    url,
                    data=body,
                    headers={"Accept-Encoding": "identity", **(headers or {})},
                    timeout=exchange.remaining(),
                    allow_redirects=False,
                    stream=True,
                    proxies=get_environ_proxies(url, no_proxy=None) if self._proxies else {},
                )
                return _read(answer, self._max_bytes)
        except OutboundFault as fault:
            raise type(fault)(f"{_without_query(url)}: {fault}") from None
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise _fault(error, _without_query(url)) from None

    def _session_of_this_process(self) -> requests.Session:
        """Sockets must not be shared with the process that this one was forked from."""
        held = self._session
        if held is None or held[0] != os.getpid():
            held = self._session = (os.getpid(), self._new_session())
        return held[1]

    def _new_session(self) -> requests.Session:
        session = requests.Session()
        # Else requests takes credentials out of .netrc and authorities out of variables.
        session.trust_env = False
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.headers = CaseInsensitiveDict({"User-Agent": "authservice", "Accept": "application/json"})
        session.mount("https://", _Adapter(self._context, self._connect_retries))
        session.mount("http://", _Adapter(self._context, self._connect_retries))
        return session


class _Adapter(HTTPAdapter):
    """requests' way to urllib3: with our connections and our TLS context, behind proxies too."""

    def __init__(self, context: ssl.SSLContext, connect_retries: int) -> None:
        self._context = context
        once_more = Retry(
            None, connect=connect_retries, read=1, redirect=0, status=0, other=0, allowed_methods=["GET"],
            raise_on_status=False, respect_retry_after_header=False, backoff_factor=_BACKOFF,
        )  # fmt: skip
        super().__init__(_POOL_SIZE, _POOL_SIZE, max_retries=once_more)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        kwargs = {"ssl_context": self._context, "proxy_ssl_context": self._context, **kwargs}
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = POOLS
        return manager

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """The context says it all; requests would add its own list of authorities to it."""
        conn.cert_reqs = "CERT_REQUIRED"


def _tls_context(ca_bundle: Path | None, system_authorities: bool) -> ssl.SSLContext:
    """TLS 1.2 or later, certificate and name checked, against the system's authorities where they are
    wanted, and those of ``ca_bundle``. The flags are the same on every Python: 3.13 began to refuse
    the private authorities that fall short of RFC 5280 in details, and to accept an intermediate as
    anchor."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags = (context.verify_flags & ~ssl.VERIFY_X509_STRICT) | ssl.VERIFY_X509_PARTIAL_CHAIN
    if system_authorities:
        context.load_default_certs()
        paths = ssl.get_default_verify_paths()
        if not context.get_ca_certs() and not (paths.capath and any(Path(paths.capath).glob("*.0"))):
            context.load_verify_locations(certifi.where())
    if ca_bundle is not None:
        context.load_verify_locations(ca_bundle)
    return context


def _read(answer: requests.Response, limit: int) -> Response:
    """The decompressed body. Reading stops at ``limit`` bytes, so memory stays flat."""
    with answer:
        body = bytearray()
        for chunk in answer.raw.stream(_CHUNK, decode_content=True):
            body += chunk
            if len(body) > limit:
                raise TooLarge(f"an answer of more than {limit} bytes")
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Response(answer.status_code, headers, bytes(body))


def _fault(error: Exception, address: str) -> OutboundFault:
    """What a library's error means. The text has class names only: messages quote what came."""
    chain = list(_chain(error))
    names = ", ".join(dict.fromkeys(type(link).__name__ for link in chain[-2:]))
    cut_off = (TimeoutError, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
    if any(isinstance(link, cut_off) for link in chain):
        return NoAnswer(f"{address}: {names}")
    unusable = (ssl.SSLError, DecodeError, InvalidHeader, http.client.BadStatusLine, ValueError)
    if any(isinstance(link, unusable) for link in chain):
        return BadAnswer(f"{address}: {names}")
    return NoAnswer(f"{address}: {names}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: requests and urllib3 keep that in three different places."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        link = waiting.pop(0)
        if isinstance(link, BaseException) and id(link) not in seen:
            seen.add(id(link))
            yield link
            waiting += [link.__cause__, getattr(link, "reason", None), *link.args]


def _without_query(url: str) -> str:
    """The address as far as a log may show it: no user, no query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
