"""Webhook deliveries by hand: a body, and the headers that AgentPhone would send with it."""

from __future__ import annotations

import json
import time
from typing import Any

from agentphone.webhooks import Webhook
from tests.inbox.world import AGENT, SECRET, person

Delivery = tuple[bytes, dict[str, str]]


def delivery(
    *, secret: str = SECRET, timestamp: float | None = None, event: str = "agent.message", **data: Any
) -> Delivery:
    """Return a signed delivery, of a text unless told otherwise; `data` are changes of the payload's data."""
    good = {
        "conversationId": "conv_1",
        "messageId": "msg_1",
        "numberId": "num_1",
        "from": person(0),
        "to": AGENT,
        "message": "Hi",
        "direction": "inbound",
        "receivedAt": "2025-01-15T12:00:00Z",
    }
    payload = {"event": event, "channel": "sms", "timestamp": "2025-01-15T12:00:01Z", "data": good | data}
    return sign(json.dumps(payload).encode(), secret=secret, timestamp=timestamp)


def sign(body: bytes, *, secret: str = SECRET, timestamp: float | None = None) -> Delivery:
    return body, Webhook(secret).sign(body, timestamp=time.time() if timestamp is None else timestamp)


def of_message(message: dict[str, Any]) -> Delivery:
    """Return the delivery of a text that a sandbox has received."""
    return delivery(
        conversationId=message["conversationId"],
        messageId=message["id"],
        message=message["body"],
        receivedAt=message["receivedAt"],
        **{"from": message["fromNumber"], "to": message["toNumber"], "numberId": None},
    )
