"""Event loops whose clock jumps to the next timer, so that hours pass at once in a test."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

import trio.testing


class JumpingSelector(selectors.DefaultSelector):
    """A selector that never waits: if nothing is ready, the clock jumps to the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits forever"
            self.now += max(0.0, timeout)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with a clock that jumps, as trio's MockClock does."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def jumping(backend: str) -> tuple[str, dict[str, Any]]:
    """Return the value of an `anyio_backend` fixture for an event loop with such a clock."""
    if backend == "asyncio":
        return "asyncio", {"loop_factory": JumpingLoop}
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
