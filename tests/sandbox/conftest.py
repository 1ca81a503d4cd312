"""A sandbox in memory, and an httpx client that speaks to it inside the process: no core of ours in between."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from agentphone.sandbox import Sandbox

AGENT, ADA, BEN = "+15555550100", "+15555550110", "+15555550111"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def client(anyio_backend: object, sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=sandbox.transport(), base_url="http://sandbox", headers={"Authorization": "Bearer any"}
    ) as client:
        yield client
