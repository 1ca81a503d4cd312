"""Where an answer ended, as one word of text, so that the next one goes on there."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import quote, unquote

from attrs import frozen

from agentphone import Conversation, Cursor
from agentphone._timestamps import format_timestamp, parse_timestamp


@frozen
class ListCursor:
    """The position of a conversation in the list, which moves while it is read.

    Attributes:
        offset: How many conversations were before it.
        id: Its id.
        at: When its latest message was received.
    """

    offset: int
    id: str
    at: datetime | None

    @classmethod
    def of(cls, offset: int, conversation: Conversation) -> ListCursor:
        """Return the position of a conversation that was listed at an offset."""
        return cls(offset, conversation.id, conversation.last_message_at)

    def __str__(self) -> str:
        at = "" if self.at is None else format_timestamp(self.at)
        return f"{self.offset},{quote(self.id, safe='')},{at}"

    @classmethod
    def parse(cls, text: str | None) -> ListCursor | None:
        """Parse what `str` returned.

        Raises:
            ValueError: It is not such a cursor.
        """
        if text is None:
            return None
        offset, _, rest = text.partition(",")
        its_id, comma, at = rest.partition(",")
        if comma and offset.isdecimal() and len(offset) < 10:
            try:
                return cls(int(offset), unquote(its_id), parse_timestamp(at) if at else None)
            except ValueError:
                pass
        raise _wrong(text)

    def is_before(self, conversation: Conversation) -> bool:
        """Return whether a conversation is certainly listed before this position: it has a newer message."""
        at = conversation.last_message_at
        return at is not None and (self.at is None or at > self.at)


@frozen
class SearchCursor:
    """Where a search through all conversations goes on.

    Attributes:
        position: The conversation.
        message: The message of it that was looked at last; None if all of them were.
    """

    position: ListCursor
    message: Cursor | None

    def __str__(self) -> str:
        return f"{self.position}|{self.message or ''}"

    @classmethod
    def parse(cls, text: str | None) -> SearchCursor | None:
        """Parse what `str` returned.

        Raises:
            ValueError: It is not such a cursor.
        """
        if text is None:
            return None
        before, bar, after = text.partition("|")
        position = ListCursor.parse(before) if bar else None
        if position is None:
            raise _wrong(text)
        return cls(position, parse_message_cursor(after) if after else None)


def parse_message_cursor(text: str | None) -> Cursor | None:
    """Parse the cursor of a message.

    Raises:
        ValueError: It is not one.
    """
    if text is None:
        return None
    try:
        return Cursor.parse(text)
    except ValueError:
        raise _wrong(text) from None


def _wrong(text: str) -> ValueError:
    return ValueError(f"cursor must be the next_cursor of an earlier answer of this tool, got {text[:100]!r}")
