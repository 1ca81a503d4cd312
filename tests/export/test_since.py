"""Incremental exports: `since` as a timestamp and as "last"."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone import (
    ConfigurationError,
    ServerError,
)
from agentphone.export import _exporter, _files, export
from agentphone.export._since import parse_since, resolve
from agentphone.sandbox import Behavior, Sandbox
from tests.support.accounts import (
    AGENT,
    DAY,
    FORMATS,
    START,
    Watched,
    altered,
    async_client,
    both,
    contents,
    fill,
    lines,
    read_csv,
    rows_of,
)
from tests.support.backends import ON_ASYNCIO
from tests.support.helpers import client_of, conversation, message, ok, page

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("since", [START + timedelta(seconds=5), "2025-06-30T14:00:05+02:00"], ids=type)
async def test_since_a_timestamp(box: Sandbox, directory: Path, since: datetime | str) -> None:
    fill(box, 2, 30)
    fill(box, 3, 3, at=START - DAY)
    box.receive_sms(from_number="+15555569999", to_number=AGENT, body="old", at=START + timedelta(seconds=5))
    async with async_client(box.transport()) as client:
        result = await export(client, directory, since=since)
    assert both(directory) == rows_of(box, START + timedelta(seconds=5))
    assert (result.conversations, result.messages) == (2, 12 + 15)


@pytest.mark.parametrize("format_", FORMATS)
async def test_since_last_appends_each_new_message_once(box: Sandbox, directory: Path, format_: Any) -> None:
    fill(box, 3, 30)
    async with async_client(box.transport()) as client:
        await export(client, directory, format=format_)
        for day in range(1, 4):
            fill(box, 5, 2 * day, at=START + day * DAY)
            transport = Watched(box)
            async with async_client(transport) as watched:
                result = await export(watched, directory, format=format_, since="last")
            assert result.messages == 5 * 2 * day
            assert result.messages_total == 3 * 30 + 5 * 2 * sum(range(1, day + 1))
            assert len(transport.asked) == 1 + 5
        result = await export(client, directory, format=format_, since="last")
        assert (result.messages, result.messages_total) == (0, 150)
        await export(client, directory.parent / "whole", format=format_)
    assert rows_in(directory, format_) == rows_in(directory.parent / "whole", format_)


def rows_in(directory: Path, format_: str) -> tuple[list[str], list[str]]:
    """Give the rows of both files, in any format, sorted."""
    if format_ == "parquet":
        read = importlib.import_module("pyarrow.parquet").read_table
        found = [read(directory / f"{name}.parquet").to_pylist() for name in _files.COLUMNS]
    else:
        reader: Any = lines if format_ == "jsonl" else read_csv
        found = [reader(directory / f"{name}.{format_}") for name in _files.COLUMNS]
    first, second = (sorted(map(repr, rows)) for rows in found)
    return first, second


async def test_since_last_finds_equal_timestamps_and_late_messages(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 9)
    box.behavior = Behavior(timestamp_digits=0)
    async with async_client(box.transport()) as client:
        await export(client, directory)
        for late in (timedelta(0), timedelta(seconds=2), timedelta(minutes=-50)):
            at = START + late
            box.receive_sms(from_number="+15555560000", to_number=AGENT, body="late", at=at)
            assert (await export(client, directory, since="last")).messages == 1
    conversations, messages = both(directory)
    assert conversations == rows_of(box)[0]
    assert sorted(map(repr, messages)) == sorted(map(repr, rows_of(box)[1]))


async def test_since_last_ignores_timestamps_in_the_future(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 1)
    box.receive_sms(from_number="+15555560000", to_number=AGENT, body="far", at="2999-01-01T00:00:00Z")
    async with async_client(box.transport()) as client:
        await export(client, directory)
        box.receive_sms(from_number="+15555560001", to_number=AGENT, body="now")
        assert (await export(client, directory, since="last")).messages == 1


async def test_since_last_after_the_latest_conversation_was_deleted(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 4)
    latest = box.receive_sms(from_number="+15555569999", to_number=AGENT, body="latest", at=START + DAY)
    async with async_client(box.transport()) as client:
        await export(client, directory)
        box.remove_conversation(latest["conversationId"])
        assert [(await export(client, directory, since="last")).messages for _ in range(3)] == [0, 0, 0]


async def test_since_last_after_a_since_timestamp(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 30)
    async with async_client(box.transport()) as client:
        first = await export(client, directory, since=START + timedelta(seconds=5))
        assert first.messages == 12 + 15
        assert (await export(client, directory, since="last")).messages == 0


async def test_since_last_without_an_earlier_export_is_full(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 3)
    async with async_client(box.transport()) as client:
        assert (await export(client, directory, since="last")).messages == 6
    assert both(directory) == rows_of(box)


async def test_since_last_reads_conversations_without_last_message_at(
    directory: Path,
) -> None:
    listed = ok(page(conversation(lastMessageAt=None), total=1))
    first = ok(page(message()))
    second = ok(page(message(), message(id="msg_2", receivedAt="2035-06-30T12:00:01Z")))
    client, _ = client_of(listed, first, listed, second)
    async with client:
        await export(client, directory)
        assert (await export(client, directory, since="last")).messages == 1


@ON_ASYNCIO
@pytest.mark.parametrize(
    ("settings", "arguments", "reason"),
    [
        ({}, {"format": "csv"}, "was made with format 'jsonl', not 'csv'"),
        ({"key": "another"}, {}, "was made with another API key"),
        ({"base_url": "https://other.test"}, {}, "was made with base_url"),
    ],
)
async def test_since_last_rejects_other_arguments(
    box: Sandbox, directory: Path, settings: dict[str, Any], arguments: dict[str, Any], reason: str
) -> None:
    fill(box, 2, 3)
    async with async_client(box.transport()) as client:
        await export(client, directory)
        before = contents(directory)
        async with async_client(box.transport(), **settings) as other:
            with pytest.raises(ConfigurationError, match=reason):
                await export(other, directory, since="last", **arguments)
        assert contents(directory) == before
        await export(client, directory)  # as the text says


async def test_since_last_rejects_state_of_another_version(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 3)
    async with async_client(box.transport()) as client:
        await export(client, directory)
        before = contents(directory)
        altered(
            directory / ".last-export.db",
            "UPDATE meta SET value = '1' WHERE name = 'version'",
            "DELETE FROM meta WHERE name = 'messages'",
        )
        with pytest.raises(ConfigurationError, match=r"was made with another version of agentphone, .* without since"):
            await export(client, directory, since="last")
        assert contents(directory) == before
        await export(client, directory)  # as the text says


def with_timestamps_as_text(path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    table = parquet.read_table(path)
    index = table.schema.get_field_index("receivedAt")
    parquet.write_table(table.set_column(index, "receivedAt", table["receivedAt"].cast("string")), path)


EARLIER_FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "csv with other columns": ("csv", lambda path: path.write_bytes(b"id," + path.read_bytes())),
    "empty csv": ("csv", lambda path: path.write_bytes(b"")),
    "parquet with timestamps as text": ("parquet", with_timestamps_as_text),
    "truncated parquet": ("parquet", lambda path: os.truncate(path, path.stat().st_size // 2)),
    "empty parquet": ("parquet", lambda path: path.write_bytes(b"")),
}


@ON_ASYNCIO
@pytest.mark.parametrize("change", EARLIER_FILES)
async def test_since_last_rejects_a_file_that_it_cannot_continue(box: Sandbox, directory: Path, change: str) -> None:
    format_: Any
    format_, alter = EARLIER_FILES[change]
    fill(box, 2, 3)
    async with async_client(box.transport()) as client:
        result = await export(client, directory, format=format_)
        alter(result.messages_path)
        before = contents(directory)
        with pytest.raises(ConfigurationError, match=r"messages\.\w+', which .* Restore it, or"):
            await export(client, directory, format=format_, since="last")
        assert contents(directory) == before
        await export(client, directory, format=format_)  # as the text says


NOW = datetime(2025, 7, 2, 12, 30, 15, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "bound"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("24h", NOW - timedelta(hours=24)),
        ("7d", NOW - timedelta(days=7)),
        ("999999d", datetime.min.replace(tzinfo=UTC)),
        ("yesterday", datetime(2025, 6, 30, 23, 59, 59, 999999, tzinfo=UTC)),
        ("2025-06-30T14:00:00+02:00", datetime(2025, 6, 30, 12, tzinfo=UTC)),
        (datetime(2025, 6, 30, tzinfo=UTC), datetime(2025, 6, 30, tzinfo=UTC)),
    ],
)
def test_ages_and_yesterday(since: Any, bound: datetime) -> None:
    parsed = parse_since(since, "since")
    assert parsed is not None
    assert resolve(parsed, NOW) == bound


@pytest.mark.parametrize(
    "text",
    ["noon", "", "Yesterday", "LAST", "0h", "-1h", "1.5h", "24", "24H", " 24h", "24h\n", "7w", "1000000d", "\u0667d"],
)
def test_invalid_since_shows_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--since must be a time .* as 2025-06-01T00:00:00Z, an age such as 90m, "):
        parse_since(text, "--since")


async def test_since_an_age_filters_and_resumes_from_the_same_time(
    box: Sandbox, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    fill(box, 3, 3, now - timedelta(hours=23))
    fill(box, 3, 2, now - timedelta(hours=25))
    failing = Watched(box, lambda number, _: httpx.Response(500) if number == 3 else None)
    async with async_client(failing) as client:
        with pytest.raises(ServerError):
            await export(client, directory, since="24h", concurrency=1)
        monkeypatch.setattr(_exporter, "resolve", None)  # it does not look at the clock again
        with pytest.raises(ConfigurationError, match="begun with since '24h'"):
            await export(client, directory, since="23h")
        result = await export(client, directory, since="24h")
    assert (result.messages, result.messages_total) == (9, 9)


async def test_since_last_rejects_missing_files_and_damaged_state(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 3)
    async with async_client(box.transport()) as client:
        await export(client, directory)
        (directory / "messages.jsonl").rename(directory / "elsewhere")
        with pytest.raises(ConfigurationError, match=r"messages.jsonl', which the last export wrote, is missing"):
            await export(client, directory, since="last")
        (directory / "elsewhere").rename(directory / "messages.jsonl")
        (directory / ".last-export.db").write_bytes(b"no database, and long enough to be looked at" * 100)
        with pytest.raises(ConfigurationError, match=r"\.last-export\.db' cannot be read .* export without since"):
            await export(client, directory, since="last")
        await export(client, directory)
        assert (await export(client, directory, since="last")).messages == 0


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in its first page": lambda path: os.truncate(path, 1000),
    "cut in the middle": lambda path: os.truncate(path, path.stat().st_size // 2),
    "without the messages": lambda path: altered(path, "DROP TABLE known"),
    "without the notes": lambda path: altered(path, "DROP TABLE meta"),
    "with other notes": lambda path: altered(path, "ALTER TABLE meta RENAME COLUMN value TO worth"),
    "without a watermark": lambda path: altered(path, "DELETE FROM meta WHERE name = 'watermark'"),
    "with an invalid watermark": lambda path: altered(path, "UPDATE meta SET value = 'noon' WHERE name = 'watermark'"),
    "with a watermark before year 1": lambda path: altered(
        path, "UPDATE meta SET value = '0001-01-01T00:00:00+23:00' WHERE name = 'watermark'"
    ),
    "with a watermark after year 9999": lambda path: altered(
        path, "UPDATE meta SET value = '9999-12-31T23:59:59-23:00' WHERE name = 'watermark'"
    ),
    "with a watermark without an offset": lambda path: altered(path, "UPDATE meta SET value = '2025-06-30T12:00:00'"),
    "without a key": lambda path: altered(path, "DELETE FROM meta WHERE name = 'key'"),
    "with a key of bytes": lambda path: altered(path, "UPDATE meta SET value = x'ff' WHERE name = 'key'"),
    "with text that is none": lambda path: altered(path, "UPDATE meta SET value = CAST(x'ff' AS TEXT)"),
    "with messages without a timestamp": lambda path: altered(path, "UPDATE known SET received_at = 'noon'"),
    "with messages of text": lambda path: altered(path, "UPDATE known SET id = 'msg_1'"),
    "with messages of nothing": lambda path: altered(
        path, "CREATE TABLE k AS SELECT * FROM known", "UPDATE k SET id = NULL", "DROP TABLE known",
        "ALTER TABLE k RENAME TO known",
    ),
}  # fmt: skip


@ON_ASYNCIO
@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_state_is_named_with_what_to_do(box: Sandbox, directory: Path, damage: str) -> None:
    fill(box, 3, 30, datetime.now(UTC) - timedelta(minutes=5))
    async with async_client(box.transport()) as client:
        await export(client, directory)
        before = contents(directory)
        DAMAGES[damage](directory / ".last-export.db")
        with pytest.raises(ConfigurationError) as caught:
            await export(client, directory, since="last")
        assert str(caught.value).startswith(f"{str(directory / '.last-export.db')!r} cannot be read (")
        assert str(caught.value).endswith(". If it is damaged, delete it and export without since.")
        assert contents(directory) == before
        (directory / ".last-export.db").unlink()
        await export(client, directory)
        assert (await export(client, directory, since="last")).messages == 0
        assert contents(directory) == before


async def test_non_ascii_key_is_another_key(box: Sandbox, directory: Path) -> None:
    async with async_client(box.transport()) as client:
        await export(client, directory)
        altered(directory / ".last-export.db", "UPDATE meta SET value = '\u00e9:\u00e9' WHERE name = 'key'")
        with pytest.raises(ConfigurationError, match="another API key"):
            await export(client, directory, since="last")
