"""The worker: starts DBOS in this process, lets it run the workflow of each item, and stops it in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from dbos import DBOS
from dbos import _dbos as dbos_module

from agentphone import AsyncClient, Client
from agentphone.errors import ConfigurationError
from agentphone.inbox._database import WORKFLOW, JSONSerializer, quiet_dbos
from agentphone.inbox._handlers import run_in_thread
from agentphone.inbox._slots import Slots
from agentphone.inbox._steps import Steps
from agentphone.inbox._worker_lock import hold_name
from agentphone.inbox._workflow import Settings, Workflow

MAX_WAITING = 64
"""How many items, beyond those that are being handled, may wait for their next attempt before they hold up others."""
MAX_CRASHES = 50
"""How often an item is taken up again whose process was stopped: one that kills every process is given up."""
LISTEN_SECONDS = 1.0
"""How often DBOS looks for messages between workflows, which the inbox does not use; it is DBOS's default. Stopping
takes as long."""
GRACE_SECONDS = 10.0
"""How long a worker that is told to stop waits for what is being handled; the next start does the rest."""
VERSION = "1"
"""The version of the workflow: what another one has begun is not continued. DBOS's own is a hash of the source."""


class Worker:
    """Handles the items of an inbox. One per process, because there is one DBOS per process.

    Args:
        settings: The settings.
        client: The client.
    """

    def __init__(self, settings: Settings, client: AsyncClient | Client) -> None:
        self._settings = settings
        self._slots = Slots(settings.concurrency)
        self._steps = Steps(client, lambda: self._slots.is_stopping)

    @asynccontextmanager
    async def running(self, name: str) -> AsyncGenerator[None]:
        """Handle items while the block runs, on this event loop; then finish what is being handled.

        Args:
            name: The worker's name. It continues what an earlier worker of this name has left.

        Raises:
            ConfigurationError: A worker of this name is running, or this process runs DBOS for something else.
        """
        if dbos_module._dbos_global_instance is not None:  # noqa: SLF001  # DBOS has no public way to ask
            raise ConfigurationError(
                "This process runs DBOS already, for another inbox or a program of yours. Run the worker in a process"
                " of its own: agentphone work MODULE:INBOX"
            )
        with hold_name(self._settings.database, self._settings.inbox, name), quiet_dbos():
            try:
                await self._launch(name)
                yield
            finally:
                await self._stop()

    async def _launch(self, name: str) -> None:
        settings = self._settings
        DBOS(
            config={
                "name": settings.inbox,
                "system_database_url": settings.database.url,
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

    async def _stop(self) -> None:
        await self._slots.stop(GRACE_SECONDS)
        # In a thread: one of DBOS's may be waiting for this loop, to begin an item, and would be waited for in vain.
        await run_in_thread(lambda: DBOS.destroy(destroy_registry=True))
