"""One export from its beginning to its end: list, read, write, put the files in their place. Each step can be repeated.

Whatever blocks (SQLite, files) runs in a worker thread, one piece at a time, so that the event loop stays free.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
from attrs import evolve, frozen

from agentphone._client import AsyncClient
from agentphone.errors import ConfigurationError, NotFoundError
from agentphone.export import _files
from agentphone.export._fingerprint import Fingerprint
from agentphone.export._store import LISTING, WRITTEN, Key, Listed, Store
from agentphone.models import Conversation, Message, Page

T = TypeVar("T")

PARTIAL = ".partial"
STATE = ".last-export.db"
TABLES = ("messages", "conversations")

LAST: Literal["last"] = "last"
OVERLAP = timedelta(hours=1)
"""How long after its instant a message may come to light, and still be found by the next `since="last"`."""


@frozen(kw_only=True)
class Progress:
    """How far an export has come, with what earlier runs of it have done."""

    phase: Literal["listing", "reading", "writing"]
    """Conversations are listed, then their messages are read, then the files are written."""
    conversations_done: int = 0
    """How many conversations are read to their end."""
    conversations_total: int = 0
    """How many there are; while listing, how many there are so far."""
    messages_done: int = 0
    """How many messages were read; while writing, how many are written."""
    messages_total: int | None = None
    """How many there will be: while reading, what the API announces (`messageCount`), or None where it does not say."""


@frozen(kw_only=True)
class Result:
    """What a finished export has put where."""

    conversations: int
    """How many conversations the file has."""
    messages: int
    """How many messages this export has taken."""
    skipped: int
    """How many conversations were listed and then gone before they were read."""
    conversations_path: Path
    """The file of the conversations."""
    messages_path: Path
    """The file of the messages."""


@frozen(kw_only=True)
class ExportOptions:
    """What the caller wants, checked."""

    directory: Path
    format: str
    concurrency: int
    since: datetime | Literal["last"] | None
    on_progress: Callable[[Progress], object] | None

    def file(self, table: str) -> Path:
        """Give where a file stands in the end."""
        return self.directory / f"{table}.{self.format}"


async def export(client: AsyncClient, order: ExportOptions) -> Result:
    """Export an account."""
    return await _Export(client, order).run()


class _Export:
    def __init__(self, client: AsyncClient, order: ExportOptions) -> None:
        self._client = client
        self._order = order
        self._partial = order.directory / PARTIAL
        self._store = Store(self._partial)
        self._progress = Progress(phase="listing")
        self._thread = anyio.CapacityLimiter(1)
        self._lock = threading.Lock()

    async def run(self) -> Result:
        try:
            phase = await self._in_thread(self._begin)
            if phase == LISTING:
                await self._list()
            counts = await self._in_thread(self._store.counts)
            self._report(
                phase="reading",
                conversations_done=counts.complete,
                conversations_total=counts.conversations,
                messages_done=counts.messages,
                messages_total=None if self._order.since else counts.announced,
            )
            if phase != WRITTEN:
                await self._read()
                await self._write()
            return await self._in_thread(self._finish)
        finally:
            with anyio.CancelScope(shield=True):
                await self._in_thread(self._store.close)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Call what blocks. The lock is for asyncio's own cancellation, which does not wait for the thread."""

        def work() -> T:
            with self._lock:
                return function(*arguments)

        return await anyio.to_thread.run_sync(work, limiter=self._thread)

    def _report(self, **changes: Any) -> None:
        self._progress = evolve(self._progress, **changes)
        if self._order.on_progress is not None:
            self._order.on_progress(self._progress)

    # The beginning

    def _begin(self) -> str:
        """Open what an earlier run has left, or begin; say in which phase it is."""
        identity = self._identity(since=_print(self._order.since))
        ours = identity.of()  # takes its time, in which another export that ends would remove the folder
        self._partial.mkdir(parents=True, exist_ok=True)
        begun = self._store.open(ours)
        difference = None if begun.get("key") == ours["key"] else identity.difference(begun)
        if difference is not None:
            raise ConfigurationError(
                f"{str(self._order.directory)!r} holds an unfinished export that was begun with {difference}. Finish it"
                f" with that first, or delete {str(self._partial)!r} to begin again."
            )
        return begun["phase"]

    def _identity(self, **further: str) -> Fingerprint:
        config = self._client._config  # noqa: SLF001  # of the same house
        return Fingerprint({"base_url": config.base_url, "format": self._order.format, **further}, config.api_key)

    # Listing

    async def _list(self) -> None:
        since = self._order.since
        after = await self._in_thread(self._load_last) if since == LAST else since
        is_continued = since == LAST and after is not None
        settled: datetime | None = None
        async for page in self._client.conversations.list(concurrency=self._order.concurrency).pages():
            if settled is None:
                settled = _watermark(page)
            listed = [_listed(item, after) for item in page]
            if not is_continued:
                listed = [item for item in listed if not item.is_complete]
            await self._in_thread(self._store.add_listed, listed)
            self._report(conversations_total=self._progress.conversations_total + len(listed))
        settled = settled or _watermark(())
        notes = {
            "after": _print(after),
            "is_continued": "yes" if is_continued else "",
            # Never back behind where this one began: what it did not look at, it does not name to the next.
            "settled": _print(max(settled, after) if after else settled),
        }
        await self._in_thread(self._store.finish_listing, notes)

    def _load_last(self) -> datetime | None:
        """Take over what the last export into this directory has left, and give the instant to go on from."""
        directory, messages = self._order.directory, self._order.file("messages")
        last = self._store.load_last(directory / STATE)
        if last is None:
            return None
        noted, settled = last
        difference = self._identity().difference(noted)
        if difference is not None:
            raise ConfigurationError(
                f"The last export into {str(directory)!r} was made with {difference}, and cannot be continued. Take"
                " another directory, or export without since."
            )
        if not messages.exists():
            raise ConfigurationError(
                f"{str(messages)!r}, which the last export wrote, is gone, and cannot be continued. Put it back, or"
                " export without since."
            )
        return settled

    # Reading

    async def _read(self) -> None:
        after = await self._in_thread(self._store.get, "after")
        failures: list[Exception] = []

        async def read_on() -> None:
            try:
                while (found := await self._in_thread(self._store.next_conversation)) is not None:
                    await self._read_conversation(*found, after or None)
            except Exception as error:  # noqa: BLE001  # raised below, alone: a task group would wrap it in a group
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(self._order.concurrency):
                group.start_soon(read_on)
        if failures:
            raise failures[0]

    async def _read_conversation(self, conversation_id: str, oldest: Key | None, after: str | None) -> None:
        """Read a conversation from the newest message to the oldest, on from where an earlier run has come to."""
        before = None
        if oldest is not None:
            before = Message(id=oldest.id, received_at=oldest.received_at, from_number="", to_number="")
        try:
            async for page in self._client.conversations.messages(conversation_id, before=before, after=after).pages():
                new = await self._in_thread(self._add, conversation_id, page)
                self._report(messages_done=self._progress.messages_done + new)
        except NotFoundError:
            if not await self._is_gone(conversation_id):
                raise
            lost = await self._in_thread(self._store.leave_out, conversation_id)
            self._report(
                conversations_total=self._progress.conversations_total - 1,
                messages_done=self._progress.messages_done - lost,
            )
        else:
            self._report(conversations_done=self._progress.conversations_done + 1)

    def _add(self, conversation_id: str, page: Page[Message]) -> int:
        rows = [(item.received_at, item.id, _files.message_row(conversation_id, item)) for item in page]
        return self._store.add_messages(conversation_id, rows, is_complete=not page.has_more)

    async def _is_gone(self, conversation_id: str) -> bool:
        """Ask for the conversation itself, and for the list: a 404 for all three says that something else is wrong."""
        try:
            await self._client.conversations.get(conversation_id, message_limit=1)
        except NotFoundError:
            await self._client.conversations.list(limit=1)
            return True
        return False

    # Writing

    async def _write(self) -> None:
        counts = await self._in_thread(self._store.counts)
        self._report(phase="writing", messages_done=0, messages_total=counts.messages)
        is_continued = bool(await self._in_thread(self._store.get, "is_continued"))
        for table in TABLES:
            await self._write_file(table, self._order.file(table) if is_continued and table == "messages" else None)
        await self._in_thread(self._save_last)
        await self._in_thread(self._store.finish_writing)

    async def _write_file(self, table: str, append_to: Path | None) -> None:
        part = self._partial / self._order.file(table).name
        rows = self._store.rows(table, _files.CHUNK)
        steps = _files.write(part, table, rows, format_=self._order.format, append_to=append_to)
        try:
            while (written := await self._in_thread(lambda: next(steps, None))) is not None:
                if table == "messages":
                    self._report(messages_done=self._progress.messages_done + written)
        finally:
            # Closed now, not when it is collected: what a file still holds back would land in that of the next run.
            with anyio.CancelScope(shield=True):
                await self._in_thread(steps.close)

    def _save_last(self) -> None:
        notes = {name: self._store.get(name) for name in ("version", "base_url", "format", "key", "settled")}
        self._store.save_last(self._partial / STATE, notes, datetime.fromisoformat(notes["settled"]))

    def _finish(self) -> Result:
        """Put the files in their place, those that an earlier run has not put there yet."""
        counts = self._store.counts()
        skipped = int(self._store.get("left_out", "0"))
        for path in (*map(self._order.file, TABLES), self._order.directory / STATE):
            with suppress(FileNotFoundError):
                (self._partial / path.name).replace(path)
        _sync_directory(self._order.directory)
        self._store.remove()
        with suppress(OSError):  # somebody else's file in it, or the next export
            self._partial.rmdir()
        return Result(
            conversations=counts.conversations,
            messages=counts.messages,
            skipped=skipped,
            conversations_path=self._order.file("conversations"),
            messages_path=self._order.file("messages"),
        )


def _watermark(front: Iterable[Conversation]) -> datetime:
    """Give the instant until which all messages have come to light, given the front of the list.

    By the server's clock where it shows one; ours counts where a message is dated in the future.
    """
    now = datetime.now(UTC)
    latest = max((item.last_message_at for item in front if item.last_message_at is not None), default=now)
    return min(now, latest) - OVERLAP


def _listed(item: Conversation, after: datetime | None) -> Listed:
    is_old = after is not None and item.last_message_at is not None and item.last_message_at <= after
    return Listed(item.id, _files.conversation_row(item), item.message_count, is_old)


def _print(since: datetime | str | None) -> str:
    return _files.print_instant(since) if isinstance(since, datetime) else since or ""


def _sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk, where the system has a way to."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
