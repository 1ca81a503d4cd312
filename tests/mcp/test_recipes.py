"""The recipes for agent frameworks, as processes: a scripted model answers texts that arrive in a sandbox."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentphone import Client
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.mcp.conftest import AGENT, PERSON
from tests.mcp.scripted_models import MODELS
from tests.support.processes import ENVIRONMENT, SECONDS

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "tests" / "recipes"
SETTINGS = {"OPENAI_AGENTS_DISABLE_TRACING": "1", "LANGSMITH_TRACING": "false"}
"""So that nothing is reported to anyone."""


@pytest.mark.slow  # imports a framework for agents
@pytest.mark.parametrize("recipe", MODELS)
def test_recipe_answers_the_latest_text(recipe: str) -> None:
    with Sandbox() as box, running(box) as url, Client("any-key", base_url=url) as client:
        box.receive_sms(from_number=PERSON, to_number=AGENT, body="Where is my parcel?")
        box.send_sms(from_number=AGENT, to_number=PERSON, body="On its way.")
        environment = ENVIRONMENT | SETTINGS | {"AGENTPHONE_BASE_URL": url, "AGENTPHONE_API_KEY": "any-key"}
        command = [sys.executable, "-W", "error", "-m", "tests.mcp.scripted_models", recipe]
        with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            try:
                until(process, lambda: bool(box.requests))  # it watches
                its_id = box.receive_sms(from_number=PERSON, to_number=AGENT, body="Hello?")["conversationId"]
                until(process, lambda: len(sent(client, its_id)) > 1)
                assert sent(client, its_id) == ["On its way.", "You wrote 'Hello?' as text 2."]
            finally:
                process.kill()
        if recipe != "pydantic_ai_mcp":
            assert client.conversations.get(its_id).metadata == {"topic": "parcel"}


def until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until something is true, or fail with what the process said at its end."""
    deadline_at = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline_at
        time.sleep(0.05)


def sent(client: Client, conversation_id: str) -> list[str | None]:
    """Return the agent's texts of a conversation, oldest first."""
    messages = client.conversations.messages(conversation_id, order="asc")
    return [message.body for message in messages if message.direction == "outbound"]


@pytest.mark.parametrize("recipe", MODELS)
def test_recipe_has_at_most_thirty_lines(recipe: str) -> None:
    lines = (RECIPES / f"{recipe}.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 30
