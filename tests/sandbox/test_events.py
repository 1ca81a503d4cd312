"""What the phone needs beyond the API: changes, their stream, requests, redelivery and search; and who may call it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from agentphone.sandbox import Sandbox
from agentphone.sandbox._changes import BOUNDS
from agentphone.sandbox._hosts import is_local_host
from agentphone.sandbox.server import STOP_SECONDS, running
from tests.support.processes import SECONDS

from .helpers import ADA, AGENT, BEN, HEADERS, call, get
from .receiver import Receiver, until


def receive(sandbox: Sandbox, body: str = "Hi", *, person: str = ADA) -> dict[str, Any]:
    return sandbox.receive_sms(from_number=person, to_number=AGENT, body=body)


class Stream:
    """An open stream of events, read one event at a time."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()

    def next(self, *names: str) -> tuple[str | None, str, Any]:
        """Return the id, the name and the data of the next event that has one of the names."""
        fields: dict[str, str] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif fields.get("event") in names:
                return fields.get("id"), fields["event"], json.loads(fields["data"])
            else:
                fields = {}
        raise AssertionError("the stream ended")


@contextmanager
def streaming(url: str, last_id: str | None = None, key: str = "any") -> Iterator[Stream]:
    headers = {"Authorization": f"Bearer {key}"} | ({} if last_id is None else {"Last-Event-ID": last_id})
    with (
        httpx.Client(base_url=url, headers=headers, timeout=SECONDS, trust_env=False) as client,
        client.stream("GET", "/sandbox/events") as response,
    ):
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        yield Stream(response)


@pytest.fixture
def url(sandbox: Sandbox) -> Iterator[str]:
    with running(sandbox) as url:
        yield url


# Changes


def changes(sandbox: Sandbox, after: str | None = None) -> dict[str, Any]:
    page: dict[str, Any] = get(sandbox, "/sandbox/changes" + ("" if after is None else f"?after={after}"))
    return page


def test_changes_name_what_to_read_again(sandbox: Sandbox, receiver: Receiver) -> None:
    start = changes(sandbox)["last"]
    message = receive(sandbox)
    conversation = message["conversationId"]
    call(sandbox, "PATCH", f"/v1/conversations/{conversation}", {"metadata": {"a": 1}})
    sandbox.set_webhook(receiver.url, "whsec")
    receive(sandbox)
    until(lambda: sandbox.deliveries()[0]["status"] == "delivered")
    sandbox.remove_conversation(conversation)
    page = changes(sandbox, start)
    kinds = [change["kind"] for change in page["data"]]
    assert kinds == ["message", "metadata", "webhook", "message", "delivery", "delivery", "removed"]
    assert {change["conversationId"] for change in page["data"]} == {conversation, None}
    first = page["data"][0]
    assert (first["messageId"], first["receivedAt"]) == (message["id"], message["receivedAt"])
    assert page["data"][4]["deliveryId"] == sandbox.deliveries()[0]["id"]
    assert (page["last"], page["isReset"], page["hasMore"]) == (page["data"][-1]["id"], False, False)
    assert changes(sandbox, page["last"])["data"] == []


def test_reaction_is_a_change_of_its_message(sandbox: Sandbox) -> None:
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="Hi", channel="imessage")
    start = changes(sandbox)["last"]
    sandbox.receive_reaction(message["id"], "love")
    assert [change["messageId"] for change in changes(sandbox, start)["data"]] == [message["id"]]


def test_changes_of_another_database_or_too_long_ago_are_a_reset() -> None:
    with Sandbox() as first, Sandbox() as second:
        receive(first)
        receive(second)
        old, new = changes(first)["last"], changes(second)["last"]
        assert changes(second, old)["isReset"]
        assert changes(first, new)["isReset"]
        assert not changes(second, new)["isReset"]
        assert changes(second, old)["last"] == new


def test_only_the_newest_changes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as sandbox:
        start = changes(sandbox)["last"]
        connection = sqlite3.connect(path)
        with connection:
            connection.executemany("INSERT INTO changes (kind) VALUES (?)", [("metadata",)] * 25_000)
        (kept,) = connection.execute("SELECT count(*) FROM changes").fetchone()
        connection.close()
        assert 10_000 <= kept <= 11_000
        assert changes(sandbox, start)["isReset"]
        page = changes(sandbox, str(int(start) + 20_000))
        assert (len(page["data"]), page["hasMore"], page["isReset"]) == (1000, True, False)


def test_changes_are_found_without_reading_the_whole_table(sandbox: Sandbox) -> None:
    with sandbox._store._database.transaction("BEGIN") as connection:
        plan = [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {BOUNDS}")]
    assert "SEARCH changes" in plan
    assert "SCAN changes" not in plan


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "9" * 30, "%D9%A3"])
def test_invalid_change_id_is_a_422(sandbox: Sandbox, text: str) -> None:
    response = call(sandbox, "GET", f"/sandbox/changes?after={text}")
    assert (response.status_code, response.json()["error"]["details"][0]["field"]) == (422, "after")


# The stream


def test_stream_reports_changes_and_requests(sandbox: Sandbox, url: str) -> None:
    with streaming(url) as stream:
        assert stream.next("ready")[0] == changes(sandbox)["last"]
        message = receive(sandbox)
        event_id, _, change = stream.next("change")
        assert (event_id, change["messageId"]) == (change["id"], message["id"])
        assert httpx.get(f"{url}/v1/conversations?limit=1", headers=HEADERS, trust_env=False).is_success
        while (request := stream.next("request"))[2]["seconds"] is None:
            pass
        assert request[0] is None
        assert request[2].items() >= {"method": "GET", "path": "/v1/conversations", "status": 200}.items()


def test_stream_resumes_after_the_last_event(sandbox: Sandbox, url: str) -> None:
    with streaming(url) as stream:
        receive(sandbox, "first")
        last_id, _, _ = stream.next("change")
    missed = [receive(sandbox, "missed")["id"] for _ in range(3)]
    with streaming(url, last_id) as stream:
        assert [stream.next("change", "ready", "reset")[2]["messageId"] for _ in missed] == missed
    with streaming(url, "17") as stream:
        assert stream.next("change", "reset")[1:] == ("reset", {})


def test_stream_misses_nothing_once_its_headers_are_sent(sandbox: Sandbox) -> None:
    sent: list[bytes] = []

    async def stream() -> None:
        is_over = asyncio.Event()
        messages = iter([{"type": "http.request"}])

        async def read() -> dict[str, Any]:
            if (message := next(messages, None)) is not None:
                return message
            await is_over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                receive(sandbox)
            else:
                sent.append(message["body"])
                is_over.set()

        scope = {"type": "http", "method": "GET", "path": "/sandbox/events", "query_string": b""}
        await sandbox.app({**scope, "headers": [(b"authorization", b"Bearer any")]}, read, send)

    asyncio.run(stream())
    assert b"event: change" in sent[0]


def test_stream_reports_commits_of_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "box.db"
    with Sandbox(path) as served, running(served) as url, Sandbox(path) as other, streaming(url) as stream:
        stream.next("ready")
        message = receive(other)
        assert stream.next("change")[2]["messageId"] == message["id"]


def test_many_streams_share_one_watcher(sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    polls = 0
    version = sandbox._store.changes.version

    def counting() -> tuple[int, int]:
        nonlocal polls
        polls += 1
        return version()

    monkeypatch.setattr(sandbox._store.changes, "version", counting)
    received: list[str] = []
    ready, release = threading.Barrier(21, timeout=SECONDS), threading.Barrier(21, timeout=SECONDS)

    def read() -> None:
        with streaming(url) as stream:
            stream.next("ready")
            ready.wait()
            received.append(stream.next("change")[2]["messageId"])
            release.wait()

    threads = [threading.Thread(target=read) for _ in range(20)]
    for thread in threads:
        thread.start()
    ready.wait()
    time.sleep(0.3)
    polls = 0
    time.sleep(1)
    assert polls <= 15  # ten a second in all, and not for each stream
    message = receive(sandbox)
    release.wait()
    for thread in threads:
        thread.join()
    assert received == [message["id"]] * 20


def test_shutdown_does_not_wait_for_streams(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    config = uvicorn.Config

    def patient(app: Any, **settings: Any) -> uvicorn.Config:
        return config(app, **{**settings, "timeout_graceful_shutdown": None})

    monkeypatch.setattr(uvicorn, "Config", patient)
    serving = running(sandbox)
    with streaming(serving.__enter__()) as stream:
        stream.next("ready")
        started_at = time.monotonic()
        serving.__exit__(None, None, None)
    assert time.monotonic() - started_at < STOP_SECONDS


# Requests


def test_requests_are_listed_with_their_outcomes(sandbox: Sandbox) -> None:
    sandbox.faults.add(status=503)
    call(sandbox, "GET", "/v1/conversations")
    call(sandbox, "PATCH", "/v1/conversations/none?x=1", {"metadata": None})
    page = get(sandbox, "/sandbox/requests")
    newest, oldest = page["data"]
    assert (oldest["status"], oldest["isFault"]) == (503, True)
    assert newest["headers"]["authorization"] == "***"
    shown = {name: newest[name] for name in ("id", "method", "path", "query", "status", "isFault", "body")}
    assert shown == {
        "id": 2,
        "method": "PATCH",
        "path": "/v1/conversations/none",
        "query": {"x": "1"},
        "status": 404,
        "isFault": False,
        "body": '{"metadata": null}',
    }
    assert newest["seconds"] >= 0
    assert get(sandbox, "/sandbox/requests?limit=1") == {"data": [newest], "hasMore": True}
    assert get(sandbox, "/sandbox/requests/2") == newest
    assert call(sandbox, "GET", "/sandbox/requests/3").status_code == 404


def test_request_whose_connection_broke_has_no_status(sandbox: Sandbox, url: str) -> None:
    sandbox.faults.add(kind="reset")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/v1/conversations", headers=HEADERS, trust_env=False)
    until(lambda: get(sandbox, "/sandbox/requests")["data"][0]["seconds"] is not None)
    assert get(sandbox, "/sandbox/requests")["data"][0]["status"] is None


def test_requests_of_the_phone_are_neither_recorded_nor_failed(sandbox: Sandbox, url: str) -> None:
    sandbox.faults.add(status=503)
    headers = HEADERS | {"X-AgentPhone-Phone": "1"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as phone:
        assert phone.get("/v1/conversations").status_code == 200
        assert phone.get("/sandbox/requests").json()["data"] == []
    assert list(sandbox.requests) == []
    assert call(sandbox, "GET", "/v1/conversations").status_code == 503


# Deliveries


def test_delivery_is_repeated_under_the_same_id(sandbox: Sandbox, receiver: Receiver) -> None:
    sandbox.set_webhook(receiver.url, "whsec")
    receive(sandbox)
    receive(sandbox, person=BEN)
    until(lambda: [delivery["status"] for delivery in sandbox.deliveries()] == ["delivered"] * 2)
    delivery = sandbox.deliveries()[1]
    again = call(sandbox, "POST", f"/sandbox/deliveries/{delivery['id']}/redeliver")
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (200, delivery["id"], "pending")
    until(lambda: len(sandbox.deliveries()[1]["attempts"]) == 2)
    assert [received.id for received in receiver.received].count(delivery["id"]) == 2
    whole = get(sandbox, f"/sandbox/deliveries/{delivery['id']}")
    assert whole["payload"]["data"]["from"] == ADA
    of_conversation = get(sandbox, f"/sandbox/deliveries?conversation_id={delivery['conversationId']}")
    assert [item["id"] for item in of_conversation["data"]] == [delivery["id"]]
    assert call(sandbox, "POST", "/sandbox/deliveries/dlv_none/redeliver").status_code == 404
    assert sandbox.redeliver(delivery["id"])["status"] == "pending"
    until(lambda: len(sandbox.deliveries()[1]["attempts"]) == 3)
    assert [received.id for received in receiver.received].count(delivery["id"]) == 3
    with pytest.raises(LookupError, match="There is no delivery 'dlv_none'"):
        sandbox.redeliver("dlv_none")


# Search


def test_search_finds_numbers_and_texts(sandbox: Sandbox) -> None:
    ada = receive(sandbox, "Where is my ORDER?")["conversationId"]
    receive(sandbox, "Straße")
    ben = receive(sandbox, "100% sure", person=BEN)["conversationId"]
    sandbox.send_sms(from_number=AGENT, to_number=ADA, body="Your order is late")

    def found(query: str) -> list[tuple[str, str | None]]:
        page = get(sandbox, f"/sandbox/search?q={query}")
        return [(item["id"], item["match"] and item["match"]["body"]) for item in page["data"]]

    assert found("order") == [(ada, "Your order is late")]
    assert found("STRASSE") == [(ada, "Straße")]
    assert found("0%25") == [(ben, "100% sure")]
    assert found("555-0111") == [(ben, None)]
    assert found("%2B1555") == [(ada, None), (ben, None)]
    assert found("_") == []
    assert get(sandbox, "/sandbox/search?q=0&limit=1")["hasMore"]
    assert call(sandbox, "GET", "/sandbox/search").status_code == 422


# Who may call it


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sandbox/events"),
        ("GET", "/sandbox/changes"),
        ("GET", "/sandbox/requests"),
        ("GET", "/sandbox/search?q=x"),
        ("POST", "/sandbox/messages"),
        ("POST", "/sandbox/faults"),
        ("POST", "/sandbox/deliveries/dlv_1/redeliver"),
    ],
)
def test_nothing_works_without_the_header(url: str, method: str, path: str) -> None:
    """A page of another site can send no Authorization header without asking first, and is never allowed to."""
    headers = {"Origin": "http://evil.example", "X-AgentPhone-Phone": "1"}
    with httpx.Client(base_url=url, trust_env=False) as browser:
        assert browser.request(method, path, headers=headers).status_code == 401
        asked = browser.options(path, headers=headers | {"Access-Control-Request-Method": method})
        assert asked.status_code in (401, 404, 405)
        assert not [name for name in asked.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_page_of_another_site_uses_up_no_fault_and_is_not_recorded(sandbox: Sandbox, url: str, site: str) -> None:
    """It may send what an image or a form sends, which asks nobody."""
    sandbox.faults.add(status=503)
    with httpx.Client(base_url=url, trust_env=False) as browser:
        assert browser.get("/v1/conversations", headers={"Sec-Fetch-Site": site}).status_code == 403
        assert list(sandbox.requests) == []
        assert browser.get("/", headers={"Sec-Fetch-Site": site}).status_code == 200  # a link to the phone
    assert call(sandbox, "GET", "/v1/conversations").status_code == 503


@pytest.mark.parametrize(
    ("header", "is_local"),
    [
        ("127.0.0.1:8765", True),
        ("localhost", True),
        ("[::1]:8765", True),
        ("192.168.1.20:80", True),
        ("sandbox:8765", True),
        ("phone.localhost:1", True),
        ("host.docker.internal:8765", True),
        ("LOCALHOST.", True),
        ("Tunnel.Example.com", True),
        ("evil.example.com", False),
        ("127.0.0.1.evil.example:8765", False),
        ("localhost.evil.example", False),
        ("evil.example:80@localhost", False),
        ("", False),
        ("a b", False),
        ("[evil.example]", False),
    ],
)
def test_host_header_must_be_local(header: str, is_local: bool) -> None:
    assert is_local_host(header, {"tunnel.example.com"}) is is_local


def test_server_rejects_a_foreign_host(url: str) -> None:
    response = httpx.get(f"{url}/v1/conversations", headers=HEADERS | {"Host": "evil.example"}, trust_env=False)
    assert response.status_code == 403
    assert "--allow-host" in response.json()["error"]["message"]


def test_page_is_public_and_loads_nothing_from_elsewhere(sandbox: Sandbox) -> None:
    with Sandbox(api_key="sk") as locked, running(locked) as url, httpx.Client(base_url=url, trust_env=False) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        etag = page.headers["etag"]
        assert client.get("/", headers={"If-None-Match": etag}).status_code == 304
        assert client.head("/").headers["content-length"] == page.headers["content-length"]
        for path in ("/phone/main.js", "/phone/phone.css", "/phone/icon.svg"):
            assert client.get(path).status_code == 200
        for path in ("/phone/", "/phone/none.js", "/phone/../server.py", "/phone/%2e%2e/server.py"):
            assert client.get(path).status_code in (401, 404)
        assert client.post("/").status_code == 401
    assert "http:" not in page.text.replace("http://www.w3.org/", "")
