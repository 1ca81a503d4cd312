"""The export: every row once and as the API has it, in each format, with both clients and on both event loops."""

from __future__ import annotations

import asyncio
import csv
import gc
import importlib
import io
import json
import os
import sqlite3
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentphone import (
    APIConnectionError,
    AsyncClient,
    AuthenticationError,
    Client,
    ConfigurationError,
    Conversation,
    Message,
    NotFoundError,
    ServerError,
    models,
)
from agentphone._decoding import decode
from agentphone._json import to_camel_case
from agentphone.export import Progress, Result, _files, export
from agentphone.export._store import Store
from agentphone.sandbox import Behavior, Sandbox
from tests.support.canned import CannedTransport
from tests.support.helpers import client_of, conversation, message, ok, page
from tests.support.processes import PYTHON, run

pytestmark = pytest.mark.anyio

AGENT = "+15555550100"
START = datetime(2025, 6, 30, 12, tzinfo=UTC)
DAY = timedelta(days=1)
FORMATS = ["jsonl", "csv", "parquet"]


def fill(box: Sandbox, conversations: int, messages: int, at: datetime = START) -> None:
    """Let messages come in to all conversations by turns; each three of one share their instant."""
    for index in range(messages):
        for number in range(conversations):
            moment = at + timedelta(seconds=index // 3, microseconds=number)
            body = f"{index} \u00e9\n\U0001f600,\"'\u2028"
            box.receive_sms(from_number=f"+1555556{number:04}", to_number=AGENT, body=body, at=moment)


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows_of(box: Sandbox, after: datetime | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Give the rows that a sandbox's conversations and messages should make, of what is later than `after`."""
    conversations = box._store.conversations(limit=10**6, offset=0)["data"]
    conversations.sort(key=lambda row: row["id"])
    messages: list[dict[str, Any]] = []
    for row in conversations:
        found = box._store.messages(row["id"], limit=10**6, before=None, after=None)
        assert found is not None
        own = [{"conversationId": row["id"], **message} for message in found["data"]]
        messages += sorted(own, key=lambda message: (message["receivedAt"], message["id"]))
    for row in (*conversations, *messages):
        for name in {"receivedAt", "lastMessageAt", "createdAt"} & row.keys():
            row[name] = datetime.fromisoformat(row[name]).replace(tzinfo=None).isoformat() + "Z"
    if after is None:
        return conversations, messages
    return (
        [row for row in conversations if datetime.fromisoformat(row["lastMessageAt"]) > after],
        [row for row in messages if datetime.fromisoformat(row["receivedAt"]) > after],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def both(directory: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return lines(directory / "conversations.jsonl"), lines(directory / "messages.jsonl")


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


class Watched(httpx.AsyncBaseTransport):
    """A way to a sandbox that notes what is asked, and answers by itself where it is told to."""

    def __init__(
        self, box: Sandbox, step: Callable[[int, httpx.Request], httpx.Response | None] = lambda *_: None
    ) -> None:
        self._inner = box.transport()
        self._step = step
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.raw_path.decode())
        answer = self._step(len(self.asked), request)
        return await self._inner.handle_async_request(request) if answer is None else answer


def async_client(transport: httpx.AsyncBaseTransport, key: str = "key", **options: Any) -> AsyncClient:
    return AsyncClient(key, transport=transport, max_retries=0, **options)


# What is in the files


async def test_each_conversation_and_message_is_a_line_under_the_names_of_the_api(
    box: Sandbox, directory: Path
) -> None:
    fill(box, 5, 450)
    async with async_client(box.transport()) as client:
        result = await export(client, directory)
    assert result == Result(
        conversations=5,
        messages=2250,
        skipped=0,
        conversations_path=directory / "conversations.jsonl",
        messages_path=directory / "messages.jsonl",
    )
    assert both(directory) == rows_of(box)
    assert names(directory) == {"conversations.jsonl", "messages.jsonl", ".last-export.db"}


def test_the_blocking_client_exports_the_same(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 10)
    with Client("key", transport=box.transport()) as client:
        result = export(client, str(directory))
    assert result.messages == 30
    assert both(directory) == rows_of(box)


@pytest.mark.parametrize(
    "behavior",
    [
        Behavior(boundary="inclusive", after_alone="newest", message_order="oldest", timestamp_digits=3),
        Behavior(after_alone="newest", timestamp_digits=0),
    ],
    ids=str,
)
async def test_whichever_way_the_api_reads_its_cursors_the_rows_are_the_same(
    box: Sandbox, directory: Path, behavior: Behavior
) -> None:
    box.behavior = behavior
    fill(box, 2, 700)
    async with async_client(box.transport()) as client:
        await export(client, directory)
    assert both(directory) == rows_of(box)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def as_csv(row: dict[str, Any], fixed: tuple[str, ...]) -> dict[str, str]:
    """Give what a reader of CSV sees of a row."""
    extra = {name: value for name, value in row.items() if name not in fixed}
    return {
        name: value if isinstance(value, str) else "" if value is None else compact(value)
        for name, value in [*((name, row[name]) for name in fixed), ("extra", extra or None)]
    }


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def with_metadata(box: Sandbox) -> None:
    first = box._store.conversations(limit=1, offset=0)["data"][0]
    box._store.set_metadata(first["id"], {"note": 'a "quoted", \n line'}, message_limit=1)


async def test_csv_has_the_same_rows_in_fixed_columns(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 220)
    with_metadata(box)
    async with async_client(box.transport()) as client:
        result = await export(client, directory, format="csv")
    conversations, messages = rows_of(box)
    columns = _files.COLUMNS
    assert read_csv(result.conversations_path) == [as_csv(row, columns["conversations"]) for row in conversations]
    assert read_csv(result.messages_path) == [as_csv(row, columns["messages"]) for row in messages]


async def test_parquet_has_the_same_rows_with_lists_and_numbers_of_its_own(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 220)
    with_metadata(box)
    async with async_client(box.transport()) as client:
        result = await export(client, directory, format="parquet")
    conversations, messages = rows_of(box)
    for row in conversations:
        row["extra"] = compact({"channel": row.pop("channel")})
        row["metadata"] = row["metadata"] and compact(row["metadata"])
    for row in (*conversations, *messages):
        row.setdefault("extra", None)
    parquet = importlib.import_module("pyarrow.parquet")
    assert parquet.read_table(result.conversations_path).to_pylist() == conversations
    assert parquet.read_table(result.messages_path).to_pylist() == messages
    kinds = {field.name: str(field.type) for field in parquet.read_schema(result.messages_path)}
    assert kinds == dict.fromkeys((*_files.COLUMNS["messages"], "extra"), "string") | {
        "mediaUrls": "list<element: string>",
    }


@pytest.mark.parametrize("format_", FORMATS)
async def test_an_account_without_a_conversation_makes_files_without_a_row(
    box: Sandbox, directory: Path, format_: Any
) -> None:
    async with async_client(box.transport()) as client:
        result = await export(client, directory, format=format_)
    assert (result.conversations, result.messages) == (0, 0)
    read: Callable[[Path], list[Any]] = {
        "jsonl": lines,
        "csv": read_csv,
        "parquet": lambda path: importlib.import_module("pyarrow.parquet").read_table(path).to_pylist(),
    }[format_]
    assert (read(result.conversations_path), read(result.messages_path)) == ([], [])


def test_the_columns_say_of_each_field_what_it_holds() -> None:
    for model, name in ((Conversation, "conversations"), (Message, "messages")):
        fields = {field: kind for field, kind in model.__annotations__.items() if field != "extra"}
        kinds = {to_camel_case(field): kind for field, kind in fields.items()}
        assert [column for column in _files.COLUMNS[name] if column != "conversationId"] == list(kinds)
        assert {column for column, kind in kinds.items() if "int" in kind} == _files.NUMBERS & kinds.keys()
        assert {column for column, kind in kinds.items() if "tuple" in kind} == _files.LISTS & kinds.keys()
        assert {column for column, kind in kinds.items() if "dict" in kind} == _files.OBJECTS & kinds.keys()


UNKNOWN = {"reactions": [{"by": "+15555550110", "what": "\u2764"}], "extra": {"a": 1}, "replyTo": None, "seq": 7}


async def account_of(directory: Path, format_: Any, **changes: Any) -> Result:
    """Export an account of one conversation with one message, both changed."""
    client, _ = client_of(
        ok(page(conversation(**changes), total=1)),
        ok(page(message(**changes))),
    )
    async with client:
        return await export(client, directory, format=format_)


async def test_fields_that_nobody_knows_are_kept_in_each_format(directory: Path) -> None:
    result = await account_of(directory, "jsonl", **UNKNOWN)
    [row] = lines(result.messages_path)
    assert row == {"conversationId": "conv_1", **message(**UNKNOWN)}
    assert next(iter(row)) == "conversationId"
    assert lines(result.conversations_path) == [conversation(**UNKNOWN)]
    result = await account_of(directory, "csv", **UNKNOWN)
    assert json.loads(read_csv(result.messages_path)[0]["extra"]) == UNKNOWN
    result = await account_of(directory, "parquet", **UNKNOWN)
    [row] = importlib.import_module("pyarrow.parquet").read_table(result.messages_path).to_pylist()
    assert json.loads(row["extra"]) == UNKNOWN


async def test_the_id_of_the_conversation_is_ours_to_say(directory: Path) -> None:
    [row] = lines((await account_of(directory, "jsonl", conversationId="conv_other")).messages_path)
    assert row["conversationId"] == "conv_1"


async def test_instants_are_printed_in_utc_with_all_their_digits(directory: Path) -> None:
    result = await account_of(directory, "jsonl", receivedAt="2025-06-30T14:00:00.120+02:00", createdAt=None)
    assert lines(result.messages_path)[0]["receivedAt"] == "2025-06-30T12:00:00.120000Z"
    assert lines(result.conversations_path)[0]["createdAt"] is None


@pytest.mark.parametrize("format_", FORMATS)
async def test_half_a_surrogate_pair_stops_no_export(directory: Path, format_: Any) -> None:
    """A preview that was cut in the middle of an emoji ends in one, and UTF-8 does not have it."""
    result = await account_of(directory, format_, id="conv_1", body="cut \ud83d", lastMessagePreview="\ud83d")
    if format_ == "jsonl":
        assert lines(result.messages_path)[0]["body"] == "cut \ud83d"
    elif format_ == "csv":
        assert read_csv(result.messages_path)[0]["body"] == "cut ?"
    else:
        [row] = importlib.import_module("pyarrow.parquet").read_table(result.messages_path).to_pylist()
        assert row["body"] == "cut ?"


async def test_csv_tells_null_from_an_empty_text(directory: Path) -> None:
    result = await account_of(directory, "csv", body="", status=None)
    assert result.messages_path.read_text(encoding="utf-8").splitlines()[1] == (
        '"conv_1","msg_1","","+15555550110","+15555550100","inbound","2025-06-30T12:00:00Z","sms",'
        '"[""https://media.example/1.jpg""]",,'
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
def test_a_line_is_the_whole_message_and_one_line_to_any_reader(given: Message, conversation_id: str) -> None:
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
def test_a_reader_of_csv_gets_every_text_back(given: list[Message]) -> None:
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
    assert [json.loads(line[10] or "{}") for line in read[1:]] == [item.extra for item in given]


# Where it is killed, fails or is cancelled


def failure(number: int) -> httpx.Response:
    """Give one failure after the other: the network's, the key's, the API's."""
    if number % 3 == 0:
        raise httpx.ReadError("reset")
    return httpx.Response([401, 503][number % 3 - 1])


async def test_after_a_failure_at_any_request_it_goes_on_and_asks_for_nothing_again(
    box: Sandbox, tmp_path: Path
) -> None:
    fill(box, 3, 410)
    whole = Watched(box)
    async with async_client(whole) as client:
        await export(client, tmp_path / "whole", concurrency=1)
    for at in range(1, len(whole.asked) + 1):
        transport = Watched(box, lambda number, _, at=at: failure(at) if number == at else None)  # type: ignore[misc]
        directory = tmp_path / str(at)
        async with async_client(transport) as client:
            with pytest.raises((APIConnectionError, AuthenticationError, ServerError)):
                await export(client, directory, concurrency=1)
            assert names(directory) == {".partial"}
            await export(client, directory, concurrency=1)
        assert contents(directory) == contents(tmp_path / "whole")
        # The one that failed is asked again; and inside a conversation, the last group that was held back.
        assert len(transport.asked) <= len(whole.asked) + 2


async def test_conversations_are_read_several_at_a_time(box: Sandbox, directory: Path) -> None:
    fill(box, 12, 5)
    in_flight = most = 0
    together = anyio.Event()

    class Slow(Watched):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal in_flight, most
            in_flight += 1
            most = max(most, in_flight)
            if most == 3:
                together.set()
            if request.url.path.endswith("/messages"):
                with anyio.move_on_after(30):
                    await together.wait()
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            try:
                return await super().handle_async_request(request)
            finally:
                in_flight -= 1

    async with async_client(Slow(box)) as client:
        await export(client, directory, concurrency=3)
    assert most == 3
    assert both(directory) == rows_of(box)


async def test_of_several_that_fail_at_once_the_first_error_comes_alone(box: Sandbox, directory: Path) -> None:
    fill(box, 8, 1)
    transport = Watched(box, lambda number, _: httpx.Response(500) if number > 1 else None)
    async with async_client(transport) as client:
        with pytest.raises(ServerError):
            await export(client, directory, concurrency=8)


class At:
    """A progress hook that calls something at its so manieth call."""

    def __init__(self, number: int, call: Callable[[], object]) -> None:
        self._left, self._call = number, call

    def __call__(self, progress: Progress) -> None:
        self._left -= 1
        if self._left == 0:
            self._call()


async def test_a_cancelled_export_lets_go_of_its_directory_and_goes_on_later(box: Sandbox, directory: Path) -> None:
    fill(box, 4, 410)
    cancelled = 0
    async with async_client(box.transport()) as client:
        for number in range(1, 30):
            with anyio.CancelScope() as scope:
                await export(client, directory, on_progress=At(number, scope.cancel))
            if not scope.cancelled_caught:
                break
            cancelled += 1
    assert cancelled > 5
    assert both(directory) == rows_of(box)


def test_asyncios_own_cancellation_waits_for_the_disk_too(box: Sandbox, directory: Path) -> None:
    fill(box, 4, 410)

    async def main() -> None:
        async with async_client(box.transport()) as client:
            for number in range(1, 30):
                running: list[asyncio.Task[Result]] = []
                at = At(number, lambda running=running: running[0].cancel())  # type: ignore[misc]
                running.append(asyncio.ensure_future(export(client, directory, on_progress=at)))
                await asyncio.wait(running)
                if not running[0].cancelled():
                    break
            assert number > 5

    asyncio.run(main())
    assert both(directory) == rows_of(box)


INTERRUPTED = """
import os, signal, sys
from agentphone import Client
from agentphone.export import export

def interrupt(progress):
    if progress.phase == "reading" and progress.messages_done > 300:
        os.kill(os.getpid(), signal.SIGINT)

with Client("key", base_url="sandbox:") as client:
    try:
        export(client, sys.argv[1], on_progress=interrupt)
    except KeyboardInterrupt:
        print("interrupted", os.path.exists(sys.argv[1] + "/messages.jsonl"))
    print(export(client, sys.argv[1]).messages)
"""


def test_ctrl_c_ends_the_blocking_export_and_the_next_goes_on(directory: Path) -> None:
    done = run(*PYTHON, "-c", INTERRUPTED, str(directory))
    assert (done.stdout, done.stderr) == ("interrupted False\n1817\n", "")


FULL = """
import resource, signal, sys
from agentphone import Client
from agentphone.export import export

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Client("key", base_url="sandbox:") as client:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in range(20_000, 2_000_000, 120_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
        try:
            export(client, sys.argv[1])
            break
        except OSError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    print(export(client, sys.argv[2]).messages)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="its files have no such limit")
def test_a_disk_that_takes_no_more_is_said_and_the_export_goes_on_when_it_does(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    done = run(*PYTHON, "-c", FULL, str(first), str(second))
    assert done.stderr == ""
    told = done.stdout.splitlines()
    assert len(told) > 3
    assert told[-1] == "1817"
    assert contents(first) == contents(second)


FULL_AT_THE_END = """
import os, resource, signal, sys
from agentphone import Client
from agentphone.export import export
from agentphone.export._store import Store

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
remove = Store.remove

def remove_on_a_full_disk(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    remove(self)

Store.remove = remove_on_a_full_disk
with Client("key", base_url="sandbox:") as client:
    export(client, sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="its files have no such limit")
def test_nothing_is_left_behind_on_a_disk_that_is_full_in_the_end(directory: Path) -> None:
    done = run(*PYTHON, "-c", FULL_AT_THE_END, str(directory))
    assert done.stderr == ""
    assert names(directory) == {"conversations.jsonl", "messages.jsonl", ".last-export.db"}


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open({})
    store._open_connection().execute("PRAGMA max_page_count = 8").fetchall()
    with pytest.raises(OSError, match="database or disk is full") as caught:
        store.add_messages("conv_1", [(START, str(number), b"x" * 1000) for number in range(100)], is_complete=True)
    assert caught.value.filename == str(tmp_path / "export.db")
    store.close()


# Whose export lies there


async def test_two_exports_into_one_directory_at_once_are_refused(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 1)
    refused = 0

    async with async_client(box.transport()) as client:

        async def second() -> None:
            nonlocal refused
            with pytest.raises(ConfigurationError, match="Another export is at work in"):
                await export(client, directory)
            refused += 1

        class Meanwhile(Watched):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                if not refused:
                    await second()
                return await super().handle_async_request(request)

        async with async_client(Meanwhile(box)) as other:
            await export(other, directory)
    assert refused
    assert both(directory) == rows_of(box)


def test_an_export_of_another_process_is_refused_as_well(directory: Path) -> None:
    directory.mkdir()
    (directory / ".partial").mkdir()
    store = Store(directory / ".partial")
    store.open({})
    code = "from agentphone import Client; from agentphone.export import export; export(Client(), 'out')"
    done = run(*PYTHON, "-c", code, cwd=directory.parent, AGENTPHONE_BASE_URL="sandbox:")
    store.close()
    assert done.stderr.splitlines()[-1].startswith("agentphone.errors.ConfigurationError: Another export is at work in")


def test_an_export_that_ends_while_another_waits_for_its_directory_refuses_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    first.open({})
    connect = sqlite3.connect

    def meanwhile(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **settings)
        first.remove()
        return connection

    monkeypatch.setattr(sqlite3, "connect", meanwhile)
    with pytest.raises(ConfigurationError, match="Another export is at work in"):
        second.open({})
    second.close()


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "format": ({}, {"format": "csv"}, "format 'jsonl', not 'csv'"),
    "since": ({}, {"since": START}, "since None, not '2025-06-30T12:00:00Z'"),
    "last": ({}, {"since": "last"}, "since None, not 'last'"),
    "base URL": (
        {"base_url": "https://other.test"},
        {},
        "base_url 'https://api.agentphone.to', not 'https://other.test'",
    ),
    "key": ({"key": "another"}, {}, "another API key"),
}


@pytest.mark.parametrize("other", OTHERS)
async def test_an_unfinished_export_of_another_kind_is_refused_and_left_as_it_is(
    box: Sandbox, directory: Path, other: str
) -> None:
    fill(box, 3, 1)
    settings, arguments, reason = OTHERS[other]
    failing = Watched(box, lambda number, _: httpx.Response(500) if number == 3 else None)
    async with async_client(failing) as client:
        with pytest.raises(ServerError):
            await export(client, directory, concurrency=1)
        async with async_client(box.transport(), **settings) as other_client:
            with pytest.raises(ConfigurationError) as caught:
                await export(other_client, directory, **arguments)
        assert f"holds an unfinished export that was begun with {reason}. Finish it" in str(caught.value)
        assert "key" not in settings or settings["key"] not in str(caught.value).replace("another API key", "")
        await export(client, directory)
        assert both(directory) == rows_of(box)
        await export(client, directory, **arguments)  # and what is finished is in nobody's way


async def test_one_that_did_not_get_beyond_the_list_is_in_nobodys_way(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 1)
    async with async_client(Watched(box, lambda *_: httpx.Response(401)), key="wrong") as client:
        with pytest.raises(AuthenticationError):
            await export(client, directory, format="csv")
    async with async_client(box.transport()) as client:
        await export(client, directory)
    assert both(directory) == rows_of(box)


async def test_what_is_damaged_is_named(box: Sandbox, directory: Path) -> None:
    (directory / ".partial").mkdir(parents=True)
    (directory / ".partial" / "export.db").write_bytes(b"no database, and long enough to be looked at" * 100)
    async with async_client(box.transport()) as client:
        with pytest.raises(ConfigurationError, match=r"export.db' is damaged .* Delete '.*\.partial' to begin again"):
            await export(client, directory)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DROP TABLE conversations", r"export\.db' is damaged \(no such table.* Delete '.*\.partial' to begin again"),
        ("DROP TABLE messages", r"export\.db' is damaged \(no such table.* Delete '.*\.partial' to begin again"),
        ("DELETE FROM meta WHERE name = 'key'", r"another API key.* delete '.*\.partial' to begin again"),
    ],
)
async def test_an_unfinished_export_that_lacks_something_is_no_empty_one(
    box: Sandbox, directory: Path, statement: str, reason: str
) -> None:
    fill(box, 3, 1)
    async with async_client(Watched(box, lambda number, _: httpx.Response(500) if number == 3 else None)) as client:
        with pytest.raises(ServerError):
            await export(client, directory, concurrency=1)
    altered(directory / ".partial" / "export.db", statement)
    async with async_client(box.transport()) as client:
        with pytest.raises(ConfigurationError, match=reason):
            await export(client, directory)


def test_a_key_is_in_no_file(box: Sandbox, directory: Path) -> None:
    fill(box, 1, 1)
    with Client("sk_canary_4711", transport=box.transport()) as client:
        with pytest.raises(ZeroDivisionError):
            export(client, directory, on_progress=failing_in("reading"))
        for path in directory.rglob("*"):
            assert path.is_dir() or b"sk_canary_4711" not in path.read_bytes()
        export(client, directory)
    for path in directory.rglob("*"):
        assert b"sk_canary_4711" not in path.read_bytes()


# An account that moves


async def test_a_conversation_that_is_gone_before_it_is_read_is_left_out(box: Sandbox, directory: Path) -> None:
    fill(box, 4, 410)
    gone: list[str] = []

    def remove(number: int, request: httpx.Request) -> None:
        if number == 3:  # in the middle of the first conversation
            conversation_id = request.url.path.split("/")[-2]
            assert box.remove_conversation(conversation_id)
            gone.append(conversation_id)

    async with async_client(Watched(box, remove)) as client:
        seen: list[Progress] = []
        result = await export(client, directory, concurrency=1, on_progress=seen.append)
    assert gone
    assert (result.conversations, result.skipped, result.messages) == (3, 1, 3 * 410)
    assert both(directory) == rows_of(box)
    read = [progress for progress in seen if progress.phase == "reading"][-1]
    assert (read.conversations_done, read.conversations_total, read.messages_done) == (3, 3, 1230)


@pytest.mark.parametrize("is_not_found", ["/messages", "/v1/conversations"])
async def test_a_404_for_what_is_there_is_an_error(box: Sandbox, directory: Path, is_not_found: str) -> None:
    """For the messages alone, or for everything, once the list was read: then it is no conversation that is gone."""
    fill(box, 2, 1)

    def fail(number: int, request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(404) if number > 1 and is_not_found in request.url.path else None

    async with async_client(Watched(box, fail)) as client:
        with pytest.raises(NotFoundError):
            await export(client, directory)
    assert names(directory) == {".partial"}
    async with async_client(box.transport()) as client:
        await export(client, directory)
    assert both(directory) == rows_of(box)


async def test_what_is_there_from_start_to_end_is_there_once_however_the_account_moves(
    box: Sandbox, directory: Path
) -> None:
    fill(box, 30, 21)
    before = rows_of(box)

    def move(number: int, _: httpx.Request) -> None:
        for person in (number % 30, 40 + number):
            box.receive_sms(from_number=f"+1555556{person:04}", to_number=AGENT, body="new", at=START + DAY * number)

    async with async_client(Watched(box, move)) as client:
        await export(client, directory)
    conversations, messages = both(directory)
    ids = [row["id"] for row in conversations]
    assert len(set(ids)) == len(ids)
    assert {row["id"] for row in before[0]} <= set(ids)
    keys = [(row["conversationId"], row["receivedAt"], row["id"]) for row in messages]
    assert len(set(keys)) == len(keys)
    assert keys == sorted(keys)
    old = [row for row in messages if row["body"] != "new"]
    assert old == before[1]


# Only what is new


@pytest.mark.parametrize("since", [START + timedelta(seconds=5), "2025-06-30T14:00:05+02:00"], ids=type)
async def test_since_an_instant_takes_what_was_received_later(
    box: Sandbox, directory: Path, since: datetime | str
) -> None:
    fill(box, 2, 30)
    fill(box, 3, 3, at=START - DAY)
    box.receive_sms(from_number="+15555569999", to_number=AGENT, body="old", at=START + timedelta(seconds=5))
    async with async_client(box.transport()) as client:
        result = await export(client, directory, since=since)
    assert both(directory) == rows_of(box, START + timedelta(seconds=5))
    assert (result.conversations, result.messages) == (2, 12 + 15)


@pytest.mark.parametrize("format_", FORMATS)
async def test_since_last_adds_what_is_new_and_each_message_once(box: Sandbox, directory: Path, format_: Any) -> None:
    fill(box, 3, 30)
    async with async_client(box.transport()) as client:
        await export(client, directory, format=format_)
        for day in range(1, 4):
            fill(box, 5, 2 * day, at=START + day * DAY)
            transport = Watched(box)
            async with async_client(transport) as watched:
                result = await export(watched, directory, format=format_, since="last")
            assert result.messages == 5 * 2 * day
            assert len(transport.asked) == 1 + 5
        assert (await export(client, directory, format=format_, since="last")).messages == 0
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


async def test_since_last_finds_what_shares_its_instant_with_the_last_message_and_what_came_to_light_late(
    box: Sandbox, directory: Path
) -> None:
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


async def test_since_last_trusts_no_message_that_is_dated_in_the_future(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 1)
    box.receive_sms(from_number="+15555560000", to_number=AGENT, body="far", at="2999-01-01T00:00:00Z")
    async with async_client(box.transport()) as client:
        await export(client, directory)
        box.receive_sms(from_number="+15555560001", to_number=AGENT, body="now")
        assert (await export(client, directory, since="last")).messages == 1


async def test_since_last_repeats_nothing_when_the_latest_conversation_has_gone_meanwhile(
    box: Sandbox, directory: Path
) -> None:
    fill(box, 2, 4)
    latest = box.receive_sms(from_number="+15555569999", to_number=AGENT, body="latest", at=START + DAY)
    async with async_client(box.transport()) as client:
        await export(client, directory)
        box.remove_conversation(latest["conversationId"])
        assert [(await export(client, directory, since="last")).messages for _ in range(3)] == [0, 0, 0]


async def test_since_last_behind_an_instant_brings_nothing_of_what_was_before_it(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 30)
    async with async_client(box.transport()) as client:
        first = await export(client, directory, since=START + timedelta(seconds=5))
        assert first.messages == 12 + 15
        assert (await export(client, directory, since="last")).messages == 0


async def test_since_last_without_an_earlier_export_takes_everything(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 3)
    async with async_client(box.transport()) as client:
        assert (await export(client, directory, since="last")).messages == 6
    assert both(directory) == rows_of(box)


async def test_since_last_reads_conversations_of_which_the_api_does_not_say_when_they_were_active(
    directory: Path,
) -> None:
    listed = ok(page(conversation(lastMessageAt=None), total=1))
    first = ok(page(message()))
    second = ok(page(message(), message(id="msg_2", receivedAt="2035-06-30T12:00:01Z")))
    client, _ = client_of(listed, first, listed, second)
    async with client:
        await export(client, directory)
        assert (await export(client, directory, since="last")).messages == 1


@pytest.mark.parametrize(
    ("settings", "arguments", "reason"),
    [
        ({}, {"format": "csv"}, "was made with format 'jsonl', not 'csv'"),
        ({"key": "another"}, {}, "was made with another API key"),
        ({"base_url": "https://other.test"}, {}, "was made with base_url"),
    ],
)
async def test_since_last_continues_no_export_of_another_kind(
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


async def test_since_last_continues_no_file_that_is_gone_and_no_damaged_state(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 3)
    async with async_client(box.transport()) as client:
        await export(client, directory)
        (directory / "messages.jsonl").rename(directory / "elsewhere")
        with pytest.raises(ConfigurationError, match=r"messages.jsonl', which the last export wrote, is gone"):
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
    "without an instant": lambda path: altered(path, "DELETE FROM meta WHERE name = 'settled'"),
    "with no instant": lambda path: altered(path, "UPDATE meta SET value = 'noon' WHERE name = 'settled'"),
    "with an instant without an offset": lambda path: altered(path, "UPDATE meta SET value = '2025-06-30T12:00:00'"),
    "without a key": lambda path: altered(path, "DELETE FROM meta WHERE name = 'key'"),
    "with a key of bytes": lambda path: altered(path, "UPDATE meta SET value = x'ff' WHERE name = 'key'"),
    "with text that is none": lambda path: altered(path, "UPDATE meta SET value = CAST(x'ff' AS TEXT)"),
    "with messages at no instant": lambda path: altered(path, "UPDATE known SET received_at = 'noon'"),
    "with messages of text": lambda path: altered(path, "UPDATE known SET id = 'msg_1'"),
    "with messages of nothing": lambda path: altered(
        path, "CREATE TABLE k AS SELECT * FROM known", "UPDATE k SET id = NULL", "DROP TABLE known",
        "ALTER TABLE k RENAME TO known",
    ),
}  # fmt: skip


def altered(path: Path, *statements: str) -> None:
    """Change a database."""
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_state_of_the_last_export_is_named_with_what_to_do(
    box: Sandbox, directory: Path, damage: str
) -> None:
    fill(box, 3, 100, datetime.now(UTC) - timedelta(minutes=5))
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


async def test_a_key_of_another_script_is_another_key(box: Sandbox, directory: Path) -> None:
    async with async_client(box.transport()) as client:
        await export(client, directory)
        altered(directory / ".last-export.db", "UPDATE meta SET value = '\u00e9:\u00e9' WHERE name = 'key'")
        with pytest.raises(ConfigurationError, match="another API key"):
            await export(client, directory, since="last")


# What the caller gives and sees


async def test_progress_tells_how_much_is_done_of_how_much(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 250)
    seen: list[Progress] = []
    async with async_client(Watched(box, lambda n, _: httpx.Response(500) if n == 4 else None)) as client:
        with pytest.raises(ServerError):
            await export(client, directory, concurrency=1, on_progress=seen.append)
        first, seen = seen, []
        await export(client, directory, concurrency=1, on_progress=seen.append)
    assert first[0] == Progress(phase="listing", conversations_total=3)
    assert first[1] == Progress(phase="reading", conversations_total=3, messages_total=750)
    assert seen[0] == first[-1]  # goes on where the first came to
    assert seen[0].messages_done > 0
    assert [progress.phase for progress in seen if progress.phase != "reading"] == ["writing", "writing"]
    read = [progress.messages_done for progress in seen if progress.phase == "reading"]
    assert read == sorted(read)
    whole = {"conversations_done": 3, "conversations_total": 3, "messages_done": 750, "messages_total": 750}
    assert seen[-3] == Progress(phase="reading", **whole)
    assert seen[-1] == Progress(phase="writing", **whole)


def failing_in(phase: str) -> Callable[[Progress], object]:
    return lambda progress: 1 // (progress.phase != phase)


@pytest.mark.parametrize("format_", FORMATS)
async def test_what_the_hook_raises_ends_the_export_and_it_goes_on_later(
    box: Sandbox, directory: Path, format_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "CHUNK", 4)
    fill(box, 3, 5)
    raised = []  # with their tracebacks, which hold what the failed runs were at
    async with async_client(box.transport()) as client:
        for phase in ("listing", "reading", "writing"):
            with pytest.raises(ZeroDivisionError) as caught:
                await export(client, directory, format=format_, on_progress=failing_in(phase))
            raised.append(caught)
        await export(client, directory, format=format_)
        raised.clear()
        gc.collect()
        await export(client, directory.parent / "whole", format=format_)
    assert contents(directory) == contents(directory.parent / "whole")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"format": "xml"}, ValueError),
        ({"format": None}, ValueError),
        ({"concurrency": 0}, ValueError),
        ({"concurrency": True}, TypeError),
        ({"concurrency": "4"}, TypeError),
        ({"since": datetime(2025, 6, 30, 12)}, ValueError),
        ({"since": "2025-06-30"}, ValueError),
        ({"since": "yesterday"}, ValueError),
        ({"since": 5}, TypeError),
        ({"on_progress": 5}, TypeError),
        ({"on_progress": anyio.sleep}, TypeError),
    ],
)
async def test_a_wrong_argument_is_refused_at_once(
    directory: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    client, script = client_of(ok())
    with pytest.raises(error):
        await export(client, directory, **arguments)
    with pytest.raises(TypeError, match="client is an AsyncClient or a Client, not str"):
        export("client", directory)  # type: ignore[call-overload]
    assert script.requests == []
    assert names(directory) == set()


def test_parquet_without_its_package_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with Client(base_url="sandbox:") as client, pytest.raises(ConfigurationError, match=r"pip install '\.\[parquet\]'"):
        export(client, directory, format="parquet")


def test_memory_does_not_grow_with_the_messages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At 1,000,000 by `python -m benchmarks.export_memory`; here with chunks that are as much smaller."""
    monkeypatch.setattr(_files, "CHUNK", 500)
    peaks = []
    for messages in (300, 1_500, 9_000):  # the first warms up
        with Client("key", transport=CannedTransport(3, messages // 3)) as client:
            tracemalloc.start()
            assert export(client, tmp_path / str(messages)).messages == messages
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[2] < peaks[1] + 500_000  # all of them are several megabytes


def test_the_last_export_is_found_in_a_database_that_others_can_read(box: Sandbox, directory: Path) -> None:
    fill(box, 1, 2)
    with Client("key", transport=box.transport()) as client:
        export(client, directory)
    with sqlite3.connect(directory / ".last-export.db") as connection:
        assert connection.execute("SELECT count(*) FROM known").fetchone() == (2,)
        notes = dict(connection.execute("SELECT name, value FROM meta"))
    assert notes.keys() == {"version", "base_url", "format", "key", "settled"}
    assert datetime.fromisoformat(notes["settled"]) == START - timedelta(hours=1)
