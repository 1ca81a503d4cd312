"""What the commands have to print, and the way to print it for programs: JSON lines.

One JSON object a line, in UTF-8, with the API's own names; instants in UTC with `Z`; unknown fields as received.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import attrs

from agentphone._decoding import camel
from agentphone.export import Result
from agentphone.models import Conversation, ConversationDetail, Message, Page


class Output(Protocol):
    """A way to print what the API gave."""

    def conversations(self, pages: Iterable[Page[Conversation]]) -> None:
        """Print a list of conversations as its pages come."""

    def conversation(self, conversation: ConversationDetail, *, with_messages: bool) -> None:
        """Print one conversation."""

    def messages(self, pages: Iterable[Page[Message]]) -> None:
        """Print a history as its pages come."""

    def arrivals(self, arrivals: Iterable[tuple[Conversation | None, Message]]) -> None:
        """Print messages as they arrive; with their conversations, where they may be of several."""

    def exported(self, result: Result) -> None:
        """Print what an export has put where."""


class JsonLines:
    """Print JSON lines."""

    def __init__(self) -> None:
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:  # the same bytes on every machine
            reconfigure(encoding="utf-8", newline="\n")

    def conversations(self, pages: Iterable[Page[Conversation]]) -> None:
        """Print a line for each conversation."""
        for page in pages:
            _write(map(as_row, page))

    def conversation(self, conversation: ConversationDetail, *, with_messages: bool) -> None:
        """Print a line, always with the messages: the API's own answer."""
        _write([as_row(conversation)])

    def messages(self, pages: Iterable[Page[Message]]) -> None:
        """Print a line for each message."""
        for page in pages:
            _write(map(as_row, page))

    def arrivals(self, arrivals: Iterable[tuple[Conversation | None, Message]]) -> None:
        """Print a line for each message."""
        for conversation, message in arrivals:
            of = {} if conversation is None else {"conversationId": conversation.id}
            _write([of | as_row(message) | of])

    def exported(self, result: Result) -> None:
        """Print a line with the counts and the paths."""
        _write([{camel(name): _plain(value) for name, value in attrs.asdict(result).items()}])


def as_row(model: Conversation | Message) -> dict[str, Any]:
    """Give a model as the JSON object that it came from: the API's names, instants in UTC with `Z`."""
    fields = (field.name for field in attrs.fields(type(model)) if field.name != "extra")
    return {camel(name): _plain(getattr(model, name)) for name in fields} | dict(model.extra)


def as_line(row: Any) -> str:
    """Give a value as JSON on one line.

    Letters that cannot be printed are escaped, which changes nothing for a reader of JSON: a terminal would obey some,
    and UTF-8 has no bytes for half a surrogate pair.
    """
    line = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in line)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [as_row(item) if isinstance(item, Message) else item for item in value]
    return value


def _write(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        sys.stdout.write(as_line(row) + "\n")
    sys.stdout.flush()  # what is there is there for the reader of a pipe, while the next page is fetched
