"""Arguments, progress and memory of an export."""

from __future__ import annotations

import gc
import sqlite3
import sys
import tracemalloc
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from agentphone import (
    Client,
    ConfigurationError,
    ServerError,
)
from agentphone.export import Progress, _files, export
from agentphone.sandbox import Sandbox
from tests.support.accounts import (
    FORMATS,
    START,
    Watched,
    async_client,
    contents,
    failing_in,
    fill,
    names,
)
from tests.support.canned import CannedTransport
from tests.support.helpers import client_of, ok

pytestmark = pytest.mark.anyio


async def test_progress(box: Sandbox, directory: Path) -> None:
    fill(box, 3, 250)
    seen: list[Progress] = []
    async with async_client(Watched(box, lambda n, _: httpx.Response(500) if n == 4 else None)) as client:
        with pytest.raises(ServerError):
            await export(client, directory, concurrency=1, on_progress=seen.append)
        first, seen = seen, []
        await export(client, directory, concurrency=1, on_progress=seen.append)
    assert first[0] == Progress(phase="listing", conversations_total=3)
    assert first[1] == Progress(phase="reading", conversations_total=3, messages_total=750)
    assert seen[0] == first[-1]  # resumes where the first stopped
    assert seen[0].messages_done > 0
    assert [progress.phase for progress in seen if progress.phase != "reading"] == ["writing", "writing"]
    read = [progress.messages_done for progress in seen if progress.phase == "reading"]
    assert read == sorted(read)
    whole = {"conversations_done": 3, "conversations_total": 3, "messages_done": 750, "messages_total": 750}
    assert seen[-3] == Progress(phase="reading", **whole)
    assert seen[-1] == Progress(phase="writing", **whole)


@pytest.mark.parametrize("format_", FORMATS)
async def test_exception_of_on_progress_ends_the_export(
    box: Sandbox, directory: Path, format_: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "CHUNK", 4)
    fill(box, 3, 5)
    raised = []  # with their tracebacks, which keep the failed runs alive
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
        ({"since": "noon"}, ValueError),
        ({"since": 5}, TypeError),
        ({"on_progress": 5}, TypeError),
        ({"on_progress": anyio.sleep}, TypeError),
    ],
)
async def test_invalid_argument_is_rejected_before_any_request(
    directory: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    client, script = client_of(ok())
    with pytest.raises(error):
        await export(client, directory, **arguments)
    with pytest.raises(TypeError, match="client must be an AsyncClient or a Client, got str"):
        export("client", directory)  # type: ignore[call-overload]
    assert script.requests == []
    assert names(directory) == set()


def test_parquet_without_pyarrow_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with Client(base_url="sandbox:") as client, pytest.raises(ConfigurationError, match=r"pip install '\.\[parquet\]'"):
        export(client, directory, format="parquet")


def test_memory_is_constant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At 1,000,000 by `python -m benchmarks --row export-memory`; here with chunks that are as much smaller."""
    monkeypatch.setattr(_files, "CHUNK", 500)
    peaks = []
    for messages in (300, 900, 4_500):  # the first warms up
        with Client("key", transport=CannedTransport(3, messages // 3)) as client:
            tracemalloc.start()
            assert export(client, tmp_path / str(messages)).messages == messages
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[2] < peaks[1] + 500_000  # all of them are several megabytes


def test_state_is_a_readable_database(box: Sandbox, directory: Path) -> None:
    fill(box, 1, 2)
    with Client("key", transport=box.transport()) as client:
        export(client, directory)
    with closing(sqlite3.connect(directory / ".last-export.db")) as connection:
        assert connection.execute("SELECT count(*) FROM known").fetchone() == (2,)
        notes = dict(connection.execute("SELECT name, value FROM meta"))
    assert notes.keys() == {"version", "base_url", "format", "key", "watermark", "messages", "digest", "is_kept"}
    assert datetime.fromisoformat(notes["watermark"]) == START - timedelta(hours=1)
