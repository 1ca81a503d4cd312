"""The README's agents, as separate processes, against a sandbox over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from agentphone import Client
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.support.forked import PIPE, Forked
from tests.support.processes import ENVIRONMENT, SECONDS
from tests.support.recipes import RECIPES

AGENT, PERSON = "+15555550100", "+15555550110"


@contextmanager
def running_agent(recipe: str, folder: Path, sandbox: Sandbox, url: str) -> Iterator[IO[str]]:
    """Start an agent, wait for its first request, and yield its output."""
    sandbox.requests.clear()
    code = (RECIPES / f"{recipe}.py").read_text(encoding="utf-8")
    environment = ENVIRONMENT | {"AGENTPHONE_BASE_URL": url, "AGENTPHONE_API_KEY": "any-key"}
    with Forked(code, stdout=PIPE, env=environment, cwd=folder) as process:
        try:
            deadline_at = time.monotonic() + SECONDS
            while not sandbox.requests:
                assert process.poll() is None
                assert time.monotonic() < deadline_at
                time.sleep(0.02)
            yield cast("IO[str]", process.stdout)
        finally:
            process.kill()


def text(sandbox: Sandbox, body: str) -> str:
    """Text the agent, and return the conversation's id."""
    return str(sandbox.receive_sms(from_number=PERSON, to_number=AGENT, body=body)["conversationId"])


def stored(url: str, conversation_id: str) -> tuple[dict[str, Any] | None, list[str | None]]:
    """Return the metadata of a conversation, and the texts of the agent."""
    with Client("any-key", base_url=url) as client:
        detail = client.conversations.get(conversation_id)
    return detail.metadata, [message.body for message in detail.messages if message.direction == "outbound"]


def test_agent_replies_keeps_state_and_resumes_after_a_restart(tmp_path: Path) -> None:
    question, thanks, answer = (
        "Which order is it about? Its number begins with ORD-.",
        "Thank you, I have noted it for ORD-5.",
        "ORD-5 is on its way.",
    )
    with Sandbox() as sandbox, running(sandbox) as url:
        with running_agent("agent", tmp_path, sandbox, url) as output:
            conversation = text(sandbox, "Where is my parcel?")
            assert output.readline().endswith(f"{question!r}\n")
            text(sandbox, "It is ORD-5")
            assert output.readline().endswith(f"{thanks!r}\n")
            metadata, replies = stored(url, conversation)
            assert metadata == {"texts": 2, "orderId": "ORD-5"}
            assert sorted(map(str, replies)) == sorted([question, thanks])
        text(sandbox, "So where is it?")  # while no agent runs
        with running_agent("agent", tmp_path, sandbox, url) as output:
            assert output.readline() == f"{PERSON}: 'So where is it?' -> {answer!r}\n"
        metadata, replies = stored(url, conversation)
        assert metadata == {"texts": 3, "orderId": "ORD-5"}
        assert sorted(map(str, replies)) == sorted([question, thanks, answer])


def test_pydantic_ai_agent_uses_the_sdk_as_its_tools(tmp_path: Path) -> None:
    with (
        Sandbox() as sandbox,
        running(sandbox) as url,
        running_agent("pydantic_ai_agent", tmp_path, sandbox, url) as output,
    ):
        conversation = text(sandbox, "Where is my parcel?")
        assert "inbound: Where is my parcel?" in output.readline()
        metadata, replies = stored(url, conversation)
        assert metadata == {"topic": "a"}  # the test model passes "a" for a string
        assert ["inbound: Where is my parcel?" in str(reply) for reply in replies] == [True]
