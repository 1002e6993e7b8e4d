"""Tokens of the cluster's service accounts and users: the API server is asked (TokenReview).

Only what may be such a token is sent there: a JWT that is of no issuer known otherwise, and never a
session's secret. Whose token it is says the review alone; what the token says of itself decides
whether anybody is asked, and whether a token that the cluster does not accept is the cluster's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone

from authservice.check import NeedsIO, Reach
from authservice.errors import IdentityUnusable, Refused
from authservice.identity import AuthMethod, ClaimRules, Identity, VerifiedClaims, from_claims
from authservice.kubernetes.access import NoAccess
from authservice.kubernetes.cluster import find_cluster
from authservice.kubernetes.reviews import Review, ReviewsForbidden, TokenReviews
from authservice.logs import Event
from authservice.oidc.jws import Glance, glance

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = "system:serviceaccount:"
EVERYBODY = "system:authenticated"
ANONYMOUS = "system:anonymous"
NOBODY = "system:unauthenticated"
_AS_GIVEN = ClaimRules(userid_claim="username", groups_claim="groups")


def build(
    enabled: bool | None,
    environ: Mapping[str, str],
    *,
    audiences: Iterable[str],
    known_issuers: Iterable[str],
    timeout: timedelta,
) -> KubernetesAuthenticator | None:
    """The authenticator that ``KUBERNETES_AUTHN_ENABLED`` asks for (``None`` is ``auto``), or ``None``.

    ``environ`` is the settings' `kubernetes_environ`; ``known_issuers`` are those whose tokens are
    judged by somebody else. Never raises: `authservice.startup` has told what is in the way, and
    without it nobody passes by this door.
    """
    if enabled is False:
        return None
    try:
        cluster = find_cluster(environ)
    except NoAccess:
        return None
    if cluster is None:
        return None
    return KubernetesAuthenticator(TokenReviews(cluster, timeout), audiences, known_issuers)


class KubernetesAuthenticator:
    """Judges tokens by the API server's word. A `BearerAuthenticator`."""

    name = "kubernetes"

    def __init__(self, reviews: TokenReviews, audiences: Iterable[str], known_issuers: Iterable[str]) -> None:
        self._reviews = reviews
        self._audiences = tuple(audiences)
        self._known_issuers = frozenset(known_issuers)
        self._forbidden = False

    def judge(self, token: str, reach: Reach) -> Identity | None:
        """The identity that the API server vouches for, until the token expires.

        A token that it does not accept, or not for our audiences, is refused if it says that it is a
        service account's, and nobody's here otherwise. Raises `errors.ClusterDown` when the API
        server cannot be asked.
        """
        seen = glance(token)
        if seen is None or seen.issuer in self._known_issuers or not self._audiences:
            return None
        if reach is Reach.MEMORY:
            raise NeedsIO
        ours = seen.subject.startswith(SERVICE_ACCOUNT)
        try:
            review = self._review(token)
        except ReviewsForbidden:
            # Where nobody ever gave us the right to ask, tokens of other services do not stop here.
            if ours:
                raise
            return None
        # Without any audience in it, the answer only says that the token is good for the API server.
        if review.authenticated and not set(self._audiences).isdisjoint(review.audiences):
            return _identity(review, seen)
        if ours:
            raise Refused("kubernetes: the API server does not accept the token for our audiences")
        return None

    def _review(self, token: str) -> Review:
        """Logs a missing right once, and again only if it was there in between."""
        try:
            review = self._reviews.review(token, self._audiences)
        except ReviewsForbidden as error:
            if not self._forbidden:
                self._forbidden = True
                log.warning(Event.REVIEWS_FORBIDDEN.value, extra={"note": str(error)})
            raise
        self._forbidden = False
        return review


def _identity(review: Review, seen: Glance) -> Identity:
    """Name and groups as the API server gave them, with the group that client libraries add for
    everybody who is somebody."""
    try:
        identity = from_claims(
            VerifiedClaims(review.user),
            _AS_GIVEN,
            method=AuthMethod.HEADER,
            issuer=seen.issuer or "kubernetes",
            expires=None if seen.expires is None else datetime.fromtimestamp(seen.expires, timezone.utc),
        )
    except IdentityUnusable as unusable:
        raise Refused(f"kubernetes: {unusable}") from None
    groups = identity.groups
    if identity.user_id != ANONYMOUS and {EVERYBODY, NOBODY}.isdisjoint(groups):
        groups = (*groups, EVERYBODY)
    uid = review.user.get("uid")
    return replace(identity, groups=groups, uid=uid if isinstance(uid, str) else "")
