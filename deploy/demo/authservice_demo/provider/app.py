"""The provider's endpoints and its three pages, as a Flask application."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from authlib.common.urls import add_params_to_uri
from authlib.integrations.flask_oauth2 import current_token
from authlib.oauth2 import OAuth2Error
from flask import Flask, Response, abort, jsonify, redirect, render_template, request
from flask import session as browser

from authservice_demo.provider.keys import ALGORITHM, SigningKeys
from authservice_demo.provider.logout import notify
from authservice_demo.provider.people import PEOPLE, Person
from authservice_demo.provider.records import SCOPES, Client, Records, Session
from authservice_demo.provider.server import CLIENT_AUTHENTICATION, create_server


def create_app(issuer: str, client: Client) -> Flask:
    """A provider with one client. ``issuer`` is its own address, without a slash at the end."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=secrets.token_bytes(32),
        SESSION_COOKIE_NAME="demo_provider_session",
        SESSION_COOKIE_SAMESITE="Lax",
        MAX_CONTENT_LENGTH=64 * 1024,
    )
    Provider(app, issuer, client)
    return app


class Provider:
    """The views, and the state that they share."""

    def __init__(self, app: Flask, issuer: str, client: Client) -> None:
        self.issuer = issuer
        self.client = client
        self.records = Records()
        self.keys = SigningKeys()
        self.server, guard = create_server(app, issuer, client, self.records, self.keys)
        app.before_request(self.refuse_foreign_forms)
        rule = app.add_url_rule
        rule("/.well-known/openid-configuration", "discovery", self.discovery)
        rule("/jwks", "jwks", lambda: jsonify(self.keys.public()))
        rule("/authorize", "authorize", self.authorize, methods=["GET", "POST"])
        rule("/token", "token", lambda: self.server.create_token_response(), methods=["POST"])
        rule("/userinfo", "userinfo", guard("openid")(self.userinfo), methods=["GET", "POST"])
        for name in ("introspection", "revocation"):
            rule(f"/{name}", name, self.endpoint(name), methods=["POST"])
        rule("/end_session", "end_session", self.end_session, methods=["GET", "POST"])
        rule("/", "home", self.home)
        rule("/rotate-keys", "rotate_keys", self.rotate_keys, methods=["POST"])
        rule("/log-out-person", "log_out_person", self.log_out_person, methods=["POST"])

    def refuse_foreign_forms(self) -> None:
        """The pages' own forms come from the pages: another site cannot log anybody in here."""
        origin = request.headers.get("Origin")
        pages = ("authorize", "rotate_keys", "log_out_person")
        if request.method == "POST" and request.endpoint in pages and origin:
            if origin != self.issuer:
                abort(403)

    def discovery(self) -> Response:
        """OpenID Connect Discovery 1.0 §3."""
        at = self.issuer
        return jsonify(
            issuer=at,
            authorization_endpoint=f"{at}/authorize",
            token_endpoint=f"{at}/token",
            userinfo_endpoint=f"{at}/userinfo",
            jwks_uri=f"{at}/jwks",
            introspection_endpoint=f"{at}/introspection",
            revocation_endpoint=f"{at}/revocation",
            end_session_endpoint=f"{at}/end_session",
            scopes_supported=list(SCOPES),
            response_types_supported=["code"],
            response_modes_supported=["query"],
            grant_types_supported=["authorization_code", "refresh_token"],
            subject_types_supported=["public"],
            id_token_signing_alg_values_supported=[ALGORITHM],
            token_endpoint_auth_methods_supported=CLIENT_AUTHENTICATION,
            revocation_endpoint_auth_methods_supported=CLIENT_AUTHENTICATION,
            introspection_endpoint_auth_methods_supported=CLIENT_AUTHENTICATION,
            code_challenge_methods_supported=["S256"],
            authorization_response_iss_parameter_supported=True,
            backchannel_logout_supported=True,
            backchannel_logout_session_supported=True,
            claims_supported=["sub", "name", "preferred_username", "email", "email_verified", "groups"],
        )

    def authorize(self) -> Response | str | tuple[str, int]:
        """The login page, and its answer (OpenID Connect Core 1.0 §3.1.2)."""
        known = self.session()
        try:
            grant = self.server.get_consent_grant(end_user=known)
        except OAuth2Error as error:
            return self.refused(error)
        if request.method == "GET":
            if request.args.get("prompt") == "none" and known:
                return self.server.create_authorization_response(grant=grant, grant_user=known)
            return self.login_page(known)
        if "refuse" in request.form:
            return self.server.create_authorization_response(grant=grant, grant_user=None)
        if "continue" in request.form and known:
            return self.server.create_authorization_response(grant=grant, grant_user=known)
        person = _chosen()
        if person is None:
            return self.login_page(known, failed=True), 401
        if known:
            self.records.log_out(known.sid)
        entered = self.records.log_in(person)
        browser["sid"] = entered.sid
        return self.server.create_authorization_response(grant=grant, grant_user=entered)

    def refused(self, error: OAuth2Error) -> Response:
        """An error response names its issuer too (RFC 9207 §2)."""
        answer = self.server.handle_error_response(request, error)
        if answer.location:
            answer.location = add_params_to_uri(answer.location, {"iss": self.issuer})
        return answer

    def login_page(self, known: Session | None, failed: bool = False) -> str:
        return render_template("login.html", people=PEOPLE.values(), known=known, failed=failed)

    def userinfo(self) -> Response:
        """OpenID Connect Core 1.0 §5.3."""
        return jsonify(current_token.session.person.claims(current_token.scope))

    def endpoint(self, name: str):
        return lambda: self.server.create_endpoint_response(name)

    def end_session(self) -> Response | str | tuple[str, int]:
        """RP-initiated logout: at once with a valid hint, after one click without."""
        try:
            asked = self.server.validate_endpoint_request("end_session")
        except OAuth2Error as error:
            return render_template("logged_out.html", problem=error.description), 400
        if asked.needs_confirmation and request.method == "GET":
            return render_template("confirm_logout.html")
        sid = (asked.id_token_claims or {}).get("sid") or browser.get("sid", "")
        self.end(str(sid))
        browser.clear()
        if asked.redirect_uri:
            return redirect(asked.redirect_uri)
        return render_template("logged_out.html", problem=None)

    def end(self, sid: str) -> str:
        """Ends one session here and tells the application."""
        ended = self.records.log_out(sid)
        return notify(self.issuer, self.client, self.keys, ended) if ended else "no such session"

    def home(self) -> str:
        return render_template(
            "home.html",
            people=PEOPLE.values(),
            sessions=list(self.records.sessions.values()),
            kid=self.keys.current.kid,
            said=browser.pop("said", None),
        )

    def rotate_keys(self) -> Response:
        self.keys.rotate()
        browser["said"] = "New tokens are signed with a new key; the previous key stays published."
        return redirect("/")

    def log_out_person(self) -> Response:
        browser["said"] = f"Session ended: {self.end(request.form.get('sid', ''))}."
        return redirect("/")

    def session(self) -> Session | None:
        """Who is logged in at the provider in this browser."""
        return self.records.sessions.get(browser.get("sid", ""))


def _chosen() -> Person | None:
    """The person whose button was pressed, or whose name and password were given."""
    pressed = PEOPLE.get(request.form.get("person", ""))
    if pressed:
        return pressed
    typed = PEOPLE.get(request.form.get("login", "").strip().lower())
    if typed and secrets.compare_digest(request.form.get("password", "").encode(), typed.login.encode()):
        return typed
    return None


def port_of(issuer: str) -> int:
    """The port that an issuer's address names."""
    return urlsplit(issuer).port or 80
