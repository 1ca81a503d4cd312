"""`agentphone conversations list`, `get` and `messages` in a pipe: JSON lines, and where the settings come from."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone.__main__ import main
from agentphone._decoding import decode
from agentphone.cli._output import as_line
from agentphone.models import Message, Page
from tests.support.cli_support import KEY, RunCommand, parse
from tests.support.helpers import message
from tests.support.processes import run_agentphone


def test_list_prints_the_latest_twenty(run_command: RunCommand, listed: list[dict[str, Any]]) -> None:
    assert run_command("list").rows == listed[:20]


def test_list_with_limit_and_offset(run_command: RunCommand, listed: list[dict[str, Any]]) -> None:
    assert run_command("list", "--limit", "3", "--offset", "5").rows == listed[5:8]
    assert run_command("list", "--offset", "36").output == ""


def test_list_with_all(run_command: RunCommand, listed: list[dict[str, Any]]) -> None:
    assert len(listed) == 36
    assert run_command("list", "--all").rows == listed


def test_get_prints_the_latest_ten_messages(
    run_command: RunCommand, api: httpx.Client, listed: list[dict[str, Any]]
) -> None:
    path = f"/v1/conversations/{listed[0]['id']}"
    for options, limit in (([], 10), (["--messages", "100"], 100)):
        (row,) = run_command("get", listed[0]["id"], *options).rows
        assert len(row["messages"]) == limit
        assert row == parse(api.get(path, params={"message_limit": limit})) | {"lastMessagePreview": None}


def test_messages_prints_the_history_in_both_orders(run_command: RunCommand, listed: list[dict[str, Any]]) -> None:
    newest_first = run_command("messages", listed[0]["id"]).rows
    assert len(newest_first) == listed[0]["messageCount"] == 640
    assert run_command("messages", listed[0]["id"], "--order", "asc").rows == newest_first[::-1]
    assert run_command("messages", listed[0]["id"], "--limit", "7").rows == newest_first[:7]
    timestamps = [message["receivedAt"] for message in newest_first]
    between = run_command("messages", listed[0]["id"], "--before", timestamps[2], "--after", timestamps[9]).rows
    assert between == newest_first[3:9]


TIMESTAMPS = st.sampled_from(["2025-01-15T11:30:00Z", "2025-01-15T11:30:00.123Z", "2025-01-15T13:30:00.000001+02:00"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_json_line_is_printable_and_round_trips(value: Any) -> None:
    line = as_line(value)
    assert line.isprintable()
    assert json.loads(line.encode()) == value


@settings(deadline=None)
@given(body=st.none() | st.text(), timestamp=TIMESTAMPS, extra=st.dictionaries(st.text(), JSON, max_size=3))
def test_message_is_printed_as_received(body: str | None, timestamp: str, extra: dict[str, Any]) -> None:
    received = extra | message(body=body, receivedAt=timestamp)
    (parsed,) = decode(json.dumps({"data": [received], "hasMore": False}).encode(), Page[Message]).data
    row = parsed.to_dict()
    assert row.pop("receivedAt") == {"+": "2025-01-15T11:30:00.000001Z"}.get(timestamp[-6], timestamp).replace(
        ".123Z", ".123000Z"
    )
    del received["receivedAt"]
    assert row == received


@pytest.mark.parametrize("level", [0, 1, 2])
def test_options_at_each_level_override_the_environment(
    run_command: RunCommand, url: str, level: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENTPHONE_API_KEY", "another-key")
    monkeypatch.setenv("AGENTPHONE_BASE_URL", "https://127.0.0.1:1")
    command = ["conversations", "list"]
    command[level:level] = ["--api-key", KEY, "--base-url", url]
    assert main([*command, "--limit", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_last_option_wins(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong, right = ["--api-key", "wrong"], ["--api-key", KEY]
    assert main(["--base-url", url, *wrong, "conversations", "list", *right]) == 0
    assert main(["--base-url", url, *right, "conversations", *wrong, "list"]) == 1
    assert "401" in capsys.readouterr().err


def test_sandbox_base_url_needs_no_key() -> None:
    done = run_agentphone("conversations", "list", "--all", "--base-url", "sandbox:")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 36


def test_messages_before_and_after_a_cursor(run_command: RunCommand, listed: list[dict[str, Any]]) -> None:
    conversation_id = listed[0]["id"]
    every = run_command("messages", conversation_id, "--order", "asc").rows
    cursors = [f"{row['receivedAt']}/{row['id']}" for row in every]
    assert run_command("messages", conversation_id, "--order", "asc", "--after", cursors[1]).rows == every[2:]
    assert run_command("messages", conversation_id, "--order", "asc", "--before", cursors[1]).rows == every[:1]
    outcome = run_command("messages", conversation_id, "--after", "noon/msg_1")
    assert outcome.code == 2
    assert "--after: A cursor must look like 2025-01-15T12:00:00Z/msg_001" in outcome.errors
