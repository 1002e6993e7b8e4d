"""The wheel and the source archive: built offline, installed alone, used from an empty directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What the build needs: the same list as in the Dockerfile (tests/test_deploy.py looks at that one).
SOURCES = (
    *("pyproject.toml", "setup.cfg", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "Makefile"),
    *("wsgi.py", "gunicorn.conf.py", "authservice", "templates", "deploy", "docs"),
)

SETTINGS = {
    "OIDC_PROVIDER": "http://127.0.0.1:9",
    "CLIENT_ID": "wheel",
    "CLIENT_SECRET": "a-secret-of-the-wheel",
    "AUTHSERVICE_URL_PREFIX": "/authservice/",
}

# One process builds for all; with the programs that it starts it takes too long for the quick part.
pytestmark = [pytest.mark.xdist_group("wheel"), pytest.mark.external]


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None, status: int = 0) -> str:
    clean = {"PATH": os.environ["PATH"], "HOME": str(cwd), "LANG": "C.UTF-8"}
    done = subprocess.run(
        command, cwd=cwd, env={**clean, **(env or {})}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that building leaves nothing behind in the checkout."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", folder, ".", cwd=sources)  # fmt: skip
    (built,) = folder.glob("authservice-*-py3-none-any.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it. Its dependencies are those of the environment that
    runs the tests, behind its own packages; a checkout cannot shine through."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent)
    run(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-deps",
        "--no-index", wheel, cwd=wheel.parent)  # fmt: skip
    (packages,) = folder.glob("lib/python3.*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def below(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix() for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_module_template_theme_and_the_demo(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {f"authservice/{name}" for name in below(ROOT / "authservice")}
    expected |= {f"authservice/templates/{name}" for name in below(ROOT / "templates")}
    expected |= {f"authservice_demo/{name}" for name in below(ROOT / "deploy/demo/authservice_demo")}
    expected.add("authservice_demo/envoy/envoy.yaml")
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    head = metadata.partition("\n\n")[0].splitlines()
    assert "Requires-Python: >=3.10" in head
    needs = {line.split()[1].partition(">")[0].partition("<")[0] for line in head
             if line.startswith("Requires-Dist:") and "extra ==" not in line}  # fmt: skip
    assert {"flask", "gunicorn", "requests", "authlib", "redis", "jinja2", "msgspec"} <= needs
    assert "pytest" not in needs
    assert "# AuthService" in metadata


def test_the_source_archive_builds_the_same_wheel(sources: Path, wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-c",
        "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])", tmp_path,
        cwd=sources)  # fmt: skip
    (archive,) = tmp_path.glob("authservice-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data") if hasattr(tarfile, "data_filter") else (
            opened.extractall(tmp_path / "unpacked"))  # fmt: skip
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", tmp_path / "again", ".", cwd=unpacked)  # fmt: skip
    (again,) = (tmp_path / "again").glob("*.whl")
    with zipfile.ZipFile(again) as one, zipfile.ZipFile(wheel) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_the_command_works_from_an_empty_directory(installed: Path, empty: Path) -> None:
    assert run(installed / "authservice", "--version", cwd=empty).startswith("authservice 0.")
    store = {"SESSION_STORE_PATH": str(empty / "sessions.db")}
    said = run(installed / "authservice", "check-config", cwd=empty, env={**SETTINGS, **store})
    assert "would start" in said
    said = run(installed / "authservice", "check-config", cwd=empty, status=2)
    assert "OIDC_PROVIDER" in said and "CLIENT_ID" in said
    assert "SESSION_MAX_AGE" in run(installed / "authservice", "settings", "--markdown", cwd=empty)
    assert list(empty.iterdir()) == []


PAGES = """
import json, sys
from werkzeug.test import create_environ, run_wsgi_app
import authservice, authservice.wsgi
def get(path):
    environ = create_environ(path)
    environ.update(SERVER_PORT="8082", RAW_URI=path)
    body, status, headers = run_wsgi_app(authservice.wsgi.app, environ, buffered=True)
    return [status, b"".join(body).decode()]
paths = ["/site/homepage", "/authservice/site/after_logout", "/site/themes/kubeflow/styles.css"]
authservice.wsgi.app.extensions["authservice"].stop()
print(json.dumps([authservice.__file__, *map(get, paths)]))
"""


def test_pages_and_themes_come_out_of_the_wheel(installed: Path, empty: Path) -> None:
    """The application itself, from an empty directory, with no checkout in sight."""
    store = {"SESSION_STORE_PATH": str(empty / "sessions.db")}
    said = run(installed / "python", "-c", PAGES, cwd=empty, env={**SETTINGS, **store})
    (line,) = (line for line in said.splitlines() if line.startswith("["))
    file, homepage, after_logout, css = json.loads(line)
    assert Path(file).is_relative_to(installed.parent)
    assert homepage[0] == "200 OK" and "<html" in homepage[1]
    assert after_logout[0] == "200 OK" and "AuthService" in after_logout[1]
    assert css[0] == "200 OK" and "{" in css[1]


def test_gunicorn_finds_its_settings_in_the_wheel(installed: Path, empty: Path) -> None:
    command = (installed / "python", "-m", "gunicorn", "-c", "python:authservice.gunicorn_conf",
               "--check-config", "authservice.wsgi:app")  # fmt: skip
    run(*command, cwd=empty, env={**SETTINGS, "SESSION_STORE_PATH": str(empty / "sessions.db")})
    assert "OIDC_PROVIDER" in run(*command, cwd=empty, status=2)


def test_the_demo_finds_its_files_in_the_wheel(installed: Path, empty: Path) -> None:
    said = run(
        installed / "python", "-c",
        "from pathlib import Path; from authservice_demo.stack import Stack, Ports;"
        "print(Stack(Ports(), Path('.'), print).envoy_file().read_text())",
        cwd=empty,
    )  # fmt: skip
    assert "ext_authz" in said
