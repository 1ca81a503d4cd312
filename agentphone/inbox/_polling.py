"""Polling: texts by `watch()` instead of a webhook. How far it has come is stored with each text, in one transaction.

The client may be blocking; its steps run in threads then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from agentphone import (
    AgentPhoneError,
    AsyncClient,
    AsyncStream,
    AuthenticationError,
    Client,
    ClientClosedError,
    Cursor,
    NewMessage,
    Stream,
)
from agentphone.inbox._database import Database, DatabaseError
from agentphone.inbox._failures import TEMPORARY
from agentphone.inbox._handlers import run_in_thread
from agentphone.inbox._receiving import item_of_message

OVERLAP = timedelta(seconds=30)
"""How far before its cursor a restarted poll begins, for texts that the API published late meanwhile. Those that are
stored already are not stored again."""
ERROR_PAUSE = 30.0
NO_MESSAGES = Cursor(datetime(1970, 1, 1, tzinfo=UTC), "")
"""Where the first poll begins if there are none yet: every message will be new."""

logger = logging.getLogger("agentphone.inbox")


async def poll(client: AsyncClient | Client, database: Database, *, poll_interval: float) -> None:
    """Store the texts that arrive, from where the last poll ended. It never returns.

    The first poll begins now, and stores that at once: texts that arrive while nothing polls are found later.

    Raises:
        AgentPhoneError: The first request failed for a reason that does not clear by itself.
    """
    newest = await _newest(client)
    start = await asyncio.to_thread(database.get, "start")
    if start is None:
        start = str(newest)
        await asyncio.to_thread(database.put, start=start)
    stored = await asyncio.to_thread(database.get, "cursor")
    last = Cursor.parse(stored or start)
    after = max(Cursor.parse(start), Cursor(last.received_at - OVERLAP, "")) if stored else last
    stream = client.conversations.watch(after=after, poll_interval=poll_interval)
    try:
        while True:
            try:
                conversation, message = await _next(stream)
            except ClientClosedError:
                raise
            except AgentPhoneError as error:  # the next step of the same iterator tries again
                logger.error("Polling failed; it goes on in %.0f s. %s", ERROR_PAUSE, error)  # noqa: TRY400
                await asyncio.sleep(ERROR_PAUSE)
                continue
            last = max(last, message.cursor)
            item = item_of_message(conversation, message)
            if item is None:
                await _until_stored(database.put, cursor=str(last))
            else:
                await _until_stored(database.add, item, cursor=str(last))
    finally:
        if isinstance(stream, AsyncStream):
            await stream.aclose()
        else:
            await run_in_thread(stream.close)


async def _next(stream: AsyncStream[NewMessage] | Stream[NewMessage]) -> NewMessage:
    if isinstance(stream, AsyncStream):
        return await anext(stream)
    return await run_in_thread(next, stream)


async def _newest(client: AsyncClient | Client) -> Cursor:
    """Return the position of the newest message; wait while the API is not available."""
    while True:
        try:
            if isinstance(client, Client):
                return await run_in_thread(_newest_blocking, client)
            # The first conversations may have no messages: the API may list them before those that have.
            async for conversation in client.conversations.list():
                async for message in client.conversations.messages(conversation.id, limit=1):
                    return message.cursor
        except (AuthenticationError, ClientClosedError):
            raise
        except TEMPORARY as error:
            logger.error("Polling cannot begin; it tries again in %.0f s. %s", ERROR_PAUSE, error)  # noqa: TRY400
            await asyncio.sleep(ERROR_PAUSE)
        else:
            return NO_MESSAGES


def _newest_blocking(client: Client) -> Cursor:
    for conversation in client.conversations.list():
        for message in client.conversations.messages(conversation.id, limit=1):
            return message.cursor
    return NO_MESSAGES


async def _until_stored(function: Callable[..., None], *arguments: Any, **options: str) -> None:
    """Store something in the database; wait while it cannot be used."""
    while True:
        try:
            return await asyncio.to_thread(function, *arguments, **options)
        except DatabaseError:
            logger.exception("The inbox's database cannot be used; polling tries again in %.0f s.", ERROR_PAUSE)
            await asyncio.sleep(ERROR_PAUSE)
