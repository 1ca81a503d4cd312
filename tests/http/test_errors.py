"""What an error is, what it says, that it travels between processes, and that no key is in it."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle
import re
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentphone
from agentphone import (
    AgentPhoneError,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    Attempt,
    AuthenticationError,
    BadRequestError,
    Client,
    ClientClosedError,
    ConfigurationError,
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    PaginationError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    ServerError,
    StateDecodeError,
    UnprocessableEntityError,
    WebhookVerificationError,
)
from agentphone import errors as module
from tests.support.helpers import BASE, KEY, client_of, conversation, ok, sample

pytestmark = pytest.mark.anyio

# ---- The tree

TREE: dict[type[Exception], type[Exception]] = {
    AgentPhoneError: Exception,
    ConfigurationError: AgentPhoneError,
    ClientClosedError: AgentPhoneError,
    APIConnectionError: AgentPhoneError,
    APITimeoutError: APIConnectionError,
    DeadlineExceededError: APITimeoutError,
    ResponseDecodeError: AgentPhoneError,
    StateDecodeError: ResponseDecodeError,
    PaginationError: AgentPhoneError,
    WebhookVerificationError: AgentPhoneError,
    APIStatusError: AgentPhoneError,
    BadRequestError: APIStatusError,
    AuthenticationError: APIStatusError,
    PermissionDeniedError: APIStatusError,
    NotFoundError: APIStatusError,
    ConflictError: APIStatusError,
    UnprocessableEntityError: APIStatusError,
    RateLimitError: APIStatusError,
    ServerError: APIStatusError,
}
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


def public_parent(cls: type[BaseException]) -> type[BaseException]:
    """Give the nearest base that is public, or Exception."""
    return next(
        base for base in cls.__mro__[1:] if base is Exception or (base in TREE and not base.__name__.startswith("_"))
    )


def test_the_tree_in_code_is_the_tree_of_the_design() -> None:
    found = {
        cls: public_parent(cls)
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, BaseException) and not name.startswith("_")
    }
    assert found == TREE
    assert {name for name in agentphone.__all__ if name.endswith("Error")} == {cls.__name__ for cls in TREE}


def test_the_tree_drawn_in_the_docstring_names_each_error_once() -> None:
    drawn = re.findall(r"\b\w+Error\b", (module.__doc__ or "").partition("A wrong argument")[0])
    assert sorted(drawn) == sorted(cls.__name__ for cls in TREE)


def test_a_wrong_setting_is_a_value_error_too_and_a_missing_answer_no_status_error() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert not issubclass(ResponseDecodeError, APIStatusError)
    assert not issubclass(DeadlineExceededError, TimeoutError)


# ---- From an answer to an error


async def error_of(response: httpx.Response) -> APIStatusError:
    """Give the error that an answer becomes, through the client."""
    client, _ = client_of(response, max_retries=0)
    with pytest.raises(APIStatusError) as caught:
        await client.conversations.get("conv_1", message_limit=20)
    return caught.value


@pytest.mark.parametrize(("status", "cls"), STATUSES.items())
async def test_each_status_has_its_class(status: int, cls: type[APIStatusError]) -> None:
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
    # What says nothing that can be read has the status's own phrase.
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
        "complaints of surprising form",
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
async def test_each_form_of_body_gives_a_typed_error(
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


async def test_what_no_header_says_is_none() -> None:
    error = await error_of(httpx.Response(404, content=b""))
    assert (error.request_id, error.retry_after, error.location) == (None, None, None)


async def test_a_page_of_html_is_told_to_come_from_a_proxy_and_an_empty_body_to_be_empty() -> None:
    assert "HTML" in str(await error_of(httpx.Response(502, content=b" <html>")))
    assert "proxy" in str(await error_of(httpx.Response(502, content=b" <html>")))
    assert "empty body" in str(await error_of(httpx.Response(502)))


async def test_a_list_that_is_not_there_blames_the_base_url_and_no_id() -> None:
    client, _ = client_of(httpx.Response(404, content=b""))
    with pytest.raises(NotFoundError, match="check `base_url`") as caught:
        await client.conversations.list()
    assert " id " not in str(caught.value)
    for call in (client.conversations.get("conv_1"), client.conversations.messages("conv_1").page()):
        with pytest.raises(NotFoundError, match="The id is wrong"):
            await call


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_error_that_says_where_it_points_and_is_not_followed(status: int) -> None:
    elsewhere = "https://other.example/v1/conversations"
    client, script = client_of(httpx.Response(status, headers={"location": elsewhere}))
    with pytest.raises(APIStatusError) as caught:
        await client.conversations.list()
    assert caught.value.location == elsewhere
    assert elsewhere in str(caught.value)
    assert len(script.requests) == 1


@settings(deadline=None, max_examples=60)
@given(st.integers(300, 599), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "detail", "message", "code", "type", "details", "loc", "msg", "field"]), inner), max_leaves=10))  # fmt: skip  # noqa: E501
def test_any_json_with_any_status_gives_a_status_error_that_prints_and_pickles(status: int, body: Any) -> None:
    async def main() -> None:
        error = await error_of(httpx.Response(status, content=json.dumps(body)))
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert error.message

    anyio.run(main)


# ---- What it says


def made(cls: type[Any]) -> Any:
    """Make an error of a class with every attribute set."""
    if not issubclass(cls, module._RequestError):
        return cls("It is so.")
    attempts = (Attempt("503", 0.25, 0.5), Attempt("ReadTimeout", 30.0, 0.0))
    request = "PATCH /v1/conversations/conv_1"
    more: dict[str, Any] = {"request": request, "attempts": attempts}
    if issubclass(cls, APIStatusError):
        status = next((status for status, found in STATUSES.items() if found is cls), 418)
        more |= {
            "status_code": status,
            "code": "A_CODE",
            "type": "a_type",
            "details": [LIMIT],
            "retry_after": 2.5,
            "request_id": "req_7",
            "location": "/elsewhere",
            "body": b"x" * 600,
        }
    if issubclass(cls, ResponseDecodeError):
        more |= {"path": "data[3].lastMessageAt", "status_code": 200, "request_id": "req_7", "body": b"{"}
    return cls("It is so", **more)


ALL = [made(cls) for cls in TREE]
each_error = pytest.mark.parametrize("error", ALL, ids=[cls.__name__ for cls in TREE])


@each_error
@pytest.mark.parametrize(
    "again",
    [
        *(lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, 6)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pickle2", "pickle3", "pickle4", "pickle5", "copy", "deepcopy"],
)
def test_an_error_travels_with_all_its_attributes(error: Exception, again: Callable[[Exception], Exception]) -> None:
    error.add_note("seen in the worker")
    other = again(error)
    assert type(other) is type(error)
    assert vars(other) == vars(error)
    assert other.args == error.args
    assert str(other) == str(error)
    assert repr(other) == repr(error)


@each_error
def test_every_attribute_named_in_the_design_is_there(error: Exception) -> None:
    if isinstance(error, APIStatusError):
        assert (error.message, error.code, error.type, error.details) == ("It is so", "A_CODE", "a_type", [LIMIT])
        assert (error.retry_after, error.request_id, error.location) == (2.5, "req_7", "/elsewhere")
        assert error.body == b"x" * 500
    if isinstance(error, APIStatusError | APIConnectionError):
        assert [attempt.outcome for attempt in error.attempts] == ["503", "ReadTimeout"]
        assert [attempt.delay for attempt in error.attempts] == [0.5, 0.0]
    if isinstance(error, ResponseDecodeError):
        assert (error.path, error.status_code, error.request_id, error.body) == (
            *("data[3].lastMessageAt", 200, "req_7"),
            b"{",
        )


def test_a_servers_text_forges_no_line_and_steers_no_terminal() -> None:
    said = "no\nFAKE LINE \x1b[31m \ud800 \u2028 caf\u00e9"
    error = APIStatusError(said, request="GET /v1/conversations", status_code=418)
    assert error.message == said
    assert str(error).isprintable()
    assert r"no\nFAKE LINE \x1b[31m \ud800 \u2028 café" in str(error)
    decode_error = ResponseDecodeError("odd\rtext", request="GET /", path="data\n", status_code=200, body=b"\x1b\n")
    assert str(decode_error).isprintable()


@each_error
def test_the_text_names_the_request_the_facts_and_what_to_do_next(error: Exception) -> None:
    text = str(error)
    assert "It is so" in text
    assert ".." not in text.replace("data[3]", "")
    if isinstance(error, module._RequestError):
        assert text.startswith("PATCH /v1/conversations/conv_1: ")
        assert error.advice
        assert text.endswith(error.advice)
    if isinstance(error, APIConnectionError | APIStatusError):
        assert "2 attempts" in text
    if isinstance(error, APIStatusError):
        for fact in (str(error.status_code), "A_CODE", "req_7", "2.5 s", "limit: must be 1 to 100", "/elsewhere"):
            assert fact in text
    if isinstance(error, ResponseDecodeError):
        for fact in ("data[3].lastMessageAt: ", "200", "req_7", "b'{'"):
            assert fact in text


def test_each_advice_says_something_of_its_own() -> None:
    advices = [cls.advice for cls in TREE if issubclass(cls, module._RequestError)]
    assert len(set(advices)) == len(advices)
    assert "api_key" in AuthenticationError.advice
    assert "`timeout`" in APITimeoutError.advice
    assert "`deadline`" in DeadlineExceededError.advice
    assert "retry_after" in RateLimitError.advice


# ---- The key


def secret_places(error: BaseException) -> list[str]:
    """Give every text that a log, a traceback or a queue may show of an error."""
    shown = [str(error), repr(error), pickle.dumps(error).decode("latin-1"), repr(vars(error)), repr(error.__cause__)]
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    return [*shown, "".join(told.format())]


@pytest.mark.parametrize(
    "step",
    [
        httpx.Response(401, content=sample("error_envelope")),
        httpx.Response(503, content=b""),
        httpx.Response(200, content=b"{"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout(""),
    ],
    ids=["401", "503", "not JSON", "refused", "timeout"],
)
async def test_the_key_is_in_no_text_of_an_error_nor_in_the_log(
    step: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.0)
    caplog.set_level(logging.DEBUG)
    client, _ = client_of(step, max_retries=1)
    with pytest.raises(AgentPhoneError) as caught:
        await client.conversations.get("conv_1")
    assert not [text for text in secret_places(caught.value) if KEY in text]
    assert "agentphone" in {record.name for record in caplog.records}
    assert KEY not in caplog.text


async def test_the_error_says_why_it_came_in_its_cause() -> None:
    reason = httpx.ConnectError("name not known")
    client, _ = client_of(reason, max_retries=0)
    with pytest.raises(APIConnectionError, match="ConnectError: name not known") as caught:
        await client.conversations.get("conv_1")
    assert caught.value.__cause__ is reason
    assert [attempt.outcome for attempt in caught.value.attempts] == ["ConnectError"]


# ---- The caller's own exception


async def ask(conversations: Any) -> Any:
    """Make a call of either client."""
    found = conversations.get("conv_1")
    return await found if inspect.isawaitable(found) else found


def chain(error: BaseException) -> list[BaseException]:
    """Give what Python has chained to an error, without following causes."""
    found = [error]
    while (context := found[-1].__context__) is not None:
        found.append(context)
    return found


async def refuse(_: httpx.Request) -> httpx.Response:
    """Fail as the libraries below do: with an error of theirs, made of another one."""
    try:
        raise OSError  # noqa: TRY301
    except OSError:
        raise httpx.ConnectError("") from None


FAILING: dict[str, list[Any]] = {
    "a failed attempt and a success": [refuse, ok(conversation(messages=[]))],
    "a failure": [refuse],
    "a status": [httpx.Response(404, content=b"")],
    "an answer that is no JSON": [httpx.Response(200, content=b"{")],
}


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_call_leaves_the_exception_that_its_caller_is_handling_alone(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentphone._http.retry.INITIAL_BACKOFF", 0.0)
    steps = FAILING[name]
    client, script = client_of(*steps, max_retries=len(steps) - 1)

    conversations: Any = client.conversations
    if kind == "blocking":
        conversations = Client(KEY, base_url=BASE, transport=script, max_retries=len(steps) - 1).conversations
    mine, failed, before, after = KeyError("the caller's text"), None, [""], [""]
    try:
        raise mine
    except KeyError:
        before = traceback.format_exception(mine)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a blocking call on a running loop
            try:
                await ask(conversations)
            except AgentPhoneError as error:
                failed = error
        after = traceback.format_exception(mine)
    assert after == before
    assert (failed is None) == (len(steps) == 2)
    if failed is not None:
        assert "the caller's text" not in str(failed)
        assert chain(failed)[-1] is mine  # as Python chains exceptions
    if name.startswith("an answer"):
        assert "the caller's text" in "".join(traceback.format_exception(failed))
