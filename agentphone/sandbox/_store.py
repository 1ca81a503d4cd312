"""The sandbox's conversations and messages in SQLite, read and written in the API's JSON shapes.

It knows no HTTP. Every page is read through an index: messages are stored in the order in which they are read, so a
page costs the same however far back it lies. Timestamps are integers (see `_behavior`).
"""

import json
import os
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from agentphone.sandbox import _changes, _deliveries
from agentphone.sandbox._behavior import Settings
from agentphone.sandbox._changes import ChangeLog
from agentphone.sandbox._database import Database
from agentphone.sandbox._deliveries import DeliveryQueue
from agentphone.sandbox._messages import Direction, MessageInput, OutgoingMessage
from agentphone.sandbox._schema import (
    ADD_NUMBER,
    COUNT_CONVERSATIONS,
    FIND_CONVERSATION,
    GET_CONVERSATION,
    GET_CONVERSATION_OF_MESSAGE,
    GET_MESSAGE,
    GET_NUMBER,
    GET_NUMBER_OF_AGENT,
    INSERT_MESSAGE,
    LIST_CONVERSATIONS,
    NEWEST_MESSAGES,
    OLDEST_MESSAGES,
    SCHEMA,
    SCHEMA_VERSION,
    SET_DETAILS,
    UPSERT_CONVERSATION,
)
from agentphone.sandbox._search import Search
from agentphone.sandbox._shapes import Row, Shapes, details_of, id_of

PREVIEW_LENGTH = 100
MIN_TIMESTAMP, MAX_TIMESTAMP = -(2**63), 2**63 - 1  # the range of SQLite's integers


class NotFoundError(LookupError):
    """There is no such conversation, message, group or number.

    Args:
        message: What is missing.
        code: The API's code of the error, if it is not the usual one.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


class UnsupportedError(ValueError):
    """The channel of the conversation cannot do this."""


class Store:
    """Store conversations and messages, and enqueue the webhook deliveries of inbound ones.

    Args:
        path: The database file, created if it is missing; None keeps the data in memory.
        settings: The clock, and how timestamps are shown and pages are cut.

    Attributes:
        queue: The webhook and its deliveries, in the same database.
        changes: What changed in it.
        search: Search in it.

    Raises:
        ValueError: The path is `":memory:"`.
        sqlite3.Error: The file cannot be opened, or is another program's database.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: Settings) -> None:
        self._settings = settings
        self._latest = (settings.clock, settings.now())
        self._shapes = Shapes(settings)
        self._database = Database(path, (*SCHEMA, *_deliveries.SCHEMA, *_changes.SCHEMA), SCHEMA_VERSION)
        self.queue: DeliveryQueue = DeliveryQueue(self._database, settings)
        self.changes: ChangeLog = ChangeLog(self._database, settings)
        self.search: Search = Search(self._database, self._shapes)

    def close(self) -> None:
        """Close the database; data in memory is lost. May be called twice."""
        self._database.close()

    def conversations(self, *, limit: int, offset: int) -> dict[str, Any]:
        """Return one page of conversations, most recent activity first."""
        with self._database.transaction("BEGIN") as connection:
            total: int = connection.execute(COUNT_CONVERSATIONS).fetchone()[0]
            rows = connection.execute(LIST_CONVERSATIONS, (limit, offset)).fetchall()
        data = [self._shapes.conversation(row) | {"lastMessagePreview": row["preview"]} for row in rows]
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
            bounds = (conversation["serial"], low, high, time.time(), limit + 1)
            rows = connection.execute(OLDEST_MESSAGES if oldest_first else NEWEST_MESSAGES, bounds).fetchall()
        page = rows[:limit]
        if oldest_first != (behavior.message_order == "oldest"):
            page.reverse()
        return {"data": [self._shapes.message(row, conversation) for row in page], "hasMore": len(rows) > limit}

    def add(self, message: MessageInput) -> dict[str, Any]:
        """Store one message and return it with its `conversationId`.

        The first message of a pair of numbers creates their conversation.

        Raises:
            NotFoundError: It is from a member of a group, and there is no such group or member.
        """
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            if message.sender is not None:
                self._check_member(connection, message, message.sender)
            row, conversation, is_enqueued = self._add(connection, message)
        if is_enqueued:
            self.queue.on_change()
        return self._shapes.message(row, conversation) | {"conversationId": conversation["id"]}

    def send(self, outgoing: OutgoingMessage) -> dict[str, Any]:
        """Store what was sent through the API and return the API's answer.

        Raises:
            NotFoundError: The sender, the group or the message to reply to is unknown. Nothing was sent.
        """
        delay = self._settings.behavior.sent_message_delay
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            agent_number = self._sender(connection, outgoing)
            if outgoing.to_number is None:
                participant = f"grp_{_random_hex()}"
            else:
                participant = outgoing.to_number
                key = (agent_number, participant, outgoing.is_whatsapp)
                if participant.startswith("grp_") and not connection.execute(FIND_CONVERSATION, key).fetchone():
                    raise NotFoundError("to_number: this number has no such group.")
            parent = None
            if outgoing.reply_to_message_id is not None:
                parent = connection.execute(GET_MESSAGE, (outgoing.reply_to_message_id,)).fetchone()
                if parent is None:
                    raise NotFoundError("reply_to_message_id: there is no such message. Nothing was sent.")
            message = MessageInput(
                "outbound",
                agent_number,
                participant,
                outgoing.body,
                None,
                channel="whatsapp" if outgoing.is_whatsapp else None,
                media_urls=outgoing.media_urls,
                status="sent",
                members=outgoing.recipients,
                visible_at=time.time() + delay if delay else 0.0,
            )
            row, conversation, is_enqueued = self._add(connection, message, parent)
        if is_enqueued:
            self.queue.on_change()
        return {
            "id": row["id"],
            "status": row["status"],
            "channel": row["channel"],
            "from_number": agent_number,
            "to_number": participant,
            "conversation_id": conversation["id"],
            "media_urls": list(outgoing.media_urls),
            "reply_to_message_id": outgoing.reply_to_message_id,
            "reply_parent_unresolved": parent is not None and parent["conversation"] != conversation["serial"],
        }

    def react(
        self, message_id: str, reaction: str, *, direction: Direction, from_number: str | None = None
    ) -> dict[str, Any]:
        """Add a reaction to a message; one of a person is delivered to the webhook.

        Args:
            message_id: The message.
            reaction: The reaction.
            direction: Who reacts: the person (`inbound`) or the agent (`outbound`).
            from_number: The person's number, needed in a group; None for the participant.

        Returns:
            The reaction as the history shows it, and its `channel`, `messageId` and `conversationId`.

        Raises:
            NotFoundError: There is no such message, or the person does not belong to the conversation.
            UnsupportedError: It is an SMS or MMS.
        """
        is_enqueued = False
        with self._database.transaction("BEGIN IMMEDIATE") as connection:
            row = connection.execute(GET_MESSAGE, (message_id,)).fetchone()
            if row is None:
                raise NotFoundError("There is no such message.")
            conversation = connection.execute(GET_CONVERSATION_OF_MESSAGE, (row["conversation"],)).fetchone()
            if row["channel"] in ("sms", "mms"):
                raise UnsupportedError(f"A message of the channel {row['channel']} takes no reactions.")
            people = [conversation["participant"]]
            if conversation["members"] is not None:
                people = json.loads(conversation["members"])
            if direction == "outbound":
                sender = conversation["agent_number"]
            elif from_number is None and len(people) == 1:
                sender = people[0]
            elif from_number in people:
                sender = from_number
            else:
                raise NotFoundError("from: the person who reacts must belong to the conversation.")
            stored = {
                "id": f"rea_{_random_hex()}",
                "reactionType": reaction,
                "fromNumber": sender,
                "direction": direction,
                "createdAt": self._next_timestamp(),
            }
            details = details_of(row)
            details["reactions"] = [*details.get("reactions", ()), stored]
            connection.execute(SET_DETAILS, (json.dumps(details), message_id))
            context_limit = self.queue.context_limit(connection) if direction == "inbound" else None
            if context_limit is not None:
                latest = self._newest(connection, conversation, MAX_TIMESTAMP, context_limit)
                payload = self._shapes.reaction_event(stored, row, conversation, latest[::-1])
                self.queue.enqueue(
                    connection, conversation_id=conversation["id"], message_id=message_id, payload=payload
                )
                is_enqueued = True
        if is_enqueued:
            self.queue.on_change()
        place = {"channel": row["channel"], "messageId": message_id, "conversationId": conversation["id"]}
        return self._shapes.reaction(stored) | place

    def show_typing(self, conversation_id: str) -> dict[str, Any]:
        """Return the API's answer to a typing indicator; nothing is stored.

        Raises:
            NotFoundError: There is no such conversation.
            UnsupportedError: Its channel is not iMessage.
        """
        with self._database.transaction("BEGIN") as connection:
            row = connection.execute(GET_CONVERSATION, (conversation_id,)).fetchone()
        if row is None:
            raise NotFoundError("There is no such conversation.")
        if row["channel"] != "imessage":
            raise UnsupportedError(f"A conversation of the channel {row['channel']} shows no typing indicator.")
        return {"conversationId": row["id"], "channel": row["channel"], "status": "sent"}

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

    def _sender(self, connection: sqlite3.Connection, outgoing: OutgoingMessage) -> str:
        """Return the agent's number to send from: any `from_number`, or one that was seen before, by its id."""
        if outgoing.from_number is not None:
            return outgoing.from_number
        if outgoing.number_id is not None:
            row = connection.execute(GET_NUMBER, (outgoing.number_id,)).fetchone()
            what = "number_id: there is no such number."
        else:
            row = connection.execute(GET_NUMBER_OF_AGENT, (outgoing.agent_id,)).fetchone()
            what = "agent_id: there is no such agent."
        if row is None:
            raise NotFoundError(what, "PHONE_NUMBER_NOT_FOUND" if outgoing.number_id is not None else None)
        number: str = row["number"]
        return number

    def _check_member(self, connection: sqlite3.Connection, message: MessageInput, sender: str) -> None:
        key = (message.agent_number, message.participant, message.channel == "whatsapp")
        group = connection.execute(FIND_CONVERSATION, key).fetchone()
        if group is None or group["members"] is None:
            raise NotFoundError("group: this number has no such group.")
        if sender not in json.loads(group["members"]):
            raise NotFoundError("from: the person is not a member of the group.")

    def _add(
        self, connection: sqlite3.Connection, message: MessageInput, parent: Row | None = None
    ) -> tuple[Row, Row, bool]:
        """Store a message and enqueue its delivery; return it, its conversation, and whether it was enqueued."""
        if message.at is None:
            # Inside the transaction: of two writers, the first to commit gets the earlier timestamp.
            message = attrs.evolve(message, at=self._next_timestamp())
        row, conversation = self._insert(connection, message, _random_hex, parent)
        is_delivered = message.direction == "inbound" or self._settings.behavior.echo_outbound
        context_limit = self.queue.context_limit(connection) if is_delivered else None
        if context_limit is None:
            return row, conversation, False
        # In the same transaction, so that a stored message never lacks its delivery. One row more than the history has,
        # because the message itself is not part of it.
        latest = self._newest(connection, conversation, row["received_at"], context_limit + 1)
        earlier = [each for each in latest if each["id"] != row["id"]][:context_limit][::-1]
        payload = self._shapes.message_event(row, conversation, earlier)
        self.queue.enqueue(connection, conversation_id=conversation["id"], message_id=row["id"], payload=payload)
        return row, conversation, True

    def _insert(
        self,
        connection: sqlite3.Connection,
        message: MessageInput,
        new_hex: Callable[[], str],
        parent: Row | None = None,
    ) -> tuple[Row, Row]:
        # Only iMessage reaches an e-mail address.
        wanted = message.channel or ("imessage" if "@" in message.participant else None)
        [conversation] = connection.execute(
            UPSERT_CONVERSATION,
            {
                "id": f"conv_{new_hex()}",
                "agent_number": message.agent_number,
                "participant": message.participant,
                "is_whatsapp": message.channel == "whatsapp",
                "channel": "sms" if message.channel == "mms" else wanted,
                "members": None if message.members is None else json.dumps(message.members),
                "at": message.at,
                "preview": message.body[:PREVIEW_LENGTH],
            },
        ).fetchall()
        channel = message.channel or conversation["channel"]
        if channel == "sms" and message.media_urls:
            channel = "mms"
        details: dict[str, Any] = {}
        if message.sender is not None:
            details["senderIdentifier"] = message.sender
        if message.media_urls:
            details["mediaUrls"] = message.media_urls
        # SMS and MMS ignore threading.
        if parent is not None and parent["conversation"] == conversation["serial"] and channel not in ("sms", "mms"):
            media_urls = details_of(parent).get("mediaUrls", [])
            details["replyTo"] = {"messageId": parent["id"], "message": parent["body"], "mediaUrls": media_urls}
        row = {
            "conversation": conversation["serial"],
            "received_at": message.at,
            "position": conversation["message_count"],
            "id": f"msg_{new_hex()}",
            "direction": message.direction,
            "body": message.body,
            "channel": channel,
            "status": message.status or ("received" if message.direction == "inbound" else "delivered"),
            "visible_at": message.visible_at,
            "details": json.dumps(details) if details else None,
        }
        connection.execute(INSERT_MESSAGE, row)
        if conversation["message_count"] == 1:
            number = message.agent_number
            connection.execute(ADD_NUMBER, (number, id_of("num", number), id_of("agt", number)))
        return row, conversation

    def _newest(self, connection: sqlite3.Connection, conversation: Row, until: int, limit: int) -> list[sqlite3.Row]:
        """Return the newest visible messages, newest first."""
        bounds = (conversation["serial"], MIN_TIMESTAMP, until, time.time(), limit)
        return connection.execute(NEWEST_MESSAGES, bounds).fetchall()

    def _detail(
        self, connection: sqlite3.Connection, conversation_id: str, message_limit: int
    ) -> dict[str, Any] | None:
        row = connection.execute(GET_CONVERSATION, (conversation_id,)).fetchone()
        if row is None:
            return None
        messages = self._newest(connection, row, MAX_TIMESTAMP, message_limit)
        if self._settings.behavior.message_order == "oldest":
            messages.reverse()
        return self._shapes.conversation(row) | {
            "messages": [self._shapes.message(message, row) for message in messages]
        }


def _random_hex() -> str:
    return secrets.token_hex(8)
