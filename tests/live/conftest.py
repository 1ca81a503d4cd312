"""Fixtures for the live tests: event loops with a clock that jumps, and a sandbox for each precision of timestamps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agentphone.sandbox import Behavior, Sandbox
from tests.support.clocks import jumping


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return jumping(request.param)


@pytest.fixture(params=[0, 3, 6])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        sandbox.behavior = Behavior(timestamp_digits=request.param)
        yield sandbox
