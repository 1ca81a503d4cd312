"""A sandbox behind a real socket, and `agentphone mcp` in processes of its own, driven by the official client."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from anyio.from_thread import start_blocking_portal
from attrs import frozen
from mcp import Client, StdioServerParameters

from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.support.forked import PIPE, PRELOADED, Forked
from tests.support.processes import ENVIRONMENT, PYTHON, SECONDS, start_agentphone

KEY = "sk_of_the_mcp_tests_9f8e7d"
PERSON, AGENT = "+15555550110", "+15555550100"


_people = itertools.count()


@frozen
class Account:
    """A sandbox, and where it is served."""

    box: Sandbox
    url: str


class Session:
    """A connection of the official client, for tests that block."""

    def __init__(self, client: Client, portal: Any) -> None:
        self.client = client
        self.portal = portal

    def call(self, tool: str, **arguments: Any) -> types.CallToolResult:
        """Call a tool; the client checks the answer against the schema."""
        result = self.portal.call(self.client.call_tool, tool, arguments)
        assert isinstance(result, types.CallToolResult)
        return result

    def answer(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that succeeds, and return its structured answer."""
        result = self.call(tool, **arguments)
        assert not result.is_error, result
        assert text_of(result)
        assert isinstance(result.structured_content, dict)
        return result.structured_content

    def error(self, tool: str, **arguments: Any) -> str:
        """Call a tool that fails, and return its error."""
        result = self.call(tool, **arguments)
        assert result.is_error, result
        assert result.structured_content is None
        text = text_of(result)
        assert "Traceback" not in text
        assert KEY not in text
        return text


def text_of(result: types.CallToolResult) -> str:
    """Return the text beside an answer."""
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text


@contextmanager
def connected(server: Any) -> Iterator[Session]:
    """Connect the official client to a server: parameters of a process, a URL, or a server object."""
    client = Client(server)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
        yield Session(client, portal)


def over_stdio(url: str, *options: str, key: str = KEY) -> StdioServerParameters:
    """Return how to start `agentphone mcp` on stdio."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "COLUMNS"}
    settings = {"AGENTPHONE_BASE_URL": url, "AGENTPHONE_API_KEY": key}
    return StdioServerParameters(
        command=sys.executable,
        args=[*PYTHON[1:], "-m", "agentphone", "mcp", *options],
        env=environment | settings,
        cwd=Path(os.sep),
    )


def start(*options: str, **settings: Any) -> Forked:
    """Start `agentphone mcp`, with settings as those of `subprocess.Popen`."""
    modules = (*PRELOADED, "agentphone.cli.mcp", "agentphone.mcp._serve", "agentphone.mcp._server")
    return start_agentphone("mcp", *options, modules=modules, **settings)


@contextmanager
def over_http(url: str, *options: str, host: str = "127.0.0.1") -> Iterator[str]:
    """Start `agentphone mcp --http` on a free port, and yield its URL."""
    environment = ENVIRONMENT | {"AGENTPHONE_BASE_URL": url, "AGENTPHONE_API_KEY": KEY}
    with start("--http", f"{host}:0", *options, stdout=PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            first_line = process.stdout.readline()
            found = re.search(rf"http://{re.escape(host)}(:[1-9]\d*/mcp)", first_line)
            assert found, first_line
            yield f"http://127.0.0.1{found[1]}"
        finally:
            process.terminate()
            process.wait(SECONDS)


@pytest.fixture(scope="package")
def account() -> Iterator[Account]:
    """Serve a sandbox that accepts only `KEY`."""
    with Sandbox(api_key=KEY) as box, running(box) as url:
        yield Account(box, url)


@pytest.fixture(scope="package")
def stdio_session(account: Account) -> Iterator[Session]:
    """Connect to `agentphone mcp` in a process of its own."""
    with connected(over_stdio(account.url)) as session:
        yield session


@pytest.fixture(scope="package")
def http_url(account: Account) -> Iterator[str]:
    """Serve `agentphone mcp --http` in a process of its own."""
    with over_http(account.url) as url:
        yield url


@pytest.fixture(scope="package")
def http_session(http_url: str) -> Iterator[Session]:
    """Connect to `agentphone mcp --http`."""
    with connected(http_url) as session:
        yield session


@pytest.fixture(params=["stdio_session", "http_session"])
def session(request: pytest.FixtureRequest) -> Session:
    """Return the connection over each transport."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Session)
    return found


@pytest.fixture
def conversation_id(account: Account) -> str:
    """Receive a text from a person of this test's own, and return the conversation's id."""
    person = f"+1556{next(_people):07}"
    return str(account.box.receive_sms(from_number=person, to_number=AGENT, body="Where is it?")["conversationId"])
