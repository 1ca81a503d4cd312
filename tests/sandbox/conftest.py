"""Fixtures: a sandbox in memory, a plain httpx client of it, and a webhook receiver. None uses the SDK's own client."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from agentphone.sandbox import Sandbox

from .helpers import HEADERS
from .receiver import Receiver, receiving


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def client(anyio_backend: object, sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=sandbox.transport(), base_url="http://sandbox", headers=HEADERS) as client:
        yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver
