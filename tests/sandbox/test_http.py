"""The HTTP API as the vendor documents it: defaults, limits, order, metadata and errors."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from agentphone.sandbox import Sandbox

from .helpers import ADA, AGENT, BEN

pytestmark = pytest.mark.anyio
NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)


def fill(sandbox: Sandbox, count: int) -> str:
    """Store `count` messages in one conversation, one per second from noon on, and return its id."""
    conversation_id = ""
    for index in range(count):
        at = NOON + timedelta(seconds=index)
        message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body=f"text {index}", at=at)
        conversation_id = message["conversationId"]
    return conversation_id


def bodies(page: Any) -> list[str]:
    return [message["body"] for message in page["data"]]


async def test_first_message_creates_the_conversation(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    first = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", at=NOON)
    second = sandbox.send_sms(from_number=AGENT, to_number=ADA, body="Hello", at="2025-01-15T13:00:01.5+01:00")
    assert first["conversationId"] == second["conversationId"]
    page = (await client.get("/v1/conversations")).json()
    [conversation] = page["data"]
    assert (page["total"], page["hasMore"]) == (1, False)
    assert conversation == {
        "id": first["conversationId"],
        "agentId": conversation["agentId"],
        "phoneNumberId": conversation["phoneNumberId"],
        "phoneNumber": AGENT,
        "participant": ADA,
        "lastMessageAt": "2025-01-15T12:00:01.500000Z",
        "lastMessagePreview": "Hello",
        "messageCount": 2,
        "metadata": None,
        "createdAt": "2025-01-15T12:00:00.000000Z",
        "channel": "sms",
    }
    assert conversation["agentId"].startswith("agt_")
    assert conversation["phoneNumberId"].startswith("num_")
    [latest, earliest] = (await client.get(f"/v1/conversations/{conversation['id']}/messages")).json()["data"]
    assert latest == {key: value for key, value in second.items() if key != "conversationId"}
    assert (latest["fromNumber"], latest["toNumber"], latest["direction"]) == (AGENT, ADA, "outbound")
    assert (earliest["fromNumber"], earliest["toNumber"], earliest["direction"]) == (ADA, AGENT, "inbound")


async def test_only_newer_messages_move_a_conversation_up(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    async def front() -> tuple[str, str, int]:
        first = (await client.get("/v1/conversations")).json()["data"][0]
        return first["participant"], first["lastMessagePreview"], first["messageCount"]

    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="one", at=NOON)
    sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="two", at=NOON + timedelta(seconds=1))
    assert await front() == (BEN, "two", 1)
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="three", at=NOON + timedelta(seconds=2))
    assert await front() == (ADA, "three", 2)
    sandbox.receive_sms(from_number=BEN, to_number=AGENT, body="late", at=NOON - timedelta(days=1))
    sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="late", at=NOON - timedelta(days=1))
    assert await front() == (ADA, "three", 3)


async def test_conversations_are_paged_without_gaps(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    for index in range(120):  # equal timestamps must still have one order
        sandbox.receive_sms(from_number=f"+1555555{index:04d}", to_number=AGENT, body="Hi", at=NOON)
    default = (await client.get("/v1/conversations")).json()
    assert (len(default["data"]), default["hasMore"], default["total"]) == (20, True, 120)
    seen = []
    for offset in (0, 100, 120, 10**17):
        page = (await client.get("/v1/conversations", params={"limit": 100, "offset": offset})).json()
        seen += [conversation["id"] for conversation in page["data"]]
        assert page["hasMore"] is (offset == 0)
    assert len(seen) == len(set(seen)) == 120


async def test_conversation_contains_its_newest_messages(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    path = f"/v1/conversations/{fill(sandbox, 120)}"
    for params, count in (({}, 50), ({"message_limit": 7}, 7), ({"message_limit": 100}, 100)):
        conversation = (await client.get(path, params=params)).json()
        assert [message["body"] for message in conversation["messages"]] == [f"text {119 - n}" for n in range(count)]
        assert "lastMessagePreview" not in conversation


async def test_metadata_is_replaced_kept_or_cleared(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    path = f"/v1/conversations/{fill(sandbox, 60)}"
    steps: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"metadata": {"a": 1, "b": {"c": [None, 2.5, "ü\ud800"]}}}, {"a": 1, "b": {"c": [None, 2.5, "ü\ud800"]}}),
        ({"metadata": {"z": "only"}}, {"z": "only"}),
        ({}, {"z": "only"}),
        ({"metadata": {}}, {}),
        ({"metadata": None}, None),
    ]
    for body, expected in steps:
        updated = await client.patch(path, content=json.dumps(body))
        assert updated.status_code == 200
        assert updated.json() == (await client.get(path)).json()
        assert updated.json()["metadata"] == expected
        assert (len(updated.json()["messages"]), "lastMessagePreview" in updated.json()) == (50, False)
        assert (await client.get("/v1/conversations")).json()["data"][0]["metadata"] == expected


async def test_messages_are_paged_by_timestamp(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    path = f"/v1/conversations/{fill(sandbox, 450)}/messages"
    default = (await client.get(path)).json()
    assert (len(default["data"]), default["hasMore"], "total" in default) == (50, True, False)
    seen: list[str] = []
    before: dict[str, str] = {}
    for has_more in (True, True, False):
        page = (await client.get(path, params={"limit": "200", **before})).json()
        assert page["hasMore"] is has_more
        seen += bodies(page)
        before = {"before": page["data"][-1]["receivedAt"]}
    assert seen == [f"text {449 - index}" for index in range(450)]
    bounds = {"after": (NOON + timedelta(seconds=3)).isoformat(), "before": "2025-01-15T12:00:06Z"}
    assert bodies((await client.get(path, params=bounds)).json()) == ["text 5", "text 4"]


@pytest.mark.parametrize(
    ("where", "field"),
    [
        ("?limit=0", "limit"),
        ("?limit=101", "limit"),
        ("?limit=abc", "limit"),
        ("?limit=", "limit"),
        ("?limit=1_0", "limit"),
        ("?limit=1.0", "limit"),
        ("?limit=%D9%A3", "limit"),
        ("?limit=" + "9" * 5000, "limit"),
        ("?offset=-1", "offset"),
        ("/{id}?message_limit=0", "message_limit"),
        ("/{id}?message_limit=101", "message_limit"),
        ("/{id}/messages?limit=0", "limit"),
        ("/{id}/messages?limit=201", "limit"),
        ("/{id}/messages?before=yesterday", "before"),
        ("/{id}/messages?before=", "before"),
        ("/{id}/messages?before=2025-01-15", "before"),
        ("/{id}/messages?after=2025-01-15T12:00:00", "after"),
        ("/{id}/messages?after=2025-01-15T12:00:00+00:00", "after"),  # an unescaped plus is a space
        ("/{id}/messages?after=0001-01-01T00:00:00%2B05:00", "after"),
    ],
)
async def test_invalid_parameter_is_a_422_naming_the_field(
    sandbox: Sandbox, client: httpx.AsyncClient, where: str, field: str
) -> None:
    conversation_id = fill(sandbox, 1)
    response = await client.get("/v1/conversations" + where.replace("{id}", conversation_id))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, "VALIDATION_ERROR")
    assert [detail["field"] for detail in error["details"]] == [field]
    assert error["message"]
    assert error["type"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"metadata",
        b"[]",
        b"null",
        b'{"metadata": 1}',
        b'{"metadata": []}',
        b'{"metadata": true}',
        b'{"metadata": {"a": NaN}}',
        b'{"metadata": {"a": -Infinity}}',
        b'{"metadata": {"a": 1e999}}',
        b'{"metadata": {"a": ' + b"9" * 5000 + b"}}",
        b'{"metadata": "\xff"}',
        b'{"metadata": {"a": ' + b"[" * 150 + b"]" * 150 + b"}}",
        b'{"metadata": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    ],
)
async def test_invalid_metadata_is_a_422_and_changes_nothing(
    sandbox: Sandbox, client: httpx.AsyncClient, body: bytes
) -> None:
    path = f"/v1/conversations/{fill(sandbox, 1)}"
    before = (await client.patch(path, json={"metadata": {"kept": True}})).json()
    response = await client.patch(path, content=body)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "VALIDATION_ERROR")
    assert (await client.get(path)).json() == before


async def test_oversized_body_is_a_413(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    response = await client.patch(f"/v1/conversations/{fill(sandbox, 1)}", content=b" " * 2_000_000)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/conversations/",
        "/v1/conversations/conv_none",
        "/v1/conversations/conv_none/messages",
        "/v1/conversations/{id}/",
        "/v1/conversations/{id}%2F",
        "/v1/conversations/{id}%2Fmessages",
        "/v1/conversations/..%2F..%2Fsandbox",
        "/v1/conversations/%00%FF",
        "/v1/conversations/{id}/messages/x",
        "/v1//conversations",
        "/V1/conversations",
        "/sandbox",
    ],
)
async def test_unknown_path_is_a_404(sandbox: Sandbox, client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path.replace("{id}", fill(sandbox, 1)))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/conversations", "GET"),
        ("HEAD", "/v1/conversations", "GET"),
        ("DELETE", "/v1/conversations/conv_x", "GET, PATCH"),
        ("PUT", "/v1/conversations/conv_x/messages", "GET"),
        ("GET", "/sandbox/messages", "POST"),
    ],
)
async def test_wrong_method_is_a_405_with_an_allow_header(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    response = await client.request(method, path)
    assert (response.status_code, response.headers["Allow"]) == (405, allow)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic any", "any"])
async def test_missing_key_is_a_401_on_every_path(client: httpx.AsyncClient, header: str | None) -> None:
    del client.headers["Authorization"]
    headers = {} if header is None else {"Authorization": header}
    for path in ("/v1/conversations", "/nowhere", "/sandbox/messages"):
        response = await client.get(path, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "UNAUTHORIZED")
        assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_configured_key_is_the_only_one_accepted(anyio_backend: object) -> None:
    with Sandbox(api_key="rîght") as sandbox:
        async with httpx.AsyncClient(transport=sandbox.transport(), base_url="http://sandbox") as client:
            for key, status in (("wrong", 401), ("rîght ", 200), ("rîght", 200), ("RÎGHT", 401)):
                header = {b"Authorization": f"Bearer {key}".encode("latin-1")}
                assert (await client.get("/v1/conversations", headers=header)).status_code == status


async def test_sandbox_endpoint_stores_a_message(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    inbound = {"direction": "inbound", "from": ADA, "to": AGENT, "body": "Hi", "at": "2025-01-15T12:00:00Z"}
    response = await client.post("/sandbox/messages", json=inbound)
    assert response.status_code == 201
    assert response.json()["receivedAt"] == "2025-01-15T12:00:00.000000Z"
    outbound = {"direction": "outbound", "from": AGENT, "to": ADA, "body": ""}
    again = (await client.post("/sandbox/messages", json=outbound)).json()
    assert again["conversationId"] == response.json()["conversationId"]
    [latest, _] = (await client.get(f"/v1/conversations/{again['conversationId']}/messages")).json()["data"]
    assert (latest["id"], latest["body"], latest["direction"]) == (again["id"], "", "outbound")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("direction", "sideways"),
        ("direction", ["inbound"]),
        ("from", ""),
        ("to", 5),
        ("body", None),
        ("body", "\ud800"),
        ("at", "2025-01-15"),
        ("at", 5),
    ],
)
async def test_sandbox_endpoint_names_the_invalid_field(client: httpx.AsyncClient, field: str, value: object) -> None:
    body = {"direction": "inbound", "from": ADA, "to": AGENT, "body": "Hi", field: value}
    response = await client.post("/sandbox/messages", content=json.dumps(body))
    assert response.status_code == 422
    assert [detail["field"] for detail in response.json()["error"]["details"]] == [field]
    assert (await client.get("/v1/conversations")).json()["total"] == 0


async def test_internal_failure_is_a_500_in_the_error_envelope(
    sandbox: Sandbox, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.close()
    response = await client.get("/v1/conversations")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "INTERNAL_ERROR")
    assert response.headers["x-request-id"]
    assert "the sandbox is closed" in caplog.text
