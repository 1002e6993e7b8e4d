"""The table for people: as Markdown for the README, as plain text for a terminal.

Everything comes from the table's rows, so what is shown is what is read. The Markdown goes
between two markers, and replacing what stands there is all that ever happens to a README.
"""

from __future__ import annotations

import textwrap
from itertools import groupby

from authservice.settings.kinds import ANY
from authservice.settings.table import CONTEXT_PREFIX, ROWS, Row

BEGIN = "<!-- settings:begin -->"
END = "<!-- settings:end -->"

CONTEXT_HELP = "Texts of your own for templates: each becomes `Frontend.<KEY>`."


def markdown() -> str:
    """The table, grouped by section, without the markers."""
    parts = []
    for section, rows in groupby(ROWS, key=lambda row: row.section):
        lines = [f"### {section}", "", "| variable | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| {_names(row)} | {_cell(_default(row))} | {_cell(_meaning(row))} |" for row in rows]
        if section == "Pages":
            lines.append(f"| `{CONTEXT_PREFIX}<KEY>` | none | {CONTEXT_HELP} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def replaced(document: str) -> str:
    """``document`` with the table between its markers. Raises ValueError when they are not there once."""
    before, found, rest = document.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not found or not found_end or BEGIN in rest or END in after:
        raise ValueError(f"{BEGIN} and {END} must stand there once, in this order")
    return f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}"


def plain(width: int = 100) -> str:
    """The table for a terminal."""
    parts = []
    for section, rows in groupby(ROWS, key=lambda row: row.section):
        parts.append(f"{section}\n{'=' * len(section)}\n")
        for row in rows:
            parts.append(f"{row.name}  [{_default(row).replace('**', '').replace('`', '')}]")
            text = _meaning(row).replace("`", "")
            parts.append(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    "))
            if row.secret:
                parts.append(f"    Or {row.name}_FILE: a file that holds it.")
        if section == "Pages":
            parts.append(f"{CONTEXT_PREFIX}<KEY>  [none]\n    {CONTEXT_HELP.replace('`', '')}")
        parts.append("")
    return "\n".join(parts)


def _names(row: Row) -> str:
    return f"`{row.name}` (or `{row.name}_FILE`)" if row.secret else f"`{row.name}`"


def _default(row: Row) -> str:
    if row.default is None:
        return "**required**"
    return f"`{row.default}`" if row.default else row.otherwise or "none"


def _meaning(row: Row) -> str:
    takes = "" if row.kind.takes == ANY else f" {row.kind.takes[:1].upper()}{row.kind.takes[1:]}."
    example = f" Example: `{row.example}`." if row.example else ""
    return f"{row.help}{takes}{example}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
