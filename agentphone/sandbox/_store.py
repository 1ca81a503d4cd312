"""The sandbox's data in SQLite: every write committed before it returns, every page read through an index.

The only file that knows SQL, connections and forks. It answers in the API's JSON shapes and knows nothing of HTTP.
Instants are integers (see `_reading`). Messages are stored in the order in which they are read, so that a page is one
walk along the table's own key, however far back it lies.
"""

import hashlib
import json
import os
import random
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import attrs

from agentphone.sandbox._behavior import Behavior

Direction = Literal["inbound", "outbound"]

APPLICATION_ID = 0x41507362  # "APsb", in the header of the file: marks it as a sandbox.

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
    # position: how many messages the conversation had when this one came; it orders messages of one instant.
    """CREATE TABLE IF NOT EXISTS messages (
        conversation INTEGER NOT NULL,
        received_at INTEGER NOT NULL,
        position INTEGER NOT NULL,
        id TEXT NOT NULL,
        direction TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (conversation, received_at, position)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS webhook (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        url TEXT NOT NULL,
        secret TEXT NOT NULL,
        context_limit INTEGER NOT NULL)""",
    # due: seconds since 1970, before which nobody attempts it; whoever attempts it claims it by moving that on.
    """CREATE TABLE IF NOT EXISTS deliveries (
        serial INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        conversation_id TEXT NOT NULL,
        message_id TEXT NOT NULL,
        payload BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        status TEXT NOT NULL,
        attempts TEXT NOT NULL,
        due REAL NOT NULL,
        claim TEXT)""",
    "CREATE INDEX IF NOT EXISTS by_due ON deliveries (due, serial) WHERE status = 'pending'",
)
TOTAL = "SELECT count(*) FROM conversations"
PAGE = "SELECT * FROM conversations ORDER BY last_message_at DESC, serial DESC LIMIT ? OFFSET ?"
ONE = "SELECT * FROM conversations WHERE id = ?"
NEWEST = """SELECT * FROM messages WHERE conversation = ? AND received_at BETWEEN ? AND ?
    ORDER BY received_at DESC, position DESC LIMIT ?"""
OLDEST = """SELECT * FROM messages WHERE conversation = ? AND received_at BETWEEN ? AND ?
    ORDER BY received_at, position LIMIT ?"""
# A message older than the last one known is counted, but neither moves the conversation nor becomes its preview.
TOUCH = """INSERT INTO conversations
    (id, agent_number, participant, last_message_at, preview, message_count, metadata, created_at)
    VALUES (:id, :agent_number, :participant, :at, :preview, 1, NULL, :at)
    ON CONFLICT (agent_number, participant) DO UPDATE SET
        message_count = message_count + 1,
        preview = iif(excluded.last_message_at >= last_message_at, excluded.preview, preview),
        last_message_at = max(excluded.last_message_at, last_message_at)
    RETURNING *"""
ADD = "INSERT INTO messages VALUES (:conversation, :received_at, :position, :id, :direction, :body)"
WEBHOOK = "SELECT url, secret, context_limit FROM webhook"
SET_WEBHOOK = "INSERT OR REPLACE INTO webhook VALUES (1, ?, ?, ?)"
ENQUEUE = """INSERT INTO deliveries
    (id, conversation_id, message_id, payload, created_at, status, attempts, due)
    VALUES (:id, :conversation_id, :message_id, :payload, :created_at, 'pending', '[]', :due)"""
DUE = "SELECT due FROM deliveries WHERE status = 'pending' ORDER BY due, serial LIMIT 1"
CLAIM = """UPDATE deliveries SET due = :until, claim = :claim WHERE serial IN (
        SELECT serial FROM deliveries WHERE status = 'pending' AND due <= :now ORDER BY due, serial LIMIT :limit)
    RETURNING *"""
# Only by who still has the claim: one that it lost to another process by being late is that one's to tell.
FINISH = """UPDATE deliveries SET status = :status, attempts = :attempts, due = :due, claim = NULL
    WHERE serial = :serial AND claim = :claim"""
DELIVERIES = "SELECT * FROM deliveries ORDER BY serial DESC LIMIT ?"

PREVIEW_LENGTH = 100
BUSY_SECONDS = 10.0  # For which another process may hold the file.
EARLIEST, LATEST = -(2**63), 2**63 - 1


@attrs.frozen
class NewMessage:
    """One message to be stored. `at`: microseconds since 1970 in UTC; None for when it is stored."""

    direction: Direction
    agent_number: str
    participant: str
    body: str
    at: int | None


@attrs.frozen
class Webhook:
    """Where every inbound message is delivered to, signed with what, and with how many earlier messages."""

    url: str
    secret: str = attrs.field(repr=False)
    context_limit: int


@attrs.frozen(eq=False)
class Delivery:
    """One delivery that is claimed: nobody else attempts it until the claim runs out or it is finished."""

    serial: int
    id: str
    payload: bytes
    attempts: list[dict[str, Any]]
    claim: str
    webhook: Webhook


class _Connection(sqlite3.Connection):
    """A connection that closes when it is dropped with its store.

    Python 3.13 warns of one that was not closed. Nothing is closed at exit while the webhook thread uses it: what a
    thread uses is not dropped.
    """

    def __del__(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # It was never open.
            self.close()


class Store:
    """Keep conversations, messages and webhook deliveries, for any number of threads and, in a file, of processes.

    Attributes:
        reading: How instants are printed and pages cut.
        clock: The time, in seconds since 1970. Only what is shown has it: when something is due is real time's matter.
        on_webhook: Called when there may be something new to deliver, after it is committed.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        if path is not None and os.fspath(path) == ":memory:":
            raise ValueError("path is a file, not ':memory:'; None keeps the data in memory")
        self.behavior: Behavior = Behavior()
        self.clock: Callable[[], float] = time.time
        self.on_webhook: Callable[[], object] = lambda: None
        # Absolute, because a connection may be opened again after somebody has changed the directory.
        self._path = None if path is None else Path(path).absolute()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        self._latest = (self.clock, self.now())
        self._refill: Callable[[sqlite3.Connection], None] | None = None
        with _forking:
            _stores.add(self)
        with self._transaction("BEGIN"):
            pass  # A file that cannot be opened is told to whoever names it.

    def now(self) -> int:
        """Tell the time by the clock, in microseconds since 1970."""
        return round(self.clock() * 1_000_000)

    def close(self) -> None:
        """Close the database; what is in memory is gone. May be called twice."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def conversations(self, *, limit: int, offset: int) -> dict[str, Any]:
        """Give one page of conversations, most recent activity first."""
        with self._transaction("BEGIN") as connection:
            total: int = connection.execute(TOTAL).fetchone()[0]
            rows = connection.execute(PAGE, (limit, offset)).fetchall()
        data = [self._conversation(row) | {"lastMessagePreview": row["preview"]} for row in rows]
        return {"data": data, "hasMore": offset + len(rows) < total, "total": total}

    def conversation(self, conversation_id: str, *, message_limit: int) -> dict[str, Any] | None:
        """Give a conversation with its most recent messages, or None if there is none of that id."""
        with self._transaction("BEGIN") as connection:
            return self._detail(connection, conversation_id, message_limit)

    def set_metadata(
        self, conversation_id: str, metadata: dict[str, Any] | None, *, message_limit: int
    ) -> dict[str, Any] | None:
        """Replace a conversation's metadata whole and give what `conversation` gives.

        Raises:
            ValueError: The metadata holds a number that JSON cannot carry.
        """
        text = None if metadata is None else json.dumps(metadata, allow_nan=False)
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.execute("UPDATE conversations SET metadata = ? WHERE id = ?", (text, conversation_id))
            return self._detail(connection, conversation_id, message_limit)

    def messages(
        self, conversation_id: str, *, limit: int, before: int | None, after: int | None
    ) -> dict[str, Any] | None:
        """Give one page of a conversation's messages, or None if there is no conversation of that id."""
        behavior = self.behavior
        apart = 1 if behavior.boundary == "exclusive" else 0
        low = EARLIEST if after is None else after + apart
        high = LATEST if before is None else before - apart
        from_oldest = after is not None and before is None and behavior.after_alone == "oldest"
        with self._transaction("BEGIN") as connection:
            conversation = connection.execute(ONE, (conversation_id,)).fetchone()
            if conversation is None:
                return None
            # One more than asked for tells whether there are more.
            bounds = (conversation["serial"], low, high, limit + 1)
            rows = connection.execute(OLDEST if from_oldest else NEWEST, bounds).fetchall()
        page = rows[:limit]
        if from_oldest != (behavior.message_order == "oldest"):
            page.reverse()
        return {"data": [self._message(row, conversation) for row in page], "hasMore": len(rows) > limit}

    def add(self, message: NewMessage) -> dict[str, Any]:
        """Store one message, with its conversation if it is the pair's first, and give it with `conversationId`."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            if message.at is None:
                # Not before: of two writers, the one that is first in the file is to have the earlier instant.
                message = attrs.evolve(message, at=self._next_instant())
            added = self._insert(connection, message, _random_hex)
            webhook = connection.execute(WEBHOOK).fetchone() if message.direction == "inbound" else None
            if webhook is not None:
                # In the same transaction: no message is stored whose delivery could be lost.
                self._enqueue(connection, message, added, webhook["context_limit"])
        if webhook is not None:
            self.on_webhook()
        return added

    def remove(self, conversation_id: str) -> bool:
        """Remove a conversation and its messages; tell whether it was there."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            row = connection.execute(ONE, (conversation_id,)).fetchone()
            if row is None:
                return False
            connection.execute("DELETE FROM messages WHERE conversation = ?", (row["serial"],))
            connection.execute("DELETE FROM conversations WHERE serial = ?", (row["serial"],))
            return True

    def fill(self, messages: Sequence[NewMessage], metadata: Mapping[str, dict[str, Any]]) -> None:
        """Store many messages in one transaction, unless a conversation is here already.

        The ids are the same each time. A database in memory is filled again in a forked child.

        Args:
            messages: In the order in which they came.
            metadata: The metadata of their conversations, by participant.
        """

        def refill(connection: sqlite3.Connection) -> None:
            if connection.execute(TOTAL).fetchone()[0]:
                return
            source = random.Random(len(messages))  # noqa: S311  # ids that repeat are the purpose
            for message in messages:
                self._insert(connection, message, lambda: f"{source.getrandbits(64):016x}")
            texts = ((json.dumps(value), participant) for participant, value in metadata.items())
            connection.executemany("UPDATE conversations SET metadata = ? WHERE participant = ?", texts)

        with self._transaction("BEGIN IMMEDIATE") as connection:
            refill(connection)
            if self._path is None:
                self._refill = refill

    def set_webhook(self, webhook: Webhook) -> None:
        """Store where deliveries go from now on, those that are pending included."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.execute(SET_WEBHOOK, (webhook.url, webhook.secret, webhook.context_limit))
        self.on_webhook()

    def has_webhook(self) -> bool:
        """Tell whether there is anywhere to deliver to."""
        with self._transaction("BEGIN") as connection:
            return connection.execute(WEBHOOK).fetchone() is not None

    def deliveries(self, *, limit: int) -> dict[str, Any]:
        """Give the newest deliveries, newest first."""
        with self._transaction("BEGIN") as connection:
            rows = connection.execute(DELIVERIES, (limit + 1,)).fetchall()
        data = [
            {
                "id": row["id"],
                "event": "agent.message",
                "conversationId": row["conversation_id"],
                "messageId": row["message_id"],
                "status": row["status"],
                "attempts": json.loads(row["attempts"]),
                "createdAt": self.behavior.print(row["created_at"]),
            }
            for row in rows[:limit]
        ]
        return {"data": data, "hasMore": len(rows) > limit}

    def next_due(self) -> float | None:
        """Tell when the next delivery can be claimed, in seconds since 1970; None if none is pending."""
        with self._transaction("BEGIN") as connection:
            row = connection.execute(DUE).fetchone()
        return None if row is None else row["due"]

    def claim(self, *, now: float, seconds: float, limit: int) -> list[Delivery]:
        """Claim deliveries that are due, the longest due first: until `seconds` from now nobody else gets them."""
        claim = secrets.token_hex(8)
        with self._transaction("BEGIN IMMEDIATE") as connection:
            webhook = connection.execute(WEBHOOK).fetchone()
            values = {"until": now + seconds, "claim": claim, "now": now, "limit": limit}
            rows = connection.execute(CLAIM, values).fetchall()
        rows.sort(key=lambda row: row["serial"])
        return [
            Delivery(row["serial"], row["id"], row["payload"], json.loads(row["attempts"]), claim, Webhook(*webhook))
            for row in rows
        ]

    def finish(self, delivery: Delivery, *, status: str, attempts: list[dict[str, Any]], due: float) -> None:
        """End a claim with what came of it, unless somebody else has the delivery by now."""
        values = {
            "serial": delivery.serial,
            "claim": delivery.claim,
            "status": status,
            "attempts": json.dumps(attempts),
            "due": due,
        }
        with self._transaction("BEGIN IMMEDIATE") as connection:
            connection.execute(FINISH, values)

    def _next_instant(self) -> int:
        """Tell the time, never earlier than before by the same clock, which may be set back."""
        clock, latest = self._latest
        now = self.now()
        self._latest = (self.clock, max(now, latest) if clock is self.clock else now)
        return self._latest[1]

    def _enqueue(
        self, connection: sqlite3.Connection, message: NewMessage, added: dict[str, Any], context_limit: int
    ) -> None:
        conversation = connection.execute(ONE, (added["conversationId"],)).fetchone()
        # The message itself is the first of these; it is no part of its own history.
        bounds = (conversation["serial"], EARLIEST, message.at, context_limit + 1)
        earlier = connection.execute(NEWEST, bounds).fetchall()[1:]
        payload = {
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
                    "at": self.behavior.print(row["received_at"]),
                }
                for row in reversed(earlier)
            ],
        }
        values = {
            "id": f"dlv_{_random_hex()}",
            "conversation_id": added["conversationId"],
            "message_id": added["id"],
            # Escaped to ASCII, because metadata may hold halves of surrogate pairs.
            "payload": json.dumps(payload).encode(),
            "created_at": self.now(),
            "due": time.time(),
        }
        connection.execute(ENQUEUE, values)

    def _insert(
        self, connection: sqlite3.Connection, message: NewMessage, new_hex: Callable[[], str]
    ) -> dict[str, Any]:
        [conversation] = connection.execute(
            TOUCH,
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
        connection.execute(ADD, row)
        return self._message(row, conversation) | {"conversationId": conversation["id"]}

    def _detail(
        self, connection: sqlite3.Connection, conversation_id: str, message_limit: int
    ) -> dict[str, Any] | None:
        row = connection.execute(ONE, (conversation_id,)).fetchone()
        if row is None:
            return None
        messages = connection.execute(NEWEST, (row["serial"], EARLIEST, LATEST, message_limit)).fetchall()
        if self.behavior.message_order == "oldest":
            messages.reverse()
        return self._conversation(row) | {"messages": [self._message(message, row) for message in messages]}

    def _conversation(self, row: sqlite3.Row) -> dict[str, Any]:
        return {
            "id": row["id"],
            "agentId": _id_of("agt", row["agent_number"]),
            "phoneNumberId": _id_of("num", row["agent_number"]),
            "phoneNumber": row["agent_number"],
            "participant": row["participant"],
            "lastMessageAt": self.behavior.print(row["last_message_at"]),
            "messageCount": row["message_count"],
            "metadata": None if row["metadata"] is None else json.loads(row["metadata"]),
            "createdAt": self.behavior.print(row["created_at"]),
            "channel": "sms",
        }

    def _message(self, row: sqlite3.Row | dict[str, Any], conversation: sqlite3.Row) -> dict[str, Any]:
        inbound = row["direction"] == "inbound"
        agent_number, participant = conversation["agent_number"], conversation["participant"]
        return {
            "id": row["id"],
            "body": row["body"],
            "fromNumber": participant if inbound else agent_number,
            "toNumber": agent_number if inbound else participant,
            "direction": row["direction"],
            "receivedAt": self.behavior.print(row["received_at"]),
            "channel": "sms",
            "mediaUrls": [],
            "status": "received" if inbound else "delivered",
        }

    @contextmanager
    def _transaction(self, begin: str) -> Generator[sqlite3.Connection]:
        """Hold the connection for one transaction: committed at the end, rolled back by an exception."""
        deadline_at = time.monotonic() + BUSY_SECONDS
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the sandbox is closed")
                if self._connection is None:
                    self._connection = self._connect()
                try:
                    self._connection.execute("PRAGMA busy_timeout = 0")
                    self._connection.execute(begin)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_at:
                        raise
                else:
                    self._connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
                    with self._connection as connection:
                        yield connection
                    return
            # Another process is writing. Wait without the lock, for which a fork waits.
            time.sleep(random.uniform(0.001, 0.02))  # noqa: S311  # two processes must not wait in step

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path or ":memory:",
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        connection.row_factory = sqlite3.Row
        try:
            is_new = _check_whose(connection)
            _use_wal(connection)
            # What was committed survives a kill of the process; the fsync per commit that this leaves out guards only
            # against the machine losing power.
            connection.execute("PRAGMA synchronous = NORMAL")
            if is_new:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    for statement in SCHEMA:
                        connection.execute(statement)
                    if self._refill is not None:
                        self._refill(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # A fork. SQLite keeps the locks of a process in its memory, so a child in which a file was open believes to hold
    # what it does not, and writes to a log that its parent may delete. Therefore no fork happens inside a transaction,
    # and a file is closed before it; both sides open it again when they need it. What is in memory cannot be closed:
    # the child starts afresh and leaves its copy of the parent's connection alone.

    def before_fork(self) -> None:
        """Wait for the transaction in progress, and let go of the file."""
        self._lock.acquire()
        if self._path is not None:
            self._disconnect()

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Go on with a lock of the child's own and, if the data was in memory, an empty or demonstration database."""
        if self._connection is not None:
            _inherited.append(self._connection)
            self._connection = None
        self._lock = threading.Lock()


_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_inherited: list[sqlite3.Connection] = []  # Never closed: see above.
_forking = threading.Lock()  # Held through a fork, and to add a store.
_held: list[Store] = []


def _before_fork() -> None:
    _forking.acquire()
    _held.extend(_stores)
    for store in _held:
        store.before_fork()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().after_fork_in_parent()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking
    _forking = threading.Lock()
    while _held:
        _held.pop().after_fork_in_child()


if hasattr(os, "register_at_fork"):  # Not on Windows, which does not fork.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _check_whose(connection: sqlite3.Connection) -> bool:
    """Say whether the database is new. Refuse somebody else's, before anything is written to it."""
    with connection:
        connection.execute("BEGIN")  # A process that creates the file in this moment is seen whole or not at all.
        found: int = connection.execute("PRAGMA application_id").fetchone()[0]
        tables: int = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if found != APPLICATION_ID and (found or tables):
        raise sqlite3.DatabaseError("this is no sandbox but a database of something else; name another file")
    return found != APPLICATION_ID


def _use_wal(connection: sqlite3.Connection) -> None:
    # Two processes that open a new file at once: SQLite refuses one of them at once, whatever its timeout.
    for _ in range(200):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.05)
        else:
            return
    raise sqlite3.OperationalError("database is locked: for 10 seconds by another process that opens it")


def _random_hex() -> str:
    return secrets.token_hex(8)


def _id_of(prefix: str, number: str) -> str:
    """Derive the id of an agent's number, or of its agent, from the number: nothing to store, nothing to look up."""
    return f"{prefix}_{hashlib.sha256(f'{prefix} {number}'.encode()).hexdigest()[:16]}"
