"""Theme files: served from memory by their exact name, and nothing else by any name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from authservice.pages import Pages
from authservice.themes import CONTENT_TYPES, MAX_BYTES, ThemeFiles

TRAVERSALS = [
    "",
    ".",
    "..",
    "/",
    "kubeflow",
    "kubeflow/",
    "kubeflow/.",
    "kubeflow/..",
    "../default/base.html",
    "../../authservice/pages.py",
    "kubeflow/../../default/base.html",
    "kubeflow/../kubeflow/styles.css",
    "./kubeflow/styles.css",
    "kubeflow//styles.css",
    "/kubeflow/styles.css",
    "kubeflow/styles.css/",
    "kubeflow\\styles.css",
    "..\\..\\setup.cfg",
    "kubeflow/styles.css\x00.svg",
    "kubeflow/styles.css%00",
    "%2e%2e/default/base.html",
    "kubeflow%2fstyles.css",
    "kubeflow/styles.css;x",
    "kubeflow/styles.css?x",
    "KUBEFLOW/styles.css",
    "kubeflow/STYLES.CSS",
    "kubeflow/styles.css ",
    "/etc/passwd",
    "//etc/passwd",
    "....//....//etc/passwd",
    "kubeflow/.hidden.css",
    ".hidden/x.css",
    "kubeflow/styles",
    "C:/x.css",
    "~/x.css",
    "kubeflow/\u2025/\u2025/setup.cfg",
    "file:///etc/passwd",
    "kubeflow/styles.css\n",
]


@pytest.fixture(scope="module")
def shipped() -> Pages:
    return Pages()


def write(file: Path, body: bytes = b"x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(body)
    return file


def test_U52_the_shipped_theme_is_served(shipped: Pages) -> None:
    for name, content_type in [
        ("styles.css", "text/css; charset=utf-8"),
        ("logo.svg", "image/svg+xml"),
        ("bg.svg", "image/svg+xml"),
    ]:
        file = shipped.theme_file(f"kubeflow/{name}")
        assert file is not None
        body, found, etag = file
        assert body and found == content_type
        assert etag.startswith('"') and etag.endswith('"')


@pytest.mark.parametrize("path", TRAVERSALS)
def test_B76_nothing_but_exact_names(shipped: Pages, path: str) -> None:
    assert shipped.theme_file(path) is None


def test_files_carry_headers_under_which_a_picture_runs_nothing(tmp_path: Path) -> None:
    write(tmp_path / "t/evil.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    file = ThemeFiles([tmp_path]).get("t/evil.svg")
    assert file is not None
    headers = dict(file.headers)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "sandbox" in policy and "script" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Type"] == "image/svg+xml"
    assert headers["ETag"] == file.etag


def test_own_files_win_one_by_one(tmp_path: Path) -> None:
    write(tmp_path / "a/themes/kubeflow/logo.svg", b"<svg>mine</svg>")
    write(tmp_path / "a/themes/mine/styles.css", b"a")
    write(tmp_path / "b/themes/mine/styles.css", b"b")
    pages = Pages(template_paths=[str(tmp_path / "a"), str(tmp_path / "b")], theme="mine")
    assert pages.warnings == ()
    assert pages.theme_file("kubeflow/logo.svg").body == b"<svg>mine</svg>"  # type: ignore[union-attr]
    assert pages.theme_file("kubeflow/bg.svg") is not None
    assert pages.theme_file("mine/styles.css").body == b"b"  # type: ignore[union-attr]


def test_only_known_kinds_are_served(tmp_path: Path) -> None:
    for suffix in (
        *CONTENT_TYPES,
        ".html",
        ".js",
        ".mjs",
        ".xml",
        ".txt",
        ".json",
        "",
        ".css.bak",
        ".php",
        ".map",
    ):
        write(tmp_path / f"t/file{suffix}")
    files = ThemeFiles([tmp_path])
    assert {suffix for suffix in CONTENT_TYPES if f"t/file{suffix}" in files} == set(CONTENT_TYPES)
    assert len(files.warnings) == 10
    assert files.get("t/file.html") is None and files.get("t/file.js") is None


def test_a_mounted_config_map_is_served(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap as links through a hidden folder that it swaps."""
    theme = tmp_path / "themes" / "mine"
    write(theme / "..2024_01_01/styles.css", b"mounted")
    os.symlink("..2024_01_01", theme / "..data")
    os.symlink("..data/styles.css", theme / "styles.css")
    files = ThemeFiles([tmp_path / "themes"])
    assert files.get("mine/styles.css").body == b"mounted"  # type: ignore[union-attr]
    assert files.get("mine/..data/styles.css") is None
    assert files.get("mine/..2024_01_01/styles.css") is None
    assert files.warnings == []


def test_links_that_lead_out_are_not_served(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.css", b"secret")
    write(tmp_path / "outside/x.css", b"secret")
    themes = tmp_path / "themes"
    write(themes / "t/styles.css")
    os.symlink(secret, themes / "t/absolute.css")
    os.symlink("../../secret.css", themes / "t/relative.css")
    os.symlink(tmp_path / "outside", themes / "t/folder")
    os.symlink(themes / "nowhere.css", themes / "t/dangling.css")
    files = ThemeFiles([themes])
    assert files.get("t/styles.css") is not None
    for name in ("absolute.css", "relative.css", "folder/x.css", "dangling.css"):
        assert files.get(f"t/{name}") is None
    assert len(files.warnings) == 3


def test_hidden_and_special_and_huge_files_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / ".hidden/a.css")
    write(tmp_path / "t/.hidden.css")
    write(tmp_path / "t/huge.css", b"x" * (MAX_BYTES + 1))
    write(tmp_path / "t/large.css", b"x" * MAX_BYTES)
    os.mkfifo(tmp_path / "t/pipe.css")
    files = ThemeFiles([tmp_path])
    assert files.get("t/large.css") is not None
    for name in (".hidden/a.css", "t/.hidden.css", "t/huge.css", "t/pipe.css"):
        assert files.get(name) is None
    assert len(files.warnings) == 2


def test_an_etag_follows_the_content(tmp_path: Path) -> None:
    file = write(tmp_path / "t/a.css", b"one")
    first = ThemeFiles([tmp_path]).get("t/a.css")
    assert first == ThemeFiles([tmp_path]).get("t/a.css")
    file.write_bytes(b"two")
    assert first.etag != ThemeFiles([tmp_path]).get("t/a.css").etag  # type: ignore[union-attr]


def test_folders_without_themes_are_no_matter(tmp_path: Path) -> None:
    files = ThemeFiles([tmp_path / "missing", tmp_path])
    assert files.warnings == [] and files.get("t/a.css") is None
