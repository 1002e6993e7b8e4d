"""One check, from question to decision: the order of the steps, and what each outcome becomes."""

from __future__ import annotations


import pytest

from authservice.authz import Granted, Refusal
from authservice.authz.groups import GroupsAuthorizer
from authservice.check import Allow, CheckRequest, Deny, Login, NeedsIO, Reach, Remark
from authservice.errors import IdentityUnusable, NotReady, Reason, Refused, StoreDown
from authservice.identity import AuthMethod, Identity, IdentityHeaders, Transformers, VerifiedClaims
from authservice.navigation import is_navigation
from authservice.pipeline import INVALID_TOKEN, Pipeline, is_preflight
from authservice.urls import PathPrefixes, ReturnAddresses, canonical_path

IDENTITY_NAMES = {"kubeflow-userid", "kubeflow-groups", "auth-method"}


def check(target: str = "/app?x=1", method: str = "GET", **headers: str) -> CheckRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return CheckRequest(method, "https", "app.example", target, canonical_path(target), named, "203.0.113.9", "envoy")


def identity(*groups: str, user_id: str = "alice@example.com") -> Identity:
    return Identity(user_id, groups, VerifiedClaims({}), AuthMethod.COOKIE, "https://issuer.example")


class Answers:
    """An authenticator whose answer is given, and which remembers that it was asked."""

    name = "given"

    def __init__(self, answer: Identity | Exception | None) -> None:
        self.answer = answer
        self.asked = 0

    def authenticate(self, check: CheckRequest, reach: Reach) -> Identity | None:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Refuses:
    name = "refuses"

    def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Refusal | None:
        return Refusal(Reason.GROUPS, "No.", ("needed",))


def navigates(check: CheckRequest) -> bool:
    return is_navigation(check.method, check.headers)


def always_ready(reach: Reach) -> None:
    return None


def pipeline(*authenticators: Answers, **changes: object) -> Pipeline:
    settings: dict[str, object] = {
        "open_paths": PathPrefixes(["/authservice", "/public/"]),
        "preflights_pass": False,
        "authenticators": authenticators,
        "authorizers": (GroupsAuthorizer(["*"]),),
        "headers": IdentityHeaders("kubeflow-userid", "kubeflow-groups", "Auth-Method"),
        "ready": always_ready,
        "redirects": navigates,
        "return_addresses": ReturnAddresses("https", "app.example", (), default="/home"),
        **changes,
    }
    return Pipeline(**settings)  # type: ignore[arg-type]


def test_an_identity_passes_with_its_headers_and_no_name_is_both_set_and_removed() -> None:
    decision = pipeline(Answers(identity("a", "b"))).decide(check(), Reach.NETWORK)
    assert isinstance(decision, Allow)
    assert dict(decision.set_headers) == {
        "kubeflow-userid": "alice@example.com", "kubeflow-groups": "a,b", "Auth-Method": "cookie",
    }
    assert not {name.lower() for name, _ in decision.set_headers} & {n.lower() for n in decision.remove_headers}
    assert {"kubeflow_userid", "KUBEFLOW_USERID", "auth_method"} <= set(decision.remove_headers)


@pytest.mark.parametrize("target", ["/authservice", "/authservice/x", "/public/x?y"])
def test_b7_s11_an_open_path_passes_for_everybody_without_asking_and_without_identity(target: str) -> None:
    asked = Answers(identity())
    decision = pipeline(asked).decide(check(target), Reach.MEMORY)
    assert isinstance(decision, Allow) and decision.identity is None and not decision.set_headers
    assert set(decision.remove_headers) >= IDENTITY_NAMES
    assert asked.asked == 0


@pytest.mark.parametrize("target", ["/publicx", "/x?/public/", "/public/../secret", "/public/%2e%2e/x", "//public/x"])
def test_s05_s06_h06_what_only_looks_open_is_protected(target: str) -> None:
    assert isinstance(pipeline(Answers(None)).decide(check(target), Reach.NETWORK), Login)


def test_open_paths_pass_while_the_provider_is_unknown_and_the_rest_is_503() -> None:
    def not_ready(reach: Reach) -> None:
        raise NotReady("still discovering")

    closed = pipeline(Answers(None), ready=not_ready)
    assert isinstance(closed.decide(check("/public/x"), Reach.NETWORK), Allow)
    decision = closed.decide(check(), Reach.NETWORK)
    assert isinstance(decision, Deny) and (decision.status, decision.reason) == (503, Reason.NOT_READY)
    with_session = pipeline(Answers(identity()), ready=not_ready)
    assert isinstance(with_session.decide(check(), Reach.NETWORK), Allow)


def test_the_first_authenticator_with_an_answer_wins() -> None:
    first, second, third = Answers(None), Answers(identity(user_id="second")), Answers(identity(user_id="third"))
    decision = pipeline(first, second, third).decide(check(), Reach.NETWORK)
    assert isinstance(decision, Allow) and decision.identity and decision.identity.user_id == "second"
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)


def test_no_decision_is_half_of_one_set_of_policies_and_half_of_another() -> None:
    count = {"now": "old"}

    class Changes:
        """An authorizer during whose first answer the policies change."""

        name = "changes"
        asked: list[str] = []

        def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Refusal | None:
            self.asked.append(count["now"])
            count["now"] = "new"
            return None if len(self.asked) == 1 else Refusal(Reason.POLICY, "No.")

    changes = Changes()
    decided = pipeline(Answers(identity()), authorizers=(changes,), policies=lambda: count["now"])
    decision = decided.decide(check(), Reach.NETWORK)
    assert isinstance(decision, Deny) and changes.asked == ["old", "new"]


def test_what_authorizers_remark_stays_with_the_decision() -> None:
    class Remarks:
        name = "remarks"

        def __init__(self, *words: Remark) -> None:
            self.words = words

        def authorize(self, check: CheckRequest, identity: Identity, reach: Reach) -> Granted:
            return Granted(self.words)

    one, other = Remark("allow"), Remark("audit", "policy a/b rule 0")
    passing = pipeline(Answers(identity()), authorizers=(Remarks(one), Remarks(other)))
    allowed = passing.decide(check(), Reach.NETWORK)
    assert isinstance(allowed, Allow) and allowed.remarks == (one, other)
    refusing = pipeline(Answers(identity()), authorizers=(Remarks(one), Refuses(), Remarks(other)))
    denied = refusing.decide(check(), Reach.NETWORK)
    assert isinstance(denied, Deny) and denied.remarks == (one,)


def test_nobody_is_admitted_before_anybody_is_sent_to_log_in_and_never_instead_of_somebody() -> None:
    admits: dict[str, object] = {"admits_anonymous": lambda check: Granted((Remark("allow"),))}
    decision = pipeline(Answers(None), **admits).decide(check(), Reach.MEMORY)
    assert isinstance(decision, Allow) and decision.identity is None and decision.remarks == (Remark("allow"),)
    assert set(decision.remove_headers) >= IDENTITY_NAMES
    decision = pipeline(Answers(Refused("bad")), **admits).decide(check(), Reach.NETWORK)
    assert isinstance(decision, Deny) and decision.status == 401
    decision = pipeline(Answers(None), admits_anonymous=lambda check: None).decide(check(), Reach.NETWORK)
    assert isinstance(decision, Login)


def test_a_refused_credential_stops_and_is_not_rescued_by_the_next() -> None:
    cookie = Answers(identity())
    decision = pipeline(Answers(Refused("bad signature")), cookie).decide(check(), Reach.NETWORK)
    assert isinstance(decision, Deny)
    assert (decision.status, decision.challenge) == (401, INVALID_TOKEN)
    assert "signature" not in decision.public and cookie.asked == 0


def test_k11_a_store_that_is_down_lets_nobody_in_and_sends_nobody_to_the_login() -> None:
    decision = pipeline(Answers(StoreDown("refused"))).decide(check(), Reach.NETWORK)
    assert isinstance(decision, Deny) and (decision.status, decision.reason) == (503, Reason.STORE_DOWN)


def test_what_would_have_to_wait_is_no_answer() -> None:
    with pytest.raises(NeedsIO):
        pipeline(Answers(NeedsIO())).decide(check(), Reach.MEMORY)


def test_every_authorizer_must_agree() -> None:
    decision = pipeline(
        Answers(identity()), authorizers=(GroupsAuthorizer(["*"]), Refuses())
    ).decide(check(), Reach.NETWORK)
    assert isinstance(decision, Deny) and decision.status == 403 and decision.detail == ("needed",)


def test_an_identity_that_fits_in_no_header_is_refused_not_cut() -> None:
    headers = IdentityHeaders("kubeflow-userid", "kubeflow-groups", "Auth-Method",
                              transformers=Transformers.parse('[{"matches": ".*", "replaces": ""}]'))
    decision = pipeline(Answers(identity()), headers=headers).decide(check(), Reach.NETWORK)
    assert isinstance(decision, Deny) and decision.status == 403 and decision.reason is IdentityUnusable.reason


@pytest.mark.parametrize(
    ("allowed", "groups", "passes"),
    [(["*"], [], True), ([], ["a"], False), (["a", "b", "c"], ["c", "d"], True), (["a", "b", "c"], ["d", "e"], False)],
    ids=["u37_star_and_no_groups", "u38_empty_list", "u39_one_in_common", "u40_none_in_common"],
)
def test_groups_allow_list(allowed: list[str], groups: list[str], passes: bool) -> None:
    refusal = GroupsAuthorizer(allowed).authorize(check(), identity(*groups), Reach.MEMORY)
    assert (refusal is None) is passes
    if refusal:
        assert refusal.reason is Reason.GROUPS and refusal.detail == tuple(sorted(allowed))


def test_a_star_inside_a_name_is_a_name() -> None:
    assert GroupsAuthorizer(["team-*"]).authorize(check(), identity("team-a"), Reach.MEMORY)


class TestReturnAddress:
    def test_s02_o12_the_deep_link_is_kept_byte_for_byte(self) -> None:
        target = "/app?next=https://other/x&y=//z&e=%2Fa%20b"
        decision = pipeline(Answers(None)).decide(check(target), Reach.NETWORK)
        assert decision == Login("https://app.example" + target, redirect=True)

    def test_o01_a_target_that_leads_away_is_replaced(self) -> None:
        decision = pipeline(Answers(None)).decide(check("//evil.example/x"), Reach.NETWORK)
        assert isinstance(decision, Login) and "evil" not in decision.return_to


class TestNavigation:
    @pytest.mark.parametrize(
        "headers",
        [
            {"x_requested_with": "XMLHttpRequest"},
            {"sec_fetch_mode": "cors"},
            {"sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"},
            {"sec_fetch_dest": "image"},
            {"sec_fetch_dest": "empty"},
            {"accept": "application/json"},
            {"accept": "application/json;q=0.9"},
            {"accept": "application/problem+json, application/json"},
            {"accept": "text/event-stream"},
            {"authorization": "Bearer of-somebody-else"},
            {"authorization": "bearer of-somebody-else"},
            {"upgrade": "websocket", "connection": "Upgrade"},
            {"upgrade": "WebSocket"},
            {"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ=="},
            {"content_type": "application/grpc+proto"},
            {"content_type": "application/grpc", "sec_fetch_mode": "navigate"},
        ],
        ids=lambda headers: "-".join(headers.values()).replace("/", "_"),
    )
    def test_s30_f21_h08_what_is_plainly_no_page_is_not_redirected(self, headers: dict[str, str]) -> None:
        decision = pipeline(Answers(None)).decide(check(**headers), Reach.NETWORK)
        assert isinstance(decision, Login) and decision.redirect is False

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
    def test_s30_other_methods_are_redirected_only_when_the_browser_navigates(self, method: str) -> None:
        assert not navigates(check(method=method))
        assert navigates(check(method=method, sec_fetch_mode="navigate"))

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"accept": "*/*"},
            {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
            {"sec_fetch_mode": "navigate", "sec_fetch_dest": "document"},
            {"sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"},
            {"authorization": "Bearer of-an-extension", "sec_fetch_mode": "navigate"},
            {"authorization": "Basic YTpi"},
        ],
        ids=lambda headers: "-".join(headers)[:40] or "no_sign_at_all",
    )
    def test_g03_get_and_head_without_a_sign_are_pages(self, headers: dict[str, str]) -> None:
        assert navigates(check(**headers)) and navigates(check(method="HEAD", **headers))


class TestPreflight:
    TRUE = {"origin": "https://x.example", "access_control_request_method": "PUT"}

    def test_b1_h07_options_is_judged_like_any_method(self) -> None:
        assert isinstance(pipeline(Answers(None)).decide(check(method="OPTIONS", **self.TRUE), Reach.NETWORK), Login)

    def test_g18_a_true_preflight_passes_when_allowed_without_identity(self) -> None:
        open_to_preflights = pipeline(Answers(identity()), preflights_pass=True)
        decision = open_to_preflights.decide(check(method="OPTIONS", **self.TRUE), Reach.NETWORK)
        assert isinstance(decision, Allow) and set(decision.remove_headers) >= IDENTITY_NAMES
        assert decision.identity is None

    @pytest.mark.parametrize("left_out", [None, "origin", "access_control_request_method"])
    def test_h07_only_true_preflights_pass(self, left_out: str | None) -> None:
        headers = {name: value for name, value in self.TRUE.items() if name != left_out}
        method = "OPTIONS" if left_out else "GET"
        assert not is_preflight(check(method=method, **headers))


def test_s09_a_health_agent_is_nobody() -> None:
    for agent in ("kube-probe/1.30", "GoogleHC/1.0", "ELB-HealthChecker/2.0"):
        assert isinstance(pipeline(Answers(None)).decide(check(user_agent=agent), Reach.NETWORK), Login)


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError):
        check().method = "PUT"  # type: ignore[misc]
