"""What the provider says and does: its metadata, certificate, clock, keys and endpoints, and what it makes of
us.

Everything is asked over the same HTTP client, with the same limits, as the service asks. Two requests are
made that must fail in the right way: a login that nobody finishes, and a code that nobody was given.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs

from authservice.app import build_provider
from authservice.doctor.certificates import certificate
from authservice.doctor.findings import Finding, Part, bad, good, odd, skipped
from authservice.doctor.redirects import leads_to
from authservice.errors import NotReady, ProviderSilent, ProviderWrong
from authservice.moments import counted
from authservice.oidc.answers import EndpointRefused
from authservice.oidc.client import Client
from authservice.oidc.issuers import FurtherIssuer
from authservice.oidc.keys import KeySet, read_key_set
from authservice.oidc.metadata import Metadata, MetadataWrong, Overrides, discovery_address, read_metadata
from authservice.oidc.tokens import SKEW
from authservice.ops import Counts
from authservice.outbound import Http, OutboundFault, Response
from authservice.settings import Settings
from authservice.strictjson import BadJson

NOBODYS_CODE = "authservice-doctor-asks-with-a-code-of-nobody"
_REACH = "See that this machine reaches it: name service, firewall, proxy variables, and whether it runs."
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_SECONDS = re.compile(r"[0-9]{1,9}")
_PROGRAMS_ONLY = ("revocation_endpoint", "introspection_endpoint")


def examine(settings: Settings, now: Callable[[], datetime]) -> Iterator[Finding]:
    """The provider and the further issuers."""
    try:
        http = Http(settings.ca_bundle, settings.provider_timeout_seconds, settings.provider_max_bytes)
        _, client = build_provider(settings, now, Counts())
    except (OSError, ValueError):  # told among the settings, with the file's or the key's name
        yield skipped(Part.PROVIDER, "It is not asked before CA_BUNDLE and CLIENT_PRIVATE_KEY can be used.")
    else:
        yield from _provider(settings, now, http, client)
    yield from _further_issuers(settings, now)


def _provider(
    settings: Settings, now: Callable[[], datetime], http: Http, client: Client
) -> Iterator[Finding]:
    address = discovery_address(settings.oidc_provider)
    yield from certificate(http, address, now)
    try:
        answer = http.get(address)
    except OutboundFault as fault:
        yield bad(
            Part.PROVIDER, f"Its description cannot be had: {fault}.", f"{_REACH} OIDC_PROVIDER names it."
        )
        return
    yield from _clock(answer, now)
    try:
        document = _document(answer)
        metadata = read_metadata(
            document,
            settings.oidc_provider,
            _overrides(settings),
            settings.oidc_client_auth_method,
            http.zone(address),
        )
    except MetadataWrong as wrong:
        yield bad(Part.PROVIDER, f"{address}: {wrong}.", _metadata_remedy(str(wrong), answer, settings))
        return
    yield good(Part.PROVIDER, f"{address} describes the provider.")
    yield from _keys(metadata, http, settings, document)
    yield from _endpoints(metadata, http)
    yield from _authorization_request(metadata, http, settings, client)
    yield from _credentials(metadata, settings, client)


def _document(answer: Response) -> dict[str, Any]:
    if answer.status != 200:
        raise MetadataWrong(f"status {answer.status} in place of a description")
    try:
        return answer.json()
    except BadJson as error:
        raise MetadataWrong(f"no description in JSON: {error}") from None


def _overrides(settings: Settings) -> Overrides:
    return Overrides(
        authorization_endpoint=settings.oidc_auth_url,
        token_endpoint=settings.oidc_token_url,
        jwks_uri=settings.oidc_jwks_url,
        userinfo_endpoint=settings.oidc_userinfo_url,
        revocation_endpoint=settings.oidc_revocation_url,
        introspection_endpoint=settings.introspection_url,
        end_session_endpoint=settings.oidc_end_session_url,
    )


def _metadata_remedy(wrong: str, answer: Response, settings: Settings) -> str:
    if wrong.startswith("issuer"):
        said = answer.json().get("issuer")
        told = f" It calls itself {said[:200]}" if isinstance(said, str) else ""
        return f"Set OIDC_PROVIDER to the issuer's exact name, letter by letter and slash by slash.{told}"
    if wrong.startswith("token_endpoint_auth_methods_supported"):
        offered = answer.json().get("token_endpoint_auth_methods_supported")
        listed = f" It offers {', '.join(map(str, offered))[:200]}." if isinstance(offered, list) else ""
        return f"Set OIDC_CLIENT_AUTH_METHOD to a way that the provider takes.{listed}"
    if wrong.startswith(("status", "no description")):
        return (
            "Set OIDC_PROVIDER to the issuer, without /.well-known/openid-configuration; a realm or tenant "
            "is part of it."
        )
    return (
        "Mend the provider's own settings, or name the endpoint in OIDC_AUTH_URL, OIDC_TOKEN_URL or "
        "OIDC_JWKS_URL."
    )


def _clock(answer: Response, now: Callable[[], datetime]) -> Iterator[Finding]:
    """By the Date of an answer, which is a second coarse and as old as its way here; whoever kept it on that
    way tells for how long (RFC 9111 §5.1)."""
    age = answer.headers.get("age", "")
    try:
        theirs = parsedate_to_datetime(answer.headers.get("date", ""))
        theirs += timedelta(seconds=int(age) if _SECONDS.fullmatch(age) else 0)
        apart = abs(now() - theirs)
    except (ValueError, TypeError, OverflowError):
        yield skipped(Part.CLOCK, "The provider does not tell its time.")
        return
    said = f"This machine's clock and the provider's are {apart.total_seconds():.0f} s apart"
    remedy = "Let a time service (NTP) set this machine's clock; see whether the provider's is right."
    if apart > SKEW:
        yield bad(Part.CLOCK, f"{said}; tokens are refused from {SKEW.total_seconds():.0f} s.", remedy)
    elif apart > SKEW / 6:
        yield odd(Part.CLOCK, f"{said}.", remedy)
    else:
        yield good(Part.CLOCK, f"{said}.")


def _keys(
    metadata: Metadata, http: Http, settings: Settings, document: Mapping[str, Any]
) -> Iterator[Finding]:
    address = metadata.jwks_uri
    try:
        answer = http.get(address, farthest=metadata.farthest(address))
        if answer.status != 200:
            raise ValueError(f"status {answer.status} in place of keys")
        keys = read_key_set(answer.json())
    except OutboundFault as fault:
        yield bad(
            Part.KEYS, f"The keys cannot be had: {fault}.", f"{_REACH} OIDC_JWKS_URL names another address."
        )
        return
    except ValueError as error:
        yield bad(
            Part.KEYS,
            f"{address}: {error}.",
            "Mend the provider, or name the address of its keys in OIDC_JWKS_URL.",
        )
        return
    if not len(keys):
        yield bad(
            Part.KEYS,
            f"{address}: there is no key among them that may verify a signature.",
            "Let the provider sign with RSA of 2048 bits or more, P-256, P-384, P-521 or Ed25519.",
        )
        return
    yield _fitting(keys, settings.oidc_signing_algs, document.get("id_token_signing_alg_values_supported"))


def _fitting(keys: KeySet, allowed: tuple[str, ...], announced: object) -> Finding:
    names = [one for one in announced if isinstance(one, str)] if isinstance(announced, list) else []
    signs = set(names) & set(allowed) if names else set(allowed)
    if any(keys.candidates(algorithm, None) for algorithm in signs):
        return good(
            Part.KEYS, f"{counted(len(keys), 'usable key')}, for the algorithms of OIDC_SIGNING_ALGS."
        )
    told = f" The provider announces {', '.join(names)[:200]}." if names else ""
    return bad(
        Part.KEYS,
        f"None of the provider's {len(keys)} usable keys signs with {', '.join(allowed)}.",
        f"Add the algorithm that the provider signs ID tokens with to OIDC_SIGNING_ALGS.{told}",
    )


def _endpoints(metadata: Metadata, http: Http) -> Iterator[Finding]:
    """Those beside the ones that are asked something below. What they answer matters little: that they do,
    much."""
    reached = []
    for name in (
        "userinfo_endpoint",
        "revocation_endpoint",
        "introspection_endpoint",
        "end_session_endpoint",
    ):
        address = getattr(metadata, name)
        if not address:
            continue
        farthest = metadata.farthest(address)
        try:
            if name in _PROGRAMS_ONLY:
                status = http.post(address, b"", _FORM, farthest=farthest).status
            else:
                status = http.get(address, farthest=farthest).status
        except OutboundFault as fault:
            yield bad(
                Part.ENDPOINTS, f"The {_spoken(name)} cannot be reached: {fault}.", f"{_REACH} {_named(name)}"
            )
            continue
        if status == 404 or status >= 500:
            yield odd(
                Part.ENDPOINTS, f"The {_spoken(name)}, {address}, answers with status {status}.", _named(name)
            )
        else:
            reached.append(_spoken(name).removesuffix(" endpoint"))
    if reached:
        yield good(Part.ENDPOINTS, f"These answer: {', '.join(reached)}.")


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _named(name: str) -> str:
    settings = {
        "userinfo_endpoint": "OIDC_USERINFO_URL",
        "revocation_endpoint": "OIDC_REVOCATION_URL",
        "introspection_endpoint": "INTROSPECTION_URL",
        "end_session_endpoint": "OIDC_END_SESSION_URL",
    }
    return f"Where its metadata is wrong, {settings[name]} names another address."


def _authorization_request(
    metadata: Metadata, http: Http, settings: Settings, client: Client
) -> Iterator[Finding]:
    """The first step of a login, as far as the page that asks who it is."""
    address = metadata.authorization_endpoint
    if address.startswith("/"):
        yield skipped(Part.AUTHORIZATION, f"{address} is an address of the gateway.")
        return
    url = client.authorization_url(
        metadata,
        state=secrets.token_urlsafe(16),
        nonce=secrets.token_urlsafe(32),
        verifier=secrets.token_urlsafe(48),
    )
    remedy = (
        f"Register {settings.redirect_url} as redirect address of client {settings.client_id} at the "
        f"provider, exactly so, and see that the client may ask for {' '.join(settings.oidc_scopes)} and the "
        "authorization code flow."
    )
    if settings.redirect_url == settings.callback_path:
        remedy += " Most want a whole address: name scheme and host in AUTHSERVICE_URL_PREFIX or REDIRECT_URL."
    try:
        answer = http.get(url, {"Accept": "text/html"}, farthest=metadata.farthest(address))
    except OutboundFault as fault:
        yield bad(Part.AUTHORIZATION, f"The login page cannot be had: {fault}.", _REACH)
        return
    error = _told_error(answer, settings.redirect_url)
    elsewhere = _page_about_an_error(answer)
    if error in ("server_error", "temporarily_unavailable"):
        yield odd(
            Part.AUTHORIZATION, f"The provider answers a login with {error}.", "See the provider's own log."
        )
    elif error:
        yield bad(Part.AUTHORIZATION, f"The provider answers a login with {error}.", remedy)
    elif answer.status in (400, 401, 404, 405, 422):
        yield bad(Part.AUTHORIZATION, f"The provider refuses a login with status {answer.status}.", remedy)
    elif answer.status >= 400:
        yield odd(
            Part.AUTHORIZATION,
            f"The provider answers a login from here with status {answer.status}.",
            "Open a page behind the gateway in a browser: the provider may refuse programs only.",
        )
    elif elsewhere:
        yield odd(
            Part.AUTHORIZATION,
            f"The provider sends a login on to {elsewhere}, which looks like a page about an error.",
            remedy,
        )
    else:
        yield good(
            Part.AUTHORIZATION, f"The provider takes a login that comes back to {settings.redirect_url}."
        )


def _told_error(answer: Response, redirect_url: str) -> str:
    """The code of an error that is sent back to us (RFC 6749 §4.1.2.1)."""
    if not answer.headers.get("location", "").startswith(redirect_url):
        return ""
    return "".join(parse_qs(leads_to(answer).query).get("error", []))[:80]


def _page_about_an_error(answer: Response) -> str:
    """The provider's own page, where it shows there what is wrong (as Google does); else empty."""
    where = leads_to(answer)
    told = [name for name in parse_qs(where.query) if name.lower().endswith("error")]
    return f"{where.netloc}{where.path}"[:200] if told or "error" in where.path.split("/") else ""


def _credentials(metadata: Metadata, settings: Settings, client: Client) -> Iterator[Finding]:
    """A code that nobody was given: refused for its own sake where the credentials are good."""
    part = Part.CLIENT
    remedy = (
        f"Compare CLIENT_ID, CLIENT_SECRET (or CLIENT_PRIVATE_KEY) and OIDC_CLIENT_AUTH_METHOD "
        f"({settings.oidc_client_auth_method}) with client {settings.client_id} at the provider."
    )
    try:
        client.redeem(metadata, NOBODYS_CODE, secrets.token_urlsafe(48))
    except EndpointRefused as refused:
        yield _judged(refused, metadata, remedy)
    except ProviderSilent as silent:
        yield bad(
            part,
            f"The token endpoint cannot be reached: {silent}.",
            f"{_REACH} OIDC_TOKEN_URL names another address.",
        )
    except ProviderWrong as wrong:
        yield bad(
            part,
            f"The token endpoint's answer cannot be read: {wrong}.",
            "Mend the provider, or name its token endpoint in OIDC_TOKEN_URL.",
        )
    else:
        yield bad(
            part,
            "The token endpoint gives tokens for a code that nobody was given.",
            "Do not use this provider.",
        )


def _judged(refused: EndpointRefused, metadata: Metadata, remedy: str) -> Finding:
    if refused.code == "invalid_grant":
        return good(Part.CLIENT, "The provider knows us, and refuses a code that nobody was given.")
    # Keycloak says unauthorized_client of a wrong secret, with 401 or, in older versions, with 400.
    if refused.code == "invalid_client" or refused.answered == 401:
        return bad(Part.CLIENT, f"The provider does not accept our credentials ({refused}).", remedy)
    if refused.code == "unauthorized_client":
        return bad(
            Part.CLIENT,
            f"The provider does not let us redeem codes ({refused}).",
            f"{remedy} Where they agree, allow the client the authorization code flow (standard flow).",
        )
    if refused.answered == 429:
        return odd(Part.CLIENT, f"The provider has too much to do ({refused}).", "Run the doctor again later.")
    if refused.answered == 404 or refused.answered >= 500:
        return bad(
            Part.CLIENT,
            f"{metadata.token_endpoint} redeems no codes ({refused}).",
            "Mend the provider, or name its token endpoint in OIDC_TOKEN_URL.",
        )
    return odd(
        Part.CLIENT,
        f"The provider refuses a code of nobody ({refused}) without telling whether it knows us.",
        remedy,
    )


def _further_issuers(settings: Settings, now: Callable[[], datetime]) -> Iterator[Finding]:
    for one in settings.bearer_issuers:
        try:
            http = Http(
                one.ca_bundle or settings.ca_bundle,
                settings.provider_timeout_seconds,
                settings.provider_max_bytes,
            )
        except OSError:  # told among the settings
            yield skipped(Part.ISSUERS, f"{one.issuer} is not asked before its ca_bundle can be read.")
            continue
        try:
            keys = FurtherIssuer(one.issuer, http, now=now, jwks_url=one.jwks_url).keys()
        except NotReady as error:
            yield bad(
                Part.ISSUERS,
                f"{one.issuer}: {error}.",
                f"{_REACH} BEARER_ISSUERS names it, and its jwks_url.",
            )
        else:
            yield good(Part.ISSUERS, f"{one.issuer} has {counted(len(keys), 'usable key')}.")
