"""The inbox for web servers: the protocols at their edges. `test_recipes` serves each by a real server."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from types import ModuleType
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest

from agentphone.inbox import Inbox
from agentphone.inbox._listing import list_items
from tests.inbox.deliveries import Delivery, delivery
from tests.inbox.world import SECRET, create_sqlite, serving

TOO_LARGE = 1024 * 1024 + 1


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    inbox = Inbox(webhook_secret=SECRET, database=create_sqlite(tmp_path))
    yield inbox
    inbox._database.close()


def test_asgi(inbox: Inbox) -> None:
    body, headers = delivery()
    with serving(inbox.asgi) as url, httpx.Client(base_url=url, trust_env=False) as client:

        def chunks() -> Iterator[bytes]:
            yield body[:10]
            yield body[10:]

        assert client.post("any/path", content=body, headers=headers).status_code == 202
        assert client.post("", content=chunks(), headers=headers).status_code == 202
        assert client.post("", content=body[1:], headers=headers).status_code == 503
        assert client.post("", content=body).status_code == 400
        assert client.post("", content=b"x" * TOO_LARGE).status_code == 413
        refused = client.get("")
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert len(list_items(inbox._database)) == 1


def lifespan(inbox: Inbox) -> list[dict[str, Any]]:
    """Run the lifespan protocol, and return what the application sent."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(inbox.asgi({"type": "lifespan"}, receive, send))
    return sent


def test_asgi_starts_only_with_a_secret(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [message["type"] for message in lifespan(inbox)] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    monkeypatch.delenv("AGENTPHONE_WEBHOOK_SECRET", raising=False)
    with pytest.raises(ValueError, match="No webhook secret"):
        lifespan(Inbox())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (delivery(), "202 Accepted"),
        (delivery(secret="whsec_of_another"), "503 Service Unavailable"),
        ((b"x" * TOO_LARGE, {}), f"413 {HTTPStatus(413).phrase}"),
    ],
)
def test_wsgi(inbox: Inbox, sent: Delivery, status: str) -> None:
    body, headers = sent
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    assert wsgi(inbox, environ)[0] == status


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}, "202 Accepted"),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, "202 Accepted"),
        ({}, "503 Service Unavailable"),
        ({"CONTENT_LENGTH": "9" * 5000}, "202 Accepted"),
    ],
)
def test_wsgi_body_of_unknown_length(inbox: Inbox, more: dict[str, Any], status: str) -> None:
    """Without a length and without chunks there is no body; to read one would wait for the client forever."""
    body, headers = delivery()
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "", "wsgi.input": io.BytesIO(body), **more}
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    answered: list[str] = []
    inbox.wsgi(environ, lambda status, headers: answered.append(status))
    assert answered == [status]
    assert (environ["wsgi.input"].tell() == 0) == (not more)


def test_wsgi_get(inbox: Inbox) -> None:
    status, headers = wsgi(inbox, {"REQUEST_METHOD": "GET"})
    assert (status, headers["allow"]) == ("405 Method Not Allowed", "POST")


def wsgi(inbox: Inbox, environ: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Call the application as a strict server does."""
    setup_testing_defaults(environ)
    environ["QUERY_STRING"] = ""
    answered: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        answered.append((status, dict(headers)))
        return lambda data: None

    response = validator(inbox.wsgi)(environ, start_response)
    assert b"".join(response) == b""
    response.close()  # type: ignore[attr-defined]
    [found] = answered
    return found  # type: ignore[no-any-return]


@pytest.fixture
def requests() -> Any:
    """Return Django's factory of requests."""
    from django.conf import settings

    if not settings.configured:
        settings.configure(DEFAULT_CHARSET="utf-8", ALLOWED_HOSTS=["*"])
    from django.test import RequestFactory

    return RequestFactory()


def test_django_view(inbox: Inbox, requests: Any) -> None:
    from django.test import override_settings

    view = inbox.django
    assert view.csrf_exempt

    def post(sent: Delivery) -> Any:
        body, headers = sent
        return requests.post("/", data=body, content_type="application/json", headers=headers)

    assert view(post(delivery())).status_code == 202
    assert view(post(delivery(secret="whsec_of_another"))).status_code == 503
    assert view(post((b"x" * 3 * TOO_LARGE, {}))).status_code == 413, "above Django's own limit too"
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=100):  # where a 4xx would lose the text
        assert view(post(delivery())).status_code == 202
    refused = view(requests.get("/"))
    assert (refused.status_code, refused["Allow"]) == (405, "POST")

    async def awaited() -> list[int]:
        responses = [await view(post(delivery(messageId="msg_2"))), await view(requests.get("/"))]
        return [response.status_code for response in responses]

    assert asyncio.run(awaited()) == [202, 405]
    assert {item["id"] for item in list_items(inbox._database)} == {"msg_1", "msg_2"}


def test_django_finds_routes_by_name_beside_the_view(inbox: Inbox, requests: Any) -> None:
    from django.http import HttpResponse
    from django.urls import path, reverse

    home = path("home", lambda _: HttpResponse(), name="home")
    urls: Any = ModuleType("urls")
    urls.urlpatterns = [path("agentphone", inbox.django), home]
    assert reverse("home", urlconf=urls) == "/home"
