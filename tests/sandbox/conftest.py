"""Fixtures: a sandbox in memory, a plain httpx client of it, and a webhook receiver. None uses the SDK's own client."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from tests.support.processes import SECONDS

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


WAYS = [("asyncio", "inside the process"), ("trio", "inside the process"), ("asyncio", "over HTTP")]
"""The event loop and the transport of `any_client`. Over HTTP the client's event loop makes no difference."""


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "any_client" in metafunc.fixturenames:
        metafunc.definition.add_marker(pytest.mark.parametrize(("anyio_backend", "any_client"), WAYS, indirect=True))


@pytest.fixture
async def any_client(
    request: pytest.FixtureRequest, sandbox: Sandbox, anyio_backend: str
) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the sandbox, through its transport or over a real connection."""
    if request.param == "over HTTP":
        with running(sandbox) as url:
            async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=SECONDS, trust_env=False) as client:
                yield client
    else:
        transport = sandbox.transport()
        async with httpx.AsyncClient(
            transport=transport, base_url="http://s", headers=HEADERS, timeout=SECONDS
        ) as client:
            yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver
