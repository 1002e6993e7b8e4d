"""The log: one JSON object per line, whatever a request or a claim holds, and no secret in it."""

from __future__ import annotations

import json
import logging

import pytest

from authservice.check import CheckRequest
from authservice.errors import Reason
from authservice.logs import LEVELS, Event, JsonLines, configure, request_fields, request_id


def line(message: str = "event", secrets: tuple[str, ...] = (), **extra: object) -> str:
    record = logging.getLogger("authservice.test").makeRecord(
        "authservice.test", logging.INFO, __file__, 1, message, (), None, extra=extra
    )
    return JsonLines(secrets).format(record)


@pytest.mark.parametrize("hostile", ['a\nlevel="error"', "a\r\nb", 'quo"te', "\x1b[31m", "\u2028", "\ud800", "\x00"])
def test_s33_h01_nothing_forges_a_second_line(hostile: str) -> None:
    text = line(path=hostile)
    assert len(text.splitlines()) == 1 and text.isascii()
    assert json.loads(text)["path"] == hostile


@pytest.mark.parametrize("secret", ["s3cret-value", 'with"quote\\and', "mit-Ümlaut"])
def test_s33_a_known_secret_is_not_shown_wherever_it_got_into(secret: str) -> None:
    text = line(message=f"oops {secret}", secrets=(secret,), cause=[f"x{secret}y"])
    assert secret not in text and json.dumps(secret)[1:-1] not in text and text.count("***") == 2


def test_words_of_closed_lists_are_written_as_words() -> None:
    found = json.loads(line(Event.DENIED.value, reason=Reason.GROUPS, nothing=None, empty=""))
    assert found["event"] == "check_denied" and found["reason"] == "groups_not_allowed"
    assert "nothing" not in found and "empty" not in found


def test_b25_a_request_is_told_without_its_query() -> None:
    check = CheckRequest("GET", None, "h", "/cb?code=abc&state=def", "/cb", {}, "192.0.2.1", "envoy")
    text = line(**request_fields(check, "id1"))
    assert "abc" not in text and "def" not in text and json.loads(text)["path"] == "/cb"


@pytest.mark.parametrize("sent", ["", "a b", "a\nb", "x" * 65, "<script>", "é"])
def test_a_request_id_that_is_none_is_replaced(sent: str) -> None:
    assert request_id(sent) != sent and len(request_id(sent)) == 16


def test_a_gateways_request_id_is_kept() -> None:
    assert request_id("703f20a7-9d5c-4d2c-8b43-0a1b2c3d4e5f") == "703f20a7-9d5c-4d2c-8b43-0a1b2c3d4e5f"


def test_levels_are_the_originals(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(LEVELS) == ["FATAL", "ERROR", "WARN", "INFO", "DEBUG"]
    configure("WARN")
    logging.getLogger("authservice.x").info("quiet")
    logging.getLogger("authservice.x").warning("loud")
    assert [json.loads(text)["event"] for text in capsys.readouterr().err.splitlines()] == ["loud"]
