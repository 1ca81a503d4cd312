"""Errors: their hierarchy, texts and pickles; none contains the key."""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import pickle
import re
import ssl
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import pytest

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
    SendUnconfirmedError,
    ServerError,
    StateDecodeError,
    UnprocessableEntityError,
    WebhookVerificationError,
)
from agentphone import errors as module
from tests.support.helpers import BASE, KEY, client_of, conversation, ok, sample

pytestmark = pytest.mark.anyio

# ---- Hierarchy

TREE: dict[type[Exception], type[Exception]] = {
    AgentPhoneError: Exception,
    ConfigurationError: AgentPhoneError,
    ClientClosedError: AgentPhoneError,
    APIConnectionError: AgentPhoneError,
    APITimeoutError: APIConnectionError,
    DeadlineExceededError: APITimeoutError,
    ResponseDecodeError: AgentPhoneError,
    StateDecodeError: ResponseDecodeError,
    SendUnconfirmedError: AgentPhoneError,
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
STATUS_OF: dict[type[Any], int] = {
    BadRequestError: 400,
    AuthenticationError: 401,
    PermissionDeniedError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    UnprocessableEntityError: 422,
    RateLimitError: 429,
    ServerError: 500,
}
LIMIT = {"field": "limit", "message": "must be 1 to 100", "type": "value_error"}


def public_parent(cls: type[BaseException]) -> type[BaseException]:
    """Return the nearest public base, or Exception."""
    return next(
        base for base in cls.__mro__[1:] if base is Exception or (base in TREE and not base.__name__.startswith("_"))
    )


def test_error_hierarchy() -> None:
    found = {
        cls: public_parent(cls)
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, BaseException) and not name.startswith("_")
    }
    assert found == TREE
    assert {name for name in agentphone.__all__ if name.endswith("Error")} == {cls.__name__ for cls in TREE}


def test_docstring_lists_every_error_once() -> None:
    drawn = re.findall(r"\b\w+Error\b", (module.__doc__ or "").partition("A wrong argument")[0])
    assert sorted(drawn) == sorted(cls.__name__ for cls in TREE)


def test_configuration_error_is_a_value_error() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert not issubclass(ResponseDecodeError, APIStatusError)
    assert not issubclass(DeadlineExceededError, TimeoutError)


# ---- Attributes and text


def made(cls: type[Any]) -> Any:
    """Create an error of a class with every attribute set."""
    if not issubclass(cls, module._RequestError):
        return cls("It is so.")
    attempts = (Attempt("503", 0.25, 0.5), Attempt("ReadTimeout", 30.0, 0.0))
    request = "PATCH /v1/conversations/conv_1"
    more: dict[str, Any] = {"request": request, "attempts": attempts}
    if issubclass(cls, APIStatusError):
        more |= {
            "status_code": STATUS_OF.get(cls, 418),
            "code": "A_CODE",
            "type": "a_type",
            "details": [LIMIT],
            "retry_after": 2.5,
            "request_id": "req_7",
            "location": "/elsewhere",
            "body": b"x" * 600,
        }
    if cls is SendUnconfirmedError:
        more |= {"since": datetime(2026, 1, 2, tzinfo=UTC), "status_code": 503}
    if issubclass(cls, ResponseDecodeError):
        more |= {"path": "data[3].lastMessageAt", "status_code": 200, "request_id": "req_7", "body": b"{"}
    return cls("It is so", **more)


ALL = [made(cls) for cls in TREE]
each_error = pytest.mark.parametrize("error", ALL, ids=[cls.__name__ for cls in TREE])


@each_error
def test_copies_and_pickles_keep_all_attributes(error: Exception) -> None:
    error.add_note("seen in the worker")
    pickled = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, 6)]
    for other in (*pickled, copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert vars(other) == vars(error)
        assert other.args == error.args
        assert str(other) == str(error)
        assert repr(other) == repr(error)


@each_error
def test_errors_have_their_documented_attributes(error: Exception) -> None:
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


def test_control_characters_are_escaped() -> None:
    text = "no\nFAKE LINE \x1b[31m \ud800 \u2028 caf\u00e9"
    error = APIStatusError(text, request="GET /v1/conversations", status_code=418)
    assert error.message == text
    assert str(error).isprintable()
    assert r"no\nFAKE LINE \x1b[31m \ud800 \u2028 café" in str(error)
    decode_error = ResponseDecodeError("odd\rtext", request="GET /", path="data\n", status_code=200, body=b"\x1b\n")
    assert str(decode_error).isprintable()


@each_error
def test_text_has_the_request_the_facts_and_the_advice(error: Exception) -> None:
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


def test_every_class_has_its_own_advice() -> None:
    advices = [cls.advice for cls in TREE if issubclass(cls, module._RequestError)]
    assert len(set(advices)) == len(advices)
    assert "api_key" in AuthenticationError.advice
    assert "`timeout`" in APITimeoutError.advice
    assert "`deadline`" in DeadlineExceededError.advice
    assert "retry_after" in RateLimitError.advice


# ---- The key


def secret_places(error: BaseException) -> list[str]:
    """Return every text of an error that a log, a traceback or a queue may show."""
    shown = [str(error), repr(error), pickle.dumps(error).decode("latin-1"), repr(vars(error)), repr(error.__cause__)]
    formatted = traceback.TracebackException.from_exception(error, capture_locals=True)
    return [*shown, "".join(formatted.format())]


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
async def test_no_error_or_log_contains_the_key(
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


async def test_connection_error_has_the_original_as_its_cause() -> None:
    reason = httpx.ConnectError("name not known")
    client, _ = client_of(reason, max_retries=0)
    with pytest.raises(APIConnectionError, match="ConnectError: name not known") as caught:
        await client.conversations.get("conv_1")
    assert caught.value.__cause__ is reason
    assert [attempt.outcome for attempt in caught.value.attempts] == ["ConnectError"]


# ---- The caller's exception


async def ask(conversations: Any) -> Any:
    """Make a call with either client."""
    found = conversations.get("conv_1")
    return await found if inspect.isawaitable(found) else found


def chain(error: BaseException) -> list[BaseException]:
    """Return an error and its contexts, without following causes."""
    found = [error]
    while (context := found[-1].__context__) is not None:
        found.append(context)
    return found


async def fail(_: httpx.Request) -> httpx.Response:
    """Fail as httpx does: with an error that has another one as its context."""
    try:
        raise OSError  # noqa: TRY301
    except OSError:
        raise httpx.ConnectError("") from None


def failed_before() -> OSError:
    """Return an exception with frames, as a transport keeps of an earlier failure."""
    try:
        raise OSError("an earlier failure")  # noqa: TRY301
    except OSError as error:
        return error


async def test_exception_raised_before_the_call_keeps_its_frames() -> None:
    earlier = failed_before()

    async def fail_because_of_it(_: httpx.Request) -> httpx.Response:
        try:
            raise ValueError("a failure of this call")  # noqa: TRY301
        except ValueError as error:
            error.__cause__ = earlier
            raise httpx.ConnectError("no connection") from error

    client, _ = client_of(fail_because_of_it, max_retries=0)
    with pytest.raises(APIConnectionError) as caught:
        await client.conversations.get("conv_1")
    own = caught.value.__cause__
    assert own is not None
    assert isinstance(own.__cause__, ValueError)
    assert own.__cause__.__cause__ is earlier
    assert (own.__traceback__, own.__cause__.__traceback__) == (None, None)
    assert "failed_before" in "".join(traceback.format_exception(earlier))


FAILING_LIBRARIES: dict[str, Callable[[], object]] = {
    "httpx": lambda: httpx.URL("http://host:port"),
    "asyncio": lambda: asyncio.run_coroutine_threadsafe(cast("Any", None), cast("Any", None)),
    "ssl": lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_alpn_protocols(["x" * 256]),
}


@pytest.mark.parametrize("library", FAILING_LIBRARIES)
async def test_exception_of_a_network_library_loses_its_frames(library: str) -> None:
    """They may hold what was sent, with the key, also where the exception was raised elsewhere and kept."""
    with pytest.raises((httpx.InvalidURL, TypeError, ssl.SSLError)) as raised:
        FAILING_LIBRARIES[library]()
    earlier = raised.value
    assert earlier.__traceback__ is not None

    async def fail_because_of_it(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no connection") from earlier

    client, _ = client_of(fail_because_of_it, max_retries=0)
    with pytest.raises(APIConnectionError):
        await client.conversations.get("conv_1")
    assert earlier.__traceback__ is None


FAILING: dict[str, list[Any]] = {
    "a failed attempt and a success": [fail, ok(conversation(messages=[]))],
    "a failure": [fail],
    "a status": [httpx.Response(404, content=b"")],
    "a response that is not JSON": [httpx.Response(200, content=b"{")],
}


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_exception_handled_by_the_caller_is_not_changed(
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
    if name.startswith("a response"):
        assert "the caller's text" in "".join(traceback.format_exception(failed))
