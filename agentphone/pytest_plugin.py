"""The pytest plugin: a sandbox and its clients as fixtures, each test with its own.

It is loaded in every test run of an environment that it is installed in, so it brings nothing along: the sandbox is
imported when the first test asks for it. No fixture is a coroutine or needs an event loop, so that they serve plain
tests, those of pytest-asyncio and those of anyio alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from agentphone import AsyncClient, Client

if TYPE_CHECKING:
    from agentphone.sandbox import Sandbox

BASE_URL = "https://sandbox.test"
API_KEY = "of-the-tests"


@pytest.fixture
def agentphone_sandbox() -> Iterator[Sandbox]:
    """A local AgentPhone in memory, empty; see `agentphone.sandbox.Sandbox`.

    `receive_sms` puts a text in, `faults` makes calls fail, `requests` has what was received; `set_webhook` delivers,
    with pauses between its attempts that are hundredths of the API's.
    """
    try:
        from agentphone.sandbox import Sandbox
    except ModuleNotFoundError as error:
        # No skip: a run in which nothing was tested should not look like one that passed.
        pytest.fail(
            f"The fixtures of agentphone need the extra packages of its sandbox ({error}): pip install '.[sandbox]'",
            pytrace=False,
        )
    with Sandbox(retry_scale=0.01) as sandbox:
        yield sandbox


@pytest.fixture
def agentphone_client(agentphone_sandbox: Sandbox) -> Iterator[Client]:
    """A blocking client of this test's sandbox."""
    with Client(API_KEY, base_url=BASE_URL, transport=agentphone_sandbox.transport()) as client:
        yield client


@pytest.fixture
def agentphone_async_client(agentphone_sandbox: Sandbox) -> AsyncClient:
    """An async client of this test's sandbox, on whatever event loop the test runs.

    It need not be closed: it has no connections.
    """
    return AsyncClient(API_KEY, base_url=BASE_URL, transport=agentphone_sandbox.transport())
