"""Rows and files: turn an item into a row, and rows into a file of each format. It knows no API and no SQL.

A row is one line of JSON in UTF-8 with every field of the item. A line of `jsonl` is that row; the other formats have
fixed columns, and fields without a column of their own are JSON in the column `extra`.
"""

from __future__ import annotations

import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from agentphone.errors import ConfigurationError
from agentphone.models import Conversation, Message, json_keys

FORMATS = ("jsonl", "csv", "parquet")

CHUNK = 5000
"""How many rows are in memory at once while a file is written; also the size of a row group in Parquet."""


COLUMNS = {
    "conversations": tuple(key for _, key in json_keys(Conversation)),
    "messages": ("conversationId", *(key for _, key in json_keys(Message))),
}
"""The columns of each file, under the API's names; `extra` follows them where columns are fixed."""

NUMBERS = frozenset({"messageCount"})
LISTS = frozenset({"mediaUrls"})
"""The columns whose values are not text."""


# Rows


def conversation_row(conversation: Conversation) -> bytes:
    """Return a conversation as a row."""
    return to_json(conversation.to_dict())


def message_row(conversation_id: str, message: Message) -> bytes:
    """Return a message as a row that begins with the id of its conversation."""
    own = {"conversationId": conversation_id}
    return to_json(own | message.to_dict() | own)  # first in the row, and not replaced by a field of the message


def to_json(value: Any) -> bytes:
    """Return JSON on one line that every program can read.

    A preview that was cut inside an emoji ends with half a surrogate pair, which is not UTF-8: it stays escaped. So do
    three characters that many programs read as the end of a line.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "\x85\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace")


# Files


class _File(ABC):
    """A file that is written in chunks of rows."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._columns = columns
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @abstractmethod
    def copy(self, path: Path) -> Iterator[None]:
        """Copy an earlier file of the same format, one block at each step."""

    @abstractmethod
    def begin(self) -> None:
        """Write what comes before the first row of a new file."""

    @abstractmethod
    def write(self, rows: Iterable[bytes]) -> None:
        """Write a chunk of rows."""

    def finish(self) -> None:
        """Flush the file to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _split(self, row: bytes) -> Iterator[Any]:
        """Yield the values of a row's columns, then a dict of the fields without a column, or None."""
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
        """Do nothing: JSON lines have no header."""

    def write(self, rows: Iterable[bytes]) -> None:
        self._file.write(b"".join(row + b"\n" for row in rows))


class _CSV(_Lines):
    """RFC 4180, as PostgreSQL and DuckDB read it: every text is quoted; null is empty and not quoted.

    The `csv` module cannot write that difference before Python 3.12. Texts are never changed, so a spreadsheet may read
    one that begins with `=` as a formula. Escaping would change every phone number, since they begin with `+`.
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
    """Parquet, with one row group per chunk. Timestamps are text, as in the other formats."""

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
        """Do nothing: Parquet stores its columns at the end."""

    def write(self, rows: Iterable[bytes]) -> None:
        columns = zip(*map(self._split, rows), strict=True)
        arrays = [
            self._arrow.array([_to_arrow(field.name, value) for value in column], field.type)
            for field, column in zip(self._schema, columns, strict=True)
        ]
        self._writer.write_batch(self._arrow.record_batch(arrays, schema=self._schema))

    def finish(self) -> None:
        self._writer.close()
        super().finish()

    def __exit__(self, *details: object) -> None:
        # An unfinished writer would write to the closed file when it is collected, which prints a traceback.
        self._writer.is_open = False
        super().__exit__(*details)


def _to_arrow(column: str, value: Any) -> Any:
    """Convert a value from JSON to what Arrow accepts for its column."""
    if value is None or column in NUMBERS:
        return value
    if column in LISTS:
        return [_unicode(item) for item in value]
    return _unicode(value) if type(value) is str else to_json(value).decode()


def _unicode(text: str) -> str:
    """Replace halves of surrogate pairs, which UTF-8 does not have."""
    return text.encode("utf-8", "replace").decode()


_KINDS: dict[str, type[_File]] = {"jsonl": _JSONLines, "csv": _CSV, "parquet": _Parquet}


def check_format(name: str) -> None:
    """Check that a format exists and its package is installed.

    Raises:
        ValueError: The format does not exist.
        ConfigurationError: Parquet needs pyarrow; the text says how to install it.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    if name == "parquet":
        try:
            importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise ConfigurationError(
                f"format='parquet' needs pyarrow ({error}). In the project's folder: pip install '.[parquet]'"
            ) from None


def write(
    path: Path, table: str, chunks: Iterable[Sequence[bytes]], *, format_: str, append_to: Path | None
) -> Generator[int]:
    """Write a file of `conversations` or `messages`, one chunk of rows at each step, and flush it to the disk.

    Args:
        path: Where to write; an existing file is overwritten.
        table: `conversations` or `messages`.
        chunks: The rows.
        format_: The format.
        append_to: An earlier file whose rows come first; None for a new file.

    Yields:
        How many rows each step wrote; 0 for a step that copied earlier rows.
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
