"""The closed family of things that can go wrong, and the words for them.

Each class carries the HTTP ``status`` that answers it, a ``reason`` from the closed list
below (the same word in logs, JSON bodies and tests) and one ``public`` sentence, which is all
that a person is ever shown. What an operator needs to know beyond that is the exception's own
text: it goes to the log and nowhere else, and it never holds a secret, a token, or text that
came from a provider or a client.

::

    AuthServiceError
    ├── SettingsError            start-up only: every problem at once, exit status 2
    ├── Refused            401   a credential that is ours, and bad
    ├── SessionOver        401   a session that its provider lets go on no longer
    ├── Forbidden          403   an identity that may not
    │   ├── IdentityUnusable     one that cannot be passed on
    │   └── WrongAudience        a good token for somebody else
    ├── Misdirected        403   the gateway's check cannot be understood: a wiring fault
    │   └── NotSent              it lacks what tells the original request
    ├── LoginRefused             the callback's refusals
    │   ├── LoginNotOurs   400   this browser did not begin this login
    │   ├── ProviderSaidNo 403   the provider's answer is an error about the person
    │   ├── ProviderWrong  502   the provider's answer cannot be accepted
    │   └── ProviderSilent 504   the provider did not answer in time
    └── Unavailable        503   cannot be known now; nothing is lost
        ├── NotReady             the provider's metadata is not known (yet)
        │   └── ProviderMisdescribed 502   it answers, but with metadata that cannot be used
        ├── ProviderBusy         the provider asks to try again later
        ├── ProviderDown         it answers that it does not work, or is known not to
        │   └── ClientRefused    it does not accept the service's own credentials
        ├── TooManyLogins        more at once than one process finishes
        ├── TooManyChecks        more tokens at once than one process asks about
        ├── TooManyNotices       more logout notices at once than threads may be spent on
        ├── ClusterDown          the Kubernetes API server gives no verdict about a token
        ├── StoreDown            the session store does not answer
        └── AuthorizerDown       the external authorizer gives no verdict
"""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """Why an answer is not an allow. One word per thing, in logs, bodies and tests alike."""

    NOT_AUTHENTICATED = "not_authenticated"
    INVALID_TOKEN = "invalid_token"
    WRONG_AUDIENCE = "invalid_audience"
    GROUPS = "groups_not_allowed"
    POLICY = "policy_denied"
    AUTHORIZER_REFUSED = "authorizer_refused"
    IDENTITY = "identity_unusable"
    MISCONFIGURED = "gateway_misconfigured"
    METHOD = "method_not_allowed"
    BAD_REQUEST = "bad_request"
    LOGIN_LOOP = "login_loop"
    LOGIN_NOT_OURS = "login_not_ours"
    PROVIDER_REFUSED = "provider_refused"
    PROVIDER_WRONG = "provider_answer_unacceptable"
    PROVIDER_SILENT = "provider_silent"
    PROVIDER_BUSY = "provider_busy"
    PROVIDER_DOWN = "provider_down"
    CLIENT_REFUSED = "client_refused"
    TOO_MANY_LOGINS = "too_many_logins"
    TOO_MANY_CHECKS = "too_many_checks"
    TOO_MANY_NOTICES = "too_many_notices"
    NOT_READY = "not_ready"
    STORE_DOWN = "store_down"
    AUTHORIZER_DOWN = "authorizer_down"
    CLUSTER_DOWN = "cluster_down"
    INTERNAL = "internal_error"


class AuthServiceError(Exception):
    """Root of the family. ``str(error)`` is for the log only."""

    status: int = 500
    reason: Reason = Reason.INTERNAL
    public: str = "Something went wrong on our side. Please try again."

    def __init__(self, detail: str = "", *, public: str | None = None) -> None:
        super().__init__(detail or self.public)
        if public is not None:
            self.public = public


class SettingsError(AuthServiceError):
    """The settings cannot be used. ``problems`` has one line for each, naming its variable;
    ``warnings`` what else was found (a misspelt name may explain a missing one)."""

    def __init__(self, problems: list[str], warnings: list[str] | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.warnings = warnings or []


class Refused(AuthServiceError):
    """A credential that an authenticator recognised as its own, and that is bad (RFC 6750 §3)."""

    status = 401
    reason = Reason.INVALID_TOKEN
    public = "The credentials sent with this request are not valid."


class SessionOver(AuthServiceError):
    """The provider refuses to let a session go on (``invalid_grant``), or answers for somebody else:
    the session is to be ended. Waiting or asking again does not help."""

    status = 401
    reason = Reason.NOT_AUTHENTICATED
    public = "Your session has ended. Please log in again."


class Forbidden(AuthServiceError):
    """An authenticated identity that may not do this."""

    status = 403
    reason = Reason.GROUPS
    public = "You are logged in, but you may not see this page."


class IdentityUnusable(Forbidden):
    """Verified claims from which no identity can be made, or none that fits in a header.

    ``login_status`` is the status of the callback's answer, which tells a provider's fault (502)
    from a person's (403). A check is answered with ``status`` in both cases.
    """

    reason = Reason.IDENTITY
    public = "Your account lacks what this site needs to know who you are."

    def __init__(self, detail: str = "", *, public: str | None = None, login_status: int = 403) -> None:
        super().__init__(detail, public=public)
        self.login_status = login_status


class WrongAudience(Forbidden):
    """A token that is good, and was issued for another service: its sender is known, and may not."""

    reason = Reason.WRONG_AUDIENCE
    public = "The token sent with this request was issued for another service."


class Misdirected(AuthServiceError):
    """The check lacks what its gateway must send, or has it twice: nothing can be judged."""

    status = 403
    reason = Reason.MISCONFIGURED
    public = "The gateway in front of this site is not set up correctly."


class NotSent(Misdirected):
    """What tells the original request is not there at all."""


class LoginRefused(AuthServiceError):
    """The callback refuses to finish a login."""

    status = 400


class LoginNotOurs(LoginRefused):
    status = 400
    reason = Reason.LOGIN_NOT_OURS
    public = "This login cannot be finished in this browser. Please start again."


class ProviderSaidNo(LoginRefused):
    status = 403
    reason = Reason.PROVIDER_REFUSED
    public = "The identity provider refused this login."


class ProviderWrong(LoginRefused):
    status = 502
    reason = Reason.PROVIDER_WRONG
    public = "The identity provider's answer could not be accepted."


class ProviderSilent(LoginRefused):
    status = 504
    reason = Reason.PROVIDER_SILENT
    public = "The identity provider did not answer in time."


class Unavailable(AuthServiceError):
    """Cannot be known now. Nothing is lost, and the same request may succeed in a moment."""

    status = 503
    reason = Reason.INTERNAL
    public = "Logging in is not possible at the moment. Please try again shortly."


class NotReady(Unavailable):
    reason = Reason.NOT_READY
    public = "OIDC setup is not complete yet."


class ProviderMisdescribed(NotReady):
    """What the provider says about itself is wrong: waiting alone will not mend it."""

    status = 502


class ProviderBusy(Unavailable):
    reason = Reason.PROVIDER_BUSY
    public = "The identity provider asks you to try again in a moment."


class ProviderDown(Unavailable):
    """The provider answers with a server error, or is known not to work. Sessions are left alone."""

    reason = Reason.PROVIDER_DOWN
    public = "The identity provider cannot be asked at the moment. Please try again shortly."


class ClientRefused(ProviderDown):
    """The provider does not accept the service's own credentials: somebody has to mend its settings."""

    reason = Reason.CLIENT_REFUSED


class ClusterDown(Unavailable):
    """The Kubernetes API server cannot be asked about a token."""

    reason = Reason.CLUSTER_DOWN
    public = "Your token cannot be checked at the moment. Please try again shortly."


class TooManyLogins(Unavailable):
    """More logins are being finished at once than threads may be spent on."""

    reason = Reason.TOO_MANY_LOGINS
    public = "Many people are logging in right now. This page tries again by itself."


class TooManyChecks(Unavailable):
    """More tokens are being asked about at once than threads may be spent on."""

    reason = Reason.TOO_MANY_CHECKS
    public = "Your token cannot be checked at the moment. Please try again shortly."


class TooManyNotices(Unavailable):
    """More of the provider's logout notices at once than threads may be spent on: to be sent again."""

    reason = Reason.TOO_MANY_NOTICES
    public = "The session could not be ended at this moment. Please try again shortly."


class StoreDown(Unavailable):
    reason = Reason.STORE_DOWN
    public = "Sessions cannot be read at the moment. Nothing is lost; please try again shortly."


class AuthorizerDown(Unavailable):
    """Who was logged in stays so; that nobody says yes is not a yes, and not a no either (B77)."""

    reason = Reason.AUTHORIZER_DOWN
    public = "Error while authorizing the request"
