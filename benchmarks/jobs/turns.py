"""The turns of most jobs: do so many units of work, and return the seconds for one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

Turn = Callable[[int], float]
"""Does so many units, and returns the figure."""
AsyncCall = Callable[[], Awaitable[object]]
"""Does one unit; what it returns is not empty."""

RUNNER = asyncio.Runner()
"""The event loop of this process."""


def repeat(call: Callable[[], object]) -> Turn:
    """Make calls, one after another."""

    def turn(units: int) -> float:
        assert call()  # not measured: it opens again the connection that idled while others had their turns
        began = time.perf_counter()
        for _ in range(units):
            call()
        return (time.perf_counter() - began) / units

    return turn


def repeat_in_flight(call: AsyncCall, width: int) -> Turn:
    """Make calls on an event loop, `width` at a time."""

    async def one_after_another(units: int) -> None:
        for _ in range(units):
            await call()

    async def turn(units: int) -> float:
        assert await call()
        # Not measured: it opens again the connections that idled while others had their turns.
        await asyncio.gather(*(one_after_another(1) for _ in range(width)))
        began = time.perf_counter()
        if width == 1:
            await one_after_another(units)
        else:
            await asyncio.gather(*(one_after_another(units // width) for _ in range(width)))
        return (time.perf_counter() - began) / units

    return lambda units: RUNNER.run(turn(units))
