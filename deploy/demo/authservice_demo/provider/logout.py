"""Back-channel logout: telling the application that a person's session is over."""

from __future__ import annotations

import secrets
import time

import requests
from joserfc import jwt

from authservice_demo.provider.keys import ALGORITHM, SigningKeys
from authservice_demo.provider.records import Client, Session

EVENT = "http://schemas.openid.net/event/backchannel-logout"
SECONDS = 3


def logout_token(issuer: str, client: Client, keys: SigningKeys, session: Session) -> str:
    """The signed notice (OpenID Connect Back-Channel Logout 1.0 §2.4)."""
    now = int(time.time())
    claims = {
        "iss": issuer,
        "aud": client.client_id,
        "sub": session.person.claims("openid")["sub"],
        "sid": session.sid,
        "iat": now,
        "exp": now + 120,
        "jti": secrets.token_urlsafe(18),
        "events": {EVENT: {}},
    }
    header = {"alg": ALGORITHM, "kid": keys.current.kid, "typ": "logout+jwt"}
    return jwt.encode(header, claims, keys.current, [ALGORITHM])


def notify(issuer: str, client: Client, keys: SigningKeys, session: Session) -> str:
    """Sends the notice, if the client wants one, and says in a few words how that went (§2.5)."""
    if not client.backchannel_logout_uri:
        return "no back-channel logout address is registered"
    try:
        answer = requests.post(
            client.backchannel_logout_uri,
            data={"logout_token": logout_token(issuer, client, keys, session)},
            timeout=SECONDS,
            allow_redirects=False,
        )
    except requests.RequestException as error:
        return f"the application could not be told ({type(error).__name__})"
    return f"the application was told and answered {answer.status_code}"
