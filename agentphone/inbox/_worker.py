"""The worker: starts DBOS in this process, lets it run the workflow of each item, and stops it in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from dbos import DBOS
from dbos import _dbos as dbos_module

from agentphone import AsyncClient, Client
from agentphone.errors import ConfigurationError
from agentphone.inbox._database import WORKFLOW, DatabaseError, JSONSerializer
from agentphone.inbox._engine import close_engine, create_engine
from agentphone.inbox._handlers import run_in_thread
from agentphone.inbox._slots import Slots
from agentphone.inbox._steps import Steps
from agentphone.inbox._worker_lock import NameLock, hold_name, name_lock
from agentphone.inbox._workflow import Settings, Workflow

T = TypeVar("T")

MAX_WAITING = 64
"""How many items, beyond those that are being handled, may wait for their next attempt before they hold up others."""
MAX_CRASHES = 50
"""How often an item is taken up again whose process was stopped: one that kills every process is given up."""
LISTEN_SECONDS = 1.0
"""How often DBOS looks for messages between workflows, which the inbox does not use; it is DBOS's default. Stopping
takes as long."""
GRACE_SECONDS = 10.0
"""How long a worker that stops waits for the texts in progress, in seconds; the next start continues the others."""
CARE_SECONDS = 10.0
"""How often a worker checks its name, and looks for what others have left."""
VERSION = "1"
"""The version of the workflow: what another one has begun is not continued. DBOS's own is a hash of the source."""

logger = logging.getLogger("agentphone.inbox")


class Worker:
    """Handles the items of an inbox. One per process, because there is one DBOS per process.

    Args:
        settings: The settings.
        client: The client.
    """

    def __init__(self, settings: Settings, client: AsyncClient | Client) -> None:
        self._settings = settings
        self._engine: sa.Engine | None = None
        self._slots = Slots(settings.concurrency)
        self._steps = Steps(client, lambda: self._slots.is_stopping)

    @asynccontextmanager
    async def running(self, name: str) -> AsyncGenerator[asyncio.Task[None]]:
        """Handle items while the block runs, on this event loop; then finish what is being handled.

        Args:
            name: The worker's name. It continues what an earlier worker of this name has left.

        Yields:
            A task, which ends only with an exception: the name was lost.

        Raises:
            ConfigurationError: A worker of this name is running, or this process runs DBOS for something else.
        """
        if dbos_module._dbos_global_instance is not None:  # noqa: SLF001  # DBOS has no public way to ask
            raise ConfigurationError(
                "This process runs DBOS already, for another inbox or a program of yours. Run the worker in a process"
                " of its own: agentphone work MODULE:INBOX"
            )
        with hold_name(self._settings.database, self._settings.inbox, name) as lock:
            try:
                await self._launch(name)
                care = asyncio.create_task(self._take_care(name, lock))
                try:
                    yield care
                finally:
                    care.cancel()
                    await asyncio.wait([care])  # its thread holds locks
            finally:
                await self._stop()

    async def _launch(self, name: str) -> None:
        settings = self._settings
        engine = create_engine(settings.database.url) if settings.database.is_sqlite else None
        self._engine = engine
        DBOS(
            config={
                "name": settings.database.application,
                "system_database_url": settings.database.url,
                "system_database_engine": engine,  # for PostgreSQL, DBOS's own
                "executor_id": name,
                "application_version": VERSION,
                "serializer": JSONSerializer(),
                "enable_otlp": False,
                "notification_listener_polling_interval_sec": LISTEN_SECONDS,
                "log_level": logging.getLevelName(logging.getLogger("dbos").level),
            }
        )

        async def handle(stored: dict[str, Any]) -> dict[str, Any]:
            return await Workflow.run(settings, self._steps, self._slots, stored)

        DBOS.workflow(name=WORKFLOW, max_recovery_attempts=MAX_CRASHES)(handle)
        # Before the start: DBOS looks for new queues once a second.
        await asyncio.to_thread(settings.database.create_queue, settings.concurrency + MAX_WAITING)
        DBOS.launch()  # on a running loop, which it then uses for the workflows

    async def _take_care(self, name: str, lock: NameLock) -> None:
        """Keep the name, and take over what workers have left that are not running any more."""
        while True:
            try:
                if not await _to_the_end(run_in_thread(lock.acquire)):
                    raise ConfigurationError(f"name={name!r}: the name was lost, and another worker has it now.")
                await _to_the_end(run_in_thread(self._take_over, name))
            except DatabaseError as error:  # DBOS waits for it, too
                logger.warning("The inbox's database cannot be used now: %s", type(error).__name__)
            await asyncio.sleep(CARE_SECONDS)

    def _take_over(self, name: str) -> None:
        database, inbox = self._settings.database, self._settings.inbox
        for owner in database.owners().keys() - {name}:
            lock = name_lock(database, inbox, owner)
            if not lock.acquire():
                continue
            try:
                left = database.owners().get(owner)  # again, now that nobody of that name works
                if left:
                    database.requeue(left)
                    logger.info("%d texts that worker %r has left are handled by others.", len(left), owner)
            finally:
                lock.release()

    async def _stop(self) -> None:
        await self._slots.stop(GRACE_SECONDS)
        # In a thread: one of DBOS's may be waiting for this loop, to begin an item, and would be waited for in vain.
        await run_in_thread(lambda: DBOS.destroy(destroy_registry=True))
        if self._engine is not None:
            close_engine(self._engine)  # a thread of DBOS may still use a connection


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await what runs in a thread, which a cancellation does not stop: wait for it, and cancel then."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
