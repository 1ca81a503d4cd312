"""The error that each status and each form of error body becomes."""

from __future__ import annotations

import json
import pickle
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentphone import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    ServerError,
    UnprocessableEntityError,
)
from tests.support.helpers import client_of, sample

pytestmark = pytest.mark.anyio

STATUSES: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    **dict.fromkeys((500, 501, 502, 503, 504, 520, 599), ServerError),
    **dict.fromkeys((301, 302, 304, 307, 308, 402, 405, 408, 410, 413, 418, 451, 499), APIStatusError),
}


async def error_of(response: httpx.Response) -> APIStatusError:
    """Return the error that the client raises for a response."""
    client, _ = client_of(response, max_retries=0)
    with pytest.raises(APIStatusError) as caught:
        await client.conversations.get("conv_1", message_limit=20)
    return caught.value


@pytest.mark.parametrize(("status", "cls"), STATUSES.items())
async def test_status_determines_the_class(status: int, cls: type[APIStatusError]) -> None:
    error = await error_of(httpx.Response(status, content=sample("error_message")))
    assert type(error) is cls
    assert error.status_code == status
    assert error.message == "Too many requests"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_an_empty_success_is_not_a_success(status: int) -> None:
    client, _ = client_of(httpx.Response(status))
    with pytest.raises(ResponseDecodeError) as caught:
        await client.conversations.get("conv_1")
    assert caught.value.status_code == status


LIMIT = {"field": "limit", "message": "must be 1 to 100", "type": "value_error"}
FORMS: list[tuple[str, Any, str, str | None, str | None, list[Any]]] = [
    # form, body, message, code, type, details
    *[
        (
            "envelope",
            sample("error_envelope"),
            "limit is out of range",
            "VALIDATION_ERROR",
            "validation_error",
            [LIMIT],
        ),
        ("text in detail", sample("error_detail_text"), "No conversation has this id", None, None, []),
        (
            "list in detail",
            sample("error_detail_list"),
            "must be 1 to 100",
            None,
            None,
            [{"field": "query.limit", "message": "must be 1 to 100", "type": "less_than_equal"}],
        ),
        ("bare message", sample("error_message"), "Too many requests", None, None, []),
        ("text in error", {"error": "no"}, "no", None, None, []),
        ("open code", {"error": {"message": "m", "code": "NEW_CODE"}}, "m", "NEW_CODE", None, []),
    ],
    # Without a readable message, it is the standard phrase of the status.
    *[
        (name, body, "Unprocessable", None, None, [])
        for name, body in {
            "null": {"error": None},
            "empty envelope": {"error": {}},
            "envelope of numbers": {"error": {"message": 5, "code": 6, "type": [], "details": 7}},
            "envelope of nulls": {"error": {"message": None, "code": None, "type": None, "details": None}},
            "details of no objects": {"error": {"details": [1, "x", None, []]}},
            "list": [],
            "list of errors": [{"message": "x"}],
            "string": "x",
            "number": 5,
            "true": True,
            "number in detail": {"detail": 5},
            "nothing in detail": {"detail": []},
            "texts in detail": {"detail": ["x"]},
            "number in message": {"message": 5},
            "empty": b"",
            "blank": b"\n",
            "HTML": b"<!doctype html><h1>Bad gateway</h1>",
            "cut": sample("error_envelope")[:30],
            "noise": b"\xff\xfe\x00",
            "deep": b"[" * 100_000,
            "deep envelope": b'{"error":' * 50_000,
        }.items()
    ],
    (
        "details of unexpected types",
        {"detail": [{"loc": 5, "msg": {"a": 1}, "type": None}, {}, 7]},
        "Unprocessable",
        None,
        None,
        [{"field": None, "message": {"a": 1}, "type": None}, {"field": None, "message": None, "type": None}],
    ),
]


@pytest.mark.parametrize(
    ("body", "message", "code", "type_", "details"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS]
)
async def test_every_form_of_error_body_is_parsed(
    body: Any, message: str, code: str | None, type_: str | None, details: list[Any]
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"x-request-id": "req_7", "retry-after": "3", "location": "/elsewhere"}
    error = await error_of(httpx.Response(422, content=raw, headers=headers))
    assert type(error) is UnprocessableEntityError
    assert error.message.startswith(message)
    assert (error.code, error.type, error.details) == (code, type_, details)
    assert (error.request_id, error.retry_after, error.location) == ("req_7", 3.0, "/elsewhere")
    assert error.body == raw[:500]
    assert [attempt.outcome for attempt in error.attempts] == ["422"]
    assert error.request == "GET /v1/conversations/conv_1?message_limit=20"
    assert str(error).startswith(f"{error.request}: 422 {message}")


async def test_attributes_without_a_header_are_none() -> None:
    error = await error_of(httpx.Response(404, content=b""))
    assert (error.request_id, error.retry_after, error.location) == (None, None, None)


async def test_html_and_empty_bodies_are_mentioned() -> None:
    assert "HTML" in str(await error_of(httpx.Response(502, content=b" <html>")))
    assert "proxy" in str(await error_of(httpx.Response(502, content=b" <html>")))
    assert "empty body" in str(await error_of(httpx.Response(502)))


async def test_404_for_a_list_blames_the_base_url() -> None:
    client, _ = client_of(httpx.Response(404, content=b""))
    with pytest.raises(NotFoundError, match="check `base_url`") as caught:
        await client.conversations.list()
    assert " id " not in str(caught.value)
    for call in (client.conversations.get("conv_1"), client.conversations.messages("conv_1").page()):
        with pytest.raises(NotFoundError, match="The id is wrong"):
            await call


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_an_error_with_its_location(status: int) -> None:
    elsewhere = "https://other.example/v1/conversations"
    client, script = client_of(httpx.Response(status, headers={"location": elsewhere}))
    with pytest.raises(APIStatusError) as caught:
        await client.conversations.list()
    assert caught.value.location == elsewhere
    assert elsewhere in str(caught.value)
    assert len(script.requests) == 1


@given(st.integers(300, 599), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "detail", "message", "code", "type", "details", "loc", "msg", "field"]), inner), max_leaves=10))  # fmt: skip  # noqa: E501
def test_any_error_body_gives_a_status_error(status: int, body: Any) -> None:
    async def main() -> None:
        error = await error_of(httpx.Response(status, content=json.dumps(body)))
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert error.message

    anyio.run(main)
