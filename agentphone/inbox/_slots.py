"""Slots: how many items a worker handles at once, and how it stops after those. One event loop, no locks."""

from __future__ import annotations

import asyncio
import time

STEP_SECONDS = 0.02


class Slots:
    """The slots of a worker.

    Args:
        count: How many items are handled at once.
    """

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)
        self._held = 0
        self.is_stopping = False
        """True once no further item is begun."""

    async def acquire(self) -> None:
        """Wait for a slot.

        Raises:
            asyncio.CancelledError: The worker is stopping. DBOS leaves the item as it is, for the next start.
        """
        await self._free.acquire()
        if self.is_stopping:
            self._free.release()
            raise asyncio.CancelledError
        self._held += 1

    def release(self) -> None:
        """Return a slot."""
        self._held -= 1
        self._free.release()

    async def stop(self, seconds: float) -> None:
        """Begin no further item, and wait for those that hold a slot, for so many seconds at most."""
        self.is_stopping = True
        ends_at = time.monotonic() + seconds
        while self._held and time.monotonic() < ends_at:  # noqa: ASYNC110  # an event would have to be kept in step
            await asyncio.sleep(STEP_SECONDS)


class Slot:
    """The slot of one run: held while it works, not while it waits for its next attempt."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._is_held = False

    async def acquire(self) -> None:
        """Wait for a slot; see `Slots.acquire`."""
        await self._slots.acquire()
        self._is_held = True

    def release(self) -> None:
        """Return the slot, if it is held."""
        if self._is_held:
            self._is_held = False
            self._slots.release()
