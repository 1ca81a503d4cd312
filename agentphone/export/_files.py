"""Rows and files: turn an item into a row, and rows into a file of each format. It knows no API and no SQL.

A row is one line of JSON in UTF-8 with every field of the item. A line of `jsonl` is that row; the other formats have
fixed columns, and fields without a column of their own are JSON in the column `extra`.

Timestamps are text with six digits and `Z`, also for a whole second: pandas infers the format of a column from its
first value and raises at the first that differs. In Parquet they are timestamps.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

from agentphone._json import to_camel_case
from agentphone._timestamps import format_timestamp, parse_timestamp
from agentphone.errors import ConfigurationError
from agentphone.models import Conversation, Message, json_keys, optional_keys

FORMATS = ("jsonl", "csv", "parquet")

CHUNK = 5000
"""How many rows are in memory at once while a file is written, as Python's objects."""

BLOCK = 256 << 10
"""How many bytes of a file are in memory at once while it is copied, or its digest computed."""

ROW_GROUP = 100_000
ROW_GROUP_BYTES = 32 << 20
"""The most rows, and the most bytes before compression, of a row group in Parquet; one chunk may be larger.

DuckDB and Spark read row groups in parallel, and DuckDB advises 100,000 to 1,000,000 rows. The writer has one row group
in memory: an export of 400,000 messages takes as much of it as one of 200,000, 50 MB more than with groups of 5,000
rows, which pyarrow takes 1.7 times as long to read.
"""


def _columns(model: Any) -> dict[str, Any]:
    """Return the API's names of a model's fields, each with its type without None."""
    hints = get_type_hints(model)
    return {key: _without_none(hints[name]) for name, key in (*json_keys(model), *optional_keys(model))}


def _without_none(hint: Any) -> Any:
    members = get_args(hint)
    return next(member for member in members if member is not NoneType) if NoneType in members else hint


COLUMNS: Mapping[str, Mapping[str, Any]] = {
    "conversations": _columns(Conversation),
    "messages": {"conversationId": str, **_columns(Message)},
}
"""The columns of each file with their types, under the API's names; `extra` follows where columns are fixed."""

OPTIONAL = {key for model in (Conversation, Message) for _, key in optional_keys(model)}
"""Columns without a value in most rows. What a model does not take as their value is in the row under the same name."""


# Rows


def conversation_row(conversation: Conversation) -> bytes:
    """Return a conversation as a row."""
    return to_json(_plain_data(conversation))


def message_row(conversation_id: str, message: Message) -> bytes:
    """Return a message as a row that begins with the id of its conversation."""
    own = {"conversationId": conversation_id}
    return to_json(own | _plain_data(message) | own)  # first in the row, and not replaced by a field of the message


def _plain_data(item: Conversation | Message) -> dict[str, Any]:
    cls: Any = type(item)
    row = item.to_dict()
    for name, key in _timestamp_fields(cls):
        timestamp = getattr(item, name)
        if timestamp is not None:
            row[key] = format_timestamp(timestamp, "microseconds")
    return row


@cache
def _timestamp_fields(model: Any) -> list[tuple[str, str]]:
    """Return the names of a model's timestamps, each with the API's name."""
    hints = {name: _without_none(hint) for name, hint in get_type_hints(model).items()}
    return [(name, to_camel_case(name)) for name, hint in hints.items() if hint is datetime]


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

    def __init__(self, path: Path, columns: Mapping[str, Any]) -> None:
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
        """Yield the values of a row's columns, then a dict of the fields that do not fit in one, or None."""
        values: dict[str, Any] = json.loads(row)
        for name, kind in self._columns.items():
            value = values.get(name)
            if value is not None and name in OPTIONAL and not _fits(value, kind):
                yield None
            else:
                values.pop(name, None)
                yield value
        yield values or None


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value in a row is what the model had, rather than what it did not take."""
    if kind is not datetime:
        return isinstance(value, kind if kind in (str, bool) else list if get_origin(kind) is tuple else dict)
    try:
        return bool(format_timestamp(parse_timestamp(value), "microseconds") == value)
    except (TypeError, ValueError):
        return False


class _Lines(_File):
    """A file of text."""

    def copy(self, path: Path) -> Iterator[None]:
        for block in _blocks(path):
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
        self._file.write(_header(self._columns))

    def write(self, rows: Iterable[bytes]) -> None:
        lines = (",".join(map(_cell, self._split(row))) + "\n" for row in rows)
        self._file.write("".join(lines).encode("utf-8", "replace"))


def _header(columns: Iterable[str]) -> bytes:
    return ",".join((*columns, "extra")).encode() + b"\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if type(value) in (int, bool):
        return json.dumps(value)
    text = value if type(value) is str else to_json(value).decode()
    return '"' + text.replace('"', '""') + '"'


class _Parquet(_File):
    """Parquet, with timestamps in UTC to the microsecond, in row groups of bounded size."""

    def __init__(self, path: Path, columns: Mapping[str, Any]) -> None:
        super().__init__(path, columns)
        self._arrow = importlib.import_module("pyarrow")
        self._parquet = importlib.import_module("pyarrow.parquet")
        self._schema = _schema(columns)
        self._writer = self._parquet.ParquetWriter(self._file, self._schema)
        self._row_group: list[Any] = []
        """The batches of the row group that is not written yet."""

    def __exit__(self, *details: object) -> None:
        # An unfinished writer would write to the closed file when it is collected, which prints a traceback.
        self._writer.is_open = False
        super().__exit__(*details)

    def copy(self, path: Path) -> Iterator[None]:
        with self._parquet.ParquetFile(path) as old:
            for batch in old.iter_batches(CHUNK):
                self._add(batch)
                yield

    def begin(self) -> None:
        """Do nothing: Parquet stores its columns at the end."""

    def write(self, rows: Iterable[bytes]) -> None:
        columns = zip(*map(self._split, rows), strict=True)
        arrays = [self._array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._add(self._arrow.record_batch(arrays, schema=self._schema))

    def finish(self) -> None:
        self._flush()
        self._writer.close()
        super().finish()

    def _add(self, batch: Any) -> None:
        group = [*self._row_group, batch]
        if sum(len(one) for one in group) > ROW_GROUP or sum(one.nbytes for one in group) > ROW_GROUP_BYTES:
            self._flush()
        self._row_group.append(batch)

    def _flush(self) -> None:
        if self._row_group:
            self._writer.write_table(self._arrow.Table.from_batches(self._row_group))
            self._row_group.clear()

    def _array(self, values: Iterable[Any], type_: Any) -> Any:
        """Convert the values of a column from JSON."""
        arrow = self._arrow
        if type_ == arrow.string():
            values = [None if value is None else _to_text(value) for value in values]
        elif type_ == arrow.list_(arrow.string()):
            values = [value and [*map(_to_text, value)] for value in values]
        elif arrow.types.is_timestamp(type_):
            return arrow.array(values, arrow.string()).cast(type_)
        return arrow.array(values, type_)


def _schema(columns: Mapping[str, Any]) -> Any:
    """Return the schema of a Parquet file; columns of other types than these are text or JSON."""
    arrow = importlib.import_module("pyarrow")
    types = {
        datetime: arrow.timestamp("us", "UTC"),
        bool: arrow.bool_(),
        int: arrow.int64(),
        tuple[str, ...]: arrow.list_(arrow.string()),
    }
    return arrow.schema([(name, types.get(kind, arrow.string())) for name, kind in {**columns, "extra": str}.items()])


def _to_text(value: Any) -> str:
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


def digest(path: Path) -> Generator[int, None, str]:
    """Compute the size of a file and its SHA-256, as one text, one block at each step.

    Yields:
        0.
    """
    size, sha256 = 0, hashlib.sha256()
    for block in _blocks(path):
        size += len(block)
        sha256.update(block)
        yield 0
    return f"{size}:{sha256.hexdigest()}"


def check_earlier(path: Path, expected: str) -> Generator[int]:
    """Check that a file is as the last export left it, byte for byte, one block at each step.

    Args:
        path: The file.
        expected: Its digest at that time.

    Yields:
        0.

    Raises:
        ConfigurationError: It is not; the text says what to do.
    """
    expected_size = int(expected.partition(":")[0])
    if not path.exists():
        reason = "is missing"
    elif (size := path.stat().st_size) != expected_size:
        reason = f"has changed since ({size:,} bytes, not {expected_size:,})"
    elif (yield from digest(path)) != expected:
        reason = "has changed since (the same size, another SHA-256)"
    else:
        return
    raise ConfigurationError(
        f"{str(path)!r}, which the last export wrote, {reason}, so it cannot be continued. Restore it, or export"
        " without since."
    )


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def write(
    path: Path, table: str, chunks: Iterable[Sequence[bytes]], *, format_: str, append_to: Path | None
) -> Generator[int, None, str]:
    """Write a file of `conversations` or `messages`, one chunk of rows at each step, and flush it to the disk.

    Args:
        path: Where to write; an existing file is overwritten.
        table: `conversations` or `messages`.
        chunks: The rows.
        format_: The format.
        append_to: An earlier file whose rows come first; None for a new file.

    Yields:
        How many rows each step wrote; 0 for a step that read or copied a file.

    Returns:
        The digest of the file.
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
    return (yield from digest(path))
