"""The agents that the README shows, as processes of their own, against a sandbox over HTTP."""

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
def at_work(recipe: str, folder: Path, box: Sandbox, url: str) -> Iterator[IO[str]]:
    """Start an agent, wait until it watches, and give what it prints."""
    box.requests.clear()
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(RECIPES / f"{recipe}.py")],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | {"AGENTPHONE_BASE_URL": url, "AGENTPHONE_API_KEY": "any-key"},
        cwd=folder,
    ) as process:
        try:
            deadline_at = time.monotonic() + SECONDS
            while not box.requests:
                assert process.poll() is None
                assert time.monotonic() < deadline_at
                time.sleep(0.02)
            yield cast("IO[str]", process.stdout)
        finally:
            process.kill()


def text(box: Sandbox, body: str) -> str:
    """Text the agent, and give the conversation's id."""
    return str(box.receive_sms(from_number=PERSON, to_number=AGENT, body=body)["conversationId"])


def metadata(url: str, conversation_id: str) -> dict[str, Any] | None:
    with Client("any-key", base_url=url) as client:
        return client.conversations.get(conversation_id).metadata


def test_the_small_agent_answers_keeps_state_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    with Sandbox() as box, running(box) as url:
        with at_work("agent", tmp_path, box, url) as said:
            conversation = text(box, "Where is my parcel?")
            assert said.readline().endswith("'Which order is it about? Its number begins with ORD-.'\n")
            text(box, "It is ORD-5")
            assert said.readline().endswith("'Thank you, I have noted it for ORD-5.'\n")
            deadline_at = time.monotonic() + SECONDS
            while metadata(url, conversation) != {
                "texts": 2,
                "orderId": "ORD-5",
                "reply": "Thank you, I have noted it for ORD-5.",
            }:
                assert time.monotonic() < deadline_at
            written_at = (tmp_path / "agent.bookmark").stat().st_mtime_ns
            box.send_sms(from_number=AGENT, to_number=PERSON, body="Thank you, I have noted it for ORD-5.")
            while (tmp_path / "agent.bookmark").stat().st_mtime_ns == written_at:  # it has seen its own text, too
                assert time.monotonic() < deadline_at
                time.sleep(0.02)
        text(box, "So where is it?")  # while nobody watches
        with at_work("agent", tmp_path, box, url) as said:
            assert said.readline() == f"{PERSON}: 'So where is it?' -> 'ORD-5 is on its way.'\n"
        found = metadata(url, conversation)
        assert found is not None
        assert found["texts"] == 3


def test_a_pydantic_ai_agent_awaits_the_sdk_as_its_tools(tmp_path: Path) -> None:
    with Sandbox() as box, running(box) as url, at_work("pydantic_ai_agent", tmp_path, box, url) as said:
        conversation = text(box, "Where is my parcel?")
        assert "inbound: Where is my parcel?" in said.readline()
        assert metadata(url, conversation) == {"topic": "a"}  # what the test model makes up for a string


@pytest.mark.parametrize("recipe", ["agent", "pydantic_ai_agent"])
def test_the_readme_shows_each_agent_as_it_is(recipe: str) -> None:
    shown = (RECIPES / f"{recipe}.py").read_text(encoding="utf-8")
    assert f"```python\n{shown}```\n" in README
