"""The invented people who can log in, and what the provider tells about them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """One account. Everybody's password is their own login name."""

    login: str
    name: str
    email: str
    groups: tuple[str, ...]

    def claims(self, scope: str) -> dict[str, object]:
        """The claims that the granted scope opens (OpenID Connect Core 1.0 §5.4)."""
        granted = scope.split()
        claims: dict[str, object] = {"sub": f"demo-{self.login}"}
        if "profile" in granted:
            claims |= {"name": self.name, "preferred_username": self.login}
        if "email" in granted:
            claims |= {"email": self.email, "email_verified": True}
        if "groups" in granted:
            claims["groups"] = list(self.groups)
        return claims


PEOPLE = {
    person.login: person
    for person in (
        Person("alice", "Alice Adler", "alice@example.com", ("staff",)),
        Person("bob", "Bob Baum", "bob@example.com", ("guests",)),
        Person("carol", "Carol Çelik", "carol@example.com", ("staff", "admins")),
    )
}
