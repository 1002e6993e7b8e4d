"""What each host stands for: the map of workloads, and which of its entries counts for a request."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.policy.workloads import Workload, Workloads, file_of, parse
from authservice.urls import PathPrefixes, canonical_path

MAP = """
backend.example.com: {namespace: default, labels: {app: backend}}
"*.example.com/api/": {namespace: apis}
"*.example.com": {targets: [Service/web, Gateway/public]}
"*.eu.example.com": {}
backend.example.com:8443: {namespace: admin}
"""


def found(workloads: Workloads, host: str, path: str | None = "/") -> str | None:
    """The key of the entry that counts."""
    workload = workloads.find(host, path)
    return workload.name if workload is not None else None


def problems(text: str) -> list[str]:
    with pytest.raises(ValueError) as raised:
        parse(text)
    return str(raised.value).splitlines()


# The map's text


def test_a_map_is_json_or_yaml_inline_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "workloads.yaml"
    as_json = '{"backend.example.com": {"namespace": "shop", "labels": {"app": "backend", "tier": "1"}}}'
    file.write_text(as_json, encoding="utf-8-sig")
    expected = (Workload("backend.example.com", "shop", {"app": "backend", "tier": "1"}),)
    as_yaml = "backend.example.com:\n  namespace: shop\n  labels: {app: backend, tier: '1'}\n"
    for text in (as_json, f"  {as_json}\n", as_yaml, as_yaml.strip(), str(file), f" {file}\n"):
        assert parse(text).all == expected
    assert (file_of(as_json), file_of(as_yaml), file_of(" "), file_of(str(file))) == (None, None, None, file)


def test_an_entry_has_a_namespace_labels_and_targets_and_needs_none() -> None:
    assert parse('{"a.example.com": {}, "b.example.com": {"targets": ["Service/web"]}}').all == (
        Workload("a.example.com", "default"),
        Workload("b.example.com", "default", targets=("Service/web",)),
    )


def test_without_a_map_every_host_is_the_same_workload() -> None:
    for nothing in (parse(""), parse(" \n"), Workloads.single()):
        assert not nothing.named
        assert found(nothing, "app.example.com") == found(nothing, "", None) == found(nothing, "!", "/") == "*"
    assert parse("{'*': {}}").named


def test_every_problem_of_a_map_is_told_at_once() -> None:
    text = """\
a.example.com: {namspace: shop, labels: [app]}
A.example.com.: {}
https://b.example.com: {}
"*example.com": {}
c.example.com/a//b: {}
c.example.com?x: {}
d.example.com: shop
e.example.com: {namespace: My Shop, labels: {tier: 1}}
f.example.com: {targets: [web, Service/, Deployment/web]}
g.example.com: {}
g.example.com: {}
8080: {}
"""
    assert problems(text) == [
        'line 1: [a.example.com].namspace: there is no field "namspace" here; did you mean namespace?',
        "line 1: [a.example.com].labels: a mapping is taken here, and this is a list",
        'line 2: [A.example.com.]: this is the same as "a.example.com"',
        "line 3: [https://b.example.com]: gateways and applications could read this path in different ways",
        "line 4: [*example.com]: a host looks like app.example.com, *.example.com, * or host:8443, then a path",
        "line 5: [c.example.com/a//b]: gateways and applications could read this path in different ways",
        "line 6: [c.example.com?x]: a host looks like app.example.com, *.example.com, * or host:8443, then a path",
        "line 7: [d.example.com]: a mapping is taken here, and this is text",
        'line 8: [e.example.com].namespace: "My Shop" is no namespace: at most 63 lower-case letters, digits and -',
        'line 8: [e.example.com].labels.tier: text is taken here, and this is a number ("1"); put it in quotes',
        'line 9: [f.example.com].targets[0]: "web" is no target; one looks like Service/backend or Gateway/public',
        'line 9: [f.example.com].targets[1]: "Service/" is no target; one looks like Service/backend or Gateway/public',
        'line 9: [f.example.com].targets[2]: "Deployment/web" is no target; one looks like Service/backend or '
        "Gateway/public",
        'line 11: the key "g.example.com" stands in line 10 already',
        "line 12: a key is text, and this is a number; put it in quotes",
    ]


@pytest.mark.parametrize(
    "text,told",
    [
        ("{}", "line 1: no host is named here; leave it empty where hosts need not be told apart"),
        ("# later\n---\n", "line 1: one mapping of hosts is taken here"),
        ("a: {}\n---\nb: {}\n", "line 1: one mapping of hosts is taken here"),
        ("- a: {}\n", "line 1: a mapping is taken here, and this is a list"),
        ('{"a": {}', "line 2: this is not YAML: did not find expected ',' or '}' for what begins in line 1"),
        ("no-such-file", "neither a mapping of hosts nor a file that can be read: this file cannot be read (No such "
         "file or directory)"),
        ("/", "neither a mapping of hosts nor a file that can be read: this is no regular file"),
        ("\0", "neither a mapping of hosts nor a file that can be read: this is no file's name"),
        ("x" * 5000, "neither a mapping of hosts nor a file that can be read"),
    ],
)  # fmt: skip
def test_what_is_no_map_is_refused(text: str, told: str) -> None:
    assert problems(text)[0].startswith(told)


@given(st.text() | st.text(alphabet="a.*:/{}[]\"' \n-8é", max_size=30).map(lambda text: f"{{'{text}': {{}}}}"))
def test_any_text_is_a_map_or_refused(text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert str(error).strip()


# Which entry counts


@pytest.mark.parametrize(
    "host,path,entry",
    [
        ("backend.example.com", "/", "backend.example.com"),
        ("BACKEND.Example.com.", "/", "backend.example.com"),
        ("backend.example.com:80", "/", "backend.example.com"),
        ("backend.example.com:8443", "/", "backend.example.com:8443"),
        ("backend.example.com", "/api/x", "backend.example.com"),  # the host counts before the prefix
        ("other.example.com", "/", "*.example.com"),
        ("other.example.com", "/api/", "*.example.com/api/"),
        ("other.example.com", "/api/a/b", "*.example.com/api/"),
        ("other.example.com", "/api", "*.example.com"),
        ("other.example.com", "/apis/", "*.example.com"),
        ("other.example.com:9999", "/api/", "*.example.com/api/"),
        ("a.b.example.com", "/", "*.example.com"),
        ("a.eu.example.com", "/api/", "*.eu.example.com"),
        ("eu.example.com", "/api/", "*.example.com/api/"),
        ("example.com", "/", None),
        (".example.com", "/", None),
        ("notexample.com", "/", None),
        ("example.com.evil.net", "/", None),
        ("", "/", None),
        ("a b", "/", None),
        ("user@backend.example.com", "/", None),
        ("backend.example.com:0", "/", None),
        ("backend.example.com,other.example.com", "/", None),
        ("other.example.com", None, None),  # which of two entries cannot be told
        ("backend.example.com", None, "backend.example.com"),
        ("a.eu.example.com", None, "*.eu.example.com"),
    ],
)
def test_the_most_specific_entry_counts(host: str, path: str | None, entry: str | None) -> None:
    assert found(parse(MAP), host, path) == entry


def test_the_longest_prefix_counts_and_ends_between_segments() -> None:
    workloads = parse('{"a.ex": {}, "a.ex/x": {}, "a.ex/x/": {}, "a.ex/x/y": {}, "a.ex/x/y/z/": {}}')
    entries = {
        "/": "a.ex", "/xy": "a.ex", "/X": "a.ex", "/x": "a.ex/x", "/x/": "a.ex/x/", "/x/b": "a.ex/x/",
        "/x/y": "a.ex/x/y", "/x/y/": "a.ex/x/y", "/x/yy": "a.ex/x/", "/x/y/z": "a.ex/x/y",
        "/x/y/z/": "a.ex/x/y/z/", "/x/y/z/1/2/3": "a.ex/x/y/z/",
    }  # fmt: skip
    assert {path: found(workloads, "a.ex", path) for path in entries} == entries


def test_without_a_fitting_prefix_a_less_specific_host_counts() -> None:
    workloads = parse('{"a.ex/x": {}, "a.ex:81/y": {}, "*.ex/z": {}, "*": {}}')
    assert found(workloads, "a.ex:81", "/y") == "a.ex:81/y"
    assert found(workloads, "a.ex:81", "/x") == "a.ex/x"
    assert found(workloads, "a.ex:81", "/z") == "*.ex/z"
    assert found(workloads, "a.ex:81", "/w") == found(workloads, "b.net", None) == found(workloads, "[::1]") == "*"
    assert found(workloads, "a.ex", None) is None


def test_an_address_is_a_host() -> None:
    workloads = parse('{"[::1]": {}, "192.0.2.1:80": {}, "*:99": {}}')
    assert found(workloads, "[0:0::1]:8080") == "[::1]"
    assert found(workloads, "192.0.2.1:80") == "192.0.2.1:80"
    assert found(workloads, "192.0.2.1") is None
    assert found(workloads, "[::2]:99") == found(workloads, "app.example.com:99") == "*:99"


_SEGMENTS = st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=4)
_PATHS = st.builds(lambda segments, slash: "/" + "/".join(segments) + "/" * slash, _SEGMENTS, st.booleans())


@given(st.lists(_PATHS, min_size=1, max_size=6, unique=True), _PATHS)
def test_prefixes_fit_as_those_of_other_settings_do(prefixes: list[str], path: str) -> None:
    prefixes = [prefix for prefix in dict.fromkeys(prefixes) if canonical_path(prefix)]
    if not prefixes or canonical_path(path) is None:
        return
    workloads = parse("{" + ", ".join(f'"a.ex{prefix}": {{}}' for prefix in prefixes) + "}")
    fitting = [prefix for prefix in prefixes if PathPrefixes([prefix]).matches(path)]
    best = max(fitting, key=len, default=None)
    assert found(workloads, "a.ex", path) == (None if best is None else f"a.ex{best}")


def test_a_host_of_many_labels_and_segments_is_found_quickly() -> None:
    workloads = parse('{"*.ex/a": {}, "b.ex": {}}')
    assert found(workloads, "a." * 140 + "ex", "/a" * 4000) == "*.ex/a"
