"""The log of what changed in the sandbox's database, kept by triggers: by whichever process and statement.

A change says what to read again, not what is there now. The newest 10,000 are kept. The first number of a database is
the time at which it was created, in microseconds, so that a number from another database is never mistaken for one of
this one.
"""

from typing import Any

import attrs

from agentphone.sandbox._behavior import Settings
from agentphone.sandbox._database import Database

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS changes (
        serial INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        conversation_id TEXT,
        item_id TEXT,
        received_at INTEGER)""",
    """INSERT INTO changes (serial, kind)
        SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER), 'created'
        WHERE NOT EXISTS (SELECT * FROM changes)""",
    """CREATE TRIGGER IF NOT EXISTS message_added AFTER INSERT ON messages BEGIN
        INSERT INTO changes (kind, conversation_id, item_id, received_at)
        SELECT 'message', id, NEW.id, NEW.received_at FROM conversations WHERE serial = NEW.conversation; END""",
    """CREATE TRIGGER IF NOT EXISTS message_changed AFTER UPDATE ON messages BEGIN
        INSERT INTO changes (kind, conversation_id, item_id, received_at)
        SELECT 'message', id, NEW.id, NEW.received_at FROM conversations WHERE serial = NEW.conversation; END""",
    """CREATE TRIGGER IF NOT EXISTS metadata_changed AFTER UPDATE OF metadata ON conversations BEGIN
        INSERT INTO changes (kind, conversation_id) VALUES ('metadata', NEW.id); END""",
    """CREATE TRIGGER IF NOT EXISTS conversation_removed AFTER DELETE ON conversations BEGIN
        INSERT INTO changes (kind, conversation_id) VALUES ('removed', OLD.id); END""",
    """CREATE TRIGGER IF NOT EXISTS delivery_added AFTER INSERT ON deliveries BEGIN
        INSERT INTO changes (kind, conversation_id, item_id) VALUES ('delivery', NEW.conversation_id, NEW.id); END""",
    """CREATE TRIGGER IF NOT EXISTS delivery_changed AFTER UPDATE OF status, attempts ON deliveries BEGIN
        INSERT INTO changes (kind, conversation_id, item_id) VALUES ('delivery', NEW.conversation_id, NEW.id); END""",
    """CREATE TRIGGER IF NOT EXISTS webhook_set AFTER INSERT ON webhook BEGIN
        INSERT INTO changes (kind) VALUES ('webhook'); END""",
    """CREATE TRIGGER IF NOT EXISTS changes_pruned AFTER INSERT ON changes WHEN NEW.serial % 1000 = 0 BEGIN
        DELETE FROM changes WHERE serial <= NEW.serial - 10000; END""",
)
# Two subqueries, because both aggregates in one query read the whole table.
BOUNDS = "SELECT (SELECT min(serial) FROM changes), (SELECT max(serial) FROM changes)"
CHANGES_SINCE = "SELECT * FROM changes WHERE serial > ? ORDER BY serial LIMIT ?"

MAX_CHANGES = 1000
ITEM_NAMES = {"message": "messageId", "delivery": "deliveryId"}


@attrs.frozen
class Changes:
    """The changes since a number.

    Args:
        data: The changes, oldest first, as the sandbox's HTTP API shows them.
        last: The number to continue from.
        is_reset: Whether changes may be missing, so that everything is to be read again.
        has_more: Whether there are more changes now.
    """

    data: list[dict[str, Any]]
    last: int
    is_reset: bool
    has_more: bool


class ChangeLog:
    """Read the changes of a database.

    Args:
        database: The database, which has the table and triggers of `SCHEMA`.
        settings: How timestamps are shown.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    def version(self) -> tuple[int, int]:
        """Return a value that differs after every change, by this process or another; cheap enough to poll."""
        return self._database.version()

    def since(self, serial: int | None) -> Changes:
        """Return the changes after a number, at most 1,000 of them.

        Args:
            serial: The number; None for no changes, only the number to start from.
        """
        with self._database.transaction("BEGIN") as connection:
            first, last = connection.execute(BOUNDS).fetchone()
            if serial is None or not first - 1 <= serial <= last:
                return Changes([], last, is_reset=serial is not None, has_more=False)
            rows = connection.execute(CHANGES_SINCE, (serial, MAX_CHANGES)).fetchall()
        data = []
        for row in rows:
            change = {"id": str(row["serial"]), "kind": row["kind"], "conversationId": row["conversation_id"]}
            if row["kind"] in ITEM_NAMES:
                change[ITEM_NAMES[row["kind"]]] = row["item_id"]
            if row["received_at"] is not None:
                change["receivedAt"] = self._settings.format(row["received_at"])
            data.append(change)
        reached = rows[-1]["serial"] if rows else serial
        return Changes(data, reached, is_reset=False, has_more=reached < last)
