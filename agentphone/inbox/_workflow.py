"""What happens to one item, in which order: the workflow that the engine runs, and repeats after a crash.

What is certain after a crash at any moment follows from the order of its steps, whose results are recorded:

    handle        again until its result is recorded; then never again
    write state   again until it is recorded: it stores the same whole object
    send          at most once: it begins with a note, and a run that finds the note of an earlier one looks for the
                  reply in the history instead

Everything that may differ between two runs is in a step.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from itertools import count
from typing import Any

from attrs import define, frozen
from dbos import DBOS

from agentphone._timestamps import parse_timestamp
from agentphone.inbox._database import Database, DatabaseError, SetAsideError
from agentphone.inbox._handlers import Handler, Reply
from agentphone.inbox._receiving import Item
from agentphone.inbox._slots import Slot, Slots
from agentphone.inbox._steps import Result, Steps, now
from agentphone.inbox._tracing import continued
from agentphone.webhooks import Event, MessageEvent

INITIAL_BACKOFF, MAX_BACKOFF = 1.0, 60.0
"""The pauses before the second attempt, and at most, in seconds."""
JITTER = 0.2
MAX_RETRY_AFTER = 3600.0
HANDLE, WRITE_STATE, SEND, LOOK_UP = "handle", "write state", "send", "look up"
"""The names of the steps, as they are stored."""

Body = Callable[[], Awaitable[Any]]

logger = logging.getLogger("agentphone.inbox")


@frozen
class Settings:
    """What a worker needs of its inbox."""

    inbox: str
    database: Database
    handlers: Mapping[type[Event], Handler]
    concurrency: int
    max_attempts: int


@define
class Workflow:
    """One run of the workflow of one item.

    Attributes:
        settings: The settings of the inbox.
        steps: What is done in the steps.
        slot: A place among those that may work at once. It is held from beginning to end, except in pauses.
        event: The event.
        stored_at: When it was received.
        attempts: How often the handler has run.
        reply: The text of the reply.
        is_repeated: Whether the last step was done before the worker was restarted, and its result was recorded.
    """

    settings: Settings
    steps: Steps
    slot: Slot
    event: Event
    stored_at: str
    attempts: int = 0
    reply: str | None = None
    is_repeated: bool = False

    @classmethod
    async def run(cls, settings: Settings, steps: Steps, slots: Slots, stored: dict[str, Any]) -> dict[str, Any]:
        """Handle an item as it is stored.

        Returns:
            What the listing shows of it.

        Raises:
            SetAsideError: It was given up.
        """
        event = Item("", "", stored["payload"], stored["deliveryId"]).to_event()
        workflow = cls(settings, steps, Slot(slots), event, stored["storedAt"])
        try:
            with continued(stored.get("trace")):
                await workflow.slot.acquire()
                reply_id = await workflow._carry_out()
        except SetAsideError as error:
            workflow._log(error.data["status"], error.data["reason"])
            raise
        finally:
            workflow.slot.release()
        workflow._log("replied" if reply_id else "done")
        return workflow._describe("done") | {"replyId": reply_id}

    async def _carry_out(self) -> str | None:
        """Do all steps, and return the id of the reply."""
        event = self.event
        handler = next((each for cls, each in self.settings.handlers.items() if isinstance(event, cls)), None)
        if handler is None:
            return None
        outcome = await self._handle(handler)
        if not isinstance(event, MessageEvent):
            return None
        reply = Reply.from_dict(outcome["reply"]) if outcome["reply"] else None
        self.reply = reply.body if reply else None
        state = outcome["state"]
        if state is not None:
            result = await self._until_available(WRITE_STATE, lambda: self.steps.write_state(event, state))
            self._check(result, stage="state")
        if reply is None:
            return None
        result = await self._send(event, reply)
        self._check(result, stage="reply")
        return str(result["id"])

    async def _handle(self, handler: Handler) -> Result:
        while True:
            result = await self._until_available(HANDLE, lambda: self.steps.handle(handler, self.event))
            self.attempts += 1
            if result["outcome"] != "raised" or self.attempts >= self.settings.max_attempts:
                self._check(result, stage="handler")
                return result
            await self._pause(self.attempts, result)

    async def _send(self, event: MessageEvent, reply: Reply) -> Result:
        for failures in count(1):
            note = f"sending {failures}"

            async def send(note: str = note) -> Result:
                noted_at = (await DBOS.get_all_events_async(str(DBOS.workflow_id))).get(note)
                if noted_at is not None:
                    return {"outcome": "interrupted", "noted_at": noted_at}
                # Committed right before the request, so that little time is left in which a kill leaves it open whether
                # the reply was sent. It fails if the item is another worker's by now.
                await DBOS.set_event_async(note, now().isoformat())
                return await self.steps.send(event, reply)

            result = await self._run_step(SEND, send)
            if result["outcome"] == "interrupted":
                return await self._look_up(event, reply, datetime.fromisoformat(result["noted_at"]))
            if result["outcome"] != "unavailable":
                return result
            await self._pause(failures, result)
        raise AssertionError("unreachable")

    async def _look_up(self, event: MessageEvent, reply: Reply, since: datetime) -> Result:
        async def look_up() -> Result:
            partition = Item.from_event(event).partition
            try:
                known = await asyncio.to_thread(self.settings.database.reply_ids, partition)
            except DatabaseError as error:
                name = type(error).__name__
                reason = f"the inbox's database cannot be used ({name})"
                return {"outcome": "unavailable", "reason": reason, "error": f"{name}: {error}"}
            return await self.steps.look_up(event, reply, since, known)

        return await self._until_available(LOOK_UP, look_up)

    async def _until_available(self, name: str, body: Body) -> Result:
        """Run a step until the API is available; it does nothing otherwise."""
        for failures in count(1):
            result = await self._run_step(name, body)
            if result["outcome"] != "unavailable":
                return result
            await self._pause(failures, result)
        raise AssertionError("unreachable")

    async def _run_step(self, name: str, body: Body) -> Result:
        self.is_repeated = True

        async def run() -> Result:  # DBOS runs what is not a coroutine function in a thread
            self.is_repeated = False
            result: Result = await body()
            return result

        return await DBOS.run_step_async({"name": name}, run)

    async def _pause(self, failures: int, result: Result) -> None:
        jitter = random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # not a secret
        seconds = min(MAX_BACKOFF, INITIAL_BACKOFF * 2 ** min(failures - 1, 32) * jitter)
        seconds = max(seconds, min(result.get("retry_after") or 0, MAX_RETRY_AFTER))
        if not self.is_repeated:  # it was logged then, and the pause is what is left of it
            raised = result["outcome"] == "raised"
            text = (
                "%s: attempt %d failed (%s); the next one is in %.1f s."
                if raised
                else "%s: %s; trying again in %.1f s."
            )
            details = (failures, result["reason"]) if raised else (result["reason"],)
            logger.warning(text, self._name(), *details, seconds)
        self.slot.release()
        await DBOS.sleep_async(seconds)
        await self.slot.acquire()

    def _check(self, result: Result, *, stage: str) -> None:
        """Raise unless a step has done what it had to do."""
        if result["outcome"] == "done":
            return
        status = "unconfirmed" if result["outcome"] == "unconfirmed" else "failed"
        details = {"stage": stage, "reason": result.get("reason", ""), "error": result["error"]}
        raise SetAsideError(self._describe(status) | details)

    def _describe(self, status: str) -> dict[str, Any]:
        return {"status": status, "attempts": self.attempts, "reply": self.reply}

    def _log(self, outcome: str, reason: str = "") -> None:
        """Write the line about this item. No texts and no phone numbers: logs are kept for long, and by many."""
        seconds = max(0.0, (now() - parse_timestamp(self.stored_at)).total_seconds())
        hint = f" ({reason})" if reason else ""
        if outcome not in ("failed", "unconfirmed"):
            logger.info("%s: %s%s in %.2f s", self._name(), outcome, hint, seconds)
            return
        advice = "Look at the conversation" if outcome == "unconfirmed" else "Fix it"
        item_id = self.settings.database.item_id(str(DBOS.workflow_id))
        text = "%s: %s%s in %.2f s. %s, then: agentphone inbox retry %s"
        logger.error(text, self._name(), outcome, hint, seconds, advice, item_id)

    def _name(self) -> str:
        return getattr(self.event, "conversation_id", None) or self.event.type
