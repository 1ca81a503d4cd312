"""pandas and DuckDB read each format, by the expressions that the guide shows: types, dates, order and text."""

from __future__ import annotations

import importlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from agentphone.export import export
from tests.support.accounts import FORMATS
from tests.support.guides import GUIDES
from tests.support.helpers import client_of, conversation, message, ok, page

TABLE = re.findall(r"^\| `(\w+)` \| `(pd\..*?)`.*? \| `(FROM .*?)` \|$", GUIDES["agentphone.export"], re.MULTILINE)
PANDAS = {format_: expression for format_, expression, _ in TABLE}
DUCKDB = {format_: query for format_, _, query in TABLE}

START = datetime(2025, 6, 30, 12, tzinfo=UTC)
ROWS = [
    # In the order of the file: timestamps of each precision, and texts that look like something else.
    (START, "2025-01-01"),
    (START + timedelta(microseconds=1), "NA"),
    (START + timedelta(milliseconds=120), "null"),
    (START + timedelta(seconds=1), "007"),
    (START + timedelta(seconds=1, microseconds=120), ""),
    (START + timedelta(hours=11), None),
    (START + timedelta(hours=12), "=1+1"),
    (START + timedelta(hours=13), 'a "quoted",\n line \U0001f600'),
]
NUMBERS = ["+15555550110", "22395"]
"""Phone numbers, and short codes, which a parser takes for numbers."""


@pytest.fixture(scope="module")
def pd() -> Any:
    """Import pandas, which takes half a second, only where its tests run."""
    return importlib.import_module("pandas")


@pytest.fixture(scope="module")
def duckdb() -> Any:
    """Import DuckDB."""
    return importlib.import_module("duckdb")


def write_rows(directory: Path, format_: Any, number: str) -> None:
    """Export a conversation with these rows, all from one number."""
    messages = [
        message(id=f"msg_{index}", body=body, fromNumber=number, receivedAt=at.isoformat())
        for index, (at, body) in enumerate(ROWS)
    ]

    async def main() -> None:
        client, _ = client_of(ok(page(conversation(messageCount=len(ROWS)), total=1)), ok(page(*messages)))
        async with client:
            await export(client, directory, format=format_)

    anyio.run(main)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("format_", FORMATS)
def test_pandas(pd: Any, directory: Path, format_: str, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(directory, format_, number)
    monkeypatch.chdir(directory)
    frame = eval(PANDAS[format_], {"pd": pd})
    if format_ == "jsonl":
        frame["receivedAt"] = pd.to_datetime(frame["receivedAt"])
    assert str(frame["receivedAt"].dtype) == "datetime64[us, UTC]"
    assert list(frame["receivedAt"]) == [at for at, _ in ROWS]
    assert frame["receivedAt"].max() - frame["receivedAt"].min() == timedelta(hours=13)
    assert frame.resample("D", on="receivedAt").size().to_dict() == {
        datetime(2025, 6, 30, tzinfo=UTC): 6,
        datetime(2025, 7, 1, tzinfo=UTC): 2,
    }
    assert list(frame["fromNumber"]) == [number] * len(ROWS)
    null = "" if format_ == "csv" else None  # pandas reads an empty field as null or not, quoted or not
    assert list(frame["body"].astype(object).where(frame["body"].notna(), None)) == [
        null if body is None else body for _, body in ROWS
    ]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("format_", FORMATS)
def test_duckdb(duckdb: Any, directory: Path, format_: str, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(directory, format_, number)
    monkeypatch.chdir(directory)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"CREATE VIEW messages AS {DUCKDB[format_]}")
        types = dict(connection.execute("SELECT column_name, column_type FROM (DESCRIBE messages)").fetchall())
        assert types["receivedAt"] == "TIMESTAMP WITH TIME ZONE"
        assert (types["fromNumber"], types["toNumber"], types["body"]) == ("VARCHAR",) * 3
        rows = connection.execute("SELECT receivedAt, body, fromNumber FROM messages ORDER BY receivedAt").fetchall()
        assert rows == [(at, body, number) for at, body in ROWS]
        [[span]] = connection.execute("SELECT max(receivedAt) - min(receivedAt) FROM messages").fetchall()
        assert span == timedelta(hours=13)
        days = connection.execute("SELECT date_trunc('day', receivedAt) AS day, count(*) FROM messages GROUP BY day")
        assert sorted(days.fetchall()) == [
            (datetime(2025, 6, 30, tzinfo=UTC), 6),
            (datetime(2025, 7, 1, tzinfo=UTC), 2),
        ]


@pytest.mark.parametrize("format_", FORMATS)
def test_conversations_have_numbers_and_timestamps(duckdb: Any, directory: Path, format_: str) -> None:
    write_rows(directory, format_, NUMBERS[0])
    with duckdb.connect() as connection:
        [row] = connection.execute(
            f"SELECT messageCount + 1, lastMessageAt - createdAt, phoneNumber, CAST(metadata AS JSON) ->> 'topic'"
            f" FROM '{directory}/conversations.{format_}'"
        ).fetchall()
    assert row == (len(ROWS) + 1, timedelta(minutes=30), "+15555550100", "order")


def test_text_sorts_like_its_timestamps(pd: Any, directory: Path) -> None:
    """`12:00:00Z` would come after `12:00:00.12Z`, because `Z` comes after `.`."""
    write_rows(directory, "jsonl", NUMBERS[0])
    frame = pd.read_json(directory / "messages.jsonl", lines=True, dtype=False)
    assert list(frame["receivedAt"].sort_values().index) == list(range(len(ROWS)))


@pytest.mark.parametrize("format_", FORMATS)
def test_optional_fields_keep_their_types(
    pd: Any, duckdb: Any, directory: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"senderIdentifier": "22395", "errorCode": "30003", "deliveredAt": "2025-06-30T12:00:01Z"}

    async def main() -> None:
        client, _ = client_of(ok(page(conversation(), total=1)), ok(page(message(id="msg_2"), message(**more))))
        async with client:
            await export(client, directory, format=cast("Any", format_))

    anyio.run(main)
    monkeypatch.chdir(directory)
    row = eval(PANDAS[format_], {"pd": pd}).iloc[0]
    assert (row["senderIdentifier"], row["errorCode"]) == ("22395", "30003")
    assert pd.to_datetime(row["deliveredAt"]) == START + timedelta(seconds=1)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        names = "senderIdentifier, errorCode, deliveredAt"
        rows = connection.execute(f"SELECT {names} FROM ({DUCKDB[format_]}) ORDER BY id").fetchall()
    assert rows == [("22395", "30003", START + timedelta(seconds=1)), (None, None, None)]
