"""The interface of output formats, and the format for programs, JSON lines.

One JSON object a line, in UTF-8, with the API's own names; timestamps in UTC with `Z`; unknown fields as received.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import attrs

from agentphone._json import to_camel_case
from agentphone.export import Result
from agentphone.models import Conversation, ConversationDetail, Message, Page, SentMessage


class Output(Protocol):
    """An output format."""

    def conversations(self, pages: Iterable[Page[Conversation]]) -> None:
        """Print a list of conversations, page by page."""

    def conversation(self, conversation: ConversationDetail, *, with_messages: bool) -> None:
        """Print one conversation, and its recent messages on request."""

    def messages(self, pages: Iterable[Page[Message]]) -> None:
        """Print a history, page by page."""

    def arrivals(self, arrivals: Iterable[tuple[Conversation | None, Message]]) -> None:
        """Print messages as they arrive, with their conversations if there can be several."""

    def sent(self, sent: SentMessage) -> None:
        """Print a message that was sent."""

    def exported(self, result: Result, *, is_update: bool) -> None:
        """Print the counts and paths of an export, or of an update of the last one."""

    def items(self, items: Sequence[dict[str, Any]]) -> None:
        """Print the texts of an inbox."""


class JsonLines:
    """Print JSON lines."""

    def __init__(self) -> None:
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:  # the same bytes on every platform
            reconfigure(encoding="utf-8", newline="\n")

    def conversations(self, pages: Iterable[Page[Conversation]]) -> None:
        """Print one line for each conversation."""
        for page in pages:
            _write(item.to_dict() for item in page)

    def conversation(self, conversation: ConversationDetail, *, with_messages: bool) -> None:
        """Print one line, with the messages in it on request."""
        row = conversation.to_dict()
        if not with_messages:
            del row["messages"]
        _write([row])

    def messages(self, pages: Iterable[Page[Message]]) -> None:
        """Print one line for each message."""
        for page in pages:
            _write(item.to_dict() for item in page)

    def arrivals(self, arrivals: Iterable[tuple[Conversation | None, Message]]) -> None:
        """Print one line for each message."""
        for conversation, message in arrivals:
            ids = {} if conversation is None else {"conversationId": conversation.id}
            _write([ids | message.to_dict() | ids])  # first in the line, and not replaced by a field of the message

    def sent(self, sent: SentMessage) -> None:
        """Print one line with the message, as the API returned it."""
        _write([sent.to_dict()])

    def exported(self, result: Result, *, is_update: bool) -> None:
        """Print one line with the counts and the paths."""
        _write([{to_camel_case(name): value for name, value in attrs.asdict(result).items()}])

    def items(self, items: Sequence[dict[str, Any]]) -> None:
        """Print one line for each text."""
        _write(items)


def as_line(row: Any) -> str:
    """Return a value as JSON on one line.

    Unprintable characters are escaped, which makes no difference to a JSON parser: some would drive a terminal, and
    UTF-8 cannot encode half a surrogate pair.
    """
    line = json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str)  # paths
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _write(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        sys.stdout.write(as_line(row) + "\n")
    sys.stdout.flush()  # so that the reader of a pipe gets this page while the next one is fetched
