"""The path that policies compare: dot segments are resolved, and whatever stays ambiguous is none (M26)."""

from __future__ import annotations

import posixpath
import time
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from authservice.urls import MAX_PATH, canonical_path, policy_path
from tests.test_urls import PATH_TRICKS, TARGETS

SEGMENTS = ["a", "b%41", "..", ".", "%2e%2E", "%2e.", "", "...", "c;x", "%2f", "é", "+.", "%c3%a9"]
DOTTED = st.lists(st.sampled_from(SEGMENTS), max_size=9).flatmap(
    lambda segments: st.sampled_from(["/", "\\"]).map(lambda slash: "/" + slash.join(segments))
)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a/b?x=1", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("/%61b", "/ab"),
        ("/a/../b", "/b"),
        ("/a/./b", "/a/b"),
        ("/a/%2e%2e/b", "/b"),
        ("/a/%2E./b", "/b"),
        ("/a/%2e/b", "/a/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/../", "/a/"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/.", "/"),
        ("/a/b/c/../../d", "/a/d"),
        ("\\a\\b", "/a/b"),
        ("/a\\..\\b", "/b"),
        ("/a/..\\b?x=\\", "/b"),
        ("/a?next=/../b", "/a"),
    ],
)
def test_m26_base_normalisation(target: str, path: str) -> None:
    assert policy_path(target) == path


@pytest.mark.parametrize(
    "target",
    [
        "", "*", "a", "a/b", "./a", "x/../y", "http://app.example/a",
        "/..", "/../a", "/a/../../b", "/%2e%2e/a",
        "/a//b", "/a//../b", "/a/..//b", "/a/.//b", "/a\\\\b", "//", "/\\a", "//app.example/a",
        "/a%2fb", "/a%2F..%2Fb", "/a%5c..%5cb", "/a/%252e%252e/b", "/a/%00/../b", "/a/%zz/../b",
        "/a;x/../b", "/a/..;/b", "/a/.../../b", "/a/+./../b", "/a/%2e%20/b",
        "/a/é/../b", "/a/%ff/../b", "/a/%EF%BC%8F/../b",
        "/a#/../b", "/a b", "/a?x y", "/" + "a" * MAX_PATH,
    ],
)  # fmt: skip
def test_m26_what_stays_ambiguous_is_no_path_also_where_a_dot_segment_would_take_it_away(target: str) -> None:
    assert policy_path(target) is None


@given(st.one_of(TARGETS, DOTTED, st.text(max_size=30)))
@example("/..")
def test_it_is_canonical_or_none_whatever_comes(target: str) -> None:
    path = policy_path(target)
    assert path is None or canonical_path(path) == path


@given(st.one_of(TARGETS, DOTTED))
def test_a_path_beyond_doubt_is_the_one_that_opens_paths(target: str) -> None:
    path = canonical_path(target)
    assert path is None or policy_path(target) == path


@given(DOTTED)
@example("/a/%2e%2e/b")
@example("//..")
def test_every_order_of_resolving_gives_the_same_path_or_there_is_none(target: str) -> None:
    path = policy_path(target)
    if path is None:
        return
    sent = target.partition("?")[0]
    decoded_first = posixpath.normpath(unquote(sent).replace("\\", "/"))
    decoded_last = unquote(posixpath.normpath(sent.replace("\\", "/").replace("%2e", ".").replace("%2E", ".")))
    assert decoded_first == decoded_last == (unquote(path).rstrip("/") or "/")


@pytest.mark.parametrize("target", PATH_TRICKS)
def test_no_trick_gets_a_path_with_something_to_resolve(target: str) -> None:
    path = policy_path(target)
    assert path is None or not {".", "..", ""} & set(path.strip("/").split("/")) - ({""} if path == "/" else set())


@pytest.mark.parametrize(
    "hostile", ["/.." * 2700, "/a/.." * 1300, "\\" * 8000, "/%2e" * 2000, "/" + "a/" * 4000 + "../" * 3999]
)
def test_time_is_linear(hostile: str) -> None:
    began = time.process_time()
    policy_path(hostile)
    assert time.process_time() - began < 0.2


def test_few_targets_are_remembered() -> None:
    for number in range(1000):
        policy_path(f"/{number}?" + "x" * 8000)
    assert policy_path.cache_info().currsize <= 128
