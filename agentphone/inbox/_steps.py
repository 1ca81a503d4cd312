"""The steps of handling a text, each called once or repeated after a crash. It knows the API and no engine.

A step returns plain JSON data, which the engine records. A recorded result is never computed again: `done`,
`unavailable` (the API failed for now, nothing was done), or `failed`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from agentphone import AgentPhoneError, AsyncClient, Client, SendUnconfirmedError
from agentphone._json import DecodeError
from agentphone._replies import find_reply
from agentphone._state import LoadedState, state_decode_error
from agentphone.inbox._failures import Failures
from agentphone.inbox._handlers import Handler, Reply, read_reply
from agentphone.inbox._tracing import span
from agentphone.webhooks import Event, MessageEvent

T = TypeVar("T")
Result = dict[str, Any]

CONFIRM_SECONDS = 10.0
"""How long a reply is looked for whose outcome is unclear."""
LOOK_INTERVAL = 0.5
LOOKED_AT = 200
"""How many of the newest messages are looked at for a reply."""


class Steps:
    """The steps, with the client that they call.

    Args:
        client: The client; the calls of a blocking one run in threads.
        is_stopping: Returns whether a cancellation comes from the worker.
    """

    def __init__(self, client: AsyncClient | Client, is_stopping: Callable[[], bool]) -> None:
        self._client = client
        # A reply that was refused for now is tried again by the workflow, which records that it was not sent; while the
        # client waits for its own next attempt, a kill would leave that open.
        self._sender = client.with_options(max_retries=0)
        self._is_stopping = is_stopping
        self._failures = Failures(client)

    async def handle(self, handler: Handler, event: Event) -> Result:
        """Load the state, and run the handler.

        Returns:
            With `done`: `state`, the whole object to store, or None if it has not changed; and `reply`, or None.
        """
        loaded: LoadedState[Any] | None = None
        if handler.state_class is not None and isinstance(event, MessageEvent):
            try:
                conversation = await self._call("get", event.conversation_id, message_limit=1)
                loaded = LoadedState(conversation.metadata, handler.state_class, "metadata")
            except AgentPhoneError as error:
                return self._failures.of_api(error, event)
            except DecodeError as error:
                request = f"GET /v1/conversations/{event.conversation_id}"
                return self._failures.of_api(state_decode_error(error, handler.state_class, request), event)
        try:
            with span("handler", event):
                answer = await handler(event, loaded.value if loaded else None)
            if not isinstance(event, MessageEvent):
                return {"outcome": "done", "state": None, "reply": None}
            reply = read_reply(answer)
            state = loaded.diff() if loaded else None
        except asyncio.CancelledError as error:
            if self._is_stopping():
                raise
            return self._failures.of_handler(error, event)
        except BaseException as error:  # noqa: BLE001  # SystemExit, too: one text must not stop the worker
            return self._failures.of_handler(error, event)
        return {"outcome": "done", "state": state, "reply": reply.to_dict() if reply else None}

    async def write_state(self, event: MessageEvent, state: dict[str, Any]) -> Result:
        """Write the whole state. Idempotent."""
        try:
            with span("state", event):
                await self._call("update", event.conversation_id, metadata=state)
        except AgentPhoneError as error:
            return self._failures.of_api(error, event)
        return {"outcome": "done"}

    async def send(self, event: MessageEvent, reply: Reply) -> Result:
        """Send the reply, which is certain not to have been sent before.

        Returns:
            With `done`: `id`, that of the message. `unconfirmed` if it may have been sent.
        """
        try:
            with span("reply", event):
                sent = await self._call(
                    "reply",
                    event,
                    reply.body,
                    client=self._sender,
                    media_urls=reply.media_urls,
                    reply_to=reply.reply_to,
                    send_style=reply.send_style,
                    confirm=CONFIRM_SECONDS,
                )
        except SendUnconfirmedError as error:
            return {"outcome": "unconfirmed", "error": str(error)}
        except (AgentPhoneError, TypeError, ValueError) as error:  # an argument that the handler got wrong
            return self._failures.of_api(error, event)
        return {"outcome": "done", "id": sent.id}

    async def look_up(self, event: MessageEvent, reply: Reply, since: datetime, known: set[str]) -> Result:
        """Look for a reply that a process may have sent before it was killed.

        Args:
            event: The text.
            reply: The reply.
            since: When that process noted that it would send it.
            known: The ids of the replies to other texts.

        Returns:
            With `done`: `id`, that of the message. `unconfirmed` if it is not in the history.
        """
        ends_at = time.monotonic() + CONFIRM_SECONDS
        while True:
            try:
                page = await self._page(event.conversation_id)
            except AgentPhoneError as error:
                return self._failures.of_api(error, event)
            found = find_reply(page.data, reply.body, reply.media_urls, since=since, known=known)
            if found is not None:
                return {"outcome": "done", "id": found.id}
            if time.monotonic() >= ends_at:
                reason = (
                    "The process was stopped when it was about to send the reply, and the reply is not in the history."
                )
                return {"outcome": "unconfirmed", "error": reason}
            await asyncio.sleep(LOOK_INTERVAL)

    async def _page(self, conversation_id: str) -> Any:
        client = self._client
        if isinstance(client, AsyncClient):
            return await client.conversations.messages(conversation_id, page_size=LOOKED_AT)
        return await asyncio.to_thread(client.conversations.messages(conversation_id, page_size=LOOKED_AT).page)

    async def _call(
        self, method: str, *arguments: Any, client: AsyncClient | Client | None = None, **options: Any
    ) -> Any:
        chosen = client or self._client
        function = getattr(chosen.conversations, method)
        if isinstance(chosen, Client):
            return await asyncio.to_thread(function, *arguments, **options)
        return await function(*arguments, **options)


def now() -> datetime:
    """Return the current time."""
    return datetime.now(UTC)
