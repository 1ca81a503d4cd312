"""The files of an export: every row once and as the API has it, in each format, with both clients."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import (
    Client,
    Message,
    models,
)
from agentphone._decoding import decode
from agentphone.export import Result, _files, export
from agentphone.sandbox import Behavior, Sandbox
from tests.support.accounts import (
    DAY,
    FORMATS,
    START,
    async_client,
    both,
    fill,
    lines,
    names,
    read_csv,
    rows_of,
)
from tests.support.backends import ON_ASYNCIO
from tests.support.helpers import client_of, conversation, message, ok, page

pytestmark = pytest.mark.anyio


async def test_jsonl_has_every_conversation_and_message(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 450)
    async with async_client(box.transport()) as client:
        result = await export(client, directory)
    assert result == Result(
        conversations=3,
        messages=1350,
        messages_total=1350,
        skipped=0,
        conversations_path=directory / "conversations.jsonl",
        messages_path=directory / "messages.jsonl",
    )
    assert both(directory) == rows_of(box)
    assert names(directory) == {"conversations.jsonl", "messages.jsonl", ".last-export.db"}


def test_sync_client_exports_the_same(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 10)
    with Client("key", transport=box.transport()) as client:
        result = export(client, str(directory))
    assert result.messages == 30
    assert both(directory) == rows_of(box)


@ON_ASYNCIO
@pytest.mark.parametrize(
    "behavior",
    [
        Behavior(boundary="inclusive", after_alone="newest", message_order="oldest", timestamp_digits=3),
        Behavior(after_alone="newest", timestamp_digits=0),
    ],
    ids=str,
)
async def test_cursor_behavior_of_the_api_does_not_matter(box: Sandbox, directory: Path, behavior: Behavior) -> None:
    box.behavior = behavior
    fill(box, 2, 700)
    async with async_client(box.transport()) as client:
        await export(client, directory)
    assert both(directory) == rows_of(box)


def as_csv(row: dict[str, Any], fixed: Iterable[str]) -> dict[str, str]:
    """Return a row as a CSV reader sees it."""
    extra = {name: value for name, value in row.items() if name not in fixed}
    return {
        name: value if isinstance(value, str) else "" if value is None else compact(value)
        for name, value in [*((name, row.get(name)) for name in fixed), ("extra", extra or None)]
    }


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def with_metadata(box: Sandbox) -> None:
    first = box._store.conversations(limit=1, offset=0)["data"][0]
    box._store.set_metadata(first["id"], {"note": 'a "quoted", \n line'}, message_limit=1)


async def test_csv_has_the_same_rows(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 220)
    with_metadata(box)
    async with async_client(box.transport()) as client:
        result = await export(client, directory, format="csv")
    conversations, messages = rows_of(box)
    columns = _files.COLUMNS
    assert read_csv(result.conversations_path) == [as_csv(row, columns["conversations"]) for row in conversations]
    assert read_csv(result.messages_path) == [as_csv(row, columns["messages"]) for row in messages]


async def test_parquet_has_the_same_rows_with_lists_and_numbers(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 220)
    with_metadata(box)
    async with async_client(box.transport()) as client:
        result = await export(client, directory, format="parquet")
    conversations, messages = rows_of(box)
    for row in conversations:
        row["metadata"] = row["metadata"] and compact(row["metadata"])
    parquet = importlib.import_module("pyarrow.parquet")
    for path, rows in ((result.conversations_path, conversations), (result.messages_path, messages)):
        for row in rows:
            for name in row.keys() & {"receivedAt", "lastMessageAt", "createdAt"}:
                row[name] = datetime.fromisoformat(row[name])
        empty = dict.fromkeys((*_files.COLUMNS[path.stem], "extra"))
        assert parquet.read_table(path).to_pylist() == [empty | row for row in rows]


@ON_ASYNCIO
@pytest.mark.parametrize("format_", FORMATS)
async def test_empty_account(box: Sandbox, directory: Path, format_: Any) -> None:
    async with async_client(box.transport()) as client:
        result = await export(client, directory, format=format_)
    assert (result.conversations, result.messages) == (0, 0)
    read: Callable[[Path], list[Any]] = {
        "jsonl": lines,
        "csv": read_csv,
        "parquet": lambda path: importlib.import_module("pyarrow.parquet").read_table(path).to_pylist(),
    }[format_]
    assert (read(result.conversations_path), read(result.messages_path)) == ([], [])


UNKNOWN = {"likes": [{"by": "+15555550110", "what": "\u2764"}], "extra": {"a": 1}, "content": None, "seq": 7}


async def account_of(directory: Path, format_: Any, **changes: Any) -> Result:
    """Export an account of one conversation with one message, both changed."""
    client, _ = client_of(
        ok(page(conversation(**changes), total=1)),
        ok(page(message(**changes))),
    )
    async with client:
        return await export(client, directory, format=format_)


async def test_unknown_fields_are_kept(directory: Path) -> None:
    result = await account_of(directory, "jsonl", **UNKNOWN)
    noon, earlier = "2025-06-30T12:00:00.000000Z", "2025-06-30T11:30:00.000000Z"
    [row] = lines(result.messages_path)
    assert row == {"conversationId": "conv_1", **message(**UNKNOWN, receivedAt=noon)}
    assert next(iter(row)) == "conversationId"
    assert lines(result.conversations_path) == [conversation(**UNKNOWN, lastMessageAt=noon, createdAt=earlier)]
    result = await account_of(directory, "csv", **UNKNOWN)
    assert json.loads(read_csv(result.messages_path)[0]["extra"]) == UNKNOWN
    result = await account_of(directory, "parquet", **UNKNOWN)
    [row] = importlib.import_module("pyarrow.parquet").read_table(result.messages_path).to_pylist()
    assert json.loads(row["extra"]) == UNKNOWN


async def test_conversation_id_of_the_request_wins(directory: Path) -> None:
    [row] = lines((await account_of(directory, "jsonl", conversationId="conv_other")).messages_path)
    assert row["conversationId"] == "conv_1"


@ON_ASYNCIO
@pytest.mark.parametrize(
    ("sent", "written"),
    [
        ("2025-06-30T14:00:00.120+02:00", "2025-06-30T12:00:00.120000Z"),
        ("2025-06-30T12:00:00Z", "2025-06-30T12:00:00.000000Z"),
        ("2025-06-30T12:00:00.123456Z", "2025-06-30T12:00:00.123456Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
async def test_timestamps_are_in_utc_with_six_digits(directory: Path, sent: str, written: str) -> None:
    for format_, read in (("jsonl", lines), ("csv", read_csv)):
        result = await account_of(directory, format_, receivedAt=sent, createdAt=None)
        assert read(result.messages_path)[0]["receivedAt"] == written
        assert read(result.conversations_path)[0]["createdAt"] in (None, "")
    result = await account_of(directory, "parquet", receivedAt=sent, createdAt=None)
    parquet = importlib.import_module("pyarrow.parquet")
    assert parquet.read_table(result.messages_path)["receivedAt"].to_pylist() == [datetime.fromisoformat(sent)]
    assert parquet.read_table(result.conversations_path)["createdAt"].to_pylist() == [None]


@ON_ASYNCIO
async def test_parquet_row_groups_are_bounded(box: Sandbox, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "CHUNK", 4)
    monkeypatch.setattr(_files, "ROW_GROUP", 10)
    parquet = importlib.import_module("pyarrow.parquet")

    def row_groups(result: Result) -> list[int]:
        metadata = parquet.read_metadata(result.messages_path)
        return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]

    fill(box, 3, 7)
    async with async_client(box.transport()) as client:
        assert row_groups(await export(client, directory, format="parquet")) == [8, 8, 5]
        for day in (1, 2, 3):  # small updates make no small row groups
            fill(box, 1, 1, START + day * DAY)
            result = await export(client, directory, format="parquet", since="last")
        assert row_groups(result) == [8, 8, 8]
        monkeypatch.setattr(_files, "ROW_GROUP_BYTES", 1)
        assert row_groups(await export(client, directory, format="parquet")) == [4] * 6


@ON_ASYNCIO
@pytest.mark.parametrize("format_", FORMATS)
async def test_half_a_surrogate_pair_is_exported(directory: Path, format_: Any) -> None:
    """A preview cut inside an emoji ends with one, and UTF-8 does not have it."""
    result = await account_of(directory, format_, id="conv_1", body="cut \ud83d", lastMessagePreview="\ud83d")
    if format_ == "jsonl":
        assert lines(result.messages_path)[0]["body"] == "cut \ud83d"
    elif format_ == "csv":
        assert read_csv(result.messages_path)[0]["body"] == "cut ?"
    else:
        [row] = importlib.import_module("pyarrow.parquet").read_table(result.messages_path).to_pylist()
        assert row["body"] == "cut ?"


async def test_csv_distinguishes_null_and_empty_text(directory: Path) -> None:
    result = await account_of(directory, "csv", body="", status=None)
    assert result.messages_path.read_text(encoding="utf-8").splitlines()[1] == (
        '"conv_1","msg_1","","+15555550110","+15555550100","inbound","2025-06-30T12:00:00.000000Z","sms",'
        '"[""https://media.example/1.jpg""]",,,,,,,,'
    )


ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
INSTANTS = st.datetimes(timezones=st.just(UTC))
MESSAGES = st.builds(
    Message,
    id=ANY_TEXT,
    body=st.none() | ANY_TEXT,
    from_number=ANY_TEXT,
    to_number=ANY_TEXT,
    direction=st.none() | ANY_TEXT,
    received_at=INSTANTS,
    channel=st.none() | ANY_TEXT,
    media_urls=st.lists(ANY_TEXT, max_size=2).map(tuple),
    status=st.none() | ANY_TEXT,
    extra=st.dictionaries(
        ANY_TEXT.filter(lambda name: name not in _files.COLUMNS["messages"]), JSON, min_size=0, max_size=3
    ),
)


@given(MESSAGES, ANY_TEXT)
@settings(deadline=None)
def test_message_round_trips_through_one_line(given: Message, conversation_id: str) -> None:
    row = _files.message_row(conversation_id, given)
    assert len(row.decode().splitlines()) == 1
    assert json.loads(row)["conversationId"] == conversation_id
    read = decode(row, Message)
    assert (
        models.Message(
            **{field: getattr(read, field) for field in Message.__annotations__ if field != "extra"},
            extra={name: value for name, value in read.extra.items() if name != "conversationId"},
        )
        == given
    )


@given(st.lists(MESSAGES, max_size=4))
@settings(deadline=None)
def test_csv_round_trips_every_text(given: list[Message]) -> None:
    rows = [_files.message_row("conv_1", item) for item in given]
    file = io.BytesIO()
    writer = object.__new__(_files._CSV)
    writer._columns, writer._file = _files.COLUMNS["messages"], file
    writer.begin()
    writer.write(rows)
    text = file.getvalue().decode()
    read = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert read[0] == [*_files.COLUMNS["messages"], "extra"]
    assert [line[2] for line in read[1:]] == [(item.body or "").encode("utf-8", "replace").decode() for item in given]
    assert [json.loads(line[-1] or "{}") for line in read[1:]] == [item.extra for item in given]
