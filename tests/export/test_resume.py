"""An export that is killed, fails or is cancelled: the next call resumes it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx
import pytest

from agentphone import (
    APIConnectionError,
    AuthenticationError,
    ServerError,
)
from agentphone.export import Result, export
from agentphone.export._store import ExportDatabase
from agentphone.sandbox import Sandbox
from tests.support.accounts import (
    START,
    At,
    Watched,
    async_client,
    both,
    contents,
    fill,
    names,
    rows_of,
)
from tests.support.processes import run_forked

pytestmark = pytest.mark.anyio


def failure(number: int) -> httpx.Response:
    """Return or raise one failure after the other: of the network, the key, the API."""
    if number % 3 == 0:
        raise httpx.ReadError("reset")
    return httpx.Response([401, 503][number % 3 - 1])


async def test_failure_at_any_request_is_resumed_without_repeating_requests(box: Sandbox, tmp_path: Path) -> None:
    fill(box, 2, 410)
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


async def test_concurrency_reads_conversations_in_parallel(box: Sandbox, directory: Path) -> None:
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


async def test_first_of_several_errors_is_raised_alone(box: Sandbox, directory: Path) -> None:
    fill(box, 8, 1)
    transport = Watched(box, lambda number, _: httpx.Response(500) if number > 1 else None)
    async with async_client(transport) as client:
        with pytest.raises(ServerError):
            await export(client, directory, concurrency=8)


async def test_cancelled_export_releases_its_directory_and_resumes(box: Sandbox, directory: Path) -> None:
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


def test_native_cancellation_waits_for_the_disk(box: Sandbox, directory: Path) -> None:
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


def test_ctrl_c_ends_the_sync_export_and_the_next_resumes(directory: Path) -> None:
    done = run_forked(INTERRUPTED, str(directory))
    assert (done.stdout, done.stderr) == ("interrupted False\n1817\n", "")


FULL = """
import resource, signal, sys
from agentphone import Client
from agentphone.export import export

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Client("key", base_url="sandbox:") as client:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in range(20_000, 2_000_000, 200_000):
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
def test_full_disk_is_reported_and_resumed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    done = run_forked(FULL, str(first), str(second))
    assert done.stderr == ""
    told = done.stdout.splitlines()
    assert len(told) > 3
    assert told[-1] == "1817"
    assert contents(first) == contents(second)


FULL_AT_THE_END = """
import os, resource, signal, sys
from agentphone import Client
from agentphone.export import export
from agentphone.export._store import ExportDatabase

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
remove = ExportDatabase.remove

def remove_on_a_full_disk(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    remove(self)

ExportDatabase.remove = remove_on_a_full_disk
with Client("key", base_url="sandbox:") as client:
    export(client, sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="its files have no such limit")
def test_full_disk_at_the_end_leaves_nothing(directory: Path) -> None:
    done = run_forked(FULL_AT_THE_END, str(directory))
    assert done.stderr == ""
    assert names(directory) == {"conversations.jsonl", "messages.jsonl", ".last-export.db"}


def test_full_disk_is_named(tmp_path: Path) -> None:
    store = ExportDatabase(tmp_path)
    store.open({})
    store._open_connection().execute("PRAGMA max_page_count = 8").fetchall()
    with pytest.raises(OSError, match="database or disk is full") as caught:
        store.add_messages("conv_1", [(START, str(number), b"x" * 1000) for number in range(100)], is_complete=True)
    assert caught.value.filename == str(tmp_path / "export.db")
    store.close()
