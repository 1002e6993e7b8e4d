"""What a row of the settings table is, and how one is declared.

A row is the metadata of a dataclass field; `settings.table` has them all, and reads this module only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from authservice.settings.kinds import Kind


@dataclass(frozen=True, slots=True)
class Row:
    """One setting. ``otherwise`` says what an empty default stands for; a secret's value is never
    shown, and can also be given as a file named by ``<name>_FILE``."""

    name: str
    section: str
    kind: Kind
    default: str | None
    help: str
    otherwise: str
    example: str
    secret: bool


def _setting(
    section: str,
    kind: Kind,
    default: str | None,
    help: str,
    *,
    otherwise: str = "",
    example: str = "",
    secret: bool = False,
) -> Any:
    make = partial(
        Row, section=section, kind=kind, default=default, help=help,
        otherwise=otherwise, example=example, secret=secret,
    )
    return field(metadata={"row": make})


def section(title: str) -> Callable[..., Any]:
    return partial(_setting, title)
