"""The README's agents, as separate processes, against a sandbox over HTTP."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pytest

from agentphone import Client
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.support.processes import ENVIRONMENT, SECONDS
from tests.webhooks.test_recipes import README, RECIPES

AGENT, PERSON = "+15555550100", "+15555550110"


@contextmanager
def running_agent(recipe: str, folder: Path, sandbox: Sandbox, url: str) -> Iterator[IO[str]]:
    """Start an agent, wait for its first request, and yield its output."""
    sandbox.requests.clear()
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(RECIPES / f"{recipe}.py")],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"AGENTPHONE_BASE_URL": url, "AGENTPHONE_API_KEY": "any-key"},
        cwd=folder,
    ) as process:
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


def metadata(url: str, conversation_id: str) -> dict[str, Any] | None:
    with Client("any-key", base_url=url) as client:
        return client.conversations.get(conversation_id).metadata


def test_agent_replies_keeps_state_and_resumes_after_a_restart(tmp_path: Path) -> None:
    with Sandbox() as sandbox, running(sandbox) as url:
        with running_agent("agent", tmp_path, sandbox, url) as output:
            conversation = text(sandbox, "Where is my parcel?")
            assert output.readline().endswith("'Which order is it about? Its number begins with ORD-.'\n")
            text(sandbox, "It is ORD-5")
            assert output.readline().endswith("'Thank you, I have noted it for ORD-5.'\n")
            deadline_at = time.monotonic() + SECONDS
            while metadata(url, conversation) != {
                "texts": 2,
                "orderId": "ORD-5",
                "reply": "Thank you, I have noted it for ORD-5.",
            }:
                assert time.monotonic() < deadline_at
            written_at = (tmp_path / "agent.bookmark").stat().st_mtime_ns
            sandbox.send_sms(from_number=AGENT, to_number=PERSON, body="Thank you, I have noted it for ORD-5.")
            while (tmp_path / "agent.bookmark").stat().st_mtime_ns == written_at:  # it reads its own text, too
                assert time.monotonic() < deadline_at
                time.sleep(0.02)
        text(sandbox, "So where is it?")  # while no agent runs
        with running_agent("agent", tmp_path, sandbox, url) as output:
            assert output.readline() == f"{PERSON}: 'So where is it?' -> 'ORD-5 is on its way.'\n"
        found = metadata(url, conversation)
        assert found is not None
        assert found["texts"] == 3


def test_pydantic_ai_agent_uses_the_sdk_as_its_tools(tmp_path: Path) -> None:
    with (
        Sandbox() as sandbox,
        running(sandbox) as url,
        running_agent("pydantic_ai_agent", tmp_path, sandbox, url) as output,
    ):
        conversation = text(sandbox, "Where is my parcel?")
        assert "inbound: Where is my parcel?" in output.readline()
        assert metadata(url, conversation) == {"topic": "a"}  # the test model passes "a" for a string


@pytest.mark.parametrize("recipe", ["agent", "pydantic_ai_agent"])
def test_readme_shows_each_agent(recipe: str) -> None:
    shown = (RECIPES / f"{recipe}.py").read_text(encoding="utf-8")
    assert f"```python\n{shown}```\n" in README
