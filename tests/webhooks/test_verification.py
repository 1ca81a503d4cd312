"""Signatures, timestamps and secrets: only recent deliveries from AgentPhone pass, and no secret is shown."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import logging
import pickle
import shutil
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentphone import (
    ConfigurationError,
    ResponseDecodeError,
    WebhookVerificationError,
    _delivery_log,
    _events,
    webhooks,
)
from agentphone.webhooks import Webhook
from tests.support.helpers import SAMPLES
from tests.support.processes import SECONDS
from tests.webhooks.deliveries import BODY, HEADERS, NOW, OTHER, SECRET, SIGNATURE, WEBHOOK, signed


def test_signatures_match_openssl() -> None:
    lines = (SAMPLES / "webhook_signatures.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 16
    for line in lines:
        name, timestamp, secret, digest = line.split(" ")
        body = (SAMPLES / name).read_bytes()
        webhook = Webhook(secret, clock=lambda timestamp=timestamp: float(timestamp))  # type: ignore[misc]
        headers = {"X-Webhook-Signature": f"sha256={digest}", "X-Webhook-Timestamp": timestamp}
        webhook.verify(body, headers)
        assert headers.items() <= webhook.sign(body).items()


def test_script_reproduces_the_signatures() -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    script = SAMPLES / "webhook_signatures.sh"
    done = subprocess.run(["sh", str(script)], capture_output=True, check=True, timeout=SECONDS)
    assert done.stdout == (SAMPLES / "webhook_signatures.txt").read_bytes()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_body_may_be_any_bytes_type(kind: type[Any]) -> None:
    WEBHOOK.verify(kind(BODY), HEADERS)
    assert WEBHOOK.parse(kind(BODY), HEADERS) == WEBHOOK.parse(BODY, HEADERS)


@pytest.mark.parametrize("place", [0, 1, len(BODY) // 2, len(BODY) - 1])
def test_tampered_body_is_rejected(place: int) -> None:
    tampered = BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :]
    for body in (tampered, BODY[:place] + BODY[place + 1 :], BODY[:place] + b" " + BODY[place:]):
        with pytest.raises(WebhookVerificationError, match="matches none of the secrets"):
            WEBHOOK.parse(body, HEADERS)


def test_reencoded_body_is_rejected() -> None:
    with pytest.raises(WebhookVerificationError, match="parsed and encoded"):
        WEBHOOK.parse(json.dumps(json.loads(BODY)).encode(), HEADERS)


def test_signature_of_another_secret_is_rejected() -> None:
    with pytest.raises(WebhookVerificationError, match="matches none of the secrets"):
        WEBHOOK.verify(BODY, Webhook(OTHER, clock=lambda: NOW).sign(BODY))


def test_signature_of_another_timestamp_is_rejected() -> None:
    with pytest.raises(WebhookVerificationError, match="matches none of the secrets"):
        WEBHOOK.verify(BODY, HEADERS | {"X-Webhook-Timestamp": str(NOW + 1)})


def test_rotation_accepts_each_secret_and_signs_with_the_first() -> None:
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
def test_malformed_signature_is_rejected(signature: str) -> None:
    with pytest.raises(WebhookVerificationError, match="`sha256=` and 64 hexadecimal digits"):
        WEBHOOK.verify(BODY, HEADERS | {"X-Webhook-Signature": signature})


def test_signature_may_be_uppercase() -> None:
    WEBHOOK.verify(BODY, HEADERS | {"X-Webhook-Signature": "sha256=" + SIGNATURE[7:].upper()})


@pytest.mark.parametrize("offset", [-300, -299.5, 0, 299.5, 300])
def test_timestamp_within_the_tolerance_is_accepted(offset: float) -> None:
    Webhook(SECRET, clock=lambda: NOW + offset).verify(BODY, HEADERS)


@pytest.mark.parametrize(
    ("tolerance", "offset", "text"),
    [
        (300, 412, "signed 412 s ago, and 300 s are allowed. Check this machine's clock"),
        (60, -412, "signed 412 s in the future, and 60 s are allowed"),
        (0.5, 1, "signed 1 s ago, and 0.5 s are allowed"),
    ],
)
def test_delivery_beyond_the_tolerance_is_rejected_with_its_age(tolerance: float, offset: float, text: str) -> None:
    with pytest.raises(WebhookVerificationError, match=text):
        Webhook(SECRET, tolerance=tolerance, clock=lambda: NOW + offset).verify(BODY, HEADERS)


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "nan", "inf", "-1", "+1", "1736942400.0", "1.7e9", "0x10", "1_736_942_400", "17369 42400"),
        *("1736942400\n", "\u0661\u0667\u0663\u0666\u0669\u0664\u0662\u0664\u0660\u0660", "\u00b2", "9" * 13),
        *("9" * 5000, "1736942400, 1736942400", "1736942400,1736942400", "\x001736942400"),
    ],
)
def test_malformed_timestamp_is_rejected_even_if_signed(text: str) -> None:
    digest = hmac.new(SECRET.encode(), f"{text}.".encode() + BODY, hashlib.sha256).hexdigest()
    headers = {"X-Webhook-Signature": f"sha256={digest}", "X-Webhook-Timestamp": text}
    with pytest.raises(WebhookVerificationError, match="not a whole number of Unix seconds"):
        WEBHOOK.verify(BODY, headers)


@pytest.mark.parametrize(
    ("webhook", "headers", "is_mismatch"),
    [
        (Webhook(OTHER, clock=lambda: NOW), HEADERS, True),
        (Webhook(SECRET, clock=lambda: NOW + 999), HEADERS, True),
        (WEBHOOK, {}, False),
        (WEBHOOK, HEADERS | {"X-Webhook-Signature": "x"}, False),
        (WEBHOOK, HEADERS | {"X-Webhook-Timestamp": "x"}, False),
        (WEBHOOK, HEADERS | {"X-Webhook-ID": "a,b"}, False),
    ],
)
def test_only_a_well_formed_delivery_is_a_mismatch(
    webhook: Webhook, headers: dict[str, str], is_mismatch: bool
) -> None:
    """After a mismatch, another delivery of the same may pass: once the secret or the clock is right."""
    with pytest.raises(WebhookVerificationError) as caught:
        webhook.verify(BODY, headers)
    assert caught.value.is_mismatch is is_mismatch


def test_nan_clock_accepts_nothing() -> None:
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET, clock=lambda: float("nan")).verify(BODY, HEADERS)


def test_sign_returns_three_headers_with_a_new_id() -> None:
    first, second = WEBHOOK.sign(BODY), WEBHOOK.sign(BODY, timestamp=NOW - 10.5)
    assert list(first) == ["X-Webhook-Signature", "X-Webhook-Timestamp", "X-Webhook-ID"]
    assert (first["X-Webhook-Timestamp"], second["X-Webhook-Timestamp"]) == (str(NOW), str(NOW - 11))
    assert first["X-Webhook-ID"] != second["X-Webhook-ID"]
    for headers in (first, second):
        assert WEBHOOK.parse(BODY, headers).delivery_id == headers["X-Webhook-ID"]


@pytest.mark.parametrize(
    ("timestamp", "error"),
    [
        (-5, ValueError),
        (-0.5, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (10**12, ValueError),
        ("5", TypeError),
        (True, TypeError),
    ],
)
def test_sign_with_an_invalid_timestamp_is_rejected(timestamp: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timestamp must be"):
        WEBHOOK.sign(BODY, timestamp=timestamp)


@pytest.mark.parametrize("timestamp", [0, 10**12 - 1])
def test_sign_accepts_every_timestamp_that_a_header_can_carry(timestamp: float) -> None:
    Webhook(SECRET, clock=lambda: timestamp).verify(BODY, WEBHOOK.sign(BODY, timestamp=timestamp))


def test_default_clock_is_the_current_time() -> None:
    webhook = Webhook(SECRET)
    webhook.verify(BODY, webhook.sign(BODY))
    with pytest.raises(WebhookVerificationError, match="ago"):
        webhook.verify(BODY, webhook.sign(BODY, timestamp=NOW))


def locals_of(error: BaseException) -> str:
    """Return the locals of our frames, as a traceback shows them."""
    frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
    shown = [str(frame.locals) for frame in frames if frame.filename == webhooks.__file__]
    assert shown
    return "".join(shown)


@pytest.mark.parametrize("body", [BODY.decode(), json.loads(BODY), None, 5, [], Path()])
def test_body_that_is_not_bytes_is_a_type_error(body: Any) -> None:
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
def test_invalid_secret_is_rejected_and_not_shown(secrets: Any, error: type[Exception], what: str) -> None:
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
def test_invalid_setting_is_rejected(setting: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{next(iter(setting))} must be"):
        Webhook(SECRET, **setting)


def test_secret_and_right_signature_are_never_shown() -> None:
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


def test_each_refusal_is_one_warning_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    tampered = BODY.replace(b"Maya", b"Mara")
    rejected: list[tuple[Webhook, bytes, dict[str, str]]] = [
        (WEBHOOK, tampered, HEADERS),
        (Webhook(SECRET, clock=lambda: NOW + 999), BODY, HEADERS),
        (WEBHOOK, BODY, {}),
        (WEBHOOK, BODY, HEADERS | {"X-Webhook-Signature": "forged\nline"}),
        (WEBHOOK, BODY, HEADERS | {"X-Webhook-ID": "forged\nline"}),
        (WEBHOOK, BODY, HEADERS | {"x-webhook-id": "dlv_2"}),
    ]
    for webhook, body, headers in rejected:
        calls: list[Callable[[bytes, dict[str, str]], object]] = [webhook.parse, webhook.verify]
        for call in calls:
            caplog.clear()
            with pytest.raises(WebhookVerificationError) as caught:
                call(body, headers)
            assert caplog.record_tuples == [
                ("agentphone.webhooks", logging.WARNING, f"webhook delivery refused: {caught.value}")
            ]
            for private in (SECRET, "Maya", "Mara", "+1555", "dlv_", "forged", SIGNATURE[7:]):
                assert private not in caplog.text
    caplog.clear()
    WEBHOOK.parse(BODY, HEADERS)
    assert caplog.records == []


def test_all_lists_the_public_classes() -> None:
    modules = {module.__name__ for module in (webhooks, _delivery_log, _events)}
    defined = {
        name
        for name, value in vars(webhooks).items()
        if isinstance(value, type) and value.__module__ in modules and not name.startswith("_")
    }
    assert set(webhooks.__all__) == defined
    assert webhooks.__all__ == sorted(webhooks.__all__)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_webhook_cannot_be_pickled(protocol: int) -> None:
    for holder in (WEBHOOK, [WEBHOOK], WEBHOOK._secrets):
        with pytest.raises(TypeError, match="is not pickled") as caught:
            pickle.dumps(holder, protocol)
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert SECRET not in "".join(shown.format())


def test_copy_of_a_webhook_is_itself() -> None:
    assert copy.copy(WEBHOOK) is WEBHOOK
    assert copy.deepcopy([WEBHOOK]) == [WEBHOOK]
