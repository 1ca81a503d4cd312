"""Rows and files: how an item becomes a row, and how rows become a file of each format. It knows no API and no SQL.

Between the two a row is JSON: one line in UTF-8 that holds all that the item holds. A line of `jsonl` is that row; the
other formats have fixed columns, and whatever has no column of its own stands in the column `extra`, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from agentphone._json import to_camel_case
from agentphone.errors import ConfigurationError
from agentphone.models import Conversation, Message

FORMATS = ("jsonl", "csv", "parquet")

CHUNK = 5000
"""How many rows are held in memory at once while a file is written; also the rows of a row group in Parquet."""


def _fields(model: type[attrs.AttrsInstance]) -> tuple[tuple[str, str], ...]:
    """Give the names of a model's fields, and the API's names for them."""
    return tuple((field.name, to_camel_case(field.name)) for field in attrs.fields(model) if field.name != "extra")


CONVERSATION_FIELDS = _fields(Conversation)
MESSAGE_FIELDS = _fields(Message)

COLUMNS = {
    "conversations": tuple(name for _, name in CONVERSATION_FIELDS),
    "messages": ("conversationId", *(name for _, name in MESSAGE_FIELDS)),
}
"""The columns of both files, under the API's names; `extra` follows them where columns are fixed."""

NUMBERS = frozenset({"messageCount"})
LISTS = frozenset({"mediaUrls"})
OBJECTS = frozenset({"metadata"})
"""What the columns hold that is no text."""


# Rows


def conversation_row(conversation: Conversation) -> bytes:
    """Print a conversation as a row."""
    return to_json(
        {name: getattr(conversation, field) for field, name in CONVERSATION_FIELDS} | dict(conversation.extra)
    )


def message_row(conversation_id: str, message: Message) -> bytes:
    """Print a message as a row, with the id of its conversation in front."""
    row: dict[str, Any] = {"conversationId": conversation_id}
    row |= {name: getattr(message, field) for field, name in MESSAGE_FIELDS}
    return to_json(row | dict(message.extra) | {"conversationId": conversation_id})


def to_json(value: Any) -> bytes:
    """Print JSON on one line, for readers of every kind.

    Half a surrogate pair, which a preview cut in the middle of an emoji ends in, is no UTF-8: it is left escaped. So
    are three characters that many a program takes for the end of a line.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=print_instant)
    for character in "\x85\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace")


def print_instant(instant: datetime) -> str:
    """Print an instant in UTC, with as many digits as are known."""
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


# Files


class _File(ABC):
    """A file that is being written, in chunks of rows."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._columns = columns
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @abstractmethod
    def copy(self, path: Path) -> Iterator[None]:
        """Take over an earlier file of the same kind, a stretch at each step."""

    @abstractmethod
    def begin(self) -> None:
        """Write what stands before the first row of a file that continues no other."""

    @abstractmethod
    def write(self, rows: Iterable[bytes]) -> None:
        """Add a chunk of rows."""

    def finish(self) -> None:
        """Bring the file to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _split(self, row: bytes) -> Iterator[Any]:
        """Give the columns' values of a row, and last what has no column of its own: a dict, or None."""
        values: dict[str, Any] = json.loads(row)
        yield from (values.pop(name) for name in self._columns)
        yield values or None


class _Lines(_File):
    """A file of text."""

    def copy(self, path: Path) -> Iterator[None]:
        with path.open("rb") as old:
            while block := old.read(1 << 22):
                self._file.write(block)
                yield


class _JSONLines(_Lines):
    def begin(self) -> None:
        """A file of JSON lines has no header."""

    def write(self, rows: Iterable[bytes]) -> None:
        self._file.write(b"".join(row + b"\n" for row in rows))


class _CSV(_Lines):
    """RFC 4180, and as PostgreSQL and DuckDB have it: every text is quoted, what is null is empty and is not.

    Not the `csv` module's writer: before Python 3.12 it cannot tell the two apart. A text is never changed, so one that
    begins with `=` is a formula to a spreadsheet: phone numbers begin with `+`, and would all have to be changed.
    """

    def begin(self) -> None:
        self._file.write(",".join((*self._columns, "extra")).encode() + b"\n")

    def write(self, rows: Iterable[bytes]) -> None:
        lines = (",".join(map(_cell, self._split(row))) + "\n" for row in rows)
        self._file.write("".join(lines).encode("utf-8", "replace"))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if type(value) is int:
        return str(value)
    text = value if type(value) is str else to_json(value).decode()
    return '"' + text.replace('"', '""') + '"'


class _Parquet(_File):
    """A row group for each chunk. Instants are timestamps of Parquet's own, microseconds in UTC."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        super().__init__(path, columns)
        self._arrow = importlib.import_module("pyarrow")
        self._parquet = importlib.import_module("pyarrow.parquet")
        kinds = [(name, self._kind(name)) for name in (*columns, "extra")]
        self._schema = self._arrow.schema(kinds)
        self._writer = self._parquet.ParquetWriter(self._file, self._schema)

    def _kind(self, column: str) -> Any:
        arrow = self._arrow
        if column in NUMBERS:
            return arrow.int64()
        return arrow.list_(arrow.string()) if column in LISTS else arrow.string()

    def copy(self, path: Path) -> Iterator[None]:
        with self._parquet.ParquetFile(path) as old:
            for batch in old.iter_batches(CHUNK):
                self._writer.write_batch(batch)
                yield

    def begin(self) -> None:
        """A Parquet file has its columns at its end."""

    def write(self, rows: Iterable[bytes]) -> None:
        columns = zip(*map(self._split, rows), strict=True)
        arrays = [
            self._arrow.array([_map_exceptions(field.name, value) for value in column], field.type)
            for field, column in zip(self._schema, columns, strict=True)
        ]
        self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))

    def finish(self) -> None:
        self._writer.close()
        super().finish()


def _map_exceptions(column: str, value: Any) -> Any:
    """Make what Arrow takes for a column of a value from JSON."""
    if value is None or column in NUMBERS:
        return value
    if column in LISTS:
        return [_unicode(item) for item in value]
    return _unicode(value) if type(value) is str else to_json(value).decode()


def _unicode(text: str) -> str:
    """Give a text without halves of surrogate pairs, which UTF-8 does not have."""
    return text.encode("utf-8", "replace").decode()


_KINDS: dict[str, type[_File]] = {"jsonl": _JSONLines, "csv": _CSV, "parquet": _Parquet}


def check_format(name: str) -> None:
    """Refuse a format that there is not, or whose package is not installed.

    Raises:
        ValueError: There is no such format.
        ConfigurationError: Parquet without pyarrow; the text says how to install it.
    """
    if name not in FORMATS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, not {name!r}")
    if name == "parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise ConfigurationError(
                f"format='parquet' needs pyarrow ({error}); in the project's folder: pip install '.[parquet]'"
            ) from None


def write(
    path: Path, table: str, chunks: Iterable[Sequence[bytes]], *, format_: str, append_to: Path | None
) -> Generator[int]:
    """Write a file of `conversations` or `messages`, a chunk of rows at each step, and bring it to the disk.

    Args:
        path: Where; whatever is there is overwritten.
        table: Which of both.
        chunks: The rows.
        form: The format.
        continues: An earlier file whose rows come before these; None if there is none.

    Yields:
        How many rows a step has written; 0 for one that copied others.
    """
    with _KINDS[format_](path, COLUMNS[table]) as file:
        if append_to is None:
            file.begin()
        else:
            for _ in file.copy(append_to):
                yield 0
        for rows in chunks:
            file.write(rows)
            yield len(rows)
        file.finish()
