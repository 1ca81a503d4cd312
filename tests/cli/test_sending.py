"""`agentphone conversations reply` and `agentphone messages send`: in a pipe, on a terminal, and when it is unclear."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentphone.sandbox import Sandbox
from tests.support.cli_support import KEY
from tests.support.fault_server import Connection
from tests.support.processes import run_agentphone, run_agentphone_in_terminal
from tests.support.send_server import SendServer, send_server


@pytest.fixture
def box(tmp_path: Path) -> Iterator[tuple[Sandbox, str, str]]:
    """Return a sandbox in a file, its base URL, and the id of its conversation."""
    with Sandbox(tmp_path / "box.db") as sandbox:
        text = sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Where is it?")
        yield sandbox, f"sandbox:{tmp_path / 'box.db'}", text["conversationId"]


def bodies(url: str, conversation_id: str) -> list[str]:
    """Return the texts of a conversation, oldest first."""
    shown = run_agentphone("conversations", "messages", conversation_id, "--order", "asc", "--base-url", url)
    return [json.loads(line)["body"] for line in shown.stdout.splitlines()]


def test_reply_and_send_in_a_pipe(box: tuple[Sandbox, str, str]) -> None:
    _, url, conversation_id = box
    replied = run_agentphone("conversations", "reply", conversation_id, "On its way.", "--base-url", url)
    assert (replied.returncode, replied.stderr) == (0, "")
    assert json.loads(replied.stdout)["conversation_id"] == conversation_id
    sending = ["messages", "send", "Today.", "--to", "+15555550110", "--from", "+15555550100", "--base-url", url]
    assert json.loads(run_agentphone(*sending).stdout)["status"] == "sent"
    assert bodies(url, conversation_id) == ["Where is it?", "On its way.", "Today."]


def test_terminal_asks_first(box: tuple[Sandbox, str, str]) -> None:
    _, url, conversation_id = box
    command = ["conversations", "reply", conversation_id, "On its way.", "--base-url", url]
    code, shown = run_agentphone_in_terminal(*command, typed="n\n")
    assert (code, "Send 'On its way.' to +15555550110? [y/N]" in shown) == (1, True)
    assert "nothing was sent" in shown
    assert bodies(url, conversation_id) == ["Where is it?"]
    code, shown = run_agentphone_in_terminal(*command, typed="y\n")
    assert code == 0
    assert "Sent msg_" in shown
    assert "to +15555550110 (sent)." in shown
    code, shown = run_agentphone_in_terminal(*command, "--yes")
    assert (code, "[y/N]" in shown) == (0, False)
    assert bodies(url, conversation_id) == ["Where is it?", "On its way.", "On its way."]


def close(connection: Connection, *_: Any) -> None:
    connection.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["conversations", "reply", "conv_1", "Hello", "--confirm", "0.1"],
        ["messages", "send", "Hello", "--to", "+1", "--number-id", "num_1"],
    ],
    ids=["reply", "send"],
)
def test_unclear_outcome_is_exit_code_3(arguments: list[str]) -> None:
    with send_server(SendServer(on_post=close)) as server:
        outcome = run_agentphone(*arguments, "--base-url", server.url, "--api-key", KEY)
    assert (outcome.returncode, outcome.stdout, outcome.stderr.count("\n")) == (3, "", 1)
    assert "POST /v1/messages: RemoteProtocolError" in outcome.stderr
    assert "It may have been sent, so it was not sent again. Look for it" in outcome.stderr
    assert len(server.posts) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["conversations", "reply", "conv_1"], "Pass a TEXT or --media: there is nothing to send."),
        (["messages", "send", "Hi", "--from", "+1"], "Missing option '--to'"),
        (["messages", "send", "Hi", "--to", "+1"], "Pass --from, --number-id or --agent-id."),
        (["messages", "send", "--to", "+1", "--from", "+2"], "Pass a TEXT or --media"),
        (["messages", "send", "Hi", "--to", "+1", "--from", "+2", "--media", "x.png"], "media_urls must be https://"),
        (["conversations", "reply", "conv_1", "Hi", "--confirm", "-1"], "-1.0 is not in the range x>=0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_command_line(arguments: list[str], error: str) -> None:
    outcome = run_agentphone(*arguments, "--base-url", "sandbox:")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert error in outcome.stderr
