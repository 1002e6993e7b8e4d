"""``--check``: a login, an allowed and a forbidden request and a logout, driven through Envoy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import requests

from authservice_demo.provider.people import PEOPLE
from authservice_demo.stack import NEEDED_GROUP, Stack

DEEP_LINK = "/reports/2026?page=2&sort=%C3%A9"
NAVIGATION = {
    "Accept": "text/html,application/xhtml+xml",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Site": "none",
}
FORGED = {"kubeflow-userid": "mallory", "Kubeflow-Groups": "admins", "kubeflow_userid": "mallory"}


class Wrong(Exception):
    """A step did not go as it must."""


class Browser(requests.Session):
    """Keeps cookies as a browser does, follows no redirect by itself, uses no proxy."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.headers.update(NAVIGATION)

    def request(self, method, url, **options):  # type: ignore[no-untyped-def, override]
        return super().request(method, url, **(options | {"timeout": 15, "allow_redirects": False}))


class Check:
    """The steps, in order. Each prints one line; the first one that goes wrong raises `Wrong`."""

    def __init__(self, stack: Stack, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._say = say
        self._alice = Browser()
        self._bob = Browser()

    def run(self) -> None:
        self.strangers()
        self.allowed()
        self.forbidden()
        self.logout()
        self.logout_at_the_provider()

    def strangers(self) -> None:
        """Who is not logged in."""
        site = self._stack.site
        answer = Browser().get(site + DEEP_LINK)
        self._step("a page asks a stranger to log in", answer, 302)
        self._must(answer.headers["Location"].startswith(self._stack.provider), "it leads to the provider")
        answer = Browser().get(site + DEEP_LINK, headers={"X-Requested-With": "XMLHttpRequest"})
        self._step("a script of a stranger is refused, not redirected", answer, 401)
        self._must("WWW-Authenticate" in answer.headers, "the answer carries a challenge")
        answer = Browser().get(site + "/public/headers.json", headers=FORGED)
        self._step("an open page needs no login", answer, 200)
        self._must("mallory" not in answer.text, "a forged identity does not reach the application")

    def allowed(self) -> None:
        """Alice is in the group that is needed."""
        site, person = self._stack.site, PEOPLE["alice"]
        landing = self._log_in(self._alice, "alice")
        self._must(landing == site + DEEP_LINK, f"the login ends on the page asked for, not on {landing}")
        self._step("alice sees the page she asked for", self._alice.get(landing), 200)
        answer = self._alice.get(site + "/headers.json", headers=FORGED)
        self._step("the application is told who she is", answer, 200)
        seen = _headers(answer)
        self._must(seen.get("kubeflow-userid") == person.email, "kubeflow-userid is hers")
        self._must(seen.get("kubeflow-groups") == ",".join(person.groups), "kubeflow-groups are hers")
        self._must(seen.get("auth-method") == "cookie", "Auth-Method says cookie")
        self._must("mallory" not in answer.text, "a forged identity does not reach the application")

    def forbidden(self) -> None:
        """Bob is not."""
        landing = self._log_in(self._bob, "bob")
        answer = self._bob.get(landing)
        self._step("bob is logged in, and may not see it", answer, 403)
        self._must(NEEDED_GROUP in answer.text, "the page names the missing group")
        self._step("bob stays logged in, and still may not", self._bob.get(landing), 403)

    def logout(self) -> None:
        """Alice leaves."""
        site = self._stack.site
        cookies = self._alice.cookies.copy()
        answer = self._alice.post(site + "/authservice/logout", headers={"Sec-Fetch-Site": "cross-site"})
        self._step("another site cannot log alice out", answer, 401)
        own = {"Origin": site, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors",
               "Sec-Fetch-Dest": "empty", "Accept": "application/json"}  # fmt: skip
        answer = self._alice.post(site + "/authservice/logout", headers=own)
        self._step("alice logs out", answer, 201)
        after = answer.json()["afterLogoutURL"]
        self._must(after.startswith(self._stack.provider), "the way on leads to the provider's own logout")
        answer = self._alice.get(after)
        self._step("the provider forgets her, too", answer, 302)
        after = answer.headers["Location"]
        self._must(after.startswith(site + "/authservice/site/after_logout"), "it leads back to us")
        self._step("the page after the logout", Browser().get(after), 200)
        replay = Browser()
        replay.cookies.update(cookies)
        self._step("her old cookie is worth nothing", replay.get(site + DEEP_LINK), 302)

    def logout_at_the_provider(self) -> None:
        """Bob leaves, and never comes near AuthService for it (back-channel logout)."""
        site = self._stack.site
        self._step("bob logs out at the provider", self._bob.post(self._stack.provider + "/end_session"), 200)
        self._step("he is a stranger here, too", self._bob.get(site + DEEP_LINK), 302)

    def _log_in(self, browser: Browser, login: str) -> str:
        """From a deep link to the address that the login ends on."""
        answer = browser.get(self._stack.site + DEEP_LINK)
        self._step(f"{login} is sent to the provider", answer, 302)
        page = answer.headers["Location"]
        self._step(f"{login} sees the provider's login page", browser.get(page), 200)
        answer = browser.post(page, data={"person": login})
        self._step(f"{login} logs in there and is sent back", answer, 302)
        back = answer.headers["Location"]
        self._must(urlsplit(back).path == "/authservice/oidc/callback", "back means the callback")
        answer = browser.get(back)
        self._step(f"{login}'s login is finished", answer, 302)
        return answer.headers["Location"]

    def _step(self, what: str, answer: requests.Response, status: int) -> None:
        right = answer.status_code == status
        self._say(f"  {'ok   ' if right else 'WRONG'}  {answer.status_code}  {what}")
        if not right:
            raise Wrong(f"{answer.request.method} {answer.url.partition('?')[0]}: expected {status}")

    def _must(self, right: bool, what: str) -> None:
        if not right:
            self._say(f"  WRONG       {what}")
            raise Wrong(f"this does not hold: {what}")


def examine(stack: Stack, say: Callable[[str], None]) -> None:
    """``authservice doctor``, which must find nothing. Raises `Wrong`."""
    say("What the doctor says of it (authservice doctor):")
    done = stack.doctor()
    for line in done.stdout.splitlines():
        say(f"  {line}".rstrip())
    if done.returncode != 0:
        raise Wrong(f"the doctor finds something\n{done.stderr}")


def _headers(answer: requests.Response) -> Mapping[str, str]:
    return {name.lower(): value for name, value in answer.json()}
