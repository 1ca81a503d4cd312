"""The sandbox's conversations and messages in SQLite, read and written in the API's JSON shapes.

It knows no HTTP. Every page is read through an index: messages are stored in the order in which they are read, so a
page costs the same however far back it lies. Timestamps are integers (see `_behavior`).
"""

import hashlib
import json
import os
import random
import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import attrs

from agentphone.sandbox import _changes, _deliveries
from agentphone.sandbox._behavior import Settings
from agentphone.sandbox._changes import ChangeLog
from agentphone.sandbox._database import Database
from agentphone.sandbox._deliveries import DeliveryQueue

Direction = Literal["inbound", "outbound"]

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS conversations (
        serial INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        agent_number TEXT NOT NULL,
        participant TEXT NOT NULL,
        last_message_at INTEGER NOT NULL,
        preview TEXT NOT NULL,
        message_count INTEGER NOT NULL,
        metadata TEXT,
        created_at INTEGER NOT NULL,
        UNIQUE (agent_number, participant))""",
    "CREATE INDEX IF NOT EXISTS by_activity ON conversations (last_message_at DESC, serial DESC)",
    # position: the conversation's message count when this message was stored; it orders messages of equal timestamps.
    """CREATE TABLE IF NOT EXISTS messages (
        conversation INTEGER NOT NULL,
        received_at INTEGER NOT NULL,
        position INTEGER NOT NULL,
        id TEXT NOT NULL,
        direction TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (conversation, received_at, position)) WITHOUT ROWID""",
)
COUNT_CONVERSATIONS = "SELECT count(*) FROM conversations"
LIST_CONVERSATIONS = "SELECT * FROM conversations ORDER BY last_message_at DESC, serial DESC LIMIT ? OFFSET ?"
GET_CONVERSATION = "SELECT * FROM conversations WHERE id = ?"
NEWEST_MESSAGES = """SELECT * FROM messages WHERE conversation = ? AND received_at BETWEEN ? AND ?
    ORDER BY received_at DESC, position DESC LIMIT ?"""
OLDEST_MESSAGES = """SELECT * FROM messages WHERE conversation = ? AND received_at BETWEEN ? AND ?
    ORDER BY received_at, position LIMIT ?"""
# A message older than the conversation's last one counts, but does not move the conversation or become its preview.
UPSERT_CONVERSATION = """INSERT INTO conversations
    (id, agent_number, participant, last_message_at, preview, message_count, metadata, created_at)
    VALUES (:id, :agent_number, :participant, :at, :preview, 1, NULL, :at)
    ON CONFLICT (agent_number, participant) DO UPDATE SET
        message_count = message_count + 1,
        preview = iif(excluded.last_message_at >= last_message_at, excluded.preview, preview),
        last_message_at = max(excluded.last_message_at, last_message_at)
    RETURNING *"""
INSERT_MESSAGE = "INSERT INTO messages VALUES (:conversation, :received_at, :position, :id, :direction, :body)"

PREVIEW_LENGTH = 100
MIN_TIMESTAMP, MAX_TIMESTAMP = -(2**63), 2**63 - 1  # the range of SQLite's integers


@attrs.frozen
class MessageInput:
    """A message to store.

    Args:
        direction: Who sent it: the participant (`inbound`) or the agent (`outbound`).
        agent_number: The agent's number.
        participant: The other number.
        body: The text.
        at: Its timestamp; None for the time at which it is stored.
    """

    direction: Direction
    agent_number: str
    participant: str
    body: str
    at: int | None


class Store:
    """Store conversations and messages, and enqueue the webhook deliveries of inbound ones.

    Args:
        path: The database file, created if it is missing; None keeps the data in memory.
        settings: The clock, and how timestamps are shown and pages are cut.

    Attributes:
        queue: The webhook and its deliveries, in the same database.
        changes: What changed in it.

    Raises:
        ValueError: The path is `":memory:"`.
        sqlite3.Error: The file cannot be opened, or is another program's database.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Settings) -> None:
        self._settings = settings
        self._latest = (settings.clock, settings.now())
        self._database = Database(path, (*SCHEMA, *_deliveries.SCHEMA, *_changes.SCHEMA))
        self.queue: DeliveryQueue = DeliveryQueue(self._database, settings)
        self.changes: ChangeLog = ChangeLog(self._database, settings)

    def close(self) -> None:
        """Close the database; data in memory is lost. May be called twice."""
        self._database.close()

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """Begin a transaction that reads."""
        return self._database.transaction("BEGIN")

    def show(self, row: sqlite3.Row) -> dict[str, Any]:
        """Return a conversation as the list shows it."""
        return self._conversation(row) | {"lastMessagePreview": row["preview"]}

    def show_message(self, row: sqlite3.Row, conversation: sqlite3.Row) -> dict[str, Any]:
        """Return a message of a conversation."""
        return self._message(row, conversation)

    def conversations(self, *, limit: int, offset: int) -> dict[str, Any]:
        """Return one page of conversations, most recent activity first."""
        with self._database.transaction("BEGIN") as connection:
            total: int = connection.execute(COUNT_CONVERSATIONS).fetchone()[0]
            rows = connection.execute(LIST_CONVERSATIONS, (limit, offset)).fetchall()
        data = [self.show(row) for row in rows]
        return {"data": data, "hasMore": offset + len(rows) < total, "total": total}

    def conversation(self, conversation_id: str, *, message_limit: int) -> dict[str, Any] | None:
        """Return a conversation with its most recent messages, or None if the id is unknown."""
        with self._database.transaction("BEGIN") as connection:
            return self._detail(connection, conversation_id, message_limit)

    def set_metadata(
        self, conversation_id: str, metadata: dict[str, Any] | None, *, message_limit: int
    ) -> dict[str, Any] | None:
        """Replace a conversation's metadata and return the conversation as `conversation` does.

        Raises:
            ValueError: The metadata contains a number that JSON cannot represent.
        """
        text = None if metadata is None else json.dumps(metadata, allow_nan=False)
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            connection.execute("UPDATE conversations SET metadata = ? WHERE id = ?", (text, conversation_id))
            return self._detail(connection, conversation_id, message_limit)

    def messages(
        self, conversation_id: str, *, limit: int, before: int | None, after: int | None
    ) -> dict[str, Any] | None:
        """Return one page of a conversation's messages, or None if the id is unknown."""
        behavior = self._settings.behavior
        gap = 1 if behavior.boundary == "exclusive" else 0
        low = MIN_TIMESTAMP if after is None else after + gap
        high = MAX_TIMESTAMP if before is None else before - gap
        oldest_first = after is not None and before is None and behavior.after_alone == "oldest"
        with self._database.transaction("BEGIN") as connection:
            conversation = connection.execute(GET_CONVERSATION, (conversation_id,)).fetchone()
            if conversation is None:
                return None
            # One row more than requested shows whether there are more.
            bounds = (conversation["serial"], low, high, limit + 1)
            rows = connection.execute(OLDEST_MESSAGES if oldest_first else NEWEST_MESSAGES, bounds).fetchall()
        page = rows[:limit]
        if oldest_first != (behavior.message_order == "oldest"):
            page.reverse()
        return {"data": [self._message(row, conversation) for row in page], "hasMore": len(rows) > limit}

    def add(self, message: MessageInput) -> dict[str, Any]:
        """Store one message and return it with its `conversationId`.

        The first message of a pair of numbers creates their conversation.
        """
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            if message.at is None:
                # Inside the transaction: of two writers, the first to commit gets the earlier timestamp.
                message = attrs.evolve(message, at=self._next_timestamp())
            added = self._insert(connection, message, _random_hex)
            context_limit = self.queue.context_limit(connection) if message.direction == "inbound" else None
            if context_limit is not None:
                # In the same transaction, so that a stored message never lacks its delivery.
                self.queue.enqueue(
                    connection,
                    conversation_id=added["conversationId"],
                    message_id=added["id"],
                    payload=self._payload(connection, message, added, context_limit),
                )
        if context_limit is not None:
            self.queue.on_change()
        return added

    def remove(self, conversation_id: str) -> bool:
        """Remove a conversation and its messages; return whether it existed."""
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            row = connection.execute(GET_CONVERSATION, (conversation_id,)).fetchone()
            if row is None:
                return False
            connection.execute("DELETE FROM messages WHERE conversation = ?", (row["serial"],))
            connection.execute("DELETE FROM conversations WHERE serial = ?", (row["serial"],))
            return True

    def fill(self, messages: Sequence[MessageInput], metadata: Mapping[str, dict[str, Any]]) -> None:
        """Store many messages in one transaction, unless there is a conversation already.

        The ids are the same each time. A database in memory is filled again in a forked child.

        Args:
            messages: The messages, oldest first.
            metadata: The metadata of their conversations, by participant.
        """

        def insert_all(connection: sqlite3.Connection) -> None:
            if connection.execute(COUNT_CONVERSATIONS).fetchone()[0]:
                return
            source = random.Random(len(messages))  # noqa: S311  # ids must repeat
            for message in messages:
                self._insert(connection, message, lambda: f"{source.getrandbits(64):016x}")
            texts = ((json.dumps(value), participant) for participant, value in metadata.items())
            connection.executemany("UPDATE conversations SET metadata = ? WHERE participant = ?", texts)

        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            insert_all(connection)
            if self._database.is_in_memory:
                self._database.on_create = insert_all

    def _next_timestamp(self) -> int:
        """Return the clock's time, but no earlier than the latest time of the same clock, which may be set back."""
        clock, latest = self._latest
        now = self._settings.now()
        self._latest = (self._settings.clock, max(now, latest) if clock is self._settings.clock else now)
        return self._latest[1]

    def _insert(
        self, connection: sqlite3.Connection, message: MessageInput, new_hex: Callable[[], str]
    ) -> dict[str, Any]:
        [conversation] = connection.execute(
            UPSERT_CONVERSATION,
            {
                "id": f"conv_{new_hex()}",
                "agent_number": message.agent_number,
                "participant": message.participant,
                "at": message.at,
                "preview": message.body[:PREVIEW_LENGTH],
            },
        ).fetchall()
        row = {
            "conversation": conversation["serial"],
            "received_at": message.at,
            "position": conversation["message_count"],
            "id": f"msg_{new_hex()}",
            "direction": message.direction,
            "body": message.body,
        }
        connection.execute(INSERT_MESSAGE, row)
        return self._message(row, conversation) | {"conversationId": conversation["id"]}

    def _detail(
        self, connection: sqlite3.Connection, conversation_id: str, message_limit: int
    ) -> dict[str, Any] | None:
        row = connection.execute(GET_CONVERSATION, (conversation_id,)).fetchone()
        if row is None:
            return None
        bounds = (row["serial"], MIN_TIMESTAMP, MAX_TIMESTAMP, message_limit)
        messages = connection.execute(NEWEST_MESSAGES, bounds).fetchall()
        if self._settings.behavior.message_order == "oldest":
            messages.reverse()
        return self._conversation(row) | {"messages": [self._message(message, row) for message in messages]}

    def _conversation(self, row: sqlite3.Row) -> dict[str, Any]:
        return {
            "id": row["id"],
            "agentId": _id_of("agt", row["agent_number"]),
            "phoneNumberId": _id_of("num", row["agent_number"]),
            "phoneNumber": row["agent_number"],
            "participant": row["participant"],
            "lastMessageAt": self._settings.format(row["last_message_at"]),
            "messageCount": row["message_count"],
            "metadata": None if row["metadata"] is None else json.loads(row["metadata"]),
            "createdAt": self._settings.format(row["created_at"]),
            "channel": "sms",
        }

    def _message(self, row: sqlite3.Row | dict[str, Any], conversation: sqlite3.Row) -> dict[str, Any]:
        is_inbound = row["direction"] == "inbound"
        agent_number, participant = conversation["agent_number"], conversation["participant"]
        return {
            "id": row["id"],
            "body": row["body"],
            "fromNumber": participant if is_inbound else agent_number,
            "toNumber": agent_number if is_inbound else participant,
            "direction": row["direction"],
            "receivedAt": self._settings.format(row["received_at"]),
            "channel": "sms",
            "mediaUrls": [],
            "status": "received" if is_inbound else "delivered",
        }

    def _payload(
        self, connection: sqlite3.Connection, message: MessageInput, added: dict[str, Any], context_limit: int
    ) -> dict[str, Any]:
        """Return the webhook payload of a message, with its conversation's metadata and history of this moment."""
        conversation = connection.execute(GET_CONVERSATION, (added["conversationId"],)).fetchone()
        # The first row is the message itself, which is not part of its own history.
        bounds = (conversation["serial"], MIN_TIMESTAMP, message.at, context_limit + 1)
        earlier = connection.execute(NEWEST_MESSAGES, bounds).fetchall()[1:]
        return {
            "event": "agent.message",
            "channel": "sms",
            "timestamp": added["receivedAt"],
            "agentId": _id_of("agt", message.agent_number),
            "data": {
                "conversationId": added["conversationId"],
                "messageId": added["id"],
                "numberId": _id_of("num", message.agent_number),
                "from": added["fromNumber"],
                "to": added["toNumber"],
                "message": added["body"],
                "mediaUrl": None,
                "direction": added["direction"],
                "receivedAt": added["receivedAt"],
            },
            "conversationState": None if conversation["metadata"] is None else json.loads(conversation["metadata"]),
            "recentHistory": [
                {
                    "content": row["body"],
                    "direction": row["direction"],
                    "channel": "sms",
                    "at": self._settings.format(row["received_at"]),
                }
                for row in reversed(earlier)
            ],
        }


def _random_hex() -> str:
    return secrets.token_hex(8)


def _id_of(prefix: str, number: str) -> str:
    """Return the id of an agent's number, or of its agent: derived from the number, so that nothing is stored."""
    return f"{prefix}_{hashlib.sha256(f'{prefix} {number}'.encode()).hexdigest()[:16]}"
