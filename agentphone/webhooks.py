'''Webhooks: verify that a delivery is AgentPhone's, and parse it. No web framework is imported, and nothing is sent.

AgentPhone POSTs what happens to your URL, signed with the webhook's secret (`whsec_...`). `Webhook.parse` takes the raw
body and the headers of any framework, and returns a typed event with the conversation's metadata. Here a body is signed
as AgentPhone does it, in place of a delivery:

```python
import json

from agentphone import WebhookVerificationError
from agentphone.webhooks import MessageEvent, Webhook

webhook = Webhook("whsec_of_this_webhook")  # or several, during a rotation

text = {"conversationId": "conv_1", "from": "+15555550110", "to": "+15555550100", "message": "Where is my order?"}
payload = {"event": "agent.message", "channel": "sms", "timestamp": "2025-06-30T12:00:00Z", "data": text}
body = json.dumps({**payload, "conversationState": {"topic": "order_tracking"}}).encode()
headers = webhook.sign(body)

event = webhook.parse(body, headers)
if isinstance(event, MessageEvent):
    print(event.conversation_id, event.text)  # conv_1 Where is my order?
    assert event.conversation_state == {"topic": "order_tracking"}

try:
    webhook.parse(body.replace(b"order", b"money"), headers)
except WebhookVerificationError as error:
    print("Refused:", error)
```

Where the body and the headers are:

- Django: `request.body` and `request.headers`
- Starlette and FastAPI: `await request.body()` and `request.headers`
- WSGI: `environ["wsgi.input"].read(length)` and `environ`

**What is refused.** A signature made with another secret or for another body, a timestamp more than `tolerance=300`
seconds from now, before or after, and a header that is there twice. The log of `agentphone.webhooks` has a warning with
the reason; `AGENTPHONE_LOG=warning` shows it. Answer 503 where `error.is_mismatch` is true, and 400 otherwise:
AgentPhone sends again after a 5xx and gives up after a 4xx, so that rotating a secret loses nothing.

**Events.** `MessageEvent`, `VoiceEvent`, `ReactionEvent`, `CallEndedEvent`, and `UnknownEvent` for types that come
later. What a class has no attribute for is in `event.extra`, as received. `event.state(cls)` reads the conversation's
state.

**Once each.** AgentPhone sends a delivery up to six times, until the response is 2xx, always with the same
`event.delivery_id`. Remember it in a `DeliveryLog` after the work is done, so that a handler that failed gets its
retry. `SQLiteDeliveryLog` is one for all threads and processes of a machine.

This receiver is right for several processes on one machine, such as `gunicorn bare_webhook --workers 2 --threads 4`. A
worker that dies between storing the state and remembering the delivery handles that text again. To reply as well, use
`agentphone.inbox`.

```python
# bare_webhook.py
import fcntl
import os
from pathlib import Path
from urllib.parse import quote

from agentphone import Client, WebhookVerificationError
from agentphone.webhooks import MessageEvent, SQLiteDeliveryLog, Webhook

client = Client()
webhook = Webhook(os.environ["AGENTPHONE_WEBHOOK_SECRET"])
deliveries = SQLiteDeliveryLog("deliveries.db")


def think(event: MessageEvent, state: dict) -> None:
    """Do the agent's work. If it raises, nothing is stored, and AgentPhone sends the webhook again."""
    state["texts"] = state.get("texts", 0) + 1


def application(environ, start_response):
    status = "202 Accepted"
    try:
        event = webhook.parse(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])), environ)
        if isinstance(event, MessageEvent) and event.direction != "outbound" and event.delivery_id:
            # One text of a conversation at a time, over all processes; the lock ends with its process.
            with Path(quote(event.conversation_id, safe="") + ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not deliveries.seen(event.delivery_id):
                    with client.conversations.state(event.conversation_id) as state:
                        think(event, state)
                    deliveries.mark(event.delivery_id)
    except WebhookVerificationError as error:
        status = "503 Service Unavailable" if error.is_mismatch else "400 Bad Request"
    start_response(status, [])
    return [b""]
```

Source: the vendor's guide to webhooks.
'''

from __future__ import annotations

import hashlib
import hmac
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, Protocol

from agentphone._checks import check_clock, check_seconds
from agentphone._delivery_log import DeliveryLog, SQLiteDeliveryLog
from agentphone._events import (
    CallEndedEvent,
    Event,
    HistoryItem,
    MessageEvent,
    ReactionEvent,
    UnknownEvent,
    VoiceEvent,
    describe_delivery,
    read_event,
)
from agentphone._json import DecodeError, parse_json
from agentphone._logging import logger as package_logger
from agentphone._secret import Secret
from agentphone.errors import ConfigurationError, ResponseDecodeError, WebhookVerificationError

__all__ = [
    "CallEndedEvent",
    "DeliveryLog",
    "Event",
    "HistoryItem",
    "MessageEvent",
    "ReactionEvent",
    "SQLiteDeliveryLog",
    "UnknownEvent",
    "VoiceEvent",
    "Webhook",
]

_logger = package_logger.getChild("webhooks")

SIGNATURE, TIMESTAMP, DELIVERY_ID = "X-Webhook-Signature", "X-Webhook-Timestamp", "X-Webhook-ID"


HEADER_ALIASES = {
    alias: name
    for name in (SIGNATURE, TIMESTAMP, DELIVERY_ID)
    for alias in (name.lower(), "http_" + name.lower().replace("-", "_"))  # HTTP, and WSGI's environ
}
_SIGNATURE_FORMAT = re.compile(r"sha256=([0-9A-Fa-f]{64})")
MAX_TIMESTAMP = 10**12 - 1
_TIMESTAMP_FORMAT = re.compile(r"[0-9]{1,12}")  # not \d, which matches the digits of other scripts


class _HeaderItems(Protocol):
    """A mapping, or a multi-valued header class that is no `Mapping`."""

    def items(self) -> Iterable[tuple[Any, Any]]: ...


class Webhook:
    """A webhook receiver: it verifies deliveries with the secret, and parses them.

    Create one per module; it is immutable, and all threads may share it.

    Args:
        secret_or_secrets: The webhook's secret (`whsec_...`) exactly as AgentPhone shows it; or several during a
            rotation, each of which is accepted.
        tolerance: How far a delivery's timestamp may be from the current time, in seconds, before or after.
        clock: Returns the current time, in Unix seconds.

    Raises:
        ConfigurationError: There is no secret, one of them is empty or contains a space or a line break, or `tolerance`
            is not a positive, finite number. The text does not contain the secret.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        secret_or_secrets: str | Iterable[str],
        *,
        tolerance: float = 300,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secrets = _wrap_secrets(secret_or_secrets)
        del secret_or_secrets  # tracebacks with locals would show it
        self._tolerance = tolerance
        self._clock = clock
        _check_secrets(self._secrets)
        check_seconds("tolerance", tolerance, maximum=sys.float_info.max, error=ConfigurationError)
        check_clock(clock)

    def parse(self, body: bytes, headers: _HeaderItems | Iterable[tuple[Any, Any]]) -> Event:
        """Verify a delivery and parse it.

        Args:
            body: The request's body as raw bytes: `request.body` in Django, `await request.body()` in Starlette and
                FastAPI. Not the parsed JSON.
            headers: The request's headers, names in any case: Django's `request.headers`, Starlette's, a dict, the
                WSGI environ (`request.META`), or pairs of a name and a value, as str or bytes.

        Returns:
            The event: a `MessageEvent`, `VoiceEvent`, `ReactionEvent` or `CallEndedEvent`, or an `UnknownEvent` for a
            type that this version does not know.

        Raises:
            WebhookVerificationError: The delivery is not from AgentPhone, or not recent. Do not act on it.
            ResponseDecodeError: The delivery is from AgentPhone, but the payload is not a known one.
            TypeError: `body` is not bytes, or `headers` are not headers.
        """
        raw, delivery_id = self._verify(body, headers)
        try:
            return read_event(parse_json(raw), delivery_id)
        except DecodeError as error:
            raise ResponseDecodeError(
                error.reason,
                request=describe_delivery(delivery_id),
                path=error.path,
                status_code=None,
                body=raw,
            ) from None

    def verify(self, body: bytes, headers: _HeaderItems | Iterable[tuple[Any, Any]]) -> None:
        """Verify a delivery without parsing it.

        Args:
            body: The request's body as raw bytes, as for `parse`.
            headers: The request's headers, as for `parse`.

        Raises:
            WebhookVerificationError: The delivery is not from AgentPhone, or not recent. Do not act on it.
            TypeError: `body` is not bytes, or `headers` are not headers.
        """
        self._verify(body, headers)

    def sign(self, body: bytes, *, timestamp: float | None = None) -> dict[str, str]:
        """Sign a body as AgentPhone does, for tests of a receiver.

        Args:
            body: The body as raw bytes.
            timestamp: When it is sent, in Unix seconds; the current time by default.

        Returns:
            The three headers, with a new delivery id. A retry has the `X-Webhook-ID` of the first attempt.

        Raises:
            ValueError: `timestamp` is negative, or has more than 12 digits.
            TypeError: `body` is not bytes, or `timestamp` is not a number.
        """
        check_seconds("timestamp", timestamp, allow_zero=True, maximum=MAX_TIMESTAMP, optional=True)
        sent = str(int(self._clock() if timestamp is None else timestamp))
        return {
            SIGNATURE: "sha256=" + _digest(self._secrets[0], sent, _to_bytes(body)).hex(),
            TIMESTAMP: sent,
            DELIVERY_ID: str(uuid.uuid4()),
        }

    def __repr__(self) -> str:
        return f"<Webhook secrets={len(self._secrets)} tolerance={self._tolerance!r}>"

    def __copy__(self) -> Webhook:
        return self  # immutable

    def __deepcopy__(self, _: object) -> Webhook:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Webhook is not pickled, because it contains the secret. Create one in the other process.")

    def _verify(self, body: bytes, headers: _HeaderItems | Iterable[tuple[Any, Any]]) -> tuple[bytes, str | None]:
        """Return the verified bytes and the delivery id."""
        raw = _to_bytes(body)
        try:
            return raw, self._check(raw, headers)
        except WebhookVerificationError as error:
            _logger.warning("webhook delivery refused: %s", error)
            raise

    def _check(self, raw: bytes, headers: _HeaderItems | Iterable[tuple[Any, Any]]) -> str | None:
        """Return the delivery id, or raise WebhookVerificationError. Its text has no value from the delivery."""
        found = _read_headers(headers)
        for name in (SIGNATURE, TIMESTAMP):
            if name not in found:
                raise WebhookVerificationError(
                    f"The header {name} is missing. AgentPhone sends it with each delivery: pass all headers of the"
                    " request, and check that no proxy removes it."
                )
        signature = _SIGNATURE_FORMAT.fullmatch(found[SIGNATURE])
        if signature is None:
            raise WebhookVerificationError(f"The header {SIGNATURE} is not `sha256=` and 64 hexadecimal digits.")
        if not _TIMESTAMP_FORMAT.fullmatch(found[TIMESTAMP]):
            raise WebhookVerificationError(f"The header {TIMESTAMP} is not a whole number of Unix seconds.")
        if not self._is_signed(bytes.fromhex(signature[1]), found[TIMESTAMP], raw):
            raise _mismatch(
                "The signature matches none of the secrets. Check that the secret is that of this webhook, as"
                " AgentPhone shows it, and that the body is the raw bytes of the request, not JSON that was parsed and"
                " encoded again."
            )
        age = self._clock() - int(found[TIMESTAMP])
        if not abs(age) <= self._tolerance:
            raise _mismatch(
                f"The delivery was signed {abs(age):.0f} s {'ago' if age > 0 else 'in the future'}, and"
                f" {self._tolerance:g} s are allowed. Check this machine's clock; if it is right, an old delivery may"
                " have been replayed."
            )
        return _read_delivery_id(found.get(DELIVERY_ID))

    def _is_signed(self, signature: bytes, timestamp: str, body: bytes) -> bool:
        """Return whether one of the secrets signed it. A separate function: no traceback shows its locals."""
        return any(hmac.compare_digest(_digest(secret, timestamp, body), signature) for secret in self._secrets)


def _mismatch(text: str) -> WebhookVerificationError:
    error = WebhookVerificationError(text)
    error.is_mismatch = True
    return error


def _wrap_secrets(secrets: Any) -> tuple[Secret, ...]:
    """Return the argument as secrets, before it is checked."""
    is_one = isinstance(secrets, str | bytes | bytearray | memoryview) or not isinstance(secrets, Iterable)
    values: Iterable[Any] = (secrets,) if is_one else secrets
    return tuple(map(Secret, values))


def _check_secrets(secrets: tuple[Secret, ...]) -> None:
    if not secrets:
        raise ConfigurationError("secret_or_secrets must have at least one secret, got an empty list")
    for secret in secrets:
        if not isinstance(secret.value, str):
            raise TypeError(f"secret_or_secrets must be a string or several, got {type(secret.value).__name__}")
        if not secret.value:
            raise ConfigurationError(
                "secret_or_secrets has an empty secret; AgentPhone shows it where the webhook is set up"
            )
        if not secret.value.isprintable() or " " in secret.value:
            raise ConfigurationError(
                "secret_or_secrets has a secret with a space, a line break or another unprintable character; if it was"
                " read from a file, use secret.strip()"
            )


def _to_bytes(body: Any) -> bytes:
    """Return the body as bytes. Parsed JSON cannot be verified: the signature is that of the bytes as received."""
    if isinstance(body, bytes):
        return body
    if isinstance(body, bytearray | memoryview):
        return bytes(body)
    raise TypeError(
        f"body must be the raw bytes of the request, got {type(body).__name__}: pass request.body (Django), await"
        " request.body() (Starlette, FastAPI) or request.get_data() (Flask), not the text or the parsed JSON"
    )


def _digest(secret: Secret, timestamp: str, body: bytes) -> bytes:
    code = hmac.new((secret.value or "").encode(), f"{timestamp}.".encode(), hashlib.sha256)
    code.update(body)
    return code.digest()


def _read_headers(headers: _HeaderItems | Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """Return our headers. Duplicates are rejected: a proxy in front may have validated the other copy."""
    found: dict[str, str] = {}
    for name, value in _pairs(headers):
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        known = HEADER_ALIASES.get(text.lower()) if isinstance(text, str) else None
        if known is None:
            continue
        if known in found:
            raise WebhookVerificationError(f"The header {known} is duplicated; AgentPhone sends it once.")
        if not isinstance(value, str | bytes):
            raise WebhookVerificationError(f"The header {known} is not text, but {type(value).__name__}.")
        found[known] = (value.decode("latin-1") if isinstance(value, bytes) else value).strip(" \t")
    return found


def _pairs(headers: Any) -> Iterator[tuple[Any, Any]]:
    try:
        for pair in headers.items() if hasattr(headers, "items") else headers:
            name, value = pair
            yield name, value
    except (TypeError, ValueError):
        raise TypeError(
            f"headers must be a mapping or pairs of names and values, got {type(headers).__name__}"
        ) from None


def _read_delivery_id(text: str | None) -> str | None:
    """Return the delivery id; None without one. WSGI servers join duplicates with a comma, so that is rejected too."""
    if not text:
        return None
    if not text.isascii() or not text.isprintable() or "," in text:
        raise WebhookVerificationError(f"The header {DELIVERY_ID} is not a single id.")
    return text
