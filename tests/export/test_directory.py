"""The directory of an export: other exports in it, unfinished or damaged ones."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentphone import (
    AuthenticationError,
    Client,
    ConfigurationError,
    ServerError,
)
from agentphone.export import _fingerprint, export
from agentphone.export._store import ExportDatabase
from agentphone.sandbox import Sandbox
from tests.export.conftest import ROUNDS
from tests.support.accounts import (
    Watched,
    altered,
    async_client,
    both,
    failing_in,
    fill,
    rows_of,
)
from tests.support.backends import ON_ASYNCIO
from tests.support.processes import run_forked

pytestmark = pytest.mark.anyio


async def test_second_export_in_one_directory_is_rejected(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 1)
    refused = 0

    async with async_client(box.transport()) as client:

        async def second() -> None:
            nonlocal refused
            with pytest.raises(ConfigurationError, match="Another export is running in"):
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


def test_export_of_another_process_is_rejected(directory: Path) -> None:
    directory.mkdir()
    (directory / ".partial").mkdir()
    store = ExportDatabase(directory / ".partial")
    store.open({})
    code = "from agentphone import Client; from agentphone.export import export; export(Client(), 'out')"
    done = run_forked(code, cwd=directory.parent, AGENTPHONE_BASE_URL="sandbox:")
    store.close()
    assert done.stderr.splitlines()[-1].startswith("agentphone.errors.ConfigurationError: Another export is running in")


def test_export_that_ends_while_another_waits_rejects_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ExportDatabase(tmp_path), ExportDatabase(tmp_path)
    first.open({})
    connect = sqlite3.connect

    def meanwhile(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **settings)
        first.remove()
        return connection

    monkeypatch.setattr(sqlite3, "connect", meanwhile)
    with pytest.raises(ConfigurationError, match="Another export is running in"):
        second.open({})
    second.close()


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "format": ({}, {"format": "csv"}, "format 'jsonl', not 'csv'"),
    "base URL": (
        {"base_url": "https://other.test"},
        {},
        "base_url 'https://api.agentphone.to', not 'https://other.test'",
    ),
    "key": ({"key": "another"}, {}, "another API key"),
}


@ON_ASYNCIO
@pytest.mark.parametrize("other", OTHERS)
async def test_unfinished_export_with_other_arguments_is_rejected_and_kept(
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
        assert f"holds an unfinished export that was begun with {reason}. Finish" in str(caught.value)
        assert "key" not in settings or settings["key"] not in str(caught.value).replace("another API key", "")
        await export(client, directory)
        assert both(directory) == rows_of(box)
        await export(client, directory, **arguments)  # and what is finished is in nobody's way


async def test_export_that_only_listed_is_replaced(box: Sandbox, directory: Path) -> None:
    fill(box, 2, 1)
    async with async_client(Watched(box, lambda *_: httpx.Response(401)), key="wrong") as client:
        with pytest.raises(AuthenticationError):
            await export(client, directory, format="csv")
    async with async_client(box.transport()) as client:
        await export(client, directory)
    assert both(directory) == rows_of(box)


async def test_damaged_file_is_named(box: Sandbox, directory: Path) -> None:
    (directory / ".partial").mkdir(parents=True)
    (directory / ".partial" / "export.db").write_bytes(b"no database, and long enough to be looked at" * 100)
    async with async_client(box.transport()) as client:
        with pytest.raises(ConfigurationError, match=r"export.db' is damaged .* Delete '.*\.partial' to begin again"):
            await export(client, directory)


@ON_ASYNCIO
@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DROP TABLE conversations", r"export\.db' is damaged \(no such table.* Delete '.*\.partial' to begin again"),
        ("DROP TABLE messages", r"export\.db' is damaged \(no such table.* Delete '.*\.partial' to begin again"),
        ("DELETE FROM meta WHERE name = 'key'", r"another API key.* delete '.*\.partial' to begin again"),
        ("UPDATE meta SET value = '1' WHERE name = 'version'", "begun with another version of agentphone. Finish that"),
    ],
)
async def test_unfinished_export_with_a_missing_table_is_not_empty(
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


def test_api_key_is_in_no_file(box: Sandbox, directory: Path) -> None:
    fill(box, 1, 1)
    with Client("sk_canary_4711", transport=box.transport()) as client:
        with pytest.raises(ZeroDivisionError):
            export(client, directory, on_progress=failing_in("reading"))
        for path in directory.rglob("*"):
            assert path.is_dir() or b"sk_canary_4711" not in path.read_bytes()
        export(client, directory)
    for path in directory.rglob("*"):
        assert b"sk_canary_4711" not in path.read_bytes()


def test_api_key_is_stored_as_a_hash_that_takes_long_to_guess(
    box: Sandbox, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ROUNDS >= 100_000
    monkeypatch.setattr(_fingerprint, "ROUNDS", ROUNDS)
    with Client("sk_canary_4711", transport=box.transport()) as client:
        export(client, directory)
    with closing(sqlite3.connect(directory / ".last-export.db")) as connection:
        [[stored]] = connection.execute("SELECT value FROM meta WHERE name = 'key'")
    salt, _, hashed = stored.partition(":")
    assert hashed == hashlib.pbkdf2_hmac("sha256", b"sk_canary_4711", salt.encode(), ROUNDS).hex()
