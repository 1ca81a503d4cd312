"""Tables of conversations and messages in a terminal. The texts in them are untrusted, and cannot drive the terminal.

rich measures, wraps and colors. Its markup is turned off, so that `[red]` in a text is printed as it is. Timestamps are
in UTC, so that they can be passed to `--before` and `--after`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from attrs import frozen
from rich import table
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from agentphone.errors import escape_control_characters
from agentphone.export import Result
from agentphone.models import Conversation, ConversationDetail, Message, Page, SentMessage, json_keys

GAP = 2
MAX_WIDTH = 32
"""The maximum width of a value, except for ids: people copy them."""
DEFAULT_WIDTH = 80
JOINERS = "\u200c\u200d"
"""Join letters in some scripts, and emoji. Python calls them unprintable, but they are harmless."""
DIRECTIONS = {"inbound": "cyan", "outbound": "green"}
SHORT_FORMS = {"DIRECTION": "DIR", "inbound": "in", "outbound": "out"}
SHORT_WIDTH = 3


@frozen(kw_only=True)
class Column:
    """A column of a table."""

    title: str
    rank: int
    """If not all columns fit, those of the highest rank are hidden first; rank 0 is always shown."""
    short_rank: int = 0
    """If not all columns fit, short forms are used once the columns of higher ranks are hidden; 0 for never."""
    min_width: int = 0
    fills: bool = False
    """True if it takes the remaining width; other columns are as wide as their content."""
    wraps: bool = False
    """True if a long text wraps; otherwise it is truncated."""
    is_number: bool = False


CONVERSATIONS = (
    Column(title="ID", rank=0),
    Column(title="PARTICIPANT", rank=1),
    Column(title="LATEST (UTC)", rank=2),
    Column(title="MESSAGES", rank=4, is_number=True),
    Column(title="PREVIEW", rank=3, min_width=12, fills=True),
)
MESSAGES = (
    Column(title="RECEIVED (UTC)", rank=2, min_width=19),
    Column(title="DIRECTION", rank=1, short_rank=3),
    Column(title="TEXT", rank=0, min_width=16, fills=True, wraps=True),
)

ARRIVALS = (
    Column(title="RECEIVED (UTC)", rank=3, min_width=19),
    Column(title="CONVERSATION", rank=5),
    Column(title="PARTICIPANT", rank=2, min_width=16),
    Column(title="DIRECTION", rank=1, short_rank=4),
    Column(title="TEXT", rank=0, min_width=16, fills=True, wraps=True),
)
ITEMS = (
    Column(title="ID", rank=0),
    Column(title="STATUS", rank=1),
    Column(title="ATTEMPTS", rank=5, is_number=True),
    Column(title="RECEIVED (UTC)", rank=4),
    Column(title="TEXT", rank=2, min_width=12, fills=True),
    Column(title="ERROR", rank=3),
)
STATUSES = {"done": "green", "failed": "red", "unconfirmed": "yellow"}


class Tables:
    """Print tables."""

    def __init__(self) -> None:
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:  # a terminal that cannot encode an emoji shows a question mark
            reconfigure(errors="replace")
        # No color means plain text, without bold either.
        self._console = Console(
            markup=False, emoji=False, highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto"
        )
        if not self._console.width:  # COLUMNS=0 means unknown; rich would print nothing
            self._console.width = DEFAULT_WIDTH

    def conversations(self, pages: Iterable[Page[Conversation]]) -> None:
        """Print a row for each conversation, and the total if there are more."""
        printer = _Printer(self._console, CONVERSATIONS)
        count, total = 0, None
        for page in pages:
            printer.print([_conversation_row(conversation) for conversation in page])
            count, total = count + len(page), page.total
        if not count:
            self._print_note("No conversations.")
        elif total is not None and count < total:
            self._print_note(f"{count} of {total} conversations. --all shows every one.")

    def conversation(self, conversation: ConversationDetail, *, with_messages: bool) -> None:
        """Print the fields of a conversation, and its recent messages on request."""
        fields: dict[str, Any] = {
            "ID": conversation.id,
            "Participant": conversation.participant,
            "Number": conversation.phone_number,
            "Number id": conversation.phone_number_id,
            "Agent": conversation.agent_id,
            "Created": _format_time(conversation.created_at),
            "Latest": _format_time(conversation.last_message_at),
            "Messages": conversation.message_count,
            "Metadata": conversation.metadata,
        }
        described = {key for _, key in json_keys(ConversationDetail)}
        fields |= {key: value for key, value in conversation.to_dict().items() if key not in described}
        grid = table.Table.grid(
            table.Column(style="bold", no_wrap=True), table.Column(overflow="fold"), padding=(0, GAP, 0, 0)
        )
        for name, value in fields.items():
            if value is not None:
                grid.add_row(_one_line(name), _format_value(value))
        self._console.print(grid)
        if with_messages and conversation.messages:
            self._console.print()
            self.messages([Page(data=conversation.messages, has_more=False)])

    def messages(self, pages: Iterable[Page[Message]]) -> None:
        """Print a row for each message."""
        printer = _Printer(self._console, MESSAGES)
        count = 0
        for page in pages:
            printer.print([_message_row(message) for message in page])
            count += len(page)
        if not count:
            self._print_note("No messages.")

    def arrivals(self, arrivals: Iterable[tuple[Conversation | None, Message]]) -> None:
        """Print a row for each message, with its conversation if there can be several."""
        self._print_note("Waiting for messages. Press Ctrl-C to stop.")
        printer: _Printer | None = None
        try:
            for conversation, message in arrivals:
                received, direction, text = _message_row(message)
                if conversation is None:
                    printer = printer or _Printer(self._console, MESSAGES)
                    printer.print([[received, direction, text]])
                else:
                    printer = printer or _Printer(self._console, ARRIVALS)
                    ids = [_one_line(conversation.id), _one_line(conversation.participant)]
                    printer.print([[received, *ids, direction, text]])
        except KeyboardInterrupt:
            self._console.print()  # after the terminal's own ^C
            raise

    def sent(self, sent: SentMessage) -> None:
        """Print what was sent and to whom."""
        receiver = f" to {sent.to_number}" if sent.to_number else ""
        self._console.print(_lines(f"Sent {sent.id}{receiver} ({sent.status or 'no status'})."), soft_wrap=True)

    def exported(self, result: Result, *, is_update: bool) -> None:
        """Print the counts and the paths; of an update how many messages are new."""
        new, total = result.messages, result.messages_total
        for line in (
            f"Exported {result.conversations:,} conversations to {result.conversations_path}",
            f"+{new:,} new message{'' if new == 1 else 's'}, {total:,} in all: {result.messages_path}"
            if is_update
            else f"Exported {new:,} messages to {result.messages_path}",
        ):
            self._console.print(_lines(line), soft_wrap=True)
        if result.skipped:
            self._print_note(f"{result.skipped:,} conversations were deleted before they could be read.")

    def items(self, items: Sequence[dict[str, Any]]) -> None:
        """Print a row for each text of an inbox."""
        if not items:
            self._print_note("No texts.")
        _Printer(self._console, ITEMS).print([_item_row(item) for item in items])
        if any("\n" in (item["error"] or "").strip() for item in items):
            self._print_note("With tracebacks: agentphone inbox list --failed --json | jq -r .error")

    def _print_note(self, text: str) -> None:
        self._console.print(Text(text, "dim"))


class _Printer:
    """Print rows as they arrive, under one header, in columns whose widths the first rows determine."""

    def __init__(self, console: Console, columns: Sequence[Column]) -> None:
        self._console = console
        self._columns = columns
        self._widths: list[int] = []
        self._available = 0

    def print(self, rows: Sequence[Sequence[Text]]) -> None:
        """Print a batch of rows."""
        if not rows:
            return
        is_first = not self._widths
        if self._available != self._console.width:  # at first, and when the window was resized
            self._available = self._console.width
            self._widths = widths(self._columns, rows, self._available)
        grid = table.Table(
            *(
                table.Column(
                    _fit(Text(column.title), column, width) if is_first else "",
                    width=width,
                    no_wrap=column.fills and not column.wraps,
                    overflow="ellipsis" if column.fills and not column.wraps else "fold",
                    justify="right" if column.is_number else "left",
                )
                for column, width in zip(self._columns, self._widths, strict=True)
                if width
            ),
            box=None,
            padding=(0, GAP, 0, 0),
            pad_edge=False,
            show_header=is_first,
            header_style="bold",
        )
        for row in rows:
            cells = zip(row, self._columns, self._widths, strict=True)
            grid.add_row(*(_fit(cell, column, width) for cell, column, width in cells if width))
        self._console.print(grid)


def widths(columns: Sequence[Column], rows: Sequence[Sequence[Text]], available: int) -> list[int]:
    """Compute the width of each column.

    Args:
        columns: The columns.
        rows: Their content.
        available: The width of the terminal, at least 1.

    Returns:
        The width of each column; 0 for a hidden one.
    """
    wanted = []
    for index, column in enumerate(columns):
        cells = [] if column.fills else [cell_len(row[index].plain) for row in rows]
        widest = max([cell_len(column.title), column.min_width, *cells])
        wanted.append(widest if column.rank == 0 else min(widest, MAX_WIDTH))
    savings = [(column.rank, index, 0) for index, column in enumerate(columns) if column.rank]
    savings += [(column.short_rank, index, SHORT_WIDTH) for index, column in enumerate(columns) if column.short_rank]
    for _, index, width in sorted(savings, reverse=True):
        if _left(wanted, available) >= 0:
            break
        wanted[index] = width
    left = _left(wanted, available)
    return [
        max(width + left, 1) if width and (column.fills or left < 0) else width
        for column, width in zip(columns, wanted, strict=True)
    ]


def _left(shown: Sequence[int], available: int) -> int:
    """Return how much of the available width the columns and the gaps between them leave."""
    return available + GAP - sum(width + GAP for width in shown if width)


def _fit(text: Text, column: Column, width: int) -> Text:
    """Return the short form of a text that does not fit its column, if it has one."""
    if column.short_rank and cell_len(text.plain) > width:
        return Text(SHORT_FORMS.get(text.plain, text.plain), text.style)
    return text


def _conversation_row(conversation: Conversation) -> list[Text]:
    latest = conversation.last_message_at
    return [
        _one_line(conversation.id),
        _one_line(conversation.participant),
        Text("" if latest is None else f"{latest:%Y-%m-%d %H:%M}"),
        Text("" if conversation.message_count is None else str(conversation.message_count)),
        _one_line(conversation.last_message_preview or ""),
    ]


def _message_row(message: Message) -> list[Text]:
    direction = message.direction or ""
    return [
        Text(f"{message.received_at:%Y-%m-%d %H:%M:%S}", "dim"),
        _one_line(direction, DIRECTIONS.get(direction, "")),
        _lines("\n".join(filter(None, (message.body, *message.media_urls)))),
    ]


def _item_row(item: dict[str, Any]) -> list[Text]:
    error = (item["error"] or "").strip().splitlines()
    return [
        _one_line(item["id"]),
        _one_line(item["status"], STATUSES.get(item["status"], "")),
        Text(str(item["attempts"])),
        Text((item["createdAt"] or "")[:16].replace("T", " "), "dim"),
        _one_line(item["text"] or ""),
        _one_line(error[-1] if error else ""),  # of a traceback, the line that names the exception
    ]


def _format_time(time: datetime | None) -> str | None:
    return None if time is None else f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _format_value(value: Any) -> Text:
    if isinstance(value, str):
        return _lines(value)
    return _lines(json.dumps(value, ensure_ascii=False, indent=2))


def _one_line(text: str, style: str = "") -> Text:
    return Text(_escape(" ".join(text.split())), style)


def _lines(text: str) -> Text:
    return Text("\n".join(_escape(line.replace("\t", " ")) for line in text.replace("\r\n", "\n").split("\n")))


def _escape(text: str) -> str:
    return escape_control_characters(text, keep=JOINERS)
