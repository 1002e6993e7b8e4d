"""The contract table, and the pages that show it. What the gateways themselves do is looked at in
`tests.e2e.test_contract`."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.contract_table import GATEWAYS, PAGES, ROWS, Service, replaced

PROMISED = (
    "logged in", "not logged in", "session expired", "not allowed", "good bearer token", "bad bearer token",
    "skipped path", "preflight", "WebSocket", "HEAD", "PUT with a body", "30 KB of cookies", "encoded slash",
    "dot segments", "forged identity headers", "two Cookie headers", "login from a deep link",
    "after a logout", "service down", "service slow",
)


def page(gateway: str) -> str:
    return (PAGES / f"{gateway}.md").read_text("utf-8")


def test_every_situation_is_in_the_table() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for promised in PROMISED:
        assert any(name.startswith(promised) for name in names), promised


def test_one_row_each_is_about_a_service_that_is_down_or_slow() -> None:
    assert sorted(row.service.value for row in ROWS if row.service is not Service.RUNS) == ["down", "slow"]


def test_whoever_does_otherwise_says_why() -> None:
    for row in ROWS:
        assert not row.outcome.because
        assert set(row.but) <= set(GATEWAYS)
        for outcome in row.but.values():
            assert outcome.because.endswith(".") and replace(outcome, because="") != row.outcome, row.name


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_its_page_shows_what_a_gateway_does(gateway: str) -> None:
    assert replaced(page(gateway), gateway) == page(gateway), "run: python -m tests.contract_table"


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_its_page_names_every_row_in_which_a_gateway_does_otherwise(gateway: str) -> None:
    for row in ROWS:
        said = f"**{row.name}**" in page(gateway)
        assert said is (gateway in row.but), row.name


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_a_page_leads_to_files_that_are_there(gateway: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", page(gateway))
    assert f"../../deploy/{gateway}/" in "".join(links)
    for link in links:
        assert (PAGES / link).exists(), link
