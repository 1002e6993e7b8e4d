"""What one would write first: Flask, and a dictionary that knows the session of a cookie.

Fewer steps than any real one has (no store, no limits, no skip rules, nothing sealed), so that what
it is compared with cannot be called unfair to it. Run under gunicorn's gthread worker and Granian.
"""

from __future__ import annotations

import time
from typing import Any

from flask import Flask, Response, request

COOKIE = "session=8f0f2a5b4e1d4c53a1d1b6f2c7d3e9aa"
SESSIONS: dict[str, dict[str, Any]] = {
    COOKIE.partition("=")[2]: {"user": "alice@example.com", "groups": ["admins", "dev"], "until": time.time() + 86400}
}

app = Flask(__name__)


@app.route("/", defaults={"path": ""})
@app.route("/<path:path>")
def check(path: str) -> Response:
    session = SESSIONS.get(request.cookies.get("session", ""))
    if session is None or session["until"] < time.time():
        return Response(status=401)
    return Response(
        headers={"kubeflow-userid": session["user"], "kubeflow-groups": ",".join(session["groups"])}
    )
