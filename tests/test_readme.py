"""The README's settings table is the code's."""

from __future__ import annotations

from pathlib import Path

from authservice.settings import show
from authservice.settings.table import ROWS

README = Path(__file__).parent.parent / "README.md"


def test_the_settings_table_is_up_to_date() -> None:
    document = README.read_text("utf-8")
    assert show.replaced(document) == document, "run: authservice settings --markdown --write README.md"


def test_the_table_names_every_setting_and_the_file_of_every_secret() -> None:
    table = show.markdown()
    for row in ROWS:
        assert table.count(f"| `{row.name}`") == 1, row.name
        assert (f"`{row.name}_FILE`" in table) is row.secret, row.name
    assert "`TEMPLATE_CONTEXT_<KEY>`" in table


def test_every_line_of_the_table_has_three_cells() -> None:
    for line in show.markdown().splitlines():
        if line.startswith("|"):
            assert line.replace("\\|", "").count("|") == 4, line
