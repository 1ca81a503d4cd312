"""Search for conversations by number or by the text of a message, as the phone's search field does.

It reads every message: a hundred thousand take about a tenth of a second. The API has no search.
"""

import re
from typing import Any

from agentphone.sandbox._database import Database
from agentphone.sandbox._shapes import Shapes

BY_NUMBER = """SELECT * FROM conversations WHERE folds_to(participant, ?) OR folds_to(agent_number, ?)
    OR (? != '' AND instr(participant, ?))"""
BY_TEXT = "SELECT conversation, max(received_at) AS received_at FROM messages WHERE folds_to(body, ?) GROUP BY 1"
FIND = f"""SELECT conversations.*, found.received_at AS found_at
    FROM conversations LEFT JOIN ({BY_TEXT}) AS found ON found.conversation = conversations.serial
    WHERE found.conversation IS NOT NULL OR id IN (SELECT id FROM ({BY_NUMBER}))
    ORDER BY last_message_at DESC, serial DESC LIMIT ?"""  # noqa: S608  # constants only
MATCHING_MESSAGE = """SELECT * FROM messages WHERE conversation = ? AND received_at = ? AND folds_to(body, ?)
    ORDER BY position DESC LIMIT 1"""


class Search:
    """Search in a database.

    Args:
        database: The database.
        shapes: How conversations and messages are shown.
    """

    def __init__(self, database: Database, shapes: Shapes) -> None:
        self._database = database
        self._shapes = shapes

    def page(self, query: str, *, limit: int) -> dict[str, Any]:
        """Return the conversations that a query matches, most recent activity first.

        Each is shown as in the list; `match` is its newest message whose text contains the query, or None.

        Args:
            query: The text to find, whatever its case; digits also find numbers written with other characters.
            limit: The largest number of conversations.
        """
        digits = re.sub(r"[^0-9]", "", query) if re.fullmatch(r"[0-9+().\s-]+", query) else ""
        folded = query.casefold()
        with self._database.transaction("BEGIN") as connection:
            connection.create_function("folds_to", 2, _folds_to, deterministic=True)
            rows = connection.execute(FIND, (folded, folded, folded, digits, digits, limit + 1)).fetchall()
            matches = [
                connection.execute(MATCHING_MESSAGE, (row["serial"], row["found_at"], folded)).fetchone()
                for row in rows[:limit]
            ]
        data = [
            self._shapes.conversation(row)
            | {
                "lastMessagePreview": row["preview"],
                "match": None if match is None else self._shapes.message(match, row),
            }
            for row, match in zip(rows, matches, strict=False)  # one row more shows whether there are more
        ]
        return {"data": data, "hasMore": len(rows) > limit}


def _folds_to(text: str | None, folded: str) -> bool:
    return text is not None and folded in text.casefold()
