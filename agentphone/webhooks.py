"""Webhooks: verify that a delivery is AgentPhone's, and read it. It knows no web framework and sends nothing.

    from agentphone._delivery_log import DeliveryLog

`Webhook.parse` takes the raw body and the headers of any framework and gives an event. `DeliveryLog` remembers which
deliveries were handled, because AgentPhone sends one again until it is answered with 2xx.

Source: the vendor's guide to webhooks.
"""

from __future__ import annotations

import builtins
import hashlib
import hmac
import math
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, overload

from attrs import field, frozen

from agentphone._decoding import structure
from agentphone._json import DecodeError, parse_json
from agentphone._secret import Secret
from agentphone._state import read_state, state_decode_error
from agentphone.errors import ConfigurationError, ResponseDecodeError, WebhookVerificationError
from agentphone.models import extra_field, nullable_list

if TYPE_CHECKING:
    pass
from agentphone._delivery_log import DeliveryLog, SQLiteDeliveryLog

T = TypeVar("T")


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


@frozen(kw_only=True)
class HistoryItem:
    """One earlier message of the conversation, as a webhook brings it along.

    Source: `recentHistory[]` of the payload.
    """

    content: str | None = None
    """The text; empty or None where it was all media."""
    direction: str | None = None
    """`"inbound"` (from the person) or `"outbound"` (from the agent); an open set."""
    channel: str | None = None
    """`"sms"`, `"voice"`, ...; an open set."""
    at: datetime
    """When it was received."""
    extra: Mapping[str, Any] = extra_field()
    """Every further field, under the API's own name, as received."""


@frozen(kw_only=True)
class Event:
    """What every delivery has. The classes below are its kinds; `match` on them, and let the others pass.

    Source: the payload of a webhook.
    """

    type: str
    """What happened: the payload's `event` (`"agent.message"`)."""
    delivery_id: str | None = None
    """The header `X-Webhook-ID`, the same on every retry; None without it. The signature does not cover it."""
    channel: str | None = None
    """`"sms"`, `"mms"`, `"imessage"`, `"voice"`, ...; an open set."""
    timestamp: datetime
    """When it happened."""
    agent_id: str | None = None
    """The agent that it is for (`agentId`)."""
    conversation_state: dict[str, Any] | None = field(default=None, hash=False)
    """The conversation's metadata, as `conversations.update` stored it (`conversationState`)."""
    recent_history: tuple[HistoryItem, ...] = nullable_list()
    """The latest messages of the conversation, in the server's order (`recentHistory`)."""
    extra: Mapping[str, Any] = extra_field()
    """Every field of the payload that the class does not have, under the API's own name, as received. Those of `data`
    are in `extra["data"]`: all of them, unless the class reads some of them itself."""

    @overload
    def state(self) -> dict[str, Any]: ...
    @overload
    def state(self, cls: builtins.type[T]) -> T: ...
    def state(self, cls: builtins.type[Any] = dict) -> Any:
        """Read the conversation's state as a class, the one that `conversations.state` reads and writes.

        Changing it changes nothing that is stored: that goes by `conversations.state`.

        Args:
            cls: An attrs class; a field `order_id` is the key `orderId`. By default a dict, a copy.

        Returns:
            The state; without one, the class's defaults or an empty dict.

        Raises:
            StateDecodeError: What is stored does not fit the class.
            TypeError: It is no such class, or has a field that JSON cannot hold.
        """
        try:
            return read_state(self.conversation_state, cls, "conversationState")
        except DecodeError as error:
            raise state_decode_error(error, cls, _request(self.delivery_id)) from None


@frozen(kw_only=True)
class MessageEvent(Event):
    """A text arrived: `agent.message` on any channel but `voice`."""

    conversation_id: str
    """The conversation that it belongs to (`data.conversationId`)."""
    message_id: str | None = None
    """Its id (`data.messageId`); not every payload has it."""
    number_id: str | None = None
    """The id of the agent's number (`data.numberId`)."""
    from_number: str
    """The sender's number, E.164 (`data.from`)."""
    to_number: str
    """The agent's number, E.164 (`data.to`)."""
    text: str | None = None
    """The text (`data.message`); empty or None for a message that is all media."""
    media_url: str | None = None
    """Where its media can be fetched (`data.mediaUrl`)."""
    direction: str | None = None
    """`"inbound"`; an open set (`data.direction`)."""
    received_at: datetime | None = None
    """When it was received (`data.receivedAt`)."""


@frozen(kw_only=True)
class VoiceEvent(Event):
    """A turn of a phone call: `agent.message` on the channel `voice`."""

    call_id: str
    """The call that it belongs to (`data.callId`)."""
    number_id: str | None = None
    """The id of the agent's number (`data.numberId`)."""
    from_number: str
    """The caller's number, E.164 (`data.from`)."""
    to_number: str
    """The called number, E.164 (`data.to`)."""
    status: str | None = None
    """The status of the call; an open set (`data.status`)."""
    transcript: str | None = None
    """What was said (`data.transcript`)."""
    confidence: float | None = None
    """How sure the transcript is, 0 to 1 (`data.confidence`)."""
    direction: str | None = None
    """`"inbound"` or `"outbound"`; an open set (`data.direction`)."""


@frozen(kw_only=True)
class ReactionEvent(Event):
    """Somebody reacted to a message: `agent.reaction`. What it was is in `extra["data"]`, as received."""


@frozen(kw_only=True)
class CallEndedEvent(Event):
    """A phone call ended: `agent.call_ended`. What is known of it is in `extra["data"]`, as received."""


@frozen(kw_only=True)
class UnknownEvent(Event):
    """An event of a type that this version does not know. Its `data` is in `extra["data"]`, as received."""


@frozen(kw_only=True)
class _Payload:
    event: str
    channel: str | None = None
    timestamp: datetime
    agent_id: str | None = None
    conversation_state: dict[str, Any] | None = None
    recent_history: tuple[HistoryItem, ...] = nullable_list()
    extra: Mapping[str, Any] = extra_field()


@frozen(kw_only=True)
class _Text:
    conversation_id: str
    message_id: str | None = None
    number_id: str | None = None
    from_: str
    to: str
    message: str | None = None
    media_url: str | None = None
    direction: str | None = None
    received_at: datetime | None = None
    extra: Mapping[str, Any] = extra_field()


@frozen(kw_only=True)
class _TextPayload(_Payload):
    data: _Text


@frozen(kw_only=True)
class _VoiceData:
    call_id: str
    number_id: str | None = None
    from_: str
    to: str
    status: str | None = None
    transcript: str | None = None
    confidence: float | None = None
    direction: str | None = None
    extra: Mapping[str, Any] = extra_field()


@frozen(kw_only=True)
class _VoicePayload(_Payload):
    data: _VoiceData


_BARE_EVENTS: Mapping[str, type[Event]] = {"agent.reaction": ReactionEvent, "agent.call_ended": CallEndedEvent}


def _read(raw: Any, delivery_id: str | None) -> Event:
    """Turn a payload into its event."""
    shape: type[_Payload] = _Payload
    match raw:
        case {"event": "agent.message", "channel": "voice"}:
            shape = _VoicePayload
        case {"event": "agent.message"}:
            shape = _TextPayload
    payload = structure(raw, shape)
    common: dict[str, Any] = {
        "type": payload.event,
        "delivery_id": delivery_id,
        "channel": payload.channel,
        "timestamp": payload.timestamp,
        "agent_id": payload.agent_id,
        "conversation_state": payload.conversation_state,
        "recent_history": payload.recent_history,
    }
    match payload:
        case _TextPayload(data=text):
            return MessageEvent(
                conversation_id=text.conversation_id,
                message_id=text.message_id,
                number_id=text.number_id,
                from_number=text.from_,
                to_number=text.to,
                text=text.message,
                media_url=text.media_url,
                direction=text.direction,
                received_at=text.received_at,
                extra=_merge_extra(payload.extra, text.extra),
                **common,
            )
        case _VoicePayload(data=turn):
            return VoiceEvent(
                call_id=turn.call_id,
                number_id=turn.number_id,
                from_number=turn.from_,
                to_number=turn.to,
                status=turn.status,
                transcript=turn.transcript,
                confidence=turn.confidence,
                direction=turn.direction,
                extra=_merge_extra(payload.extra, turn.extra),
                **common,
            )
    return _BARE_EVENTS.get(payload.event, UnknownEvent)(extra=payload.extra, **common)


def _request(delivery_id: str | None) -> str:
    """Name the delivery in an error."""
    return f"POST (webhook {delivery_id})" if delivery_id else "POST (webhook)"


def _merge_extra(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put what `data` has more under its name: the two levels may use one name for different things."""
    return {**outer, "data": inner} if inner else outer


SIGNATURE, TIMESTAMP, DELIVERY_ID = "X-Webhook-Signature", "X-Webhook-Timestamp", "X-Webhook-ID"


HEADER_ALIASES = {
    spelling: name
    for name in (SIGNATURE, TIMESTAMP, DELIVERY_ID)
    for spelling in (name.lower(), "http_" + name.lower().replace("-", "_"))  # HTTP, and WSGI's environ
}


_SIGNATURE_FORM = re.compile(r"sha256=([0-9A-Fa-f]{64})")


_TIMESTAMP_FORM = re.compile(r"[0-9]{1,12}")  # not \d, which takes the digits of other scripts


class _HasItems(Protocol):
    """A mapping, or one of the multi-valued header classes that are none."""

    def items(self) -> Iterable[tuple[Any, Any]]: ...


class Webhook:
    """A webhook's receiving end: it verifies deliveries by the secret, and reads them.

    Make one at the top of a module; it holds no state, and all threads may share it.

    Args:
        secret_or_secrets: The webhook's secret (`whsec_...`) exactly as AgentPhone shows it; or several, each of which
            is good, while one replaces another.
        tolerance: How far a delivery's timestamp may be from now, in seconds, before or after.
        clock: Gives now, in unix seconds.

    Raises:
        ConfigurationError: There is no secret, one of them is empty or holds a space or a line break, or `tolerance`
            is not a positive, finite number. The text does not tell the secret.
        TypeError: An argument is of another type.
    """

    def __init__(
        self,
        secret_or_secrets: str | Iterable[str],
        *,
        tolerance: float = 300,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secrets = _wrap_secrets(secret_or_secrets)
        del secret_or_secrets  # from here on no error of ours shows it among the locals of this frame
        self._tolerance = tolerance
        self._clock = clock
        _check_secrets(self._secrets)
        _check_positive("tolerance", tolerance)
        if not callable(clock):
            raise TypeError(f"clock is a function that gives unix seconds, not {clock!r}")

    def parse(self, body: bytes, headers: _HasItems | Iterable[tuple[Any, Any]]) -> Event:
        """Verify a delivery and read it.

        Args:
            body: The request's body as raw bytes: `request.body` in Django, `await request.body()` in Starlette and
                FastAPI. Not the parsed JSON.
            headers: The request's headers, names in any case: Django's `request.headers`, Starlette's, a dict, the
                WSGI environ (`request.META`), or pairs of a name and a value, as str or bytes.

        Returns:
            The event: a `MessageEvent`, `VoiceEvent`, `ReactionEvent` or `CallEndedEvent`, or an `UnknownEvent` for a
            type that this version does not know.

        Raises:
            WebhookVerificationError: It is not from AgentPhone, or not of now. Do not act on it.
            ResponseDecodeError: It is from AgentPhone, and not what its payloads are known to be.
            TypeError: `body` is not bytes, or `headers` are no headers.
        """
        raw, delivery_id = self._verify(body, headers)
        try:
            return _read(parse_json(raw), delivery_id)
        except DecodeError as error:
            raise ResponseDecodeError(
                error.reason,
                request=_request(delivery_id),
                path=error.path,
                status_code=None,
                body=raw,
            ) from None

    def verify(self, body: bytes, headers: _HasItems | Iterable[tuple[Any, Any]]) -> None:
        """Verify a delivery without reading it.

        Args:
            body: The request's body as raw bytes, as for `parse`.
            headers: The request's headers, as for `parse`.

        Raises:
            WebhookVerificationError: It is not from AgentPhone, or not of now. Do not act on it.
            TypeError: `body` is not bytes, or `headers` are no headers.
        """
        self._verify(body, headers)

    def sign(self, body: bytes, *, timestamp: float | None = None) -> dict[str, str]:
        """Sign a body as AgentPhone does, for tests of what receives it.

        Args:
            body: The body as raw bytes.
            timestamp: When it is sent, in unix seconds; by default now.

        Returns:
            The three headers. Each call has a new delivery id; for a retry, give the second the first one's
            `X-Webhook-ID`.

        Raises:
            TypeError: `body` is not bytes.
        """
        sent = str(int(self._clock() if timestamp is None else timestamp))
        return {
            SIGNATURE: "sha256=" + _digest(self._secrets[0], sent, _to_bytes(body)).hex(),
            TIMESTAMP: sent,
            DELIVERY_ID: str(uuid.uuid4()),
        }

    def __repr__(self) -> str:
        return f"<Webhook secrets={len(self._secrets)} tolerance={self._tolerance!r}>"

    def __copy__(self) -> Webhook:
        return self  # It cannot change.

    def __deepcopy__(self, _: object) -> Webhook:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Webhook is not pickled, because it holds the secret. Create one in the other process.")

    def _verify(self, body: bytes, headers: _HasItems | Iterable[tuple[Any, Any]]) -> tuple[bytes, str | None]:
        """Give the verified bytes and the delivery id."""
        raw = _to_bytes(body)
        found = _read_headers(headers)
        for name in (SIGNATURE, TIMESTAMP):
            if name not in found:
                raise WebhookVerificationError(
                    f"There is no header {name}. AgentPhone sends it with each delivery: pass all headers of the"
                    " request, and check that no proxy drops it."
                )
        signature = _SIGNATURE_FORM.fullmatch(found[SIGNATURE])
        if signature is None:
            raise WebhookVerificationError(f"The header {SIGNATURE} is not `sha256=` and 64 hexadecimal digits.")
        if not _TIMESTAMP_FORM.fullmatch(found[TIMESTAMP]):
            raise WebhookVerificationError(f"The header {TIMESTAMP} is not a whole number of unix seconds.")
        if not self._is_signed(bytes.fromhex(signature[1]), found[TIMESTAMP], raw):
            raise WebhookVerificationError(
                "The signature fits none of the secrets. Check that the secret is that of this very webhook, as"
                " AgentPhone shows it, and that the body is the raw bytes of the request: JSON that was parsed and"
                " printed again is another text."
            )
        age = self._clock() - int(found[TIMESTAMP])
        if not abs(age) <= self._tolerance:
            raise WebhookVerificationError(
                f"The delivery was signed {abs(age):.0f} s {'ago' if age > 0 else 'in the future'}, and"
                f" {self._tolerance:g} s are allowed. Check this machine's clock; if it is right, somebody may be"
                " playing back an old delivery."
            )
        return raw, _read_delivery_id(found.get(DELIVERY_ID))

    def _is_signed(self, signature: bytes, timestamp: str, body: bytes) -> bool:
        """Say whether one of the secrets signed it; a function of its own, whose locals no traceback shows."""
        return any(hmac.compare_digest(_digest(secret, timestamp, body), signature) for secret in self._secrets)


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} is a positive, finite number of seconds, not {value!r}")


def _wrap_secrets(given: Any) -> tuple[Secret, ...]:
    """Take what was given as the secrets, whatever it is."""
    is_one = isinstance(given, str | bytes | bytearray | memoryview) or not isinstance(given, Iterable)
    values: Iterable[Any] = (given,) if is_one else given
    return tuple(map(Secret, values))


def _check_secrets(secrets: tuple[Secret, ...]) -> None:
    if not secrets:
        raise ConfigurationError("No webhook secret: the list is empty.")
    for secret in secrets:
        if not isinstance(secret.value, str):
            raise TypeError(f"A webhook's secret is a string, or several in a list, not {type(secret.value).__name__}")
        if not secret.value:
            raise ConfigurationError("The webhook's secret is empty; AgentPhone shows it where the webhook is set up.")
        if not secret.value.isprintable() or " " in secret.value:
            raise ConfigurationError(
                "The webhook's secret holds a space, a line break or another character that none has; was it cut out of"
                " a file with its line end? Try secret.strip()."
            )


def _to_bytes(body: Any) -> bytes:
    """Give the body as bytes. What was parsed cannot be verified: the signature is over the bytes as they came."""
    if isinstance(body, bytes):
        return body
    if isinstance(body, bytearray | memoryview):
        return bytes(body)
    raise TypeError(
        f"body is the raw bytes of the request, not {type(body).__name__}: pass request.body (Django), await"
        " request.body() (Starlette, FastAPI) or request.get_data() (Flask), not the text or the parsed JSON."
    )


def _digest(secret: Secret, timestamp: str, body: bytes) -> bytes:
    made = hmac.new((secret.value or "").encode(), f"{timestamp}.".encode(), hashlib.sha256)
    made.update(body)
    return made.digest()


def _read_headers(headers: _HasItems | Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """Find our headers. One that is there twice is refused: what stands before us may have looked at the other one."""
    found: dict[str, str] = {}
    for name, value in _pairs(headers):
        text = name.decode("latin-1") if isinstance(name, bytes) else name
        known = HEADER_ALIASES.get(text.lower()) if isinstance(text, str) else None
        if known is None:
            continue
        if known in found:
            raise WebhookVerificationError(f"The header {known} is there twice; AgentPhone sends it once.")
        if not isinstance(value, str | bytes):
            raise WebhookVerificationError(f"The header {known} is given as {type(value).__name__}, not as text.")
        found[known] = (value.decode("latin-1") if isinstance(value, bytes) else value).strip(" \t")
    return found


def _pairs(headers: Any) -> Iterator[tuple[Any, Any]]:
    try:
        for pair in headers.items() if hasattr(headers, "items") else headers:
            name, value = pair
            yield name, value
    except (TypeError, ValueError):
        raise TypeError(
            f"headers are the request's headers, a mapping or pairs of a name and a value, not {type(headers).__name__}"
        ) from None


def _read_delivery_id(text: str | None) -> str | None:
    """Refuse what no id is: also two of them, joined by a comma as WSGI servers do."""
    if not text:
        return None
    if not text.isascii() or not text.isprintable() or "," in text:
        raise WebhookVerificationError(f"The header {DELIVERY_ID} is not one id.")
    return text
