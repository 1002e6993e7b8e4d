"""What comes of a migration: settings of ours, a policy where one is needed, and what a person has to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from authservice.settings.table import ROWS

SECRETS = frozenset(row.name for row in ROWS if row.secret)


class Kind(Enum):
    """What is to be known of an option that did not simply become a setting."""

    LOST = "No equivalent"
    CHANGED = "Works differently"
    UNNEEDED = "Not needed any more"


@dataclass(frozen=True, slots=True)
class Note:
    """``options`` are those that it is about, as the other service calls them."""

    kind: Kind
    options: str
    text: str


@dataclass(frozen=True, slots=True)
class Setting:
    """One of our settings, with the option that it comes from."""

    name: str
    value: str
    origin: str

    @property
    def secret(self) -> bool:
        """Whether its value is nothing for a screen."""
        if self.name == "SESSION_STORE_REDIS_ADDR":
            return bool({"@", "?"} & set(self.value))
        return self.name in SECRETS and bool(self.value)


@dataclass
class Plan:
    """Grows while the parts of a migration look at their options."""

    settings: dict[str, Setting] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    policy: str = ""

    def set(self, name: str, value: str, origin: str) -> None:
        """Sets one of our settings."""
        self.settings[name] = Setting(name, value, origin)

    def lost(self, options: str, text: str) -> None:
        """Notes what cannot be said in our settings."""
        self.notes.append(Note(Kind.LOST, options, text))

    def changed(self, options: str, text: str) -> None:
        """Notes what a person will see to be different."""
        self.notes.append(Note(Kind.CHANGED, options, text))

    def unneeded(self, options: str, text: str) -> None:
        """Notes what became of an option without a setting."""
        self.notes.append(Note(Kind.UNNEEDED, options, text))

    def close(self, options: str, text: str) -> None:
        """Notes a restriction that cannot be said, and lets nobody pass until somebody has seen to it."""
        self.lost(
            options, f"{text} Until you have replaced it nobody passes: GROUPS_ALLOWLIST is set to nothing."
        )
        self.set("GROUPS_ALLOWLIST", "", options)

    @property
    def closed(self) -> bool:
        """Whether nobody passes."""
        allowlist = self.settings.get("GROUPS_ALLOWLIST")
        return allowlist is not None and not allowlist.value

    def environment(self) -> Mapping[str, str]:
        """The settings as environment variables."""
        return {setting.name: setting.value for setting in self.settings.values()}
