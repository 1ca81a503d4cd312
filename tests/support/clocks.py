"""Event loops whose clock jumps to the next thing that happens, so that hours pass in no time."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

import trio.testing


class JumpingSelector(selectors.DefaultSelector):
    """Never wait: when nothing is ready, the clock jumps to when something will be."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for ever"
            self.now += max(0.0, timeout)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """asyncio with a clock that jumps, as trio's MockClock does."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def jumping(backend: str) -> tuple[str, dict[str, Any]]:
    """Give what an `anyio_backend` fixture gives for an event loop with such a clock."""
    if backend == "asyncio":
        return "asyncio", {"loop_factory": JumpingLoop}
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
