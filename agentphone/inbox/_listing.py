"""What `agentphone inbox list` and `retry` do: items as people see them, and back into the queue."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dbos import WorkflowStatus

from agentphone._timestamps import format_timestamp
from agentphone.inbox._database import Database, SetAsideError
from agentphone.inbox._workflow import HANDLE, SEND

STATES = {
    # The states of DBOS for each of ours; what DBOS calls an error has its own data.
    "pending": ("ENQUEUED", "DELAYED"),
    "running": ("PENDING",),
    "done": ("SUCCESS",),
    "failed": ("ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "CANCELLED"),
    "unconfirmed": ("ERROR",),
}
REASONS = {
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "Its worker's process ended each time that it was handled.",
    "CANCELLED": "It was cancelled in DBOS.",
}


def list_items(database: Database, *, statuses: tuple[str, ...] = (), limit: int | None = None) -> list[dict[str, Any]]:
    """Return the items, newest first, as plain data under the names that the command line shows.

    Args:
        database: The database.
        statuses: Only items of these statuses; by default all.
        limit: The maximum number of items; None for all.
    """
    states = tuple({state for status in statuses for state in STATES[status]})
    # Failed and unconfirmed items have one state in DBOS, so their limit is applied here.
    found = database.workflows(states=states or None, limit=limit if not states else None)
    chosen = [workflow for workflow in found if not statuses or _status(workflow) in statuses]
    return [_describe(database, workflow) for workflow in chosen[:limit]]


def retry_item(database: Database, item_id: str) -> str:
    """Handle an item again that failed, or send its reply again if that is unconfirmed.

    A handler that failed runs again. A reply that failed or is unconfirmed is sent, without running the handler. An
    item whose processes were killed continues where it was.

    Returns:
        A sentence that says which of them it will be.

    Raises:
        LookupError: There is no such item.
        ValueError: It has not failed.
    """
    workflow = database.find(item_id)
    if workflow is None:
        raise LookupError(f"There is no item {item_id!r}.")
    status = _status(workflow)
    if status not in ("failed", "unconfirmed"):
        raise ValueError(f"{item_id} is {status}; only failed and unconfirmed items are retried.")
    if not isinstance(workflow.error, SetAsideError):
        database.requeue([workflow.workflow_id])
        return f"{item_id} will be continued."
    sends = [step["function_id"] for step in database.steps(item_id) if step["function_name"] == SEND]
    is_sent = workflow.error.data.get("stage") == "reply" and bool(sends)
    database.rewind(item_id, partition=workflow.queue_partition_key or item_id, to_step=sends[-1] if is_sent else 1)
    return f"The reply to {item_id} will be sent again." if is_sent else f"{item_id} will be handled again."


def _status(workflow: WorkflowStatus) -> str:
    if isinstance(workflow.error, SetAsideError):
        return str(workflow.error.data.get("status", "failed"))
    return next(status for status, states in STATES.items() if workflow.status in states)


def _describe(database: Database, workflow: WorkflowStatus) -> dict[str, Any]:
    item_id = database.item_id(workflow.workflow_id)
    stored: dict[str, Any] = workflow.input["args"][0] if workflow.input else {}
    data: dict[str, Any] = stored.get("payload", {}).get("data") or {}
    if isinstance(workflow.error, SetAsideError):
        ended = workflow.error.data
    else:
        ended = workflow.output if isinstance(workflow.output, dict) else _so_far(database, item_id)
    return {
        "id": item_id,
        "conversationId": data.get("conversationId"),
        "messageId": data.get("messageId"),
        "status": _status(workflow),
        "attempts": ended.get("attempts", 0),
        "createdAt": stored.get("storedAt"),
        "updatedAt": _timestamp(workflow.updated_at),
        "text": data.get("message"),
        "reply": ended.get("reply"),
        "error": ended.get("error") or REASONS.get(workflow.status),
    }


def _so_far(database: Database, item_id: str) -> dict[str, Any]:
    """Return what is known of an item that has not ended."""
    results = [step["output"] for step in database.steps(item_id) if step["function_name"] == HANDLE]
    results = [result for result in results if isinstance(result, dict)]
    if not results:
        return {}
    attempts = sum(result["outcome"] != "unavailable" for result in results)
    reply = (results[-1].get("reply") or {}).get("body")
    return {"attempts": attempts, "reply": reply, "error": results[-1].get("error")}


def _timestamp(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_timestamp(datetime.fromtimestamp(milliseconds / 1000, UTC))
