"""Libraries that mock or trace httpx see every call, even if they start when the client already has a connection."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import respx
from anyio.from_thread import start_blocking_portal
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pytest_httpx import HTTPXMock

from agentphone import AsyncClient, Client
from tests.support.fault_server import FaultServer, serving
from tests.support.helpers import KEY, conversation
from tests.support.proxy import proxying

Get = Callable[[str], str]
"""Get a conversation by its id, and return the id in the response: the server's is always `conv_1`."""


@pytest.fixture(params=["direct", "proxied"])
def api(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with proxying() as proxy, serving() as server:
        if request.param == "proxied":
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
        yield server
        assert len(proxy.heads) == (1 if request.param == "proxied" else 0)


@pytest.fixture(params=["asyncio", "trio", "blocking"])
def get(request: pytest.FixtureRequest, api: FaultServer) -> Iterator[Get]:
    """Yield a function that uses a client with an open connection."""
    if request.param == "blocking":
        with Client(KEY, base_url=api.url, max_retries=0) as client:
            assert client.conversations.get("conv_1").id == "conv_1"
            yield lambda name: client.conversations.get(name).id
    else:
        with (
            start_blocking_portal(request.param) as portal,
            portal.wrap_async_context_manager(AsyncClient(KEY, base_url=api.url, max_retries=0)) as async_client,
        ):

            async def get_id(name: str) -> str:
                return (await async_client.conversations.get(name)).id

            assert portal.call(get_id, "conv_1") == "conv_1"
            yield lambda name: portal.call(get_id, name)


def test_respx_responds_while_active(get: Get, api: FaultServer) -> None:
    with respx.mock() as router:
        router.get(path="/v1/conversations/mocked").respond(json=conversation(id="mocked"))
        assert get("mocked") == "mocked"
    assert get("conv_1") == "conv_1"
    assert (len(api.requests), api.connections) == (2, 1)


@pytest.mark.parametrize("api", ["direct"], indirect=True)  # respx 0.23 passes nothing on to a proxy over plain HTTP
def test_respx_sees_requests_that_it_passes_through(get: Get, api: FaultServer) -> None:
    with respx.mock() as router:
        route = router.get(path="/v1/conversations/conv_2").pass_through()
        assert get("conv_2") == "conv_1"
        assert route.call_count == 1
    assert (len(api.requests), api.connections) == (2, 1)


def test_pytest_httpx_responds_once_active(get: Get, api: FaultServer, request: pytest.FixtureRequest) -> None:
    httpx_mock: HTTPXMock = request.getfixturevalue("httpx_mock")
    httpx_mock.add_response(url=f"{api.url}/v1/conversations/mocked", json=conversation(id="mocked"))
    assert get("mocked") == "mocked"
    assert len(httpx_mock.get_requests()) == len(api.requests) == 1


def test_opentelemetry_traces_calls_while_active(get: Get, api: FaultServer) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        assert get("conv_1") == "conv_1"
    finally:
        instrumentor.uninstrument()
    assert get("conv_1") == "conv_1"
    (span,) = spans.get_finished_spans()
    assert span.name == "GET"
    assert span.context is not None
    sent = [request.headers.get("traceparent", "") for request in api.requests]
    assert [f"{span.context.span_id:016x}" in value for value in sent] == [False, True, False]
    assert api.connections == 1


def test_wrapper_of_httpx_transport_sees_calls(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    send: Any = httpx.AsyncHTTPTransport.handle_async_request

    @functools.wraps(send)
    async def wrapper(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        seen.append(request.url.path)
        response: httpx.Response = await send(transport, request)
        return response

    with monkeypatch.context() as patch:
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", wrapper)
        get("conv_2")
    get("conv_3")
    assert seen == ["/v1/conversations/conv_2"]
