"""The pytest plugin: fixtures for a sandbox and its clients, new for each test.

pytest loads it in every test run of an environment that has the package, so it imports the SDK and the sandbox only
when a test requests them. No fixture is a coroutine or needs an event loop, so they work in plain tests and with
pytest-asyncio and anyio.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agentphone import AsyncClient, Client
    from agentphone.sandbox import Sandbox

BASE_URL = "https://sandbox.test"
API_KEY = "test-key"


@pytest.fixture
def agentphone_sandbox() -> Iterator[Sandbox]:
    """Yield an empty local AgentPhone in memory; see `agentphone.sandbox.Sandbox`.

    `receive_sms` stores a text, `faults` makes calls fail, `requests` holds the requests received. After `set_webhook`,
    texts are delivered with a hundredth of the API's delays between attempts.
    """
    try:
        from agentphone.sandbox import Sandbox
    except ModuleNotFoundError as error:
        # Not a skip: a run that tested nothing must not look like one that passed.
        pytest.fail(
            f"The agentphone fixtures need the extra packages of the sandbox ({error}): pip install '.[sandbox]'",
            pytrace=False,
        )
    with Sandbox(retry_scale=0.01) as sandbox:
        yield sandbox


@pytest.fixture
def agentphone_client(agentphone_sandbox: Sandbox) -> Iterator[Client]:
    """Yield a blocking client of this test's sandbox."""
    from agentphone import Client

    with Client(API_KEY, base_url=BASE_URL, transport=agentphone_sandbox.transport()) as client:
        yield client


@pytest.fixture
def agentphone_async_client(agentphone_sandbox: Sandbox) -> AsyncClient:
    """Return an async client of this test's sandbox, for any event loop.

    It has no connections, so closing it is optional.
    """
    from agentphone import AsyncClient

    return AsyncClient(API_KEY, base_url=BASE_URL, transport=agentphone_sandbox.transport())
