"""TokenReview v1: asking an API server whose token this is (authentication.k8s.io/v1).

One small POST through `authservice.outbound`, within one time limit; only the cluster's own
authorities are trusted for it. Whatever keeps the API server from answering is
`errors.ClusterDown`: it says nothing about the token. Called by `authservice.authn.kubernetes`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from authservice.errors import ClusterDown
from authservice.kubernetes.access import Credentials, NoAccess, TlsFiles
from authservice.outbound import Http, NoAnswer, OutboundFault, Response
from authservice.strictjson import BadJson

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"


class ReviewsForbidden(ClusterDown):
    """The API server knows us, and does not let us review tokens."""


@dataclass(frozen=True, slots=True)
class Review:
    """What the API server says of a token. ``user`` has ``username``, ``uid``, ``groups`` and
    ``extra`` as it gave them; ``audiences`` are those asked for that the token is good for. A token
    that is not ``authenticated`` has neither."""

    authenticated: bool
    audiences: tuple[str, ...] = ()
    user: Mapping[str, Any] = field(default_factory=dict)


class TokenReviews:
    """Asks one cluster. Safe for threads, and for processes forked at any time."""

    def __init__(self, credentials: Credentials, timeout: timedelta) -> None:
        self._credentials = credentials
        self._timeout = timeout
        self._http: tuple[TlsFiles, Http] | None = None

    def review(self, token: str, audiences: Sequence[str]) -> Review:
        """The review of a token for any of ``audiences``.

        Asked twice at most, within the one time limit: a review changes nothing, so a connection
        that broke or a credential that rotated in that moment costs nobody their request. Raises
        `ReviewsForbidden`, and `errors.ClusterDown` for everything else but an answer.
        """
        question = json.dumps({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": list(audiences)},
        }).encode()
        try:
            return _read(self._ask(question))
        except (NoAccess, OutboundFault) as fault:
            raise ClusterDown(f"TokenReview: {fault}") from None
        except BadJson as fault:
            raise ClusterDown(f"TokenReview: the API server's answer is {fault}") from None

    def _ask(self, question: bytes) -> Response:
        deadline = time.monotonic() + self._timeout.total_seconds()
        try:
            answer = self._post(question, self._timeout)
            if answer.status != 401:
                return answer
            self._credentials.forget()
        except NoAnswer:
            if time.monotonic() >= deadline:
                raise
        return self._post(question, timedelta(seconds=max(deadline - time.monotonic(), 0.001)))

    def _post(self, question: bytes, timeout: timedelta) -> Response:
        access = self._credentials.access()
        headers = {"Content-Type": "application/json"}
        if access.authorization:
            headers["Authorization"] = access.authorization
        return self._client(access.files).post(access.address + PATH, question, headers, timeout=timeout)

    def _client(self, files: TlsFiles) -> Http:
        """The client that trusts these files; a new one when they have changed."""
        held = self._http
        if held is None or held[0] != files:
            try:
                http = Http(
                    files.authorities,
                    self._timeout,
                    system_authorities=files.authorities is None,
                    certificate=files.certificate,
                    key=files.key,
                )
            except OSError as error:
                reason = type(error).__name__
                raise NoAccess(f"the certificates for the API server cannot be used ({reason})") from None
            held = self._http = (files, http)
        return held[1]


def _read(answer: Response) -> Review:
    if answer.status == 401:
        raise ClusterDown("TokenReview: the API server does not accept our own credential (401)")
    if answer.status == 403:
        raise ReviewsForbidden(
            "TokenReview: we may not create tokenreviews (403); bind the ClusterRole system:auth-delegator "
            "to our service account"
        )
    if answer.status not in (200, 201):
        raise ClusterDown(f"TokenReview: the API server answers {answer.status}")
    status = answer.json().get("status")
    if not isinstance(status, dict):
        raise ClusterDown("TokenReview: the API server's answer has no status")
    # `error` may be set beside a yes, by another authenticator of the API server's chain.
    if status.get("authenticated") is not True:
        return Review(False)
    user, audiences = status.get("user"), status.get("audiences")
    return Review(
        True,
        tuple(one for one in audiences if isinstance(one, str)) if isinstance(audiences, list) else (),
        user if isinstance(user, dict) else {},
    )
