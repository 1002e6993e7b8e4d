"""Identities out of claims, user id transformers and identity headers (cases B7, B18, B19, B54, B55, B72,
C08, C13 to C15, G39, H01 to H03, U7 to U12)."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from authservice.errors import IdentityUnusable
from authservice.identity import (
    MAX_GROUP,
    MAX_GROUPS,
    MAX_HEADER,
    MAX_USER_ID,
    MOST_JOINTS,
    AuthMethod,
    ClaimRules,
    Identity,
    IdentityHeaders,
    Transformers,
    VerifiedClaims,
    find_claim,
    from_claims,
    group_value,
    header_value,
)

patiently = settings(deadline=None)  # two cores, and other tests beside this one
RULES = ClaimRules("email", "groups")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def identify(claims: dict[str, Any], rules: ClaimRules = RULES) -> Identity:
    return from_claims(VerifiedClaims(claims), rules, method=AuthMethod.COOKIE, issuer="https://idp.example")


def refusal(claims: dict[str, Any], rules: ClaimRules = RULES) -> IdentityUnusable:
    with pytest.raises(IdentityUnusable) as caught:
        identify(claims, rules)
    return caught.value


def person(
    user_id: str = "ann", groups: tuple[str, ...] = (), method: AuthMethod = AuthMethod.COOKIE
) -> Identity:
    return Identity(user_id, groups, VerifiedClaims({}), method, "https://idp.example")


class TestUserId:
    def test_everything_is_carried(self) -> None:
        claims = VerifiedClaims({"email": "ann@example.com", "groups": ["a"]})
        expires = datetime(2030, 1, 1, tzinfo=timezone.utc)
        identity = from_claims(claims, RULES, method=AuthMethod.HEADER, issuer="i", expires=expires)
        assert identity == Identity("ann@example.com", ("a",), claims, AuthMethod.HEADER, "i", expires)

    @pytest.mark.parametrize("claims", [{}, {"email": None}, {"email": ""}, {"Email": "ann@example.com"}])
    def test_b19_missing_or_empty(self, claims: dict[str, Any]) -> None:
        error = refusal(claims)
        assert (error.status, error.login_status) == (403, 502)
        assert "email" in str(error)

    @pytest.mark.parametrize("value", [7, 1.5, True, ["ann"], {"a": "b"}, [], {}, 0, False])
    def test_b55_not_text(self, value: Any) -> None:
        assert refusal({"email": value}).login_status == 502

    def test_c08_length(self) -> None:
        assert identify({"email": "é" * MAX_USER_ID}).user_id == "é" * MAX_USER_ID
        assert refusal({"email": "a" * (MAX_USER_ID + 1)}).login_status == 502

    @pytest.mark.parametrize("unfit", ["\r\n", "\n", "\x00", "\x1b", "\x7f", "\x85", "\u2028", "\ud800"])
    def test_c08_control_characters(self, unfit: str) -> None:
        for value in ("ann" + unfit, unfit + "ann", "a" + unfit + "n"):
            error = refusal({"email": value})
            assert error.login_status == 502
            assert unfit not in str(error) + error.public

    @pytest.mark.parametrize("blank", [" ", "   ", "\u3000", "\xa0"])
    def test_nothing_but_blanks(self, blank: str) -> None:
        assert refusal({"email": blank}).login_status == 502

    @pytest.mark.parametrize(
        "value", ["Ann", " ann", "ann ", "Ann Lee", "CN=Ann, O=x", "auth0|5f7", "a%b", "Ünï"]
    )
    def test_c08_kept_exactly(self, value: str) -> None:
        assert identify({"email": value}).user_id == value

    def test_b19_lowercase_touches_ascii_only(self) -> None:
        rules = ClaimRules("email", "groups", lowercase=True)
        assert identify({"email": "Ann.LEE@Example.COM"}, rules).user_id == "ann.lee@example.com"
        # The Kelvin sign and the dotted capital I become ASCII letters in Unicode's lower case.
        assert identify({"email": "\u212aim\u0130@x"}, rules).user_id == "\u212aim\u0130@x"

    @pytest.mark.parametrize(
        "address",
        [
            "user@good.example@evil.example",
            "@@",
            '"user@evil.example"@good.example',
            "user @good.example",
            "user@good.example ",
            "user@ good.example",
            "user@good.example\xa0",
            "user@evil.example,x@good.example",
        ],
    )
    def test_c14_addresses_with_two_readings(self, address: str) -> None:
        assert refusal({"email": address}).login_status == 403
        assert refusal({"sub": "ann", "email": address}, ClaimRules("sub", "groups")).login_status == 403

    def test_c14_control_characters_in_the_mail_claim(self) -> None:
        claims = {"sub": "ann", "email": "a@evil.example\n@good.example"}
        assert refusal(claims, ClaimRules("sub", "groups")).login_status == 403

    @pytest.mark.parametrize("value", [7, None, ["a@b@c"], "no address"])
    def test_other_mail_claims_do_not_matter(self, value: Any) -> None:
        assert identify({"sub": "ann", "email": value}, ClaimRules("sub", "groups")).user_id == "ann"


class TestVerifiedEmail:
    RULES = ClaimRules("email", "groups", require_verified_email=True)

    def test_c13_boolean_true_counts(self) -> None:
        assert identify({"email": "a@b", "email_verified": True}, self.RULES).user_id == "a@b"

    @pytest.mark.parametrize("value", [False, "true", "True", "false", 1, 0, None, [], [True], {"x": 1}])
    def test_c13_nothing_else_counts(self, value: Any) -> None:
        error = refusal({"email": "a@b", "email_verified": value}, self.RULES)
        assert (error.status, error.login_status) == (403, 403)
        assert "verified" in error.public

    def test_c13_missing(self) -> None:
        assert refusal({"email": "a@b"}, self.RULES).login_status == 403

    def test_c13_off_by_default(self) -> None:
        assert identify({"email": "a@b", "email_verified": False}).user_id == "a@b"


class TestGroups:
    @pytest.mark.parametrize(
        ("value", "groups"),
        [
            (None, ()),
            ([], ()),
            ("admin", ("admin",)),
            ("a,b c", ("a,b c",)),
            ("", ()),
            (["a", "b"], ("a", "b")),
            (["b", "a", "b"], ("b", "a")),
            (["a,admin", " x ", "é"], ("a,admin", " x ", "é")),
            (["a", 7, None, True, ["b"], {"c": 1}, 1.5, "", "d"], ("a", "d")),
            (["a", "\ud800"], ("a",)),
            (7, ()),
            (True, ()),
            ({"admin": {}}, ()),
        ],
    )
    def test_b54_c15_shapes(self, value: Any, groups: tuple[str, ...]) -> None:
        """One string is one group; what is not text names none."""
        assert identify({"email": "a@b", "groups": value}).groups == groups

    def test_b72_absent(self) -> None:
        assert identify({"email": "a@b"}).groups == ()

    def test_switched_off(self) -> None:
        assert identify({"email": "a@b", "groups": ["a"], "": ["b"]}, ClaimRules("email", "")).groups == ()

    def test_c15_bounds(self) -> None:
        many = [f"g{number}" for number in range(MAX_GROUPS)]
        assert identify({"email": "a@b", "groups": many}).groups == tuple(many)
        assert refusal({"email": "a@b", "groups": [*many, "x"]}).login_status == 403
        assert identify({"email": "a@b", "groups": ["x" * MAX_GROUP]}).groups == ("x" * MAX_GROUP,)
        assert refusal({"email": "a@b", "groups": ["x" * (MAX_GROUP + 1)]}).login_status == 403

    @patiently
    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | TEXT,
            lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
            max_leaves=8,
        )
    )
    def test_b54_nothing_crashes(self, value: Any) -> None:
        groups = identify({"email": "a@b", "groups": value}).groups
        assert all(isinstance(group, str) and group for group in groups)
        if isinstance(value, list):
            assert set(groups) <= {group for group in value if isinstance(group, str)}


class TestFindClaim:
    def test_nested(self) -> None:
        claims = {"realm_access": {"roles": ["a", "b"]}}
        assert find_claim(claims, "realm_access.roles") == ["a", "b"]
        assert identify({"email": "x@y", **claims}, ClaimRules("email", "realm_access.roles")).groups == (
            "a",
            "b",
        )

    def test_a_name_with_dots_wins(self) -> None:
        claims = {"https://x.example/groups": ["a"], "https://x": {"example/groups": ["b"]}}
        assert find_claim(claims, "https://x.example/groups") == ["a"]
        assert find_claim({"a.b": None, "a": {"b": 1}}, "a.b") is None

    def test_longer_names_first_at_every_level(self) -> None:
        claims = {"a": {"b.c": 1, "b": {"c": 2}}, "x.y": {"z": 3}, "x": {"y": {"z": 4}}}
        assert find_claim(claims, "a.b.c") == 1
        assert find_claim(claims, "x.y.z") == 3
        clients = {"resource_access": {"my.app.example": {"roles": ["a"]}}}
        assert find_claim(clients, "resource_access.my.app.example.roles") == ["a"]

    def test_a_dead_end_does_not_hide_the_other_way(self) -> None:
        assert find_claim({"x.y": {"other": 1}, "x": {"y": {"z": 4}}}, "x.y.z") == 4

    @pytest.mark.parametrize("path", ["a.x", "a.b.c.d", "a.", ".a", ".", "", "a..b", "l.0", "s.lower"])
    def test_absent(self, path: str) -> None:
        assert find_claim({"a": {"b": {"c": 1}}, "l": [1], "s": "text"}, path) is None


def transformers(*rules: tuple[str, str]) -> Transformers:
    return Transformers.parse(
        json.dumps([{"matches": matches, "replaces": replaces} for matches, replaces in rules])
    )


class TestTransformers:
    def test_u7_two_rules(self) -> None:
        parsed = Transformers.parse(
            '[{"matches": "user@domain\\\\.com", "replaces": "internal"},'
            ' {"matches": "@domain\\\\.com", "replaces": ""}]'
        )
        assert parsed.apply("user@domain.com") == "internal"
        assert parsed.apply("other@domain.com") == "other"

    @pytest.mark.parametrize(
        ("matches", "position"),
        [("[", 0), ("ab(?=c)", 2), ("a**", 1), (r"(a)\1", 3), ("a)", None), ("é(?<!x)", 1)],
    )
    def test_u8_bad_pattern(self, matches: str, position: int | None) -> None:
        with pytest.raises(ValueError) as caught:
            transformers(("fine", ""), (matches, ""))
        assert str(caught.value).startswith("rule 2: matches is no regular expression (RE2): ")
        assert position is None or f"(at position {position})" in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        ["", " ", '[{"matches": "a"', "nonsense", "{}", '"x"', "7", "[[[", "[" * 100_000, "[7]", "[null]"],
    )
    def test_u9_not_a_list_of_rules(self, text: str) -> None:
        with pytest.raises(ValueError):
            Transformers.parse(text)

    @pytest.mark.parametrize(
        "rule",
        [
            {"matches": "a"},  # U10
            {"replaces": "a"},  # U11
            {},
            {"matches": None, "replaces": "a"},
            {"matches": "a", "replaces": None},
            {"matches": 1, "replaces": "a"},
            {"matches": "a", "replaces": ["b"]},
            {"matches": "\\C", "replaces": "b"},
            {"matches": "\ud800", "replaces": "b"},
            {"matches": "a", "replaces": "\ud800"},
        ],
    )
    def test_u10_u11_incomplete_rule(self, rule: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"^rule 2: "):
            Transformers.parse(json.dumps([{"matches": "a", "replaces": "b"}, rule]))

    def test_every_problem_is_told_with_its_place(self) -> None:
        with pytest.raises(ValueError) as caught:
            Transformers.parse(
                '[{"matches": "["}, {"matches": "[", "replaces": ""}, 7, {"matches": "", "replaces": ""}]'
            )
        assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
            "rule 1",
            "rule 2",
            "rule 3",
        ]

    def test_nothing_is_printed_about_a_bad_pattern(self, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ValueError):
            transformers(("(secret", ""))
        assert capfd.readouterr() == ("", "")

    def test_null_and_other_keys(self) -> None:
        assert Transformers.parse("null").apply("a") == "a"
        assert Transformers.parse("[]").apply("a") == "a"
        assert Transformers.parse('[{"matches": "a", "replaces": "b", "note": "c"}]').apply("a") == "b"

    def test_u12_transform(self) -> None:
        rules = transformers((r"user@domain\.com", "transformed"), (r"@domain\.com", ""))
        assert rules.apply("user@domain.com") == "transformed"
        assert rules.apply("onlyUsername@domain.com") == "onlyUsername"
        assert rules.apply("user@anotherDomain.com") == "user@anotherDomain.com"

    def test_the_first_match_wins_even_if_it_changes_nothing(self) -> None:
        assert transformers(("a", "a"), ("a", "b")).apply("a") == "a"

    @pytest.mark.parametrize(
        ("matches", "replaces", "given_id", "expected"),
        [
            # What Go's regexp.ReplaceAllString gives for the same.
            ("(a)(b)?", "[$1$2]", "abca", "[ab]c[a]"),
            ("(a)", "$1y", "xa", "x"),
            ("(a)", "${1}y", "xa", "xay"),
            ("(?P<name>a)", "<$name>", "xa", "x<a>"),
            ("(?P<name>a)", "<${name}>", "xa", "x<a>"),
            ("(?P<name>a)", "$namex", "xa", "x"),
            ("(a)", "$0$0", "xa", "xaa"),
            ("(a)", "$2-$7", "xa", "x-"),
            ("(a)", "$01", "xa", "x"),
            ("(a)", "$$1", "xa", "x$1"),
            ("(a)", "$$$1", "xa", "x$a"),
            ("(a)", "$", "xa", "x$"),
            ("(a)", "$-", "xa", "x$-"),
            ("(a)", "${1", "xa", "x${1"),
            ("(a)", "${}", "xa", "x${}"),
            ("(a)", "${1-}", "xa", "x${1-}"),
            ("(a)", "$1é", "xa", "x"),
            ("(a)", r"\1", "xa", r"x\1"),
            ("(a)", "$999999999999", "xa", "x"),
            ("a*", "X", "baaac", "XbXcX"),
            ("a*", "X", "", "X"),
            ("", "-", "ab", "-a-b-"),
            ("b*", "-", "éb", "-é-"),
            ("(?i)ADMIN", "x", "aDmIn", "x"),
            (r"^(.*)@.*$", "$1", "ann@example.com", "ann"),
            (r"\pL+", "L", "é1ü", "L1L"),
            (r".", "x", "日本", "xx"),
            (r"本", "x", "日本語", "日x語"),
        ],
    )
    def test_gos_replacement_language(
        self, matches: str, replaces: str, given_id: str, expected: str
    ) -> None:
        assert transformers((matches, replaces)).apply(given_id) == expected

    def test_linear_time(self) -> None:
        assert transformers(("(a*)*b", "x")).apply("a" * 100_000) == "a" * 100_000

    @patiently
    @given(TEXT, st.sampled_from([".", "a|b", r"\w*", "é?", "", r"\b", "[^a-z]"]))
    def test_replacing_by_the_match_itself_changes_nothing(self, text: str, matches: str) -> None:
        assert transformers((matches, "$0")).apply(text) == text


NAMES = ("kubeflow-userid", "kubeflow-groups", "Auth-Method")


def rendered(identity: Identity, **options: Any) -> dict[str, str]:
    return dict(IdentityHeaders(*NAMES, **options).render(identity)[0])


class TestRender:
    def test_the_three_headers(self) -> None:
        headers, _ = IdentityHeaders(*NAMES).render(person("ann@example.com", ("a", "b c")))
        assert headers == (
            ("kubeflow-userid", "ann@example.com"),
            ("kubeflow-groups", "a,b c"),
            ("Auth-Method", "cookie"),
        )
        assert rendered(person(method=AuthMethod.HEADER))["Auth-Method"] == "header"

    def test_no_groups_give_an_empty_header(self) -> None:
        assert rendered(person())["kubeflow-groups"] == ""
        assert rendered(person(groups=("", "a", "")))["kubeflow-groups"] == "a"

    def test_b18_c15_no_group_is_gained_by_joining(self) -> None:
        value = rendered(person(groups=("a,admin", "b%2Cadmin", " c", "d ", "é")))["kubeflow-groups"]
        assert value == "a%2Cadmin,b%252Cadmin,%20c,d%20,%C3%A9"
        assert "admin" not in value.split(",")

    def test_u12_transformed_then_prefixed(self) -> None:
        rules = transformers(("@domain.com", ""))
        assert (
            rendered(person("ann@domain.com"), userid_prefix="p:", transformers=rules)["kubeflow-userid"]
            == "p:ann"
        )

    def test_an_empty_transformed_id_is_refused(self) -> None:
        with pytest.raises(IdentityUnusable) as caught:
            rendered(person("ann"), userid_prefix="p:", transformers=transformers((".*", "")))
        assert (caught.value.status, caught.value.login_status) == (403, 403)

    @pytest.mark.parametrize(
        ("user_id", "value"),
        [
            ("a\r\nX: y", "a%0D%0AX: y"),
            ("a\x00", "a%00"),
            (" a b ", "%20a b%20"),
            ("  ", "%20%20"),
            ("100%", "100%25"),
            ("é", "%C3%A9"),
            ("\u010d\u010a", "%C4%8D%C4%8A"),
            ('a,b;c="d"\'', 'a,b;c="d"\''),
        ],
    )
    def test_h01_h02_values(self, user_id: str, value: str) -> None:
        assert rendered(person(user_id))["kubeflow-userid"] == value

    def test_h02_too_long_is_refused(self) -> None:
        assert len(rendered(person(groups=("x" * MAX_HEADER,)))["kubeflow-groups"]) == MAX_HEADER
        for identity in (person("é" * MAX_HEADER), person(groups=("x" * MAX_HEADER, "y"))):
            with pytest.raises(IdentityUnusable) as caught:
                rendered(identity)
            assert caught.value.status == 403
        # What is not told cannot be too long.
        assert IdentityHeaders("u", "", "").render(person(groups=("x" * MAX_HEADER, "y")))[0] == (
            ("u", "ann"),
        )

    def test_half_a_surrogate_pair_is_refused(self) -> None:
        with pytest.raises(IdentityUnusable):
            rendered(person("\ud800"))
        with pytest.raises(IdentityUnusable):
            rendered(person(groups=("\ud800",)))

    def test_h03_other_spellings_are_removed(self) -> None:
        _, removed = IdentityHeaders(*NAMES).render(person())
        assert set(removed) == {
            *("kubeflow_userid", "KUBEFLOW_USERID", "kubeflow_groups", "KUBEFLOW_GROUPS"),
            *("auth_method", "AUTH_METHOD"),
        }

    def test_h03_each_dash_may_be_an_underscore(self) -> None:
        _, removed = IdentityHeaders("X-Auth_User-Id", "", "").render(person())
        every = {f"x{one}auth{other}user{third}id" for one in "-_" for other in "-_" for third in "-_"}
        others = every - {"x-auth_user-id"}
        assert set(removed) == {*others, *map(str.upper, others)} and len(others) == 7

    @patiently
    @given(st.data(), st.lists(st.text("aZ9-_", min_size=1, max_size=12), max_size=4))
    def test_h03_what_folds_to_one_of_our_names_is_set_or_removed(self, data: st.DataObject, names: list[str]) -> None:
        def folded(name: str) -> str:
            return name.lower().replace("_", "-")

        ours = {folded(name): name for name in names if name.count("-") + name.count("_") <= MOST_JOINTS}
        shown = (*ours.values(), "", "", "")[:3]
        headers, removed = IdentityHeaders(*shown).render(data.draw(st.sampled_from([None, person()])))
        told, gone = {name.lower() for name, _ in headers}, {name.lower() for name in removed}
        assert not told & gone
        for name in filter(None, shown):
            flips = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
            forged = "".join(
                "-_"[char == "-"] if flip and char in "-_" else char for char, flip in zip(name, flips, strict=True)
            )
            assert forged.lower() in told | gone

    def test_b7_without_an_identity_every_spelling_is_removed(self) -> None:
        headers, removed = IdentityHeaders("Kubeflow-UserID", "x_groups", "plain").render(None)
        assert headers == ()
        assert {"kubeflow-userid", "x_groups", "plain"} <= set(removed)
        assert {"kubeflow_userid", "KUBEFLOW_USERID", "x-groups", "X-GROUPS"} <= set(removed)

    def test_g39_a_spelling_that_is_another_header_is_not_removed(self) -> None:
        headers, removed = IdentityHeaders("user-id", "USER_ID", "").render(person(groups=("a",)))
        assert headers == (("user-id", "ann"), ("USER_ID", "a"))
        assert removed == ()

    def test_an_empty_name_switches_a_header_off(self) -> None:
        headers, removed = IdentityHeaders("user-id", "", "").render(person(groups=("a",)))
        assert headers == (("user-id", "ann"),) and set(removed) == {"user_id", "USER_ID"}
        assert IdentityHeaders("", "", "").render(None) == ((), ())

    def test_two_headers_of_one_name_are_refused(self) -> None:
        with pytest.raises(ValueError):
            IdentityHeaders("a-b", "A-B", "")

    @patiently
    @given(TEXT.filter(bool), st.lists(TEXT), TEXT, st.sampled_from(AuthMethod))
    @example("a", ["a,b", "a", "b", " ", ",", "%2C"], "", AuthMethod.COOKIE)
    def test_every_rendering(self, user_id: str, groups: list[str], prefix: str, method: AuthMethod) -> None:
        """One line of printable ASCII without blanks at its ends, once for each header; set and
        removed names apart; and decoding gives back exactly what was meant."""
        shown = IdentityHeaders(*NAMES, userid_prefix=prefix)
        headers, removed = shown.render(person(user_id, tuple(groups), method))
        names = [name.lower() for name, _ in headers]
        assert len(set(names)) == len(names) == 3
        assert not set(names) & {name.lower() for name in removed}
        values = dict(headers)
        for value in values.values():
            assert re.fullmatch(r"(?:[!-~](?:[ -~]*[!-~])?)?", value)
        assert unquote(values["kubeflow-userid"], errors="strict") == prefix + user_id
        told = values["kubeflow-groups"]
        assert [unquote(group, errors="strict") for group in told.split(",") if group] == [
            g for g in groups if g
        ]
        assert all(group == group.strip(" ") for group in told.split(","))

    @patiently
    @given(st.lists(st.text("-_aB", min_size=1, max_size=5), min_size=3, max_size=3, unique_by=str.lower))
    def test_g39_whatever_the_names(self, names: list[str]) -> None:
        shown = IdentityHeaders(*names)
        told = {name.lower() for name, _ in shown.render(person())[0]}
        _, removed = shown.render(person())
        _, removed_from_all = shown.render(None)
        assert told == {name.lower() for name in names}
        assert not told & {name.lower() for name in removed}
        assert told | {name.lower() for name in removed} == {name.lower() for name in removed_from_all}

    @patiently
    @given(TEXT, TEXT)
    def test_no_two_texts_look_the_same(self, one: str, other: str) -> None:
        assert (header_value(one) == header_value(other)) == (one == other)
        assert (group_value(one) == group_value(other)) == (one == other)


def test_verified_claims_are_read_only() -> None:
    source = {"sub": "ann"}
    claims = VerifiedClaims(source)
    source["sub"] = "eve"
    assert claims["sub"] == "ann" and dict(claims) == {"sub": "ann"} and len(claims) == 1
    with pytest.raises(TypeError):
        claims["sub"] = "eve"  # type: ignore[index]


def test_what_was_made_of_an_identity_is_no_part_of_it() -> None:
    first = from_claims(VerifiedClaims({"sub": "alice", "iss": "i"}), ClaimRules("sub", ""), method=AuthMethod.COOKIE, issuer="i")
    second = dataclasses.replace(first)
    first.made["by somebody"] = "a cookie's worth"
    assert first == second and second.made == {} and "worth" not in repr(first)


def test_methods_hash_like_the_texts_that_they_equal() -> None:
    assert {AuthMethod.COOKIE: 1}["cookie"] == 1  # type: ignore[index]
