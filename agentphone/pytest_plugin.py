"""The pytest plugin: fixtures for a sandbox and its clients, new for each test. Needs the extra `sandbox`.

`agentphone_sandbox` is an empty local AgentPhone; `agentphone_client` and `agentphone_async_client` are clients of it.
They work in plain tests and with pytest-asyncio and anyio, on asyncio and trio:

```python
# test_orders.py
import pytest

from agentphone import APITimeoutError


def test_history_has_the_text(agentphone_sandbox, agentphone_client):
    text = agentphone_sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Where is it?")
    conversation = agentphone_client.conversations.get(text["conversationId"])
    assert [message.body for message in conversation.messages] == ["Where is it?"]


def test_rate_limits_are_retried(agentphone_sandbox, agentphone_client):
    text = agentphone_sandbox.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
    agentphone_sandbox.faults.add(status=429, retry_after=0, times=2)
    agentphone_client.conversations.update(text["conversationId"], metadata={"greeted": True})
    assert [request.method for request in agentphone_sandbox.requests] == ["PATCH", "PATCH", "PATCH"]
    assert agentphone_sandbox.requests[-1].body == b'{"metadata":{"greeted":true}}'


@pytest.mark.anyio
async def test_silence_is_a_timeout(agentphone_sandbox, agentphone_async_client):
    agentphone_sandbox.faults.add(kind="hang")
    client = agentphone_async_client.with_options(timeout=0.1, max_retries=0)
    with pytest.raises(APITimeoutError):
        await client.conversations.list(limit=1)
```

`agentphone.inbox` shows a test of a whole inbox. `agentphone.sandbox` has the faults, the clock and the webhooks.

pytest loads the plugin in every test run of an environment that has the package, so it imports the SDK and the sandbox
only when a test requests them. No fixture is a coroutine or needs an event loop.
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
