"""Webhooks: what is AgentPhone's and of now is read whole; everything else is one of two errors."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import starlette.datastructures
from attrs import define, frozen
from django.http.request import HttpHeaders
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import (
    ConfigurationError,
    ResponseDecodeError,
    StateDecodeError,
    WebhookVerificationError,
    _delivery_log,
    _events,
    webhooks,
)
from agentphone.webhooks import (
    CallEndedEvent,
    DeliveryLog,
    Event,
    HistoryItem,
    MessageEvent,
    ReactionEvent,
    SQLiteDeliveryLog,
    UnknownEvent,
    VoiceEvent,
    Webhook,
)
from tests.support.helpers import SAMPLES, sample
from tests.support.processes import ENVIRONMENT, SECONDS

SECRET = "whsec_c2FtcGxlLXNlY3JldA"
OTHER = "whsec_bm90LXRoaXMtb25l"
NOW = 1_736_942_400
NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)
WEBHOOK = Webhook(SECRET, clock=lambda: NOW)

BODY = sample("webhook_message")
SIGNATURE = "sha256=14cad9068b704ca711f2ae08674f35bd8d99b05ae78c3399f6734e8bf4e74256"
HEADERS = {"X-Webhook-Signature": SIGNATURE, "X-Webhook-Timestamp": str(NOW), "X-Webhook-ID": "dlv_1"}


def signed(payload: Any) -> tuple[bytes, dict[str, str]]:
    """Give a delivery of any payload, bytes as they are."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return body, WEBHOOK.sign(body)


def parse(payload: Any) -> Event:
    """Parse a delivery of any payload, bytes as they are."""
    return WEBHOOK.parse(*signed(payload))


def payload(name: str, data: Any = None, **changes: Any) -> dict[str, Any]:
    """Give a sample's payload, changed under the API's names, those of `data` apart."""
    good: dict[str, Any] = json.loads(sample(f"webhook_{name}"))
    return good | changes | {"data": {**good["data"], **(data or {})}}


# ---- Signatures


def test_signatures_are_those_that_openssl_makes() -> None:
    lines = (SAMPLES / "webhook_signatures.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 16
    for line in lines:
        name, timestamp, secret, digest = line.split(" ")
        body = (SAMPLES / name).read_bytes()
        webhook = Webhook(secret, clock=lambda timestamp=timestamp: float(timestamp))  # type: ignore[misc]
        headers = {"X-Webhook-Signature": f"sha256={digest}", "X-Webhook-Timestamp": timestamp}
        webhook.verify(body, headers)
        assert headers.items() <= webhook.sign(body).items()


def test_the_command_beside_the_signatures_makes_them() -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here")
    script = SAMPLES / "webhook_signatures.sh"
    done = subprocess.run(["sh", str(script)], capture_output=True, check=True, timeout=SECONDS)
    assert done.stdout == (SAMPLES / "webhook_signatures.txt").read_bytes()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_good_delivery_is_let_pass_whatever_holds_its_bytes(kind: type[Any]) -> None:
    WEBHOOK.verify(kind(BODY), HEADERS)
    assert WEBHOOK.parse(kind(BODY), HEADERS) == WEBHOOK.parse(BODY, HEADERS)


@pytest.mark.parametrize("place", [0, 1, len(BODY) // 2, len(BODY) - 1])
def test_a_body_that_was_tampered_with_is_refused(place: int) -> None:
    tampered = BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :]
    for body in (tampered, BODY[:place] + BODY[place + 1 :], BODY[:place] + b" " + BODY[place:]):
        with pytest.raises(WebhookVerificationError, match="matches none of the secrets"):
            WEBHOOK.parse(body, HEADERS)


def test_a_body_that_was_parsed_and_printed_again_is_refused_and_the_text_says_so() -> None:
    with pytest.raises(WebhookVerificationError, match="parsed and encoded"):
        WEBHOOK.parse(json.dumps(json.loads(BODY)).encode(), HEADERS)


def test_a_signature_of_another_secret_is_refused() -> None:
    with pytest.raises(WebhookVerificationError, match="matches none of the secrets"):
        WEBHOOK.verify(BODY, Webhook(OTHER, clock=lambda: NOW).sign(BODY))


def test_a_signature_of_another_instant_is_refused() -> None:
    with pytest.raises(WebhookVerificationError, match="matches none of the secrets"):
        WEBHOOK.verify(BODY, HEADERS | {"X-Webhook-Timestamp": str(NOW + 1)})


def test_while_secrets_rotate_each_of_them_is_good_and_the_first_signs() -> None:
    rotating = Webhook([SECRET, OTHER], clock=lambda: NOW)
    for secret in (SECRET, OTHER):
        rotating.verify(BODY, Webhook(secret, clock=lambda: NOW).sign(BODY))
    Webhook(SECRET, clock=lambda: NOW).verify(BODY, rotating.sign(BODY))
    with pytest.raises(WebhookVerificationError):
        rotating.verify(BODY, Webhook("whsec_third", clock=lambda: NOW).sign(BODY))
    with pytest.raises(WebhookVerificationError):
        Webhook([OTHER], clock=lambda: NOW).verify(BODY, HEADERS)


@pytest.mark.parametrize(
    "signature",
    [
        "",
        SIGNATURE.removeprefix("sha256="),
        SIGNATURE.replace("sha256", "sha1"),
        SIGNATURE.replace("sha256", "SHA256"),
        SIGNATURE[:-1],
        SIGNATURE + "0",
        SIGNATURE[:-1] + "g",
        SIGNATURE[:-1] + "\uff16",
        SIGNATURE[:20] + " " + SIGNATURE[20:],
        SIGNATURE + "\n",
        f"{SIGNATURE}, {SIGNATURE}",
        f"{SIGNATURE},{SIGNATURE}",
        f"sha256={SIGNATURE}",
        "sha256=",
        "sha256=\u00e9",
    ],
)
def test_a_signature_of_another_form_is_refused(signature: str) -> None:
    with pytest.raises(WebhookVerificationError, match="`sha256=` and 64 hexadecimal digits"):
        WEBHOOK.verify(BODY, HEADERS | {"X-Webhook-Signature": signature})


def test_the_digits_of_a_signature_may_be_capitals() -> None:
    WEBHOOK.verify(BODY, HEADERS | {"X-Webhook-Signature": "sha256=" + SIGNATURE[7:].upper()})


# ---- Time


@pytest.mark.parametrize("offset", [-300, -299.5, 0, 299.5, 300])
def test_a_delivery_within_the_tolerance_is_let_pass_on_both_sides(offset: float) -> None:
    Webhook(SECRET, clock=lambda: NOW + offset).verify(BODY, HEADERS)


def test_a_stale_delivery_is_refused_and_its_age_told() -> None:
    with pytest.raises(WebhookVerificationError, match=r"signed 412 s ago, and 300 s are allowed.*clock"):
        Webhook(SECRET, clock=lambda: NOW + 412).verify(BODY, HEADERS)


def test_a_delivery_from_the_future_is_refused() -> None:
    with pytest.raises(WebhookVerificationError, match="signed 412 s in the future, and 60 s are allowed"):
        Webhook(SECRET, tolerance=60, clock=lambda: NOW - 412).verify(BODY, HEADERS)


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "nan", "inf", "-1", "+1", "1736942400.0", "1.7e9", "0x10", "1_736_942_400", "17369 42400"),
        *("1736942400\n", "\u0661\u0667\u0663\u0666\u0669\u0664\u0662\u0664\u0660\u0660", "\u00b2", "9" * 13),
        *("9" * 5000, "1736942400, 1736942400", "1736942400,1736942400", "\x001736942400"),
    ],
)
def test_a_timestamp_that_is_no_plain_number_is_refused_though_it_is_signed(text: str) -> None:
    digest = hmac.new(SECRET.encode(), f"{text}.".encode() + BODY, hashlib.sha256).hexdigest()
    headers = {"X-Webhook-Signature": f"sha256={digest}", "X-Webhook-Timestamp": text}
    with pytest.raises(WebhookVerificationError, match="not a whole number of Unix seconds"):
        WEBHOOK.verify(BODY, headers)


def test_a_clock_that_fails_lets_nothing_pass() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET, clock=lambda: float("nan")).verify(BODY, HEADERS)


def test_signing_is_for_now_or_for_the_instant_given_with_an_id_of_its_own() -> None:
    first, second = WEBHOOK.sign(BODY), WEBHOOK.sign(BODY, timestamp=NOW - 10.5)
    assert list(first) == ["X-Webhook-Signature", "X-Webhook-Timestamp", "X-Webhook-ID"]
    assert (first["X-Webhook-Timestamp"], second["X-Webhook-Timestamp"]) == (str(NOW), str(NOW - 11))
    assert first["X-Webhook-ID"] != second["X-Webhook-ID"]
    for headers in (first, second):
        assert WEBHOOK.parse(BODY, headers).delivery_id == headers["X-Webhook-ID"]


def test_by_default_now_is_now() -> None:
    webhook = Webhook(SECRET)
    webhook.verify(BODY, webhook.sign(BODY))
    with pytest.raises(WebhookVerificationError, match="ago"):
        webhook.verify(BODY, webhook.sign(BODY, timestamp=NOW))


# ---- Headers


def environ(headers: dict[str, str]) -> dict[str, Any]:
    """Give a WSGI environ with these headers, and with what else is in one."""
    names = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}
    return {"wsgi.input": None, "SERVER_PORT": "80", "HTTP_HOST": "agent.example", "wsgi.version": (1, 0), **names}


FORMS: dict[str, Callable[[dict[str, str]], Any]] = {
    "a dict": dict,
    "lower case": lambda headers: {name.lower(): value for name, value in headers.items()},
    "capitals": lambda headers: {name.upper(): value for name, value in headers.items()},
    "pairs": lambda headers: list(headers.items()),
    "a generator": lambda headers: (pair for pair in headers.items()),
    "ASGI's pairs of bytes": lambda headers: [(n.lower().encode(), v.encode()) for n, v in headers.items()],
    "Starlette": starlette.datastructures.Headers,
    "httpx": httpx.Headers,
    "Django's headers": lambda headers: HttpHeaders(environ(headers)),  # request.headers
    "WSGI, and Django's META": environ,
    "blanks around": lambda headers: {name: f" {value}\t" for name, value in headers.items()},
    "others besides": lambda headers: {**headers, "Host": 5, b"X": None, 5: 5, None: [], "X-Webhook": "y"},
}


@pytest.mark.parametrize("form", FORMS)
def test_headers_of_every_framework_are_read(form: str) -> None:
    assert WEBHOOK.parse(BODY, FORMS[form](HEADERS)).delivery_id == "dlv_1"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("missing", ["X-Webhook-Signature", "X-Webhook-Timestamp"])
def test_a_missing_header_is_named(form: str, missing: str) -> None:
    headers = {name: value for name, value in HEADERS.items() if name != missing}
    with pytest.raises(WebhookVerificationError, match=f"The header {missing} is missing"):
        WEBHOOK.parse(BODY, FORMS[form](headers))


@pytest.mark.parametrize("form", FORMS)
def test_without_a_delivery_id_there_is_none(form: str) -> None:
    assert WEBHOOK.parse(BODY, FORMS[form]({**HEADERS, "X-Webhook-ID": ""})).delivery_id is None
    headers = {name: value for name, value in HEADERS.items() if name != "X-Webhook-ID"}
    assert WEBHOOK.parse(BODY, FORMS[form](headers)).delivery_id is None


@pytest.mark.parametrize("name", HEADERS)
def test_a_doubled_header_is_refused_even_when_both_are_equal(name: str) -> None:
    doubled = [*HEADERS.items(), (name, HEADERS[name])]
    raw = [(name.lower().encode(), value.encode()) for name, value in doubled]
    refused: list[Any] = [
        doubled,
        raw,
        starlette.datastructures.Headers(raw=raw),
        httpx.Headers(doubled),
        HEADERS | {name.lower(): HEADERS[name]},
        HEADERS | environ({name: HEADERS[name]}),
        HEADERS | {name: f"{HEADERS[name]}, {HEADERS[name]}"},
        environ(HEADERS | {name: f"{HEADERS[name]},{HEADERS[name]}"}),
    ]
    for headers in refused:
        with pytest.raises(WebhookVerificationError, match=name):
            WEBHOOK.parse(BODY, headers)


@pytest.mark.parametrize("delivery_id", ["a b\n", "a\x00", "\u00e9", "\ud800", "a,b", "\x1b[31m"])
def test_a_delivery_id_that_could_not_be_one_is_refused(delivery_id: str) -> None:
    with pytest.raises(WebhookVerificationError, match="X-Webhook-ID is not a single id"):
        WEBHOOK.parse(BODY, HEADERS | {"X-Webhook-ID": delivery_id})


@pytest.mark.parametrize("value", [None, 5, [SIGNATURE], (SIGNATURE,), {}])
def test_a_header_that_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(WebhookVerificationError, match="is not text"):
        WEBHOOK.parse(BODY, HEADERS | {"X-Webhook-Signature": value})


@pytest.mark.parametrize("headers", [None, 5, [1, 2], [("a", "b", "c")], ["X-Webhook-ID"]])
def test_what_are_no_headers_is_a_type_error(headers: Any) -> None:
    with pytest.raises(TypeError, match="headers must be a mapping"):
        WEBHOOK.parse(BODY, headers)


# ---- What is wrong in the code that calls


def locals_of(error: BaseException) -> str:
    """Give what a traceback with locals shows of our frames."""
    frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
    told = [str(frame.locals) for frame in frames if frame.filename == webhooks.__file__]
    assert told
    return "".join(told)


@pytest.mark.parametrize("body", [BODY.decode(), json.loads(BODY), None, 5, [], Path()])
def test_a_body_that_is_not_bytes_is_a_type_error_that_says_what_to_pass(body: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: WEBHOOK.parse(body, HEADERS),
        lambda: WEBHOOK.verify(body, HEADERS),
        lambda: WEBHOOK.sign(body),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=rf"got {type(body).__name__}: .*request\.body .*await request\.body\(\)"):
            call()


@pytest.mark.parametrize(
    ("secrets", "error", "what"),
    [
        ("", ConfigurationError, "empty"),
        ([], ConfigurationError, "empty"),
        ((), ConfigurationError, "empty"),
        ([SECRET, ""], ConfigurationError, "empty"),
        (f"{SECRET}\n", ConfigurationError, "strip"),
        (f" {SECRET}", ConfigurationError, "strip"),
        ([SECRET, f"{SECRET}\r"], ConfigurationError, "strip"),
        (f"{SECRET}\ud800", ConfigurationError, "character"),
        (None, TypeError, "NoneType"),
        (5, TypeError, "int"),
        (SECRET.encode(), TypeError, "bytes"),
        ([SECRET, None], TypeError, "NoneType"),
        ([SECRET.encode()], TypeError, "bytes"),
    ],
)
def test_a_secret_that_cannot_be_one_is_refused_at_construction_and_not_told(
    secrets: Any, error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what) as caught:
        Webhook(secrets)
    assert SECRET not in locals_of(caught.value) + str(caught.value)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"tolerance": 0}, ConfigurationError),
        ({"tolerance": -1}, ConfigurationError),
        ({"tolerance": float("nan")}, ConfigurationError),
        ({"tolerance": float("inf")}, ConfigurationError),
        ({"tolerance": None}, TypeError),
        ({"tolerance": "300"}, TypeError),
        ({"tolerance": True}, TypeError),
        ({"clock": 5}, TypeError),
        ({"clock": None}, TypeError),
    ],
)
def test_a_setting_that_cannot_be_is_refused_at_construction(setting: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(setting))):
        Webhook(SECRET, **setting)


def test_neither_the_secret_nor_the_right_signature_is_in_anything_that_is_shown() -> None:
    tampered = BODY.replace(b"Maya", b"Mara")
    right = WEBHOOK.sign(tampered)["X-Webhook-Signature"][7:]
    shown = [repr(WEBHOOK), str(WEBHOOK)]
    late = Webhook([SECRET, OTHER], clock=lambda: NOW + 999)
    attempts: list[tuple[Webhook, bytes, dict[str, str]]] = [
        (WEBHOOK, tampered, HEADERS),
        (late, BODY, HEADERS),
        (WEBHOOK, BODY, {}),
        (WEBHOOK, BODY, HEADERS | {"X-Webhook-Signature": "x"}),
        (WEBHOOK, *signed({"event": 5})),
    ]
    for webhook, body, headers in attempts:
        with pytest.raises((WebhookVerificationError, ResponseDecodeError)) as caught:
            webhook.parse(body, headers)
        shown += [
            locals_of(caught.value),
            str(caught.value),
            repr(vars(caught.value)),
            pickle.dumps(caught.value).decode("latin-1"),
        ]
    text = "".join(shown)
    assert SECRET not in text
    assert OTHER not in text
    assert right not in text
    assert right.upper() not in text
    assert repr(bytes.fromhex(right)) not in text


# ---- Events


def test_a_text_becomes_a_message_event() -> None:
    assert WEBHOOK.parse(BODY, HEADERS) == MessageEvent(
        type="agent.message",
        delivery_id="dlv_1",
        channel="sms",
        timestamp=datetime(2025, 1, 15, 12, 0, 1, tzinfo=UTC),
        agent_id="agt_abc123",
        conversation_state={"customerName": "Maya", "orderId": "ORD-12345"},
        recent_history=(
            HistoryItem(
                content="Hello", direction="outbound", channel="sms", at=datetime(2025, 1, 15, 11, 59, tzinfo=UTC)
            ),
            HistoryItem(
                direction="inbound",
                channel="mms",
                at=datetime(2025, 1, 15, 11, 59, 30, tzinfo=UTC),
                extra={"mediaUrl": "https://media.example/1.jpg"},
            ),
        ),
        conversation_id="conv_def456",
        message_id="msg_003",
        number_id="num_xyz789",
        from_number="+15559876543",
        to_number="+15551234567",
        text="Wo ist mein Päckchen? 📦",
        media_url=None,
        direction="inbound",
        received_at=datetime(2025, 1, 15, 12, 0, 0, 250_000, tzinfo=UTC),
        extra={"test": True, "data": {"segments": 2}},
    )


def test_a_turn_of_a_call_becomes_a_voice_event() -> None:
    event = parse(sample("webhook_voice"))
    assert event == VoiceEvent(
        type="agent.message",
        delivery_id=event.delivery_id,
        channel="voice",
        timestamp=datetime(2025, 1, 15, 14, 0, 5, tzinfo=UTC),
        agent_id="agt_abc123",
        call_id="call_abc123",
        number_id="num_xyz789",
        from_number="+15559876543",
        to_number="+15551234567",
        status="in-progress",
        transcript="Where is my parcel",
        confidence=0.95,
        direction="inbound",
    )


@pytest.mark.parametrize(
    ("name", "cls", "data"),
    [
        ("reaction", ReactionEvent, {"conversationId": "conv_def456", "reaction": "like"}),
        ("call_ended", CallEndedEvent, {"callId": "call_abc123", "seconds": 175}),
    ],
)
def test_of_the_other_known_events_data_is_kept_as_received(name: str, cls: type[Event], data: Any) -> None:
    event = parse(sample(f"webhook_{name}"))
    assert type(event) is cls
    assert event.type == f"agent.{name}"
    assert event.extra == {"data": data}
    assert event.recent_history == ()
    odds: list[Any] = [None, [], 5, "text", {"from": 5}]
    for odd in odds:
        assert parse(payload(name) | {"data": odd}).extra == {"data": odd}


def test_an_event_of_an_unknown_type_keeps_everything() -> None:
    raw = {"event": "agent.levitated", "timestamp": "2025-01-15T12:00:00Z", "data": {"metres": 2}, "new": [1]}
    event = parse(raw)
    assert event == UnknownEvent(
        type="agent.levitated",
        delivery_id=event.delivery_id,
        timestamp=NOON,
        extra={"data": {"metres": 2}, "new": [1]},
    )
    assert type(parse({"event": "agent.levitated", "timestamp": "2025-01-15T12:00:00Z"})) is UnknownEvent


def test_fields_of_one_name_on_both_levels_are_both_kept() -> None:
    event = parse(payload("message", {"new": 1, "agentId": 2}, new=3, data2=4))
    assert event.extra == {"test": True, "new": 3, "data2": 4, "data": {"segments": 2, "new": 1, "agentId": 2}}


OPTIONAL = {
    "message": (
        ["channel", "agentId", "conversationState", "recentHistory"],
        ["messageId", "numberId", "message", "mediaUrl", "direction", "receivedAt"],
    ),
    "voice": (
        ["agentId", "conversationState", "recentHistory"],
        ["numberId", "status", "transcript", "confidence", "direction"],
    ),
}
REQUIRED = {
    "message": (["event", "timestamp", "data"], ["conversationId", "from", "to"]),
    "voice": (["event", "timestamp", "data"], ["callId", "from", "to"]),
}


def without(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """Give an object without one of its fields."""
    return {key: value for key, value in raw.items() if key != name}


@pytest.mark.parametrize("kind", OPTIONAL)
def test_what_may_be_null_or_absent_is_no_error(kind: str) -> None:
    outer, inner = OPTIONAL[kind]
    cls = {"message": MessageEvent, "voice": VoiceEvent}[kind]
    raw = payload(kind)
    for name in outer:
        for changed in (without(raw, name), raw | {name: None}):
            assert type(parse(changed)) is cls
    for name in inner:
        for data in (without(raw["data"], name), raw["data"] | {name: None}):
            assert type(parse(raw | {"data": data})) is cls


@pytest.mark.parametrize("kind", REQUIRED)
def test_what_must_be_there_is_named_by_its_path(kind: str) -> None:
    outer, inner = REQUIRED[kind]
    raw = payload(kind)
    wrong = [(without(raw, name), name) for name in outer]
    wrong += [(raw | {name: None}, name) for name in outer]
    wrong += [(raw | {"data": without(raw["data"], name)}, f"data.{name}") for name in inner]
    wrong += [(raw | {"data": raw["data"] | {name: None}}, f"data.{name}") for name in inner]
    for changed, path in wrong:
        with pytest.raises(ResponseDecodeError) as caught:
            parse(changed)
        assert caught.value.path == path


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        (payload("message", {"from": 5}), "data.from"),
        (payload("message", {"message": ["x"]}), "data.message"),
        (payload("message", {"mediaUrl": {}}), "data.mediaUrl"),
        (payload("message", {"receivedAt": "yesterday"}), "data.receivedAt"),
        (payload("voice", {"confidence": "high"}), "data.confidence"),
        (payload("voice", {"confidence": True}), "data.confidence"),
        (payload("message", agentId=5), "agentId"),
        (payload("message", timestamp=1736942400), "timestamp"),
        (payload("reaction", timestamp="soon"), "timestamp"),
        (payload("message", conversationState="x"), "conversationState"),
        (payload("message", conversationState=[]), "conversationState"),
        (payload("message", recentHistory={}), "recentHistory"),
        (payload("message", recentHistory=[{"at": "2025-01-15T12:00:00Z"}, {"at": 5}]), "recentHistory[1].at"),
        (payload("message", recentHistory=[5]), "recentHistory[0]"),
        (payload("message", channel=5), "channel"),
        (payload("message", event=["agent.message"]), "event"),
        ([], ""),
        (5, ""),
        (None, ""),
    ],
)
def test_a_field_of_another_type_is_refused_by_its_path(changed: Any, path: str) -> None:
    with pytest.raises(ResponseDecodeError) as caught:
        parse(changed)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"NaN",
        b'{"event":NaN}',
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{}{}",
    ],
)
def test_a_signed_body_that_is_not_json_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(ResponseDecodeError) as caught:
        parse(body)
    assert (caught.value.path, caught.value.body) == ("", body[:500])


def test_data_may_be_nested_as_deeply_as_json_is_read() -> None:
    deep: Any = None
    for _ in range(300):
        deep = [deep]
    assert parse(payload("message", {"deep": deep})).extra["data"]["deep"] == deep


def test_a_body_of_ten_megabytes_is_read_and_a_tampered_one_refused() -> None:
    body, headers = signed(payload("message", {"message": "x" * 10_000_000}))
    event = WEBHOOK.parse(body, headers)
    assert isinstance(event, MessageEvent)
    assert event.text is not None
    assert len(event.text) == 10_000_000
    with pytest.raises(WebhookVerificationError):
        WEBHOOK.parse(body[:-1] + b" ", headers)
    with pytest.raises(ResponseDecodeError) as caught:
        parse(b"[" + body)
    assert len(pickle.dumps(caught.value)) < 5000


def test_the_decode_error_says_what_to_do_with_a_webhook_and_travels() -> None:
    body, headers = signed(payload("message", {"from": 5}))
    with pytest.raises(ResponseDecodeError) as caught:
        WEBHOOK.parse(body, headers | {"X-Webhook-ID": "dlv_7"})
    error = caught.value
    assert (error.status_code, error.request, error.attempts) == (None, "POST (webhook dlv_7)", ())
    assert str(error).startswith("POST (webhook dlv_7): data.from: expected a string, got a number. The body")
    assert "respond with 200" in error.advice
    assert str(error).endswith(error.advice)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))
    del headers["X-Webhook-ID"]
    with pytest.raises(ResponseDecodeError, match=r"^POST \(webhook\): data"):
        WEBHOOK.parse(body, headers)


def travels(error: Exception) -> None:
    """Send an error through a pickle."""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = [*HEADERS, *map(str.lower, HEADERS), *environ(HEADERS)]
ANY_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(NAMES) | st.sampled_from(NAMES).map(str.encode) | st.text() | st.binary() | st.none(),
        st.sampled_from([*HEADERS.values(), "", str(NOW + 9999)]) | st.text() | st.binary() | st.none() | st.integers(),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=300)
@given(body=st.just(BODY) | st.binary(), headers=ANY_HEADERS, in_a_dict=st.booleans())
def test_nothing_but_the_two_errors_comes_out_of_any_bytes_with_any_headers(
    body: bytes, headers: list[tuple[Any, Any]], in_a_dict: bool
) -> None:
    try:
        event = WEBHOOK.parse(body, dict(headers) if in_a_dict else headers)
    except (WebhookVerificationError, ResponseDecodeError) as error:
        travels(error)
    else:
        assert (body, event.type) == (BODY, "agent.message")


SPOILT = st.sampled_from(["message", "voice", "reaction", "call_ended"]).flatmap(
    lambda name: st.builds(
        lambda outer, inner: {**payload(name, inner), **outer},
        st.dictionaries(st.sampled_from(list(payload("message"))), JSON, max_size=2),
        st.dictionaries(st.sampled_from(list(payload("message")["data"]) + list(payload("voice")["data"])), JSON),
    )
)


@settings(deadline=None, max_examples=300)
@given(JSON | SPOILT | st.binary())
def test_nothing_but_an_event_or_a_decode_error_comes_out_of_any_signed_body(raw: Any) -> None:
    try:
        event = parse(raw)
    except ResponseDecodeError as error:
        travels(error)
    else:
        assert event.type == raw["event"]
        assert event.timestamp.utcoffset() is not None
        assert pickle.loads(pickle.dumps(event)) == event


def test_events_cannot_be_changed_and_match_by_their_class() -> None:
    event = WEBHOOK.parse(BODY, HEADERS)
    match event:
        case MessageEvent(conversation_id=conversation_id, text=str(text)):
            assert (conversation_id, text[:2]) == ("conv_def456", "Wo")
        case _:
            pytest.fail("it is a text")
    with pytest.raises(AttributeError):
        event.channel = "voice"  # type: ignore[misc]
    assert len({event, WEBHOOK.parse(BODY, HEADERS)}) == 1


@define
class OrderState:
    customer_name: str = ""
    order_id: str | None = None
    step: int = 0


def test_the_state_is_read_as_a_class_or_as_a_dict_of_the_callers_own() -> None:
    event = WEBHOOK.parse(BODY, HEADERS)
    assert event.state(OrderState) == OrderState("Maya", "ORD-12345", 0)
    copy = event.state()
    assert copy == event.conversation_state
    copy["customerName"] = "Mara"
    assert event.state() == event.conversation_state == {"customerName": "Maya", "orderId": "ORD-12345"}
    for raw in (payload("voice"), payload("reaction"), payload("call_ended")):
        assert parse(raw).state(OrderState) == OrderState()
        assert parse(raw).state() == {}


def test_a_state_that_does_not_fit_is_named_by_its_path_in_the_payload() -> None:
    body, headers = signed(payload("message", conversationState={"orderId": 5}))
    event = WEBHOOK.parse(body, headers | {"X-Webhook-ID": "dlv_7"})
    with pytest.raises(StateDecodeError) as caught:
        event.state(OrderState)
    error = caught.value
    assert error.path == "conversationState.orderId"
    assert str(error).startswith(
        "POST (webhook dlv_7): conversationState.orderId: it does not fit OrderState: expected a string, got a"
        " number. The stored state does not match the class"
    )
    travels(error)
    with pytest.raises(TypeError, match="cls must be dict or an attrs class"):
        event.state(list)


def test_all_of_the_module_is_what_it_defines_for_its_users() -> None:
    modules = {module.__name__ for module in (webhooks, _delivery_log, _events)}
    defined = {
        name
        for name, value in vars(webhooks).items()
        if isinstance(value, type) and value.__module__ in modules and not name.startswith("_")
    }
    assert set(webhooks.__all__) == defined
    assert webhooks.__all__ == sorted(webhooks.__all__)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_webhook_is_not_pickled_and_the_error_does_not_show_the_secret(protocol: int) -> None:
    for holder in (WEBHOOK, [WEBHOOK], WEBHOOK._secrets):
        with pytest.raises(TypeError, match="is not pickled") as caught:
            pickle.dumps(holder, protocol)
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert SECRET not in "".join(shown.format())


def test_a_copy_of_a_webhook_is_the_webhook_itself() -> None:
    assert copy.copy(WEBHOOK) is WEBHOOK
    assert copy.deepcopy([WEBHOOK]) == [WEBHOOK]


# ---- Once each


@frozen
class Kept:
    """A delivery log in a set, for what the protocol asks."""

    ids: set[str]

    def seen(self, delivery_id: str) -> bool:
        return delivery_id in self.ids

    def mark(self, delivery_id: str) -> None:
        self.ids.add(delivery_id)


def test_a_replayed_delivery_is_seen_by_its_id_and_only_after_it_succeeded(tmp_path: Path) -> None:
    logs: list[DeliveryLog] = [Kept(set()), SQLiteDeliveryLog(tmp_path / "log.db")]
    for log in logs:
        handled = 0
        for attempt in count():
            event = WEBHOOK.parse(BODY, HEADERS)
            assert event.delivery_id is not None
            if log.seen(event.delivery_id):
                break
            if attempt < 2:
                continue  # the handler fails, and the retry is not taken for a repetition
            handled += 1
            log.mark(event.delivery_id)
        assert (attempt, handled) == (3, 1)


def test_what_is_marked_is_seen_by_every_log_on_the_file(tmp_path: Path) -> None:
    first, second = SQLiteDeliveryLog(str(tmp_path / "log.db")), SQLiteDeliveryLog(tmp_path / "log.db")
    assert not first.seen("dlv_1")
    first.mark("dlv_1")
    first.mark("dlv_1")
    second.mark("dlv_1")
    assert [log.seen("dlv_1") for log in (first, second)] == [True, True]
    assert [log.seen(other) for log in (first, second) for other in ("dlv_2", "DLV_1", "", "dlv_1 ")] == [False] * 8
    assert repr(first) == f"<SQLiteDeliveryLog {str(tmp_path / 'log.db')!r}>"


def test_old_ids_are_forgotten_by_later_marks(tmp_path: Path) -> None:
    now = 1000.0
    log = SQLiteDeliveryLog(tmp_path / "log.db", retention=60, clock=lambda: now)
    log.mark("early")
    now = 1060.0
    log.mark("late")
    assert log.seen("early")
    now = 1060.5
    log.mark("later")
    assert [log.seen(one) for one in ("early", "late", "later")] == [False, True, True]
    with sqlite3.connect(tmp_path / "log.db") as database:
        assert database.execute("SELECT count(*) FROM deliveries").fetchone() == (2,)
    database.close()


def test_by_default_a_delivery_is_remembered_for_a_week(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    SQLiteDeliveryLog(path, clock=lambda: 0).mark("old")
    SQLiteDeliveryLog(path, clock=lambda: 7 * 86400).mark("new")
    assert SQLiteDeliveryLog(path).seen("old")
    SQLiteDeliveryLog(path, clock=lambda: 7 * 86400 + 1).mark("newer")
    assert not SQLiteDeliveryLog(path).seen("old")


def test_many_threads_may_share_a_log_and_no_mark_is_lost(tmp_path: Path) -> None:
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    ids = [f"dlv_{number}" for number in range(60)]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(log.mark, ids * 2))
        assert all(pool.map(log.seen, ids))


MARKING = """
import sys
from agentphone.webhooks import SQLiteDeliveryLog
log = SQLiteDeliveryLog(sys.argv[1])
for number in range(20):
    log.mark(f"{sys.argv[2]}-{number}")
    log.mark(f"shared-{number}")
    assert log.seen(f"{sys.argv[2]}-{number}")
"""


def test_several_processes_may_make_and_share_a_log_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", MARKING, path, str(number)], env=ENVIRONMENT) for number in range(3)
    ]
    assert [process.wait(SECONDS) for process in processes] == [0] * 3
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM deliveries").fetchone() == (80,)
    database.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_children_forked_while_threads_mark_can_mark_too(tmp_path: Path) -> None:
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    is_over = threading.Event()

    def work(name: str) -> None:
        for number in count():
            if is_over.wait(0.003):  # which leaves the children a chance to get at the file
                return
            log.mark(f"{name}-{number}")

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(work, name) for name in "abc"]
        try:
            for number in range(8):
                child = os.fork()
                if child == 0:
                    signal.alarm(SECONDS)  # a hang kills the child
                    try:
                        log.mark(f"child-{number}")
                    finally:
                        os._exit(0 if log.seen(f"child-{number}") else 1)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            is_over.set()
        for worker in workers:
            worker.result()
    assert all(log.seen(f"child-{number}") for number in range(8))


HOLDING = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1])
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
held.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_locked_log_holds_up_no_other_log_and_no_fork(tmp_path: Path) -> None:
    locked, other = SQLiteDeliveryLog(tmp_path / "locked.db"), SQLiteDeliveryLog(tmp_path / "other.db")
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "locked.db")]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
        ThreadPoolExecutor(2) as pool,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        waiting: list[Future[Any]] = [pool.submit(locked.mark, "dlv_1"), pool.submit(locked.seen, "dlv_1")]
        try:
            time.sleep(0.1)
            started = time.monotonic()
            for number in range(10):
                other.mark(f"dlv_{number}")
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
            assert time.monotonic() - started < 5
            assert not any(one.done() for one in waiting)
        finally:
            holder.communicate(b"\n")
        for one in waiting:
            one.result(SECONDS)
    assert locked.seen("dlv_1")


def test_a_log_that_stays_locked_is_an_error_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_delivery_log, "BUSY_SECONDS", 0.2)
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    with closing(sqlite3.connect(tmp_path / "log.db")) as held:
        held.execute("BEGIN EXCLUSIVE")
        for call in (log.seen, log.mark):
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                call("dlv_1")
        with pytest.raises(ConfigurationError, match="locked"):
            SQLiteDeliveryLog(tmp_path / "log.db")


def test_a_log_is_not_put_into_somebody_elses_database(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (number INTEGER)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"theirs\.db' cannot be used: it is the database of another program"):
        SQLiteDeliveryLog(path)
    assert path.read_bytes() == before


def test_a_log_made_before_the_program_changes_its_folder_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    log = SQLiteDeliveryLog("log.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    log.mark("dlv_1")
    assert SQLiteDeliveryLog(tmp_path / "log.db").seen("dlv_1")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_log_goes_to_another_process(tmp_path: Path) -> None:
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(log.mark, ["dlv_1"])
    assert log.seen("dlv_1")


def test_a_file_that_is_no_log_is_a_configuration_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, though it is long enough to be read as the header of one" * 20)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE deliveries (number INTEGER)")
    database.close()
    for name in ("text", "other.db", "no folder/log.db", "."):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            SQLiteDeliveryLog(tmp_path / name)
    with pytest.raises(ConfigurationError, match="path must be a file"):
        SQLiteDeliveryLog(":memory:")


@pytest.mark.parametrize("retention", [0, -1, float("nan"), float("inf")])
def test_a_log_that_would_keep_nothing_or_for_ever_is_refused(tmp_path: Path, retention: float) -> None:
    with pytest.raises(ConfigurationError, match="retention"):
        SQLiteDeliveryLog(tmp_path / "log.db", retention=retention)


@pytest.mark.parametrize("delivery_id", [None, 5, b"dlv_1"])
def test_what_is_no_id_is_a_type_error(tmp_path: Path, delivery_id: Any) -> None:
    log = SQLiteDeliveryLog(tmp_path / "log.db")
    for call in (log.seen, log.mark):
        with pytest.raises(TypeError, match=r"event\.delivery_id is None"):
            call(delivery_id)


LOADED = """
import sys
import agentphone.webhooks
print("sqlite3" in sys.modules)
agentphone.webhooks.SQLiteDeliveryLog(sys.argv[1])
print("sqlite3" in sys.modules)
"""


def test_sqlite_is_loaded_only_for_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", LOADED, str(tmp_path / "log.db")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=SECONDS, check=True)
    assert (done.stdout, done.stderr) == ("False\nTrue\n", "")
