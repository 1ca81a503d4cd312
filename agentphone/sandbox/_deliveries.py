"""The queue of webhook deliveries in SQLite: enqueued with their message, claimed by one process, finished once.

It knows no HTTP and does not decide when to retry; see `_dispatcher`.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from agentphone.sandbox._behavior import Settings
from agentphone.sandbox._database import Database

DEFAULT_TIMEOUT = 30.0
SCHEMA = (
    """CREATE TABLE IF NOT EXISTS webhook (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        url TEXT NOT NULL,
        secret TEXT NOT NULL,
        context_limit INTEGER NOT NULL,
        timeout REAL NOT NULL)""",
    # due: seconds since 1970. No attempt starts earlier; a claim moves it to the time at which the claim expires.
    """CREATE TABLE IF NOT EXISTS deliveries (
        serial INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        event TEXT NOT NULL,
        conversation_id TEXT NOT NULL,
        message_id TEXT NOT NULL,
        payload BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        status TEXT NOT NULL,
        attempts TEXT NOT NULL,
        due REAL NOT NULL,
        claim TEXT)""",
    "CREATE INDEX IF NOT EXISTS by_due ON deliveries (due, serial) WHERE status = 'pending'",
    "CREATE INDEX IF NOT EXISTS by_conversation ON deliveries (conversation_id, serial)",
)
GET_WEBHOOK = "SELECT url, secret, context_limit, timeout FROM webhook"
SET_WEBHOOK = "INSERT OR REPLACE INTO webhook VALUES (1, ?, ?, ?, ?)"
ENQUEUE = """INSERT INTO deliveries
    (id, event, conversation_id, message_id, payload, created_at, status, attempts, due)
    VALUES (:id, :event, :conversation_id, :message_id, :payload, :created_at, 'pending', '[]', :due)"""
NEXT_DUE = "SELECT due FROM deliveries WHERE status = 'pending' ORDER BY due, serial LIMIT 1"
CLAIM = """UPDATE deliveries SET due = :until, claim = :claim WHERE serial IN (
        SELECT serial FROM deliveries WHERE status = 'pending' AND due <= :now ORDER BY due, serial LIMIT :limit)
    RETURNING *"""
# Only the current claim holder may finish a delivery: a worker whose claim expired must not overwrite the new holder's
# result.
FINISH = """UPDATE deliveries SET status = :status, attempts = :attempts, due = :due, claim = NULL
    WHERE serial = :serial AND claim = :claim"""
LIST_DELIVERIES = "SELECT * FROM deliveries ORDER BY serial DESC LIMIT ?"
LIST_CONVERSATION = "SELECT * FROM deliveries WHERE conversation_id = ? ORDER BY serial DESC LIMIT ?"
GET_DELIVERY = "SELECT * FROM deliveries WHERE id = ?"
# An attempt in progress holds a claim. It is left alone, else two would run at once.
REDELIVER = "UPDATE deliveries SET status = 'pending', due = ? WHERE id = ? AND claim IS NULL"


@attrs.frozen
class WebhookConfig:
    """The receiver of all deliveries.

    Args:
        url: The receiver's URL.
        secret: The key of the signatures.
        context_limit: How many earlier messages each delivery carries.
        timeout: How many seconds a response may take.
    """

    url: str
    secret: str = attrs.field(repr=False)
    context_limit: int
    timeout: float = DEFAULT_TIMEOUT


@attrs.frozen(eq=False)
class Delivery:
    """A claimed delivery: no other worker attempts it until it is finished or the claim expires.

    Args:
        serial: Its number in the queue.
        id: The value of its `X-Webhook-ID` header.
        event: The value of its `X-Webhook-Event` header.
        payload: The body to send.
        attempts: The attempts so far, as `deliveries` shows them.
        claim: The random name of the claim.
        webhook: Where to send it.
    """

    serial: int
    id: str
    event: str
    payload: bytes
    attempts: list[dict[str, Any]]
    claim: str
    webhook: WebhookConfig


class DeliveryQueue:
    """Store the webhook and its deliveries, for any number of workers in any number of processes.

    Args:
        database: The database, which has the tables of `SCHEMA`.
        settings: The clock and format of the timestamps shown. Due times and claims follow real time instead.

    Attributes:
        on_change: Called after a commit that may have added something to deliver.
        on_finish: Called with each delivery whose attempt has ended, its status, and all of its attempts.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self.on_change: Callable[[], object] = lambda: None
        self.on_finish: Callable[[Delivery, str, list[dict[str, Any]]], object] = lambda *_: None

    def set_webhook(self, webhook: WebhookConfig) -> None:
        """Store the receiver of all deliveries from now on, pending ones included."""
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            connection.execute(SET_WEBHOOK, attrs.astuple(webhook))
        self.on_change()

    def has_webhook(self) -> bool:
        """Return whether a webhook is set."""
        with self._database.transaction("BEGIN") as connection:
            return self.context_limit(connection) is not None

    def context_limit(self, connection: sqlite3.Connection) -> int | None:
        """Return how many earlier messages a delivery carries, or None if no webhook is set."""
        row = connection.execute(GET_WEBHOOK).fetchone()
        return None if row is None else row["context_limit"]

    def enqueue(
        self, connection: sqlite3.Connection, *, conversation_id: str, message_id: str, payload: Mapping[str, Any]
    ) -> None:
        """Add a delivery inside the transaction that stores its message."""
        values = {
            "id": f"dlv_{secrets.token_hex(8)}",
            "event": payload["event"],
            "conversation_id": conversation_id,
            "message_id": message_id,
            # Escaped to ASCII, because metadata may contain lone surrogates, which UTF-8 cannot encode.
            "payload": json.dumps(payload).encode(),
            "created_at": self._settings.now(),
            "due": time.time(),
        }
        connection.execute(ENQUEUE, values)

    def page(self, *, limit: int, conversation_id: str | None = None) -> dict[str, Any]:
        """Return the newest deliveries, newest first, as the sandbox's HTTP API shows them.

        Args:
            limit: The largest number of deliveries.
            conversation_id: The only conversation to show; None for all.
        """
        with self._database.transaction("BEGIN") as connection:
            if conversation_id is None:
                rows = connection.execute(LIST_DELIVERIES, (limit + 1,)).fetchall()
            else:
                rows = connection.execute(LIST_CONVERSATION, (conversation_id, limit + 1)).fetchall()
        return {"data": [self._show(row) for row in rows[:limit]], "hasMore": len(rows) > limit}

    def delivery(self, delivery_id: str) -> dict[str, Any] | None:
        """Return a delivery with its `payload`, or None if the id is unknown."""
        with self._database.transaction("BEGIN") as connection:
            row = connection.execute(GET_DELIVERY, (delivery_id,)).fetchone()
        return None if row is None else self._show(row) | {"payload": json.loads(row["payload"])}

    def redeliver(self, delivery_id: str) -> dict[str, Any] | None:
        """Attempt a delivery again now, under the same id, whatever became of it; return it as `page` shows it.

        One that is being attempted at this moment is left alone.
        """
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            connection.execute(REDELIVER, (time.time(), delivery_id))
            row = connection.execute(GET_DELIVERY, (delivery_id,)).fetchone()
        self.on_change()
        return None if row is None else self._show(row)

    def _show(self, row: sqlite3.Row) -> dict[str, Any]:
        return {
            "id": row["id"],
            "event": row["event"],
            "conversationId": row["conversation_id"],
            "messageId": row["message_id"],
            "status": row["status"],
            "attempts": json.loads(row["attempts"]),
            "createdAt": self._settings.format(row["created_at"]),
        }

    def next_due(self) -> float | None:
        """Return when the next delivery can be claimed, in seconds since 1970; None if none is pending."""
        with self._database.transaction("BEGIN") as connection:
            row = connection.execute(NEXT_DUE).fetchone()
        return None if row is None else row["due"]

    def claim(self, *, now: float, margin: float, limit: int) -> list[Delivery]:
        """Claim deliveries that are due, longest due first.

        Args:
            now: The real time, in seconds since 1970.
            margin: How many seconds longer than an attempt can take the claim lasts.
            limit: The largest number of deliveries to claim.
        """
        claim = secrets.token_hex(8)
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            webhook = WebhookConfig(*connection.execute(GET_WEBHOOK).fetchone())
            values = {"until": now + webhook.timeout + margin, "claim": claim, "now": now, "limit": limit}
            rows = connection.execute(CLAIM, values).fetchall()
        rows.sort(key=lambda row: row["serial"])
        return [
            Delivery(
                row["serial"], row["id"], row["event"], row["payload"], json.loads(row["attempts"]), claim, webhook
            )
            for row in rows
        ]

    def finish(self, delivery: Delivery, *, status: str, attempts: list[dict[str, Any]], due: float) -> None:
        """Store the outcome of a delivery and end its claim; do nothing if the claim was lost.

        Args:
            delivery: The claimed delivery.
            status: `pending`, `delivered` or `failed`.
            attempts: All of its attempts.
            due: When a pending one may be attempted next, in seconds since 1970.
        """
        values = {
            "serial": delivery.serial,
            "claim": delivery.claim,
            "status": status,
            "attempts": json.dumps(attempts),
            "due": due,
        }
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            connection.execute(FINISH, values)
        if len(attempts) > len(delivery.attempts):
            self.on_finish(delivery, status, attempts)
