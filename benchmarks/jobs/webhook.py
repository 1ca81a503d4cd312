"""A webhook delivery, and how it is verified and parsed."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

from .turns import Turn, repeat

SECRET = "whsec_of_the_benchmark"
TOLERANCE = 300
"""The age of the oldest delivery that is accepted, in seconds."""

Headers = dict[str, str]


def make_delivery(number: int, conversations: int) -> tuple[bytes, Headers]:
    """Return the body and the headers of a signed text, in one of so many conversations."""
    conversation = number % conversations
    person, agent, instant = f"+1555555{conversation:04}", "+15555550100", "2025-06-30T12:00:00.123Z"
    texts = ("Hi, where is my order?", "Which order do you mean? Its number begins with ORD.")
    payload = {
        "event": "agent.message",
        "channel": "sms",
        "timestamp": instant,
        "agentId": "agt_abc123",
        "data": {
            "conversationId": f"conv_{conversation}",
            "messageId": f"msg_{number}",
            "numberId": "num_xyz789",
            "from": person,
            "to": agent,
            "message": "It is ORD-12412. It was to come on Monday, as you wrote.",
            "direction": "inbound",
            "receivedAt": instant,
        },
        "conversationState": {"topic": "order_tracking", "orderId": "ORD-12412", "resolved": False},
        "recentHistory": [
            {"content": texts[at % 2], "direction": ("inbound", "outbound")[at % 2], "channel": "sms", "at": instant}
            for at in range(10)
        ],
    }
    body = json.dumps(payload, separators=(",", ":")).encode()
    timestamp = str(int(time.time()))
    headers = {
        "X-Webhook-Signature": f"sha256={_sign(body, timestamp)}",
        "X-Webhook-Timestamp": timestamp,
        "X-Webhook-ID": f"dlv_{number}",
    }
    return body, headers


def parse(library: str, _url: str, _size: int) -> Turn:
    """Verify and parse a delivery."""
    body, headers = make_delivery(0, 1)
    if library == "ours":
        from agentphone.webhooks import Webhook

        webhook = Webhook(SECRET)
        return repeat(lambda: webhook.parse(body, headers))
    if library == "vendor":
        from agentphone import construct_event  # type: ignore[attr-defined]  # the vendor's package of this name

        def parse_vendor() -> object:
            return construct_event(body, headers["X-Webhook-Signature"], SECRET, headers["X-Webhook-Timestamp"])

        return repeat(parse_vendor)
    return repeat(lambda: parse_by_hand(body, headers))


def parse_by_hand(body: bytes, headers: Headers) -> dict[str, Any]:
    """Verify and parse a delivery as one would write it."""
    timestamp = headers["X-Webhook-Timestamp"]
    if abs(time.time() - int(timestamp)) > TOLERANCE:
        raise ValueError("the timestamp is too old")
    if not hmac.compare_digest(f"sha256={_sign(body, timestamp)}", headers["X-Webhook-Signature"]):
        raise ValueError("the signature is wrong")
    payload: dict[str, Any] = json.loads(body)
    return payload


def _sign(body: bytes, timestamp: str) -> str:
    return hmac.new(SECRET.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
