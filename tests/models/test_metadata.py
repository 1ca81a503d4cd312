"""Metadata to JSON: whatever could not be read back is rejected with its path."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentphone import Conversation
from agentphone._decoding import decode
from agentphone._json import encode_json
from tests.models.cases import NOON, json_objects

CYCLE: dict[str, Any] = {"a": []}
CYCLE["a"].append(CYCLE)


@pytest.mark.parametrize(
    ("value", "error", "place"),
    [
        ({"a": float("nan")}, ValueError, "metadata['a']"),
        ({"a": float("inf")}, ValueError, "metadata['a']"),
        ({"a": float("-inf")}, ValueError, "metadata['a']"),
        ({"a": {"b": [0, {"c": float("nan")}]}}, ValueError, "metadata['a']['b'][1]['c']"),
        ({"a": {1, 2}}, TypeError, "metadata['a'] is a set"),
        ({"a": b"x"}, TypeError, "metadata['a'] is a bytes"),
        ({"a": [NOON]}, TypeError, "metadata['a'][0] is a datetime"),
        ({"a": Decimal(1)}, TypeError, "metadata['a'] is a Decimal"),
        ({"a": object()}, TypeError, "metadata['a'] is a object"),
        ({"a": (1, 2j)}, TypeError, "metadata['a'][1] is a complex"),
        ({"a": (i for i in "x")}, TypeError, "metadata['a'] is a generator"),
        ({1: "a"}, TypeError, "metadata has the key 1"),
        ({"a": {None: 1}}, TypeError, "metadata['a'] has the key None"),
        ({"a": [{True: 1}]}, TypeError, "metadata['a'][0] has the key True"),
        ({"a": "\ud800"}, ValueError, "metadata['a']"),
        ({"a": {"\udfff": 1}}, ValueError, "metadata['a']: the key '\\udfff'"),
        ({"a": [1, 10**5000]}, ValueError, "metadata['a'][1]"),
        (CYCLE, ValueError, "metadata['a'][0]"),
        ([], TypeError, "metadata must be a dict"),
        ("{}", TypeError, "metadata must be a dict"),
        (5, TypeError, "metadata must be a dict"),
        (True, TypeError, "metadata must be a dict"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_invalid_metadata_is_rejected_with_its_path(value: Any, error: type[Exception], place: str) -> None:
    with pytest.raises(error, match=re.escape(place)):
        encode_json(value, "metadata")


def test_too_deeply_nested_metadata_is_rejected() -> None:
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"a": value}
    with pytest.raises(ValueError, match="metadata is nested too deeply"):
        encode_json(value, "metadata")


@given(st.none() | json_objects)
def test_metadata_round_trip(value: Any) -> None:
    body = encode_json(value, "metadata")
    assert json.dumps(json.loads(body)) == json.dumps(value)
    response = b'{"id":"c","phoneNumber":"+1","participant":"+2","metadata":' + body + b"}"
    assert decode(response, Conversation).metadata == value


def test_metadata_may_be_any_mapping_with_tuples() -> None:
    shared = [1]
    value = MappingProxyType({"a": shared, "b": shared, "c": (MappingProxyType({"d": None}),)})
    assert encode_json(value, "metadata") == b'{"a":[1],"b":[1],"c":[{"d":null}]}'
