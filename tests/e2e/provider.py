"""The strict OpenID provider: npm oidc-provider, run by ``strict_provider/provider.mjs``.

Independent, certified code: what it accepts from us is right by somebody else's judgement.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote_plus, urlencode

import pytest

from tests.e2e.processes import Program, listens
from tests.ports import free_port
from tests.e2e.wire import request
from tests.programs import require

FOLDER = Path(__file__).parent / "strict_provider"

CLIENT_ID = "authservice-e2e"
# With the characters that client_secret_basic has to form-encode first (RFC 6749 §2.3.1).
CLIENT_SECRET = "e2e:client secret+with%25odd/characters=77"

PEOPLE: Mapping[str, Mapping[str, Any]] = {
    "alice": {"groups": ["a", "b"]},
    "bob": {"groups": ["b"]},
    "carol": {},
}


NODE_AT_LEAST = 20


def node() -> str:
    """The path of a Node that is new enough for the provider."""
    program = require("node")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30).stdout
    if int(version.strip().lstrip("v").partition(".")[0] or 0) < NODE_AT_LEAST:
        _do_without(f"{program} is {version.strip()}: install Node.js {NODE_AT_LEAST} or later")
    return program


def installed() -> Path:
    """The provider's folder with its packages in place; fetched once, also with several test processes."""
    trouble = _install(require("npm"))
    if trouble:
        _do_without(f"npm ci in {FOLDER}: {trouble}")
    return FOLDER


@cache
def _install(npm: str) -> str:
    """Runs ``npm ci`` where it is needed, and gives the end of what it said when it failed."""
    with (FOLDER / ".install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = (FOLDER / "package-lock.json").read_text()
        mark = FOLDER / "node_modules" / ".installed-from"
        if mark.exists() and mark.read_text() == wanted:
            return ""
        command = [npm, "ci", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=30000"]
        done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            return (done.stdout + done.stderr)[-1000:]
        mark.write_text(wanted)
        return ""


def _do_without(message: str) -> NoReturn:
    """As `tests.programs.require`: a skip for a person, a failure where everything has to be there."""
    if os.environ.get("REQUIRE_PROGRAMS") == "1":
        pytest.fail(message)
    pytest.skip(message)


class StrictProvider:
    """A running provider that can be killed and started again on its port.

    ``claims_in_userinfo_only`` keeps profile, e-mail and groups out of the ID token, which is
    what OpenID Connect Core 1.0 §5.4 asks for in the code flow; the other form is common too.
    Back-channel logouts go to ``backchannel_logout_uri``, where there is one.
    ``client`` adds to what the provider knows of us (OpenID Connect Registration 1.0 §2).
    """

    def __init__(
        self,
        folder: Path,
        redirect_uris: Sequence[str],
        *,
        post_logout_redirect_uris: Sequence[str] = (),
        backchannel_logout_uri: str = "",
        access_token_seconds: int = 3600,
        claims_in_userinfo_only: bool = True,
        client: Mapping[str, object] | None = None,
    ) -> None:
        self.port, self._admin_port = free_port(), free_port()
        self.issuer = f"http://127.0.0.1:{self.port}"
        told: dict[str, object] = {}
        if backchannel_logout_uri:
            told = {"backchannel_logout_uri": backchannel_logout_uri, "backchannel_logout_session_required": True}
        settings = {
            "port": self.port,
            "admin_port": self._admin_port,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "redirect_uris": list(redirect_uris),
            "claims_in_userinfo_only": claims_in_userinfo_only,
            "access_token_seconds": access_token_seconds,
            "client": {"post_logout_redirect_uris": list(post_logout_redirect_uris), **told, **(client or {})},
            "people": PEOPLE,
        }
        self.program = Program(
            "provider",
            [node(), "provider.mjs"],
            folder / "provider.log",
            env={"STRICT_PROVIDER": json.dumps(settings)},
            cwd=installed(),
        )
        self._tokens_of_earlier_lives: set[str] = set()

    def start(self) -> None:
        self.program.start(lambda: listens(self.port) and listens(self._admin_port))

    def kill(self) -> None:
        """Ends it at once; its sessions, codes, tokens and signing key are lost."""
        self._tokens_of_earlier_lives |= self.issued()
        self.program.kill()

    def stop(self) -> None:
        self.program.stop()

    def _ask(self, hand: str, **arguments: object) -> Any:
        answer = request(self._admin_port, "POST", f"/{hand}", body=json.dumps(arguments).encode())
        assert answer.status == 200, answer
        return answer.json()

    def calls(self, path: str) -> int:
        """How often a path was asked, by anybody."""
        return int(self._ask("seen")["calls"].get(path, 0))

    def waiting(self, path: str) -> int:
        """How many requests to a held path wait at this moment."""
        return int(self._ask("seen")["held"].get(path, 0))

    def tokens(self) -> list[str]:
        """Every token issued in this life, in order: access, refresh and ID token of each login."""
        return list(self._ask("seen")["tokens"])

    def accepts(self, access_token: str) -> bool:
        """Whether this access token still opens anything."""
        bearer = [("Authorization", f"Bearer {access_token}")]
        return request(self.port, "GET", "/me", headers=bearer).status == 200

    def redeems(self, refresh_token: str) -> bool:
        """Whether this refresh token gives new tokens. It is used up by that."""
        basic = b64encode(f"{quote_plus(CLIENT_ID)}:{quote_plus(CLIENT_SECRET)}".encode()).decode()
        headers = [("Authorization", f"Basic {basic}"), ("Content-Type", "application/x-www-form-urlencoded")]
        form = urlencode({"grant_type": "refresh_token", "refresh_token": refresh_token}).encode()
        answer = request(self.port, "POST", "/token", headers=headers, body=form)
        assert answer.status == 200 or answer.json()["error"] == "invalid_grant", answer
        return answer.status == 200

    def notices(self) -> list[dict[str, Any]]:
        """The back-channel logouts that were sent: of whom (``login``), and when (seconds, ``at``) they
        were answered with 200, or the ``error``."""
        return list(self._ask("seen")["notices"])

    def issued(self) -> set[str]:
        """Every token and redeemed code that this provider ever gave away, past lives included."""
        if self.program.process is None:
            return set(self._tokens_of_earlier_lives)
        seen = self._ask("seen")
        return {*seen["tokens"], *seen["codes"], *self._tokens_of_earlier_lives}

    def hold(self, path: str) -> None:
        """Keeps every request to this path waiting until `release`."""
        self._ask("hold", path=path)

    def release(self, path: str) -> None:
        self._ask("release", path=path)

    def fail(self, path: str, status: int) -> None:
        """Answers this path with an error until `mend`."""
        self._ask("fail", path=path, status=status)

    def mend(self, path: str) -> None:
        self._ask("mend", path=path)

    def rotate(self, *, drop: bool = False) -> None:
        """Signs with a new key from now on; the old one stays published unless dropped."""
        self._ask("rotate", drop=drop)

    def regroup(self, login: str, groups: Sequence[str]) -> None:
        """Somebody's groups from now on."""
        self._ask("regroup", login=login, groups=list(groups))

    def revoke(self, login: str) -> None:
        """Takes back every token of a person, as an operator does; nobody is told."""
        self._ask("revoke", login=login)
