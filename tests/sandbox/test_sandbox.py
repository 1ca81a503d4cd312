"""The `Sandbox` class: its methods, recorded requests, scripted faults and demo data."""

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone.sandbox import Sandbox
from tests.support.backends import ON_ASYNCIO
from tests.support.processes import run_forked

from .helpers import ADA, AGENT, BEN


def everything(sandbox: Sandbox) -> list[Any]:
    """Read all conversations with up to 100 messages each, on a new event loop."""

    async def read() -> list[Any]:
        headers = {"Authorization": "Bearer any"}
        async with httpx.AsyncClient(transport=sandbox.transport(), base_url="http://s", headers=headers) as client:
            page = (await client.get("/v1/conversations?limit=100")).json()
            assert not page["hasMore"]
            paths = [f"/v1/conversations/{conversation['id']}?message_limit=100" for conversation in page["data"]]
            return [(await client.get(path)).json() for path in paths]

    return asyncio.run(read())


@pytest.mark.parametrize("at", [datetime(2025, 1, 15), "2025-01-15", "2025-01-15T12:00:00", "noon"])
def test_naive_timestamp_is_rejected(sandbox: Sandbox, at: datetime | str) -> None:
    for store in (sandbox.receive_sms, sandbox.send_sms):
        with pytest.raises(ValueError, match="offset"):
            store(from_number=ADA, to_number=AGENT, body="Hi", at=at)
    assert everything(sandbox) == []


def test_concurrent_threads_lose_no_message(sandbox: Sandbox) -> None:
    start = threading.Barrier(8)

    def work(worker: int) -> None:
        start.wait(10)
        for index in range(25):
            sandbox.receive_sms(from_number=BEN if worker % 2 else ADA, to_number=AGENT, body=f"{worker} {index}")
            if index % 10 == 0:
                everything(sandbox)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    conversations = everything(sandbox)
    assert [conversation["messageCount"] for conversation in conversations] == [100, 100]
    texts = {message["body"] for conversation in conversations for message in conversation["messages"]}
    assert texts == {f"{worker} {index}" for worker in range(8) for index in range(25)}


def test_removed_conversation_is_gone(sandbox: Sandbox) -> None:
    first = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    assert sandbox.remove_conversation(first["conversationId"])
    assert not sandbox.remove_conversation(first["conversationId"])
    assert everything(sandbox) == []
    second = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi again")
    assert second["conversationId"] != first["conversationId"]
    [conversation] = everything(sandbox)
    assert [message["body"] for message in conversation["messages"]] == ["Hi again"]


def test_closed_sandbox_raises(sandbox: Sandbox) -> None:
    sandbox.close()
    sandbox.close()
    with pytest.raises(RuntimeError, match="closed"):
        sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")


def test_sandbox_cannot_be_copied_or_pickled(sandbox: Sandbox) -> None:
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"cannot be copied or pickled\. Open another one"):
            copied(sandbox)


DROPPED = """
import gc, sys
gc.unfreeze()
from agentphone import AsyncClient, Client
from agentphone.sandbox import Sandbox

def drop(made):
    made.cycle = [made]  # a cycle, collected in any order

for path in (None, sys.argv[1]):
    Sandbox(path)
    for _ in range(20):
        drop(Sandbox(path))
Client(base_url="sandbox:")
AsyncClient(base_url="sandbox:")
try:
    Sandbox("missing/box.db")
except Exception as error:
    print(error)
gc.collect()
left = [Sandbox(), Sandbox(sys.argv[1]), Client(base_url="sandbox:")]
"""


def test_dropped_sandbox_gives_no_warning(tmp_path: Path) -> None:
    done = run_forked(DROPPED, str(tmp_path / "box.db"), cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("unable to open database file\n", "", 0)


def test_empty_key_is_rejected() -> None:
    with pytest.raises(ValueError, match="api_key"):
        Sandbox(api_key=" ")


def test_demo_data_is_large_and_always_the_same(sandbox: Sandbox) -> None:
    sandbox.load_demo_data()
    conversations = everything(sandbox)
    sandbox.load_demo_data()
    assert everything(sandbox) == conversations
    with Sandbox() as other:
        other.load_demo_data()
        assert everything(other) == conversations
    counts = [conversation["messageCount"] for conversation in conversations]
    assert 24 <= len(counts) <= 60
    assert max(counts) == 640
    assert 0 < [conversation["metadata"] for conversation in conversations].count(None) < len(counts) / 2
    numbers = {number for conversation in conversations for number in (conversation["participant"], AGENT)}
    assert all(number.startswith("+155555501") and len(number) == 12 for number in numbers)
    texts = [message["body"] for conversation in conversations for message in conversation["messages"]]
    assert not any("{" in text for text in texts)


def test_demo_data_is_not_added_to_existing_data(sandbox: Sandbox) -> None:
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi")
    sandbox.load_demo_data()
    assert len(everything(sandbox)) == 1


@pytest.mark.anyio
@ON_ASYNCIO
async def test_requests_are_recorded_without_the_key(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    await client.patch("/v1/conversations/a%2Fb?x=1&x=%20", content=b'{"metadata": null}')
    [request] = sandbox.requests
    assert (request.method, request.path, request.query) == ("PATCH", "/v1/conversations/a%2Fb", {"x": " "})
    assert request.body == b'{"metadata": null}'
    assert request.headers["authorization"] == "***"
    assert "Bearer" not in repr(request)
    for _ in range(1001):
        await client.get("/nowhere")
    assert {request.method for request in sandbox.requests} == {"GET"}
    assert len(sandbox.requests) == 1000


@pytest.mark.anyio
async def test_faults_happen_in_order_and_on_their_path(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    sandbox.faults.add(status=429, retry_after=0.5, times=2)
    sandbox.faults.add(status=503, path="/v1/conversations")
    sandbox.faults.add(status=400, path="/v1/conversations/conv_x", times=5)

    async def statuses(path: str, count: int) -> list[int]:
        return [(await client.get(path)).status_code for _ in range(count)]

    first = await client.get("/v1/conversations?limit=5", headers={"Authorization": ""})
    assert (first.status_code, first.headers["Retry-After"]) == (429, "0.5")
    assert first.json()["error"]["code"] == "RATE_LIMIT_EXCEEDED"
    assert await statuses("/v1/conversations", 3) == [429, 503, 200]
    assert await statuses("/v1/conversations/conv_x/messages", 1) == [404]
    assert await statuses("/v1/conversations/conv_x", 1) == [400]
    sandbox.faults.clear()
    assert await statuses("/v1/conversations/conv_x", 1) == [404]
    assert len(sandbox.requests) == 7


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "content", "kind"),
    [
        ("<h1>Bad gateway</h1>", b"<h1>Bad gateway</h1>", "text/html; charset=utf-8"),
        (b'{"da', b'{"da', "application/json"),
        ({"detail": "no"}, b'{"detail": "no"}', "application/json"),
    ],
)
async def test_fault_sends_the_given_body(
    sandbox: Sandbox, client: httpx.AsyncClient, body: object, content: bytes, kind: str
) -> None:
    sandbox.faults.add(status=502, body=body, retry_after="soon")
    response = await client.get("/v1/conversations")
    assert (response.status_code, response.content, response.headers["content-type"]) == (502, content, kind)
    assert response.headers["Retry-After"] == "soon"
    assert response.headers["x-request-id"]


def test_fault_out_of_range_is_rejected(sandbox: Sandbox) -> None:
    for status, times in ((99, 1), (600, 1), (500, 0)):
        with pytest.raises(ValueError, match="must be"):
            sandbox.faults.add(status=status, times=times)


@pytest.mark.parametrize(
    "options", [{"api_key": 5}, {"retry_scale": "x"}, {"retry_scale": True}, {"retry_scale": None}], ids=str
)
def test_option_of_another_type_is_rejected_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(options))} must be "):
        Sandbox(**options)


def test_behavior_of_another_type_is_rejected() -> None:
    with Sandbox() as box, pytest.raises(TypeError, match=r"^behavior must be a Behavior, got int$"):
        box.behavior = 5  # type: ignore[assignment]
