"""The headers of a delivery, in the form of every framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import starlette.datastructures
from django.http.request import HttpHeaders
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import ResponseDecodeError, WebhookVerificationError
from tests.support.long import count
from tests.webhooks.deliveries import BODY, HEADERS, NOW, SIGNATURE, WEBHOOK, assert_pickles, environ

FORMS: dict[str, Callable[[dict[str, str]], Any]] = {
    "dict": dict,
    "lower case": lambda headers: {name.lower(): value for name, value in headers.items()},
    "upper case": lambda headers: {name.upper(): value for name, value in headers.items()},
    "pairs": lambda headers: list(headers.items()),
    "generator": lambda headers: (pair for pair in headers.items()),
    "pairs of bytes, as in ASGI": lambda headers: [(n.lower().encode(), v.encode()) for n, v in headers.items()],
    "Starlette": starlette.datastructures.Headers,
    "httpx": httpx.Headers,
    "Django": lambda headers: HttpHeaders(environ(headers)),  # request.headers
    "WSGI environ": environ,
    "spaces around values": lambda headers: {name: f" {value}\t" for name, value in headers.items()},
    "unrelated headers": lambda headers: {**headers, "Host": 5, b"X": None, 5: 5, None: [], "X-Webhook": "y"},
}


@pytest.mark.parametrize("form", FORMS)
def test_headers_of_every_framework_are_accepted(form: str) -> None:
    assert WEBHOOK.parse(BODY, FORMS[form](HEADERS)).delivery_id == "dlv_1"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("missing", ["X-Webhook-Signature", "X-Webhook-Timestamp"])
def test_missing_header_is_named(form: str, missing: str) -> None:
    headers = {name: value for name, value in HEADERS.items() if name != missing}
    with pytest.raises(WebhookVerificationError, match=f"The header {missing} is missing"):
        WEBHOOK.parse(BODY, FORMS[form](headers))


@pytest.mark.parametrize("form", FORMS)
def test_delivery_id_is_none_without_the_header(form: str) -> None:
    assert WEBHOOK.parse(BODY, FORMS[form]({**HEADERS, "X-Webhook-ID": ""})).delivery_id is None
    headers = {name: value for name, value in HEADERS.items() if name != "X-Webhook-ID"}
    assert WEBHOOK.parse(BODY, FORMS[form](headers)).delivery_id is None


@pytest.mark.parametrize("name", HEADERS)
def test_duplicate_header_is_rejected_even_if_equal(name: str) -> None:
    doubled = [*HEADERS.items(), (name, HEADERS[name])]
    raw = [(name.lower().encode(), value.encode()) for name, value in doubled]
    rejected: list[Any] = [
        doubled,
        raw,
        starlette.datastructures.Headers(raw=raw),
        httpx.Headers(doubled),
        HEADERS | {name.lower(): HEADERS[name]},
        HEADERS | environ({name: HEADERS[name]}),
        HEADERS | {name: f"{HEADERS[name]}, {HEADERS[name]}"},
        environ(HEADERS | {name: f"{HEADERS[name]},{HEADERS[name]}"}),
    ]
    for headers in rejected:
        with pytest.raises(WebhookVerificationError, match=name):
            WEBHOOK.parse(BODY, headers)


@pytest.mark.parametrize("delivery_id", ["a b\n", "a\x00", "\u00e9", "\ud800", "a,b", "\x1b[31m"])
def test_invalid_delivery_id_is_rejected(delivery_id: str) -> None:
    with pytest.raises(WebhookVerificationError, match="X-Webhook-ID is not a single id"):
        WEBHOOK.parse(BODY, HEADERS | {"X-Webhook-ID": delivery_id})


@pytest.mark.parametrize("value", [None, 5, [SIGNATURE], (SIGNATURE,), {}])
def test_header_that_is_not_text_is_rejected(value: Any) -> None:
    with pytest.raises(WebhookVerificationError, match=f"is not text, but {type(value).__name__}"):
        WEBHOOK.parse(BODY, HEADERS | {"X-Webhook-Signature": value})


@pytest.mark.parametrize("headers", [None, 5, [1, 2], [("a", "b", "c")], ["X-Webhook-ID"]])
def test_invalid_headers_argument_is_a_type_error(headers: Any) -> None:
    with pytest.raises(TypeError, match=f"headers must be a mapping .*, got {type(headers).__name__}"):
        WEBHOOK.parse(BODY, headers)


NAMES = [*HEADERS, *map(str.lower, HEADERS), *environ(HEADERS)]
ANY_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(NAMES) | st.sampled_from(NAMES).map(str.encode) | st.text() | st.binary() | st.none(),
        st.sampled_from([*HEADERS.values(), "", str(NOW + 9999)]) | st.text() | st.binary() | st.none() | st.integers(),
    ),
    max_size=6,
)


@settings(max_examples=count(100, 3000))
@given(body=st.just(BODY) | st.binary(), headers=ANY_HEADERS, as_dict=st.booleans())
def test_any_bytes_and_headers_raise_only_two_errors(
    body: bytes, headers: list[tuple[Any, Any]], as_dict: bool
) -> None:
    try:
        event = WEBHOOK.parse(body, dict(headers) if as_dict else headers)
    except (WebhookVerificationError, ResponseDecodeError) as error:
        assert_pickles(error)
    else:
        assert (body, event.type) == (BODY, "agent.message")
