"""`agentphone conversations update`: set, replace and remove metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cli_support import RunCommand, parse


def test_set_keeps_other_keys(run_command: RunCommand, listed: list[dict[str, Any]]) -> None:
    conversation_id = listed[7]["id"]
    run_command("update", conversation_id, "--clear")
    (row,) = run_command("update", conversation_id, "--set", "topic=order", "--set", "step=3").rows
    assert row["metadata"] == {"topic": "order", "step": 3}
    run_command("update", conversation_id, "--set", "step=4", "--set", 'tags=["vip"]')
    assert run_command("get", conversation_id).rows[0]["metadata"] == {"topic": "order", "step": 4, "tags": ["vip"]}


def test_update_prints_the_conversation_without_messages(
    run_command: RunCommand, api: httpx.Client, listed: list[dict[str, Any]]
) -> None:
    for change in (["--set", "a=1"], ["--clear"]):
        (row,) = run_command("update", listed[7]["id"], *change).rows
        expected = parse(api.get(f"/v1/conversations/{row['id']}")) | {"lastMessagePreview": None}
        assert expected.pop("messages")
        assert row == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("3.5", 3.5),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ('{"a": [1]}', {"a": [1]}),
        ("plain words", "plain words"),
        ("", ""),
        ("a=b=c", "a=b=c"),
        ("007", "007"),
        ("+15555550110", "+15555550110"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("[1, NaN]", "[1, NaN]"),
        ("True", "True"),
        ("grün 👍", "grün 👍"),
    ],
)
def test_set_value_is_json_or_else_text(
    run_command: RunCommand, listed: list[dict[str, Any]], text: str, value: Any
) -> None:
    stored = run_command("update", listed[8]["id"], "--set", f"key={text}").rows[0]["metadata"]["key"]
    assert (stored, type(stored)) == (value, type(value))


def test_file_replaces_all_metadata(run_command: RunCommand, listed: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_bytes('\ufeff{"from": "größe"}'.encode())
    assert run_command("update", listed[9]["id"], "--set", "old=1").rows[0]["metadata"]["old"] == 1
    assert run_command("update", listed[9]["id"], "--file", str(file)).rows[0]["metadata"] == {"from": "größe"}
    assert run_command("update", listed[9]["id"], "--file", "-", stdin=b"{}").rows[0]["metadata"] == {}


def test_clear_removes_all_metadata(run_command: RunCommand, listed: list[dict[str, Any]]) -> None:
    run_command("update", listed[9]["id"], "--set", "old=1")
    assert run_command("update", listed[9]["id"], "--clear").rows[0]["metadata"] is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "metadata must be a JSON object"),
        (b"null", "to remove it, use --clear"),
        (b"{", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b"\xff", "not JSON"),
    ],
)
def test_file_without_a_json_object_is_a_usage_error(run_command: RunCommand, content: bytes, reason: str) -> None:
    outcome = run_command("update", "conv_1", "--file", "-", stdin=content)
    assert (outcome.code, outcome.output) == (2, "")
    assert reason in outcome.errors
    assert outcome.errors.count("\n") == 1


def test_infinite_number_is_a_usage_error(run_command: RunCommand, listed: list[dict[str, Any]]) -> None:
    outcome = run_command("update", listed[9]["id"], "--set", "a=1e999")
    assert outcome.code == 2
    assert "metadata['a'] is inf, which JSON does not have" in outcome.errors
