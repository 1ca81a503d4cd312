"""The requests that calls send, byte for byte, and the arguments that are rejected before anything is sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import respx
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import AsyncClient, AsyncConversations, Message, __version__
from agentphone._http.requests import (
    Progress,
    RequestSpec,
    get_conversation,
    list_messages,
    start_typing,
    update_conversation,
)
from tests.support.helpers import BASE, KEY, conversation, page
from tests.support.long import count

pytestmark = pytest.mark.anyio

Ask = Callable[[AsyncConversations], Awaitable[object]]


@pytest.fixture
def api() -> Iterator[respx.MockRouter]:
    """Replace the network below httpx, and record the requests that httpx would send."""
    with respx.mock(assert_all_called=False) as router:
        router.route(path="/v1/conversations").respond(json=page(total=0))
        router.route(path__regex=r"^/v1/conversations/(.|\n)+/messages$").respond(json=page())
        router.route(path__startswith="/v1/conversations/").respond(json=conversation())
        yield router


async def sent(api: respx.MockRouter, ask: Ask) -> httpx.Request:
    """Make one call, and return the one request that it sends."""
    earlier = len(api.calls)
    async with AsyncClient(KEY, base_url=BASE) as client:
        await ask(client.conversations)
    assert len(api.calls) == earlier + 1
    request: httpx.Request = api.calls.last.request
    return request


T1 = datetime(2025, 6, 30, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
AT = Message(id="msg_1", from_number="+1", to_number="+2", received_at=T1)

CALLS: list[tuple[Ask, str, str, str]] = [
    (lambda c: c.list().page(), "GET", "/v1/conversations?limit=100&offset=0", ""),
    (lambda c: c.list(limit=10, offset=20).page(), "GET", "/v1/conversations?limit=10&offset=20", ""),
    (lambda c: c.list(limit=250, page_size=7).page(), "GET", "/v1/conversations?limit=7&offset=0", ""),
    (lambda c: c.get("conv_1"), "GET", "/v1/conversations/conv_1", ""),
    (lambda c: c.get("conv_1", message_limit=20), "GET", "/v1/conversations/conv_1?message_limit=20", ""),
    (lambda c: c.update("conv_1", metadata=None), "PATCH", "/v1/conversations/conv_1", '{"metadata":null}'),
    (lambda c: c.update("conv_1", metadata={}), "PATCH", "/v1/conversations/conv_1", '{"metadata":{}}'),
    (
        lambda c: c.update(
            "conv_1", metadata={"topic": "order", "größe": [1, 1.5, True, None, "👟"], "a": {"b": "\n"}}
        ),
        "PATCH",
        "/v1/conversations/conv_1",
        '{"metadata":{"topic":"order","größe":[1,1.5,true,null,"👟"],"a":{"b":"\\n"}}}',
    ),
    (lambda c: c.messages("conv_1").page(), "GET", "/v1/conversations/conv_1/messages?limit=200", ""),
    (lambda c: c.messages("conv_1", limit=3).page(), "GET", "/v1/conversations/conv_1/messages?limit=3", ""),
    (
        lambda c: c.messages("conv_1", page_size=5, before=T1, after="2025-06-30T00:00:00Z").page(),
        "GET",
        "/v1/conversations/conv_1/messages?limit=5&before=2025-06-30T12%3A00%3A00.123456Z&after=2025-06-30T00%3A00%3A00Z",
        "",
    ),
]


@pytest.mark.parametrize(("ask", "method", "target", "body"), CALLS, ids=[f"{call[1]} {call[2]}" for call in CALLS])
async def test_every_call_sends_exactly_this_request(
    api: respx.MockRouter, ask: Ask, method: str, target: str, body: str
) -> None:
    request = await sent(api, ask)
    assert request.method == method
    assert str(request.url) == BASE + target
    assert request.url.raw_path == target.encode()
    assert request.content == body.encode()
    length = {"content-length": str(len(body.encode())), "content-type": "application/json"} if body else {}
    assert dict(request.headers) == length | {
        "host": "api.agentphone.test",
        "authorization": f"Bearer {KEY}",
        "accept": "application/json",
        "accept-encoding": "gzip",
        "user-agent": f"agentphone-conversations-python/{__version__}",
    }


async def test_awaiting_a_pager_requests_its_first_page(api: respx.MockRouter) -> None:
    async def ask(conversations: AsyncConversations) -> None:
        await conversations.list(limit=10, offset=20)

    assert (await sent(api, ask)).url.raw_path == b"/v1/conversations?limit=10&offset=20"


BASES = ["https://api.example", "https://api.example:8443", "http://[::1]:80/", "http://127.0.0.1:8000/a/b%20c", BASE]


@settings(deadline=None, max_examples=100)
@given(
    base=st.sampled_from(BASES),
    conversation_id=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1),
    method=st.sampled_from(["get", "list messages", "update", "typing"]),
)
def test_request_is_the_one_that_httpx_builds(base: str, conversation_id: str, method: str) -> None:
    specs: dict[str, Callable[[], RequestSpec[Any]]] = {
        "get": lambda: get_conversation(conversation_id, message_limit=None),
        "list messages": lambda: list_messages(conversation_id, limit=2, before=T1, after=None),
        "update": lambda: update_conversation(conversation_id, metadata={"topic": conversation_id}),
        "typing": lambda: start_typing(conversation_id),
    }
    spec = specs[method]()
    transport = AsyncClient(KEY, base_url=base, allow_http=True).conversations._transport
    request = transport._build_request(spec, Progress())
    expected = httpx.Request(spec.method, base.rstrip("/") + spec.target, content=spec.body)
    assert request.url == expected.url
    assert request.url.raw_path == expected.url.raw_path
    assert (request.url.scheme, request.url.host, request.url.port) == (
        expected.url.scheme,
        expected.url.host,
        expected.url.port,
    )
    assert request.url.params == expected.url.params
    assert request.content == expected.content
    assert {"host", "content-length"} & {*request.headers} == {*expected.headers}
    assert expected.headers.items() <= request.headers.items()


# ---- Ids


@pytest.mark.parametrize(
    ("conversation_id", "segment"),
    [
        ("conv_1-A.b~", "conv_1-A.b~"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "%2E%2E%2E"),
        ("/", "%2F"),
        ("../../admin", "..%2F..%2Fadmin"),
        ("a/../b", "a%2F..%2Fb"),
        ("//other.example/x", "%2F%2Fother.example%2Fx"),
        ("https://other.example", "https%3A%2F%2Fother.example"),
        ("a?limit=1", "a%3Flimit%3D1"),
        ("a#b", "a%23b"),
        ("%2e%2e", "%252e%252e"),
        ("%2F", "%252F"),
        (" ", "%20"),
        ("a;b&c+d\\e", "a%3Bb%26c%2Bd%5Ce"),
        ("é👟", "%C3%A9%F0%9F%91%9F"),
        ("\u00a0\u200d\u2028", "%C2%A0%E2%80%8D%E2%80%A8"),
    ],
)
async def test_id_stays_one_path_segment(api: respx.MockRouter, conversation_id: str, segment: str) -> None:
    for ask, tail in (
        (lambda c: c.get(conversation_id), ""),
        (lambda c: c.update(conversation_id, metadata=None), ""),
        (lambda c: c.messages(conversation_id).page(), "/messages?limit=200"),
    ):
        request = await sent(api, ask)
        assert request.url.raw_path.decode() == f"/v1/conversations/{segment}{tail}"
        assert request.url.host == "api.agentphone.test"


def test_id_with_half_a_surrogate_pair_is_rejected() -> None:
    with pytest.raises(ValueError, match="conversation_id must be Unicode text") as caught:
        get_conversation("conv_\udcff", message_limit=None)
    assert type(caught.value) is ValueError


@settings(max_examples=count(50, 2000))
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_id_is_one_segment_that_decodes_to_itself(conversation_id: str) -> None:
    raw = httpx.URL(BASE + get_conversation(conversation_id, message_limit=None).target).raw_path.decode()
    head, _, segment = raw.rpartition("/")
    assert head == "/v1/conversations"
    assert segment.strip(".")
    assert not set(segment) & set("?#\\ ")
    assert unquote(segment) == conversation_id


@pytest.mark.parametrize(
    ("conversation_id", "error"),
    [
        ("", ValueError),
        ("\ud800", ValueError),
        ("\0", ValueError),
        ("conv_1\n", ValueError),
        ("a\r\nX: y", ValueError),
        ("conv_\x1b[31m", ValueError),
        ("conv_\x7f", ValueError),
        ("conv_\x85", ValueError),
        ("x" * 100_000, ValueError),
        (None, TypeError),
        (5, TypeError),
        (b"conv_1", TypeError),
        (["conv_1"], TypeError),
    ],
    ids=lambda part: repr(part)[:20],
)
async def test_invalid_id_is_rejected_before_sending(
    api: respx.MockRouter, conversation_id: Any, error: type[Exception]
) -> None:
    async with AsyncClient(KEY, base_url=BASE) as client:
        with pytest.raises(error):
            await client.conversations.get(conversation_id)
        with pytest.raises(error):
            await client.conversations.update(conversation_id, metadata=None)
        with pytest.raises(error):  # in the call, not in the first iteration
            client.conversations.messages(conversation_id)
    assert not api.calls


# ---- Timestamps


@pytest.mark.parametrize(
    ("value", "formatted"),
    [
        (T1, "2025-06-30T12:00:00.123456Z"),
        (datetime(2025, 6, 30, 12, tzinfo=timezone.utc), "2025-06-30T12:00:00Z"),  # noqa: UP017  # any tzinfo works
        (datetime(2025, 1, 1, tzinfo=timezone(timedelta(hours=-12))), "2025-01-01T12:00:00Z"),
        ("2025-06-30T12:00:00Z", "2025-06-30T12:00:00Z"),
        ("2025-06-30T12:00:00.5+02:00", "2025-06-30T10:00:00.500000Z"),
        ("2025-06-30T12:00:00-0330", "2025-06-30T15:30:00Z"),
        ("20250630T120000Z", "2025-06-30T12:00:00Z"),
        (AT, "2025-06-30T12:00:00.123456Z"),
    ],
    ids=lambda part: str(part)[:32],
)
async def test_bound_is_sent_in_utc(api: respx.MockRouter, value: Any, formatted: str) -> None:
    for name in ("before", "after"):
        request = await sent(api, lambda c, name=name: c.messages("conv_1", **{name: value}).page())  # type: ignore[misc]
        assert dict(request.url.params) == {"limit": "200", name: formatted}


@given(st.datetimes(timezones=st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))))
def test_formatted_bound_parses_to_the_same_time(timestamp: datetime) -> None:
    try:
        target = list_messages("c", limit=1, before=timestamp, after=None).target
    except OverflowError:  # outside the years of UTC; `parse_bound` rejects it earlier
        return
    assert datetime.fromisoformat(httpx.URL(BASE + target).params["before"]) == timestamp


@pytest.mark.parametrize("name", ["before", "after"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (datetime(2025, 6, 30, 12), ValueError),
        ("2025-06-30T12:00:00", ValueError),
        ("2025-06-30", ValueError),
        ("20250630", ValueError),
        ("yesterday", ValueError),
        ("", ValueError),
        ("0001-01-01T00:00:00+01:00", ValueError),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), ValueError),
        (date(2025, 6, 30), TypeError),
        (1751284800, TypeError),
        (True, TypeError),
        (b"2025-06-30T12:00:00Z", TypeError),
        ({"receivedAt": "2025-06-30T12:00:00Z"}, TypeError),
    ],
    ids=repr,
)
def test_invalid_bound_is_rejected_by_name(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=name):
        AsyncClient(KEY, base_url=BASE).conversations.messages("conv_1", **{name: value})


# ---- Numbers

BY_TYPE: list[Any] = [True, 1.0, "5", b"5", [5]]
RANGES: list[tuple[str, str, int, int | None, bool]] = [
    # method, argument, minimum, maximum, whether None is accepted
    ("list", "limit", 1, None, True),
    ("list", "offset", 0, None, False),
    ("list", "page_size", 1, 100, False),
    ("list", "concurrency", 1, None, False),
    ("messages", "limit", 1, None, True),
    ("messages", "page_size", 1, 200, False),
    ("get", "message_limit", 1, 100, True),
]


@pytest.mark.parametrize(("method", "argument", "minimum", "maximum", "optional"), RANGES)
async def test_invalid_number_is_rejected_before_sending(
    api: respx.MockRouter, method: str, argument: str, minimum: int, maximum: int | None, optional: bool
) -> None:
    async with AsyncClient(KEY, base_url=BASE) as client:
        call = getattr(client.conversations, method)
        args = () if method == "list" else ("conv_1",)

        async def make(value: Any) -> None:
            made = call(*args, **{argument: value})
            if method == "get":  # a pager is rejected when it is created
                await made

        async def check_rejected(value: Any, error: type[Exception]) -> None:
            with pytest.raises(error, match=argument):
                await make(value)

        for value in (minimum - 1, minimum - 2, -1, *([] if maximum is None else [maximum + 1, 10**30])):
            await check_rejected(value, ValueError)
        for wrong in (*BY_TYPE, *([] if optional else [None])):
            await check_rejected(wrong, TypeError)
        assert not api.calls
        good: list[Any] = [minimum, 1, *([] if maximum is None else [maximum]), *([None] if optional else [])]
        for value in good:
            await make(value)


@pytest.mark.parametrize("order", ["ASC", "", "newest", None, 1, ["asc"]])
def test_unknown_order_is_rejected(order: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="order"):
        AsyncClient(KEY, base_url=BASE).conversations.messages("conv_1", order=order)


async def test_update_requires_metadata(api: respx.MockRouter) -> None:
    async with AsyncClient(KEY, base_url=BASE) as client:
        with pytest.raises(TypeError, match="metadata"):
            await client.conversations.update("conv_1")  # type: ignore[call-arg]
    assert not api.calls


async def test_metadata_that_is_not_json_is_rejected_before_sending(api: respx.MockRouter) -> None:
    async with AsyncClient(KEY, base_url=BASE) as client:
        with pytest.raises(ValueError, match=r"metadata\['a'\]"):
            await client.conversations.update("conv_1", metadata={"a": float("nan")})
        with pytest.raises(TypeError, match=r"metadata\['a'\]"):
            await client.conversations.update("conv_1", metadata={"a": {1}})
    assert not api.calls
