"""What a paginator can request: the three kinds of requests, and the largest pages that the API returns."""

from __future__ import annotations

from datetime import datetime

from attrs import frozen

MAX_CONVERSATIONS = 100
"""The most conversations that one page of the list can hold."""
MAX_MESSAGES = 200
"""The most messages that one page can hold."""


@frozen(kw_only=True)
class OffsetRequest:
    """One page of the list of conversations."""

    limit: int
    offset: int


@frozen(kw_only=True)
class CursorRequest:
    """One page of a conversation's messages, between two timestamps."""

    limit: int
    before: datetime | None = None
    after: datetime | None = None


@frozen
class MessagesRequest:
    """One page of messages of one conversation among many."""

    conversation_id: str
    cursor: CursorRequest
