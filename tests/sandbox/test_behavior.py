"""`Behavior`: a test chooses how the sandbox behaves where the vendor's documentation is silent."""

from typing import Any

import httpx
import pytest

from agentphone.sandbox import Behavior, Sandbox

from .helpers import ADA, AGENT

pytestmark = pytest.mark.anyio


def fill(sandbox: Sandbox) -> str:
    """Store five messages, one per second, the third with a fraction, and a sixth with the fourth one's timestamp."""
    conversation_id = ""
    for body, second in (("a", "00Z"), ("b", "01Z"), ("c", "02.123999Z"), ("d", "03Z"), ("d2", "03Z"), ("e", "04Z")):
        message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body=body, at=f"2025-01-15T12:00:{second}")
        conversation_id = message["conversationId"]
    return f"/v1/conversations/{conversation_id}/messages"


@pytest.mark.parametrize(
    ("behavior", "params", "expected", "has_more"),
    [
        (Behavior(), {"before": "01"}, "a", False),
        (Behavior(boundary="inclusive"), {"before": "01"}, "b a", False),
        (Behavior(), {"after": "03"}, "e", False),
        (Behavior(boundary="inclusive"), {"after": "03"}, "e d2 d", False),
        (Behavior(), {"after": "03", "before": "04"}, "", False),
        (Behavior(boundary="inclusive"), {"after": "03", "before": "03"}, "d2 d", False),
        (Behavior(), {"after": "00", "limit": 2}, "c b", True),
        (Behavior(after_alone="newest"), {"after": "00", "limit": 2}, "e d2", True),
        (Behavior(), {"after": "00", "before": "04", "limit": 2}, "d2 d", True),
        (Behavior(message_order="oldest"), {"limit": 2}, "d2 e", True),
        (Behavior(message_order="oldest"), {"after": "00", "limit": 2}, "b c", True),
        (Behavior(message_order="oldest", after_alone="newest"), {"after": "00", "limit": 2}, "d2 e", True),
        # Comparisons use more digits than are shown.
        (Behavior(timestamp_digits=0), {"before": "02.123999"}, "b a", False),
        (Behavior(timestamp_digits=0), {"before": "02.124"}, "c b a", False),
    ],
)
async def test_page_follows_behavior(
    sandbox: Sandbox,
    client: httpx.AsyncClient,
    behavior: Behavior,
    params: dict[str, Any],
    expected: str,
    has_more: bool,
) -> None:
    path = fill(sandbox)
    sandbox.behavior = behavior
    query = {key: value if key == "limit" else f"2025-01-15T12:00:{value}Z" for key, value in params.items()}
    page = (await client.get(path, params=query)).json()
    assert ([message["body"] for message in page["data"]], page["hasMore"]) == (expected.split(), has_more)


async def test_messages_inside_a_conversation_follow_behavior(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    path = fill(sandbox).removesuffix("/messages")
    sandbox.behavior = Behavior(message_order="oldest")
    conversation = (await client.get(path, params={"message_limit": 3})).json()
    assert [message["body"] for message in conversation["messages"]] == ["d", "d2", "e"]


@pytest.mark.parametrize(
    ("behavior", "shown"),
    [
        (Behavior(timestamp_digits=0), "2025-01-15T12:00:02Z"),
        (Behavior(timestamp_digits=3), "2025-01-15T12:00:02.123Z"),
        (Behavior(timestamp_digits=6), "2025-01-15T12:00:02.123999Z"),
    ],
)
async def test_timestamps_are_truncated_not_rounded(sandbox: Sandbox, behavior: Behavior, shown: str) -> None:
    sandbox.behavior = behavior
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="", at="2025-01-15T12:00:02.123999Z")
    assert message["receivedAt"] == shown


async def test_timestamp_before_1970_is_truncated_downwards(sandbox: Sandbox) -> None:
    sandbox.behavior = Behavior(timestamp_digits=0)
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="", at="1969-12-31T23:59:58.9Z")
    assert message["receivedAt"] == "1969-12-31T23:59:58Z"


def test_unknown_behavior_is_rejected() -> None:
    with pytest.raises(ValueError, match="digits"):
        Behavior(timestamp_digits=4)  # type: ignore[arg-type]  # what is tested
