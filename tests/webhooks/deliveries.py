"""Signed deliveries for the tests of webhooks."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from agentphone.webhooks import Event, Webhook
from tests.support.helpers import sample

SECRET = "whsec_c2FtcGxlLXNlY3JldA"
OTHER = "whsec_bm90LXRoaXMtb25l"
NOW = 1_736_942_400
NOON = datetime(2025, 1, 15, 12, tzinfo=UTC)
WEBHOOK = Webhook(SECRET, clock=lambda: NOW)
BODY = sample("webhook_message")
SIGNATURE = "sha256=14cad9068b704ca711f2ae08674f35bd8d99b05ae78c3399f6734e8bf4e74256"
HEADERS = {"X-Webhook-Signature": SIGNATURE, "X-Webhook-Timestamp": str(NOW), "X-Webhook-ID": "dlv_1"}


def signed(payload: Any) -> tuple[bytes, dict[str, str]]:
    """Return a signed delivery of a payload; bytes are sent unchanged."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return body, WEBHOOK.sign(body)


def parse(payload: Any) -> Event:
    """Parse a signed delivery of a payload; bytes are sent unchanged."""
    return WEBHOOK.parse(*signed(payload))


def payload(name: str, data: Any = None, **changes: Any) -> dict[str, Any]:
    """Return a sample's payload with other values for some fields, and for some of `data`."""
    good: dict[str, Any] = json.loads(sample(f"webhook_{name}"))
    return good | changes | {"data": {**good["data"], **(data or {})}}


def environ(headers: dict[str, str]) -> dict[str, Any]:
    """Return a WSGI environ with these headers."""
    names = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}
    return {"wsgi.input": None, "SERVER_PORT": "80", "HTTP_HOST": "agent.example", "wsgi.version": (1, 0), **names}


def assert_pickles(error: Exception) -> None:
    """Check that an error survives pickling."""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
