"""What no page of the vendor's says, a test chooses."""

from typing import Any

import httpx
import pytest

from agentphone.sandbox import Reading, Sandbox

from .conftest import ADA, AGENT

pytestmark = pytest.mark.anyio


def fill(sandbox: Sandbox) -> str:
    """Five messages, one a second, the middle one with a fraction, and a second one at the instant of the fourth."""
    conversation_id = ""
    for body, second in (("a", "00Z"), ("b", "01Z"), ("c", "02.123999Z"), ("d", "03Z"), ("d2", "03Z"), ("e", "04Z")):
        message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body=body, at=f"2025-01-15T12:00:{second}")
        conversation_id = message["conversationId"]
    return f"/v1/conversations/{conversation_id}/messages"


@pytest.mark.parametrize(
    ("reading", "params", "expected", "has_more"),
    [
        (Reading(), {"before": "01"}, "a", False),
        (Reading(boundary="inclusive"), {"before": "01"}, "b a", False),
        (Reading(), {"after": "03"}, "e", False),
        (Reading(boundary="inclusive"), {"after": "03"}, "e d2 d", False),
        (Reading(), {"after": "03", "before": "04"}, "", False),
        (Reading(boundary="inclusive"), {"after": "03", "before": "03"}, "d2 d", False),
        (Reading(), {"after": "00", "limit": 2}, "c b", True),
        (Reading(after_alone="newest"), {"after": "00", "limit": 2}, "e d2", True),
        (Reading(), {"after": "00", "before": "04", "limit": 2}, "d2 d", True),
        (Reading(listed="oldest"), {"limit": 2}, "d2 e", True),
        (Reading(listed="oldest"), {"after": "00", "limit": 2}, "b c", True),
        (Reading(listed="oldest", after_alone="newest"), {"after": "00", "limit": 2}, "d2 e", True),
        (Reading(digits=0), {"before": "02.123999"}, "b a", False),  # Compares more digits than it prints.
        (Reading(digits=0), {"before": "02.124"}, "c b a", False),
    ],
)
async def test_a_page_follows_the_reading(
    sandbox: Sandbox,
    client: httpx.AsyncClient,
    reading: Reading,
    params: dict[str, Any],
    expected: str,
    has_more: bool,
) -> None:
    path = fill(sandbox)
    sandbox.reading = reading
    query = {key: value if key == "limit" else f"2025-01-15T12:00:{value}Z" for key, value in params.items()}
    page = (await client.get(path, params=query)).json()
    assert ([message["body"] for message in page["data"]], page["hasMore"]) == (expected.split(), has_more)


async def test_the_messages_inside_a_conversation_follow_the_reading(
    sandbox: Sandbox, client: httpx.AsyncClient
) -> None:
    path = fill(sandbox).removesuffix("/messages")
    sandbox.reading = Reading(listed="oldest")
    conversation = (await client.get(path, params={"message_limit": 3})).json()
    assert [message["body"] for message in conversation["messages"]] == ["d", "d2", "e"]


@pytest.mark.parametrize(
    ("reading", "printed"),
    [
        (Reading(digits=0), "2025-01-15T12:00:02Z"),
        (Reading(digits=3), "2025-01-15T12:00:02.123Z"),
        (Reading(digits=6), "2025-01-15T12:00:02.123999Z"),
    ],
)
async def test_printed_digits_are_cut_not_rounded(sandbox: Sandbox, reading: Reading, printed: str) -> None:
    sandbox.reading = reading
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="", at="2025-01-15T12:00:02.123999Z")
    assert message["receivedAt"] == printed


async def test_an_instant_before_1970_is_cut_towards_the_past(sandbox: Sandbox) -> None:
    sandbox.reading = Reading(digits=0)
    message = sandbox.receive_sms(from_number=ADA, to_number=AGENT, body="", at="1969-12-31T23:59:58.9Z")
    assert message["receivedAt"] == "1969-12-31T23:59:58Z"


def test_a_reading_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="digits"):
        Reading(digits=4)  # type: ignore[arg-type]  # the point of the test
