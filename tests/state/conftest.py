"""A sandbox with one conversation, entered by asyncio, trio and the sync client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agentphone.sandbox import Sandbox
from tests.state.world import AGENT, PERSON, ROUTES, World


@pytest.fixture(params=ROUTES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with Sandbox() as box:
        said = box.receive_sms(from_number=PERSON, to_number=AGENT, body="Where is it?")
        yield World(box, said["conversationId"], request.param)
