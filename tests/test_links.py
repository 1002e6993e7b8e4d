"""Addresses on pages: what is let through, and how they are joined."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.links import NEUTRAL, ascii_url, resolve_url_ref, theme_url, usable


@pytest.mark.parametrize(
    "base, ref, expected",
    [
        ("https://example.com", "/some/path", "https://example.com/some/path"),
        ("https://git.example/sub", "/users/sign_out", "https://git.example/users/sign_out"),
        ("https://git.example/a/b", "../c?d=e#f", "https://git.example/c?d=e#f"),
        ("https://git.example:8443/a/", "", "https://git.example:8443/a/"),
        ("/a/b", "c", "/a/c"),
        ("", "themes/x", "themes/x"),
        ("https://git.example", "https://other.example/x", "https://other.example/x"),
    ],
)
def test_resolve_url_ref(base: str, ref: str, expected: str) -> None:
    assert resolve_url_ref(base, ref) == expected


@pytest.mark.parametrize(
    "base, ref",
    [
        ("https://[", "/a"),
        ("https://a:port/", "/a"),
        ("https://a:99999/", "/a"),
        ("https://a", "%zz"),
        ("%", "/a"),
        ("javascript:alert(1)", "/a"),
        ("https://a", "javascript:alert(1)"),
        ("data:x", ""),
        ("https://a", "a b"),
        ("https://a", "\\\\evil"),
        ("https://a", "java\nscript:x"),
        (None, "/a"),
        ("https://a", None),
        (1, 2),
        ("mailto:x@y", "/a"),
        ("https:", "/a"),
        ("https://", "//"),
    ],
)
def test_resolve_url_ref_of_anything_malformed_or_running_is_empty(base: object, ref: object) -> None:
    assert resolve_url_ref(base, ref) == ""


@given(st.text(), st.text())
def test_resolve_url_ref_never_raises_and_never_leaves_http(base: str, ref: str) -> None:
    found = resolve_url_ref(base, ref)
    assert usable(found) == found


@pytest.mark.parametrize(
    "themes_url, theme, expected",
    [
        ("themes", "kubeflow", "themes/kubeflow"),
        ("themes/", "/kubeflow", "themes/kubeflow"),
        ("", "kubeflow", "kubeflow"),
        ("/own//themes/./", "x", "/own/themes/x"),
        ("https://cdn.example", "x", "https://cdn.example/x"),
        ("https://cdn.example/t?v=1", "x", "https://cdn.example/t/x?v=1"),
        ("//cdn.example/t", "x", "//cdn.example/t/x"),
        ("themes", 'a b"><c', "themes/a%20b%22%3E%3Cc"),
        ("javascript:alert(1)", "x", NEUTRAL),
        ("https://[", "x", NEUTRAL),
    ],
)
def test_theme_url_is_joined_as_a_path(themes_url: str, theme: str, expected: str) -> None:
    assert theme_url(themes_url, theme) == expected


@pytest.mark.parametrize(
    "url",
    [
        "/a%2Fb//c;d=e?q=%zz&r=\"<>|^`{}\\'#f",
        "https://app.example/?next=https://x/?a=b",
        "/",
        "?x",
        "",
    ],
)
def test_O12_an_address_stays_byte_for_byte(url: str) -> None:
    assert usable(url) == url
    assert ascii_url(url) == url


@given(st.text())
def test_ascii_url_fits_a_header(url: str) -> None:
    try:
        url.encode()
    except UnicodeEncodeError:
        return
    assert ascii_url(url).isascii() and ascii_url(url).isprintable() and " " not in ascii_url(url)
