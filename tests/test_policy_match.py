"""How single values are compared: forms of text, templates, lines of a header, addresses, identities."""

from __future__ import annotations

import time
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.policy import match
from authservice.policy.claims import claim_path, principals
from authservice.policy.header_lines import MOST_ARRANGED, MOST_PIECES, header_values
from authservice.policy.peers import peer_accounts, peer_namespaces, peer_principals
from authservice.policy.templates import canonical_text, template
from authservice.urls import canonical_path


@pytest.mark.parametrize(
    ("value", "hits", "misses"),
    [
        ("abc", ["abc"], ["", "ab", "abcd", "ABC", "xabc"]),
        ("abc*", ["abc", "abcd", "abc*", "abc\n"], ["ab", "xabc", "ABCd"]),
        ("*abc", ["abc", "xabc", "*abc"], ["abcx", "xABC"]),
        ("*", ["a", "*", " "], ["", "a\nb", "\n"]),
    ],
)
def test_M16_a_value_is_exact_a_beginning_an_end_or_presence(value: str, hits: list[str], misses: list[str]) -> None:
    matches = match.texts([value])
    assert [text for text in hits + misses if matches(text)] == hits


@pytest.mark.parametrize(
    ("value", "hits", "misses"),
    [
        ("*a*", ["a*", "xa*"], ["a", "xax", "a*x"]),
        ("a*n", ["a*n"], ["an", "abn", "a*nx"]),
        ("**", ["*", "x*"], ["x", ""]),
    ],
)
def test_M17_a_leading_star_is_looked_at_first_and_one_in_the_middle_is_literal(
    value: str, hits: list[str], misses: list[str]
) -> None:
    matches = match.texts([value])
    assert [text for text in hits + misses if matches(text)] == hits


def test_M20_presence_is_one_character_for_texts_and_anything_for_lines() -> None:
    assert not match.texts(["*"])("")
    assert not match.texts(["*"])("a\nb")
    assert match.lines(["*"])("")
    assert match.hosts(["*"])("")


@given(st.text("ab*", max_size=5), st.lists(st.text("ab*", min_size=1, max_size=4), min_size=1, max_size=6))
def test_M16_several_values_are_any_of_them(text: str, values: list[str]) -> None:
    assert match.texts(values)(text) is any(match.texts([value])(text) for value in values)


# What Envoy 1.40 was seen to answer, and what of it a canonical path can be.
TEMPLATES = {
    "/a/{*}/c": (["/a/b/c", "/a/b%2Fx/c", "/a/b=1/c", "/a/b;1/c", "/a/../c"], ["/a//c", "/a/b/d/c", "/a/b/c/", "/a/c"]),
    "/a/{**}": (["/a/", "/a/b/c", "/a//b"], ["/a", "/b/", "/ab"]),
    "/a/{**}/c": (["/a/b/c", "/a/b/d/c", "/a//c"], ["/a/c", "/a/b/c/"]),
    "/a/{*}.txt": (["/a/b.txt", "/a/b.txt.txt"], ["/a/.txt", "/a/b/c.txt", "/a/bxtxt"]),
    "/{*}": (["/a", "/a.b"], ["/", "/a/"]),
    "/{**}": (["/", "/a", "/a/b/"], ["", "a"]),
    "/{*}/": (["/a/"], ["/a", "//", "/"]),
    "/{**}.js": (["/a/b.js", "/.js"], ["/a.js/"]),
    "/x/{*}/{*}/{**}": (["/x/a/b/", "/x/a/b/c/d"], ["/x/a/b", "/x/a//c"]),
}


@pytest.mark.parametrize(
    ("value", "path", "matched"),
    [(value, path, path in hits) for value, (hits, misses) in TEMPLATES.items() for path in hits + misses],
)
def test_M28_templates_match_whole_paths(value: str, path: str, matched: bool) -> None:
    assert match.paths([value])(path) is matched


@pytest.mark.parametrize("character", "azAZ09-._~%!$&'()*+,;=:@")
def test_M29_characters_of_a_templated_part(character: str) -> None:
    assert match.paths(["/a/{*}/c"])(f"/a/{character}/c")
    assert match.paths(["/a/{**}"])(f"/a/{character}")


@pytest.mark.parametrize("character", ["[", "]", "|", "{", "}", '"', "<", "^", "`", "\\", "?", "#", " ", "\n", "é"])
def test_M29_characters_that_no_templated_part_has(character: str) -> None:
    assert not match.paths(["/a/{*}/c"])(f"/a/{character}/c")
    assert not match.paths(["/a/{**}"])(f"/a/{character}")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("{*}", "begins with /"),
        ("a/{*}", "begins with /"),
        ("*/{*}", "begins with /"),
        ("/a/b{*}", "only stand at the beginning of a segment"),
        ("/a/b{**}", "only stand at the beginning of a segment"),
        ("/{*}{*}", "only stand at the beginning of a segment"),
        ("/{**}{*}", "only stand at the beginning of a segment"),
        ("/{*}b/c", "text after {*} can only stand in the last segment"),
        ("/{**}.js/", "text after {**} can only stand in the last segment"),
        ("/{**}/{**}", "nothing but literal text can follow {**}"),
        ("/{**}/a/{*}", "nothing but literal text can follow {**}"),
        ("//{*}", "no empty segment"),
        ("/a//b/{*}", "no empty segment"),
        ("/{x}", "knows only {*} and {**}"),
        ("/{x=*}", "knows only {*} and {**}"),
        ("/{x=*}/{*}", "knows only {*} and {**}"),
        ("/{}", "knows only {*} and {**}"),
        ("/{***}", "knows only {*} and {**}"),
        ("/{*", "knows only {*} and {**}"),
        ("/*}", "knows only {*} and {**}"),
        ("/*/{*}", "no other *"),
        ("/**/{*}", "no other *"),
        ("/{*}/*", "no other *"),
        ("/{*}*", "no other *"),
        ("/{*}/a*", "no other *"),
        ("/a b/{*}", "holds only letters"),
        ("/a?/{*}", "holds only letters"),
        ("/[/{*}", "holds only letters"),
        ("/é/{*}", "holds only letters"),
    ],
)
def test_M30_what_is_no_template_is_refused_in_words(value: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        template(value)
    assert sentence in str(caught.value)


@given(st.lists(st.sampled_from(["/", "{*}", "{**}", "a", "*", ".", "{", "}", "%41", "|"]), max_size=8).map("".join))
def test_M30_a_template_is_refused_or_finds_what_it_was_made_of(value: str) -> None:
    try:
        pattern = template(value)
    except ValueError as error:
        assert "template" in str(error) or "braces" in str(error)
        return
    path = value.replace("{**}", "x/y").replace("{*}", "x").replace("%41", "A")
    assert pattern.fullmatch(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("/a/b", "/a/b"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/café", "/caf%C3%A9"),
        ("/%7euser", "/~user"),
        ("/a|b", "/a%7Cb"),
        ("/a b", "/a%20b"),
        ("/a%2fb", "/a%2Fb"),
        ("/100%", "/100%"),
        ("/a*", "/a*"),
        ("*.js", "*.js"),
        ("/a%2a", "/a*"),
    ],
)
def test_values_are_spelled_as_canonical_paths_are(value: str, text: str) -> None:
    assert canonical_text(value) == text


def test_an_escaped_star_is_no_wildcard() -> None:
    matches = match.paths(["/a%2a", "%2a.js", "/b/{*}/%2A"])
    assert matches("/a*")
    assert matches("/b/x/*")
    assert not any(map(matches, ["/a", "/ab", "/x.js", "/b/x/y"]))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?"), max_size=12))
def test_M26_a_value_meets_its_own_path_however_it_is_spelled(rest: str) -> None:
    value = "/" + rest
    path = canonical_path(value)
    if path is not None and not match.is_template(value) and not value.endswith("*"):
        assert match.paths([value])(path)


@pytest.mark.parametrize(
    ("values", "header", "answer"),
    [
        (["a"], "a", True),
        (["a"], "b", False),
        (["a"], "a, b", None),
        (["b"], "a,b", None),
        (["c"], "a, b", False),
        (["a", "b"], "a, b", None),
        (["a*"], "a, b", True),
        (["*b"], "a, b", True),
        (["b*"], "a, b", None),
        (["*"], "a, b", True),
        (["*"], "", True),
        (["a, b"], "a, b", None),
        (["a, b"], "a, b,c", None),
        (["a, b", "a"], "a, b", True),
        (["a, b"], "c, a", False),
        (["größe"], "größe".encode().decode("latin-1"), True),
        (["a,b"], ",".join("a" * (MOST_ARRANGED + 1)), None),
        (["a*"], ",".join("a" * MOST_PIECES), True),
        (["a*"], ",".join("a" * (MOST_PIECES + 1)), None),
    ],
)
def test_M46_lines_that_were_joined_are_in_doubt_where_they_could_disagree(
    values: list[str], header: str, answer: bool | None
) -> None:
    assert header_values(values)(header) is answer


PIECES = st.lists(st.sampled_from(["a", "b", "ab", ""]), min_size=1, max_size=5)
VALUES = st.lists(st.sampled_from(["a", "b*", "*b", "*", "a,b", "*,b", "a,*", "ab"]), min_size=1, max_size=3)


@given(PIECES, VALUES, st.data())
def test_M46_whatever_the_lines_were_the_answer_is_theirs_or_a_doubt(
    pieces: list[str], values: list[str], data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.booleans(), min_size=len(pieces) - 1, max_size=len(pieces) - 1))
    sent = [pieces[0]]
    for piece, cut in zip(pieces[1:], cuts, strict=True):
        if cut:
            sent.append(piece)
        else:
            sent[-1] += "," + piece
    matches = match.lines(values)
    assert header_values(values)(",".join(pieces)) in (None, any(map(matches, sent)))


@pytest.mark.parametrize(
    ("networks", "address", "inside"),
    [
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "11.1.2.3", False),
        (["192.0.2.7"], "192.0.2.7", True),
        (["192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32"], "2001:db8::1", True),
        (["2001:db8::/32"], "2001:db9::1", False),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["::ffff:0:0/96"], "::ffff:10.0.0.1", True),
        (["::ffff:0:0/96"], "10.0.0.1", False),
        (["0.0.0.0/0"], "::1", False),
        (["::/0"], "127.0.0.1", False),
    ],
)
def test_M31_addresses_lie_in_networks(networks: list[str], address: str, inside: bool) -> None:
    spellings = match.read_address(address)
    assert spellings is not None
    assert match.networks(map(ip_network, networks))(spellings) is inside


@pytest.mark.parametrize("text", ["", "x", "10.0.0", "10.0.0.1:80", "10.0.0.1, 10.0.0.2", "[::1]"])
def test_M31_what_is_no_address_is_none(text: str) -> None:
    assert match.read_address(text) is None


PEER = "cluster.local/ns/shop/sa/cart"


@pytest.mark.parametrize(
    ("value", "matched"),
    [
        (PEER, True),
        ("cluster.local/ns/shop/sa/car", False),
        ("cluster.local/ns/shop/*", True),
        ("*/sa/cart", True),
        ("*cart", True),
        ("*", True),
        ("*://cluster.local/ns/shop/sa/cart", True),
        ("spiffe://" + PEER, False),
        ("Cluster.local/ns/shop/sa/cart", False),
    ],
)
def test_M34_principals(value: str, matched: bool) -> None:
    assert peer_principals([value])(PEER) is matched
    assert not peer_principals([value])("")


@pytest.mark.parametrize(
    ("value", "matched"),
    [
        ("shop", True),
        ("sh", False),
        ("sh*", True),
        ("*op", True),
        ("s*p", True),
        ("*", True),
        ("Shop", False),
        ("s.op", False),
    ],
)
def test_M35_namespaces(value: str, matched: bool) -> None:
    assert peer_namespaces([value])(PEER) is matched
    assert peer_namespaces(["other", value])(PEER) is matched
    assert not peer_namespaces([value])("")


@pytest.mark.parametrize(
    ("value", "namespace", "matched"),
    [
        ("cart", "shop", True),
        ("cart", "other", False),
        ("shop/cart", "other", True),
        ("other/cart", "shop", False),
        ("car", "shop", False),
        ("c.rt", "shop", False),
    ],
)
def test_M36_service_accounts(value: str, namespace: str, matched: bool) -> None:
    assert peer_accounts([value], namespace)(PEER) is matched
    assert peer_accounts(["nobody", value], namespace)(PEER) is matched
    assert peer_accounts([value], namespace)(PEER + "/further") is matched
    assert not peer_accounts([value], namespace)("")


PRINCIPALS = [
    # value, issuer, subject, matched
    ("*", "i", "s", True), ("*", "", "s", False), ("*", "i", "", False),
    ("iss/sub", "iss", "sub", True), ("iss/sub", "iss", "sub2", False), ("iss/sub", "is", "sub", False),
    ("https://i.ex/realms/a/sub", "https://i.ex/realms/a", "sub", True), ("https://i.ex/a/b", "https://i.ex", "a/b", False),
    ("iss", "iss", "sub", False), ("iss", "iss", "iss", False),
    ("iss/*", "iss", "sub", True), ("iss/*", "iss", "", False), ("iss/*", "iss2", "sub", False),
    ("https://i.ex/*", "https://i.ex", "sub", True), ("https://i.ex/*", "https://i.ex/", "sub", False),
    ("iss/ab*", "iss", "abc", True), ("iss/ab*", "iss", "ab", True), ("iss/ab*", "iss", "a", False),
    ("iss*", "iss", "sub", True), ("iss*", "issuer", "sub", True), ("iss*", "is", "sub", False), ("iss*", "iss", "", False),
    ("https://host*", "https://host", "sub", False), ("https://host*", "https://host", "host", False),
    ("https://host*", "https:/", "hosted", True),
    ("*/sub", "iss", "sub", True), ("*/sub", "", "sub", False), ("*/sub", "iss", "sub2", False),
    ("*x/sub", "abx", "sub", True), ("*x/sub", "x", "sub", True), ("*x/sub", "xa", "sub", False), ("*x/sub", "abx", "s", False),
    ("*x", "iss", "abx", True), ("*x", "iss", "x", True), ("*x", "", "abx", False), ("*x", "iss", "xa", False),
    ("*x/*", "abx", "*", True), ("*x/*", "abx", "sub", False), ("*x/*", "abc", "*", False),
    ("iss*/sub", "iss*", "sub", True), ("iss*/sub", "issuer", "sub", False),
]  # fmt: skip


@pytest.mark.parametrize(("value", "issuer", "subject", "matched"), PRINCIPALS)
def test_M38_forms_of_a_request_principal(value: str, issuer: str, subject: str, matched: bool) -> None:
    assert principals([value])((issuer, subject)) is matched
    assert principals(["never/this", value, "no*"])((issuer, subject)) is matched


@pytest.mark.parametrize(
    ("brackets", "path"),
    [
        ("[a]", ("a",)),
        ("[a][b]", ("a", "b")),
        ("[a.b][c/d][e:f]", ("a.b", "c/d", "e:f")),
        ("[https://x.ex/role]", ("https://x.ex/role",)),
        ("[a]b]", ("a]b",)),
        ("[a[b]", ("a[b",)),
        ("[a][b", ("a][",)),
        ("[a]x[b]", ("a]x[b",)),
        ("[[a]]", ("[a]",)),
    ],
)
def test_M40_each_bracket_is_a_level_or_all_are_one_name(brackets: str, path: tuple[str, ...]) -> None:
    assert claim_path(brackets) == path


def test_M35_no_identity_takes_long_to_read() -> None:
    matches = peer_namespaces(["*a*b*c*d"])
    began = time.perf_counter()
    assert not matches("td" + "/ns/" * 2000 + "a" * 8000)
    assert time.perf_counter() - began < 1
