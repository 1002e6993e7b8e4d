"""The tree keeps its shape: imports go one way, each library has one door, modules stay small.

The table says what a module of ours may import of ours; whoever is not named imports nothing of it.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "authservice"

VALUES = {"errors", "check", "clock", "identity", "urls"}
MEANS = VALUES | {"logs", "ops", "outbound", "strictjson"}
EVERYTHING = {"*"}

MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "identity": {"errors"},
    "urls": {"errors"},
    "clock": set(),
    "check": {"errors", "identity", "urls"},
    "upstream": VALUES,
    "settings": VALUES | {"assertion", "policy", "settings", "upstream"},
    "strictjson": set(),
    "logs": VALUES,
    "ops": VALUES,
    "scrape": VALUES | {"logs", "ops"},
    "outbound": VALUES | {"outbound", "strictjson"},
    "oidc": MEANS | {"oidc"},
    "sessions": MEANS | {"sessions"},
    "authz": VALUES | {"authz", "outbound", "policy"},
    "kubernetes": MEANS | {"kubernetes"},
    "policy": VALUES | {"logs", "oidc", "ops", "policy", "strictjson"},
    "authn": MEANS | {"authn", "kubernetes", "oidc", "policy", "sessions"},
    "navigation": set(),
    "same_origin": set(),
    "moments": set(),
    "terminal": set(),
    "assertion": VALUES | {"assertion"},
    "completions": EVERYTHING,
    "pipeline": VALUES | {"authn", "authz"},
    "trust": VALUES,
    "gateways": VALUES | {"trust"},
    "links": set(),
    "content_policy": {"links"},
    "themes": set(),
    "pages": VALUES | {"content_policy", "links", "moments", "themes"},
    "entrance": VALUES | {"oidc", "sessions"},
    "judge": MEANS | {"gateways", "pages", "pipeline", "entrance", "navigation", "wiring"},
    "fastlane": VALUES | {"logs", "ops", "judge"},
    "bodies": set(),
    "incoming": VALUES | {"bodies"},
    "protocol": VALUES | {"logs", "fastlane", "bodies", "incoming"},
    "pool": VALUES | {"logs"},
    "worker": VALUES | {"logs", "ops", "fastlane", "pool", "protocol"},
    "browsers": VALUES | {"logs", "pages", "entrance", "judge", "same_origin", "sessions", "trust"},
    "logout": MEANS | {"browsers", "pages", "entrance", "oidc", "sessions", "authn"},
    "doors": EVERYTHING,
    "site": MEANS | {
        "navigation", "gateways", "pages", "entrance", "judge", "oidc", "sessions", "browsers", "scrape", "trust",
        "upstream",
    },
    "compat": VALUES | {"account", "browsers", "entrance", "judge", "logout", "ops"},
    "account": MEANS | {"browsers", "entrance", "judge", "links", "pages", "sessions", "trust"},
    "startup": VALUES | {"settings", "pages", "policies", "policy", "sessions", "outbound", "oidc", "kubernetes"},
    "policies": EVERYTHING,
    "rehearsal": EVERYTHING,
    "authenticators": EVERYTHING,
    "authorizers": EVERYTHING,
    "upkeep": EVERYTHING,
    "app": EVERYTHING,
    "cli": EVERYTHING,
    "cli_policy": EVERYTHING,
    "cli_sessions": EVERYTHING,
    "cli_migrate": EVERYTHING,
    "migrate": VALUES | {"migrate", "settings"},
    "cli_doctor": EVERYTHING,
    "doctor": EVERYTHING,
    "wiring": VALUES | {"logs", "ops"},
    "wsgi": {"app", "scrape"},
    "gunicorn_conf": {"errors", "settings", "startup", "scrape"},
}

DOORS: dict[str, set[str]] = {
    "flask": {"account", "app", "browsers", "compat", "doors", "judge", "logout", "site", "sessions.interface"},
    "flask_session": {"sessions.interface"},
    "jinja2": {"pages"},
    "redis": {"sessions.redis_access", "sessions.redis_servers", "sessions.redis_finders", "sessions.tracking"},
    "sqlite3": {
        "sessions.sqlite", "sessions.sqlite_file", "sessions.sqlite_inspection", "sessions.sqlite_sweep",
        "sessions.sqlite_watch",
    },
    "requests": {"outbound.__init__", "outbound.exchange"},
    "urllib3": {"outbound.__init__", "outbound.exchange"},
    "authlib": {"oidc.client", "oidc.login", "oidc.tokens"},
    "jwt": {"oidc.tokens", "oidc.keys", "oidc.client"},
    "joserfc": {"oidc.tokens", "oidc.keys", "oidc.client"},
    "re2": {"identity", "policy.peers"},
    "kubernetes": {"kubernetes.kubeconfig"},
    "yaml": {"kubernetes.kubeconfig", "policy.yaml_lines"},
    "gunicorn": {"worker"},
    "uvicorn": {"worker", "protocol"},
    "uvicorn_worker": {"worker"},
    "httptools": {"incoming"},
    "uvloop": {"worker"},
    "a2wsgi": {"pool"},
    "cryptography": {"assertion.keys", "sessions.seal", "oidc.tokens", "oidc.keys", "oidc.client"},
}

OUTERMOST = {"fastlane", "policy.current", "sessions.tracking", "sessions.tracking_masters"}
"""Edges that may catch everything. The fast lane hands what it cannot answer to the full path, which
meets the same fault again, answers 500 and logs it. The threads that watch Redis know nothing then, log
it, and begin anew: nobody else would, for as long as the process lives. The one that watches policies
refuses those that it cannot judge, and says so."""


def modules() -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imports(tree: ast.Module) -> set[str]:
    """Every absolute name that a module imports, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            module = node.module or ""
            # `from authservice import judge` names the module judge, not the package.
            names.update(f"{module}.{alias.name}" if module == "authservice" else module for alias in node.names)
    return names


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name,tree", modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_what_lies_below_it(name: str, tree: ast.Module) -> None:
    allowed = MAY_IMPORT[room(name)]
    ours = {room(i.removeprefix("authservice.")) for i in imports(tree) if i.startswith("authservice.")}
    ours.discard("__version__")
    if allowed is not EVERYTHING:
        assert ours <= allowed, f"{name} may not import {sorted(ours - allowed)}"


@pytest.mark.parametrize("name,tree", modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_each_library_has_one_door(name: str, tree: ast.Module) -> None:
    for imported in imports(tree):
        door = DOORS.get(imported.split(".")[0])
        assert door is None or name in door, f"{name} imports {imported}, which only {sorted(door)} may"


@pytest.mark.parametrize("name,tree", modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_says_what_it_owns_and_stays_small(name: str, tree: ast.Module) -> None:
    assert ast.get_docstring(tree)
    lines = max((getattr(node, "end_lineno", 0) or 0 for node in ast.walk(tree)), default=0)
    assert lines <= 450, f"{name} has {lines} lines: is it still one concept?"


@pytest.mark.parametrize("name,tree", modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_nothing_is_caught_too_widely_and_no_environment_is_read_inside(name: str, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
            caught = ast.unparse(node.type) if node.type else "everything"
            if name in OUTERMOST and caught == "Exception":
                continue
            assert caught not in ("everything", "Exception", "BaseException"), f"{name}:{node.lineno} catches {caught}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv"):
            assert name in ("wsgi", "gunicorn_conf", "cli", "settings.read"), f"{name}:{node.lineno} reads the environment"


def test_every_module_has_its_row_in_the_table() -> None:
    assert {room(name) for name, _ in modules()} <= set(MAY_IMPORT)
