"""Reading JSON that strangers wrote."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authservice.strictjson import MAX_DEPTH, BadJson, read_object

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), VALUES, max_size=5),
    st.booleans(),
)
def test_what_everybody_agrees_on_is_read_as_the_standard_library_reads_it(
    value: dict, escaped: bool
) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    assert read_object(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b'{"a":1}x',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":"line\nbreak"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-32"),
    ],
)
def test_j18_no_json_object_in_utf8(text: bytes) -> None:
    with pytest.raises(BadJson):
        read_object(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"sub":"good","sub":"bad"}',
        b'{"sub":"bad","sub":"good"}',
        b'{"a":{"b":1,"b":1}}',
        b'{"s\\u0075b":"bad","sub":"good"}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e400}',
        b'{"a":-1e400}',
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":0.' + b"1" * 5000 + b"}",
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":["\\udfff"]}',
    ],
)
def test_j18_what_two_readers_could_read_differently(text: bytes) -> None:
    with pytest.raises(BadJson) as caught:
        read_object(text)
    assert "good" not in str(caught.value) and "bad" not in str(caught.value)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert read_object(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_j19_depth_is_limited_before_anything_recurses() -> None:
    deepest = b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert read_object(deepest)
    for text in (
        b'{"a":' + deepest + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
    ):
        with pytest.raises(BadJson):
            read_object(text)


def test_brackets_within_text_are_no_depth() -> None:
    text = json.dumps({"a": "[{" * 500, "b": '\\"[' * 200, "c": [[]] * 200}).encode()
    assert read_object(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":"' + b'\\"' * 500_000,
        b"[" * 70 + b'"' + b'\\"' * 500_000,
        b'{"' + b"[" * 1_000_000,
        b'{"a":"\\' * 200_000,
    ],
    ids=["open-string", "escaped-quotes", "brackets", "backslashes"],
)
def test_j19_hostile_megabytes_cost_no_more_than_long_ones(text: bytes) -> None:
    began = time.process_time()
    with pytest.raises(BadJson):
        read_object(text)
    assert time.process_time() - began < 2
