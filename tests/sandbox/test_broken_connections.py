"""Scripted network faults: they look the same in-process and over a real connection."""

import json
import socket
import threading
from typing import Any, Literal

import anyio
import httpx
import pytest
import uvicorn

from agentphone.sandbox import Sandbox, _app
from agentphone.sandbox.server import running
from tests.support.processes import SECONDS

from .helpers import ADA, AGENT, HEADERS
from .receiver import until

pytestmark = pytest.mark.anyio


async def test_reset_is_a_read_error_and_the_next_call_succeeds(
    sandbox: Sandbox, any_client: httpx.AsyncClient
) -> None:
    for path in ("/v1/conversations", None):
        await any_client.get("/v1/conversations")  # opens a connection that is kept alive
        sandbox.faults.add(kind="reset", path=path)
        with pytest.raises(httpx.ReadError):
            await any_client.get("/v1/conversations")
        assert (await any_client.get("/v1/conversations")).json()["total"] == 0
    assert len(sandbox.requests) == 6


@pytest.mark.parametrize(
    ("options", "status", "received"),
    [
        ({}, 200, b'{"error": {"message": "Scripted'),
        ({"status": 502, "body": "<h1>Bad gateway</h1>", "retry_after": 7}, 502, b"<h1>Bad ga"),
        ({"body": b""}, 200, b""),
        ({"body": b'{"data": [], "hasMore": false}'}, 200, b'{"data": [], "h'),
    ],
)
async def test_cut_body_ends_early(
    sandbox: Sandbox, any_client: httpx.AsyncClient, options: dict[str, Any], status: int, received: bytes
) -> None:
    sandbox.faults.add(kind="cut", **options)
    async with any_client.stream("GET", "/v1/conversations") as response:
        assert response.status_code == status
        assert response.headers["x-request-id"]
        assert response.headers.get("retry-after") == ("7" if "retry_after" in options else None)
        chunks: list[bytes] = []

        async def read() -> None:
            async for chunk in response.aiter_raw():
                chunks.append(chunk)  # received before the error

        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            await read()
    body = b"".join(chunks)
    assert body.startswith(received)
    assert len(body) < int(response.headers["content-length"])
    assert (await any_client.get("/v1/conversations")).status_code == 200


async def test_hang_lasts_until_the_client_disconnects(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    sandbox.faults.add(kind="hang", times=2)
    with pytest.raises(httpx.ReadTimeout):
        await any_client.get("/v1/conversations", timeout=httpx.Timeout(SECONDS, read=0.2))
    with anyio.move_on_after(0.2) as scope:
        await any_client.get("/v1/conversations", timeout=None)
    assert scope.cancelled_caught
    sandbox.faults.clear()  # A request cancelled before the server read it used up no fault.
    assert (await any_client.get("/v1/conversations")).status_code == 200


async def test_hang_ends_with_a_reset(
    sandbox: Sandbox, any_client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_app, "HANG_SECONDS", 0.2)
    sandbox.faults.add(kind="hang")
    with pytest.raises(httpx.ReadError):
        await any_client.get("/v1/conversations")


async def test_broken_call_is_recorded_and_not_carried_out(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    path = f"/v1/conversations/{message['conversationId']}"
    kinds: tuple[Literal["reset", "cut"], ...] = ("reset", "cut")
    for kind in kinds:
        sandbox.faults.add(kind=kind)
        with pytest.raises(httpx.TransportError):
            await any_client.patch(path, json={"metadata": {"a": 1}})
    assert (await any_client.get(path)).json()["metadata"] is None
    assert [request.method for request in sandbox.requests] == ["PATCH", "PATCH", "GET"]


async def test_server_without_extensions_cuts_the_body(sandbox: Sandbox) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(sandbox.app, log_config=None, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started)
            sandbox.faults.add(kind="reset")
            sandbox.faults.add(kind="lost")
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/conversations"
            async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client:
                for _ in range(2):
                    with pytest.raises(httpx.RemoteProtocolError):
                        await client.get(url)
        finally:
            server.should_exit = True
            thread.join(SECONDS)


async def test_reset_affects_only_its_own_connection(sandbox: Sandbox) -> None:
    sandbox.faults.add(kind="reset", path="/v1/conversations/conv_x", times=20)
    outcomes: list[str] = []
    with running(sandbox) as url:
        async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=SECONDS, trust_env=False) as client:

            async def call(path: str) -> None:
                try:
                    outcomes.append(f"{path} {(await client.get(path)).status_code}")
                except httpx.ReadError:
                    outcomes.append(f"{path} reset")

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(call, "/v1/conversations/conv_x")
                    group.start_soon(call, "/v1/conversations")
    assert sorted(outcomes) == ["/v1/conversations 200"] * 20 + ["/v1/conversations/conv_x reset"] * 20


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({}, "status or kind"),
        ({"kind": "explode"}, "kind"),
        ({"kind": "hang", "status": 500}, "status"),
        ({"kind": "reset", "retry_after": 1}, "retry_after"),
        ({"kind": "reset", "body": "x"}, "body"),
        ({"kind": "cut", "status": 99}, "status"),
        ({"kind": "cut", "times": 0}, "times"),
    ],
)
def test_contradictory_fault_is_rejected(sandbox: Sandbox, fault: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        sandbox.faults.add(**fault)


async def test_lost_response_is_a_request_carried_out(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    send = {"from_number": AGENT, "to_number": ADA, "body": "Hi"}
    await any_client.get("/v1/conversations")  # opens a connection that is kept alive
    sandbox.faults.add(kind="lost", method="post", times=2)
    assert (await any_client.get("/v1/conversations")).json()["total"] == 0
    with pytest.raises(httpx.RemoteProtocolError, match="Server disconnected without sending a response"):
        await any_client.post("/v1/messages", json=send)
    with pytest.raises(httpx.RemoteProtocolError, match="Server disconnected without sending a response"):
        await any_client.post("/v1/messages", json=send | {"body": ""})  # invalid, so that nothing is carried out
    assert (await any_client.post("/v1/messages", json=send)).status_code == 200
    [conversation] = (await any_client.get("/v1/conversations")).json()["data"]
    assert conversation["messageCount"] == 2


async def test_lost_response_may_be_replaced(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    error = {"error": {"message": "Unclear.", "code": "DELIVERY_UNCONFIRMED", "type": "conflict_error", "details": []}}
    sandbox.faults.add(kind="lost", status=409, body=error)
    sandbox.faults.add(status=503, retry_after=1)
    send = {"from_number": AGENT, "to_number": ADA, "body": "Hi"}
    unclear = await any_client.post("/v1/messages", json=send)
    assert (unclear.status_code, unclear.json()) == (409, error)
    assert (await any_client.post("/v1/messages", json=send)).status_code == 503
    [conversation] = (await any_client.get("/v1/conversations")).json()["data"]
    assert conversation["messageCount"] == 1


async def test_faults_can_be_scripted_over_http(sandbox: Sandbox, any_client: httpx.AsyncClient) -> None:
    def add(**fault: object) -> Any:
        return any_client.post("/sandbox/faults", json=fault)

    assert (await add(kind="lost", method="POST", path="/v1/messages")).status_code == 201
    assert (await add(status=429, retryAfter=2, times=2, body={"detail": "Slow down"})).status_code == 201
    send = {"from_number": AGENT, "to_number": ADA, "body": "Hi"}
    with pytest.raises(httpx.RemoteProtocolError):
        await any_client.post("/v1/messages", json=send)
    limited = await any_client.get("/v1/conversations")
    assert (limited.status_code, limited.json(), limited.headers["Retry-After"]) == (429, {"detail": "Slow down"}, "2")
    # What the sandbox adds to the API fails only if a fault names its path.
    body = {"direction": "inbound", "from": ADA, "to": AGENT, "body": "Hi"}
    assert (await any_client.post("/sandbox/messages", json=body)).status_code == 201
    assert (await any_client.delete("/sandbox/faults")).status_code == 200
    assert (await any_client.get("/v1/conversations")).json()["data"][0]["messageCount"] == 2
    await add(status=500, path="/sandbox/messages")
    assert (await any_client.post("/sandbox/messages", json=body)).status_code == 500


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({}, "status or kind"),
        ({"kind": "explode"}, "kind"),
        ({"status": 429, "retry_after": 1}, "retry_after is not an argument; they are status, kind, retryAfter,"),
        ({"kind": ["lost"]}, "kind"),
        ({"status": "503"}, "status"),
        ({"status": 503, "times": 0}, "times"),
        ({"status": 503, "method": 5}, "method"),
        ({"status": 503, "path": ["/v1"]}, "path"),
        ({"status": 503, "retryAfter": "1\r\nX: y"}, "retry_after"),
        ({"status": 503, "retryAfter": {}}, "retry_after"),
        ({"status": 503, "body": "\ud800"}, "body"),
        ({"kind": "lost", "body": "x"}, "kind='lost'"),
    ],
)
async def test_invalid_fault_over_http_is_a_422(client: httpx.AsyncClient, fault: dict[str, Any], named: str) -> None:
    response = await client.post("/sandbox/faults", content=json.dumps(fault))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "VALIDATION_ERROR")
    assert error["message"].startswith(named)
    assert (await client.get("/v1/conversations")).status_code == 200
