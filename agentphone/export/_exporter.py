"""Run one export: list, read, write, move the files into place. Each step can be repeated.

Blocking work (SQLite, files) runs in a worker thread, one piece at a time, so the event loop is never blocked.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
from attrs import evolve, frozen

from agentphone._client import AsyncClient
from agentphone._timestamps import format_timestamp
from agentphone.errors import ConfigurationError, NotFoundError
from agentphone.export import _files
from agentphone.export._fingerprint import Fingerprint
from agentphone.export._since import LAST, resolve
from agentphone.export._store import LISTING, WRITTEN, ExportDatabase, LastExport, Listed, MessageKey
from agentphone.models import Conversation, Cursor, Message, Page

T = TypeVar("T")

PARTIAL = ".partial"
STATE = ".last-export.db"
TABLES = ("messages", "conversations")

OVERLAP = timedelta(hours=1)
"""How late after its timestamp the API may publish a message for the next `since="last"` to find it."""


@frozen(kw_only=True)
class Progress:
    """The progress of an export, earlier runs of it included."""

    phase: Literal["listing", "reading", "writing"]
    """Conversations are listed, then their messages are read, then the files are written."""
    conversations_done: int = 0
    """How many conversations were read completely."""
    conversations_total: int = 0
    """How many there are; while listing, how many so far."""
    messages_done: int = 0
    """How many messages were read; while writing, how many were written."""
    messages_total: int | None = None
    """How many there will be: while reading, the sum of `messageCount`. None while listing, if only newer messages are
    read, and where the API leaves `messageCount` out."""


@frozen(kw_only=True)
class Result:
    """What a finished export wrote, and where."""

    conversations: int
    """How many conversations are in the file."""
    messages: int
    """How many messages this export read."""
    messages_total: int
    """How many messages are in the file: with `since="last"`, those of earlier exports too."""
    skipped: int
    """How many conversations were deleted between listing and reading."""
    conversations_path: Path
    """The file of the conversations."""
    messages_path: Path
    """The file of the messages."""


@frozen(kw_only=True)
class ExportOptions:
    """The caller's arguments, checked."""

    directory: Path
    format: str
    concurrency: int
    since: datetime | str | None
    """As `parse_since` returned it."""
    on_progress: Callable[[Progress], object] | None

    def file(self, table: str) -> Path:
        """Return the final path of a file."""
        return self.directory / f"{table}.{self.format}"


async def export(client: AsyncClient, options: ExportOptions) -> Result:
    """Export an account."""
    return await _Export(client, options).run()


class _Export:
    def __init__(self, client: AsyncClient, options: ExportOptions) -> None:
        self._client = client
        self._options = options
        self._partial = options.directory / PARTIAL
        self._store = ExportDatabase(self._partial)
        self._progress = Progress(phase="listing")
        self._thread = anyio.CapacityLimiter(1)
        self._lock = threading.Lock()

    async def run(self) -> Result:
        try:
            phase = await self._in_thread(self._begin)
            if phase == LISTING:
                await self._list()
            counts = await self._in_thread(self._store.counts)
            is_full = not await self._in_thread(self._store.get, "after")
            self._report(
                phase="reading",
                conversations_done=counts.complete,
                conversations_total=counts.conversations,
                messages_done=counts.messages,
                messages_total=counts.announced if is_full else None,
            )
            if phase != WRITTEN:
                await self._read()
                await self._write()
            return await self._in_thread(self._finish)
        finally:
            with anyio.CancelScope(shield=True):
                await self._in_thread(self._store.close)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a blocking function in the worker thread.

        The lock is needed because asyncio's native cancellation does not wait for the thread.
        """

        def work() -> T:
            with self._lock:
                return function(*arguments)

        return await anyio.to_thread.run_sync(work, limiter=self._thread)

    def _report(self, **changes: Any) -> None:
        self._progress = evolve(self._progress, **changes)
        if self._options.on_progress is not None:
            self._options.on_progress(self._progress)

    def _begin(self) -> str:
        """Open an unfinished export or begin a new one; return its phase."""
        fingerprint, since = self._fingerprint(), _to_text(self._options.since)
        # Slow, and before mkdir: another export that ends meanwhile removes the directory.
        own = fingerprint.to_stored()
        self._partial.mkdir(parents=True, exist_ok=True)
        stored = self._store.open({**own, "since": since})
        if stored.get("key") == own["key"]:
            return stored["phase"]
        unfinished = f"{str(self._options.directory)!r} holds an unfinished export that was begun"
        or_delete = f"or delete {str(self._partial)!r} to begin again."
        difference = fingerprint.difference(stored)
        if difference is not None:
            raise ConfigurationError(f"{unfinished} with {difference}. Finish that one first, {or_delete}")
        begun_since = stored.get("since", "")
        # A full export has all that "last" is to have: a scheduled "last" finishes one that was interrupted.
        if begun_since != since and (begun_since or since != LAST):
            begun = f"with since {begun_since!r}" if begun_since else "without since"
            raise ConfigurationError(f"{unfinished} {begun}. Run it once more {begun} to finish it, {or_delete}")
        return stored["phase"]

    def _fingerprint(self) -> Fingerprint:
        config = self._client._config  # noqa: SLF001  # the key is not public
        return Fingerprint({"base_url": config.base_url, "format": self._options.format}, config.api_key)

    async def _list(self) -> None:
        since = self._options.since
        after: datetime | None = None
        last = await self._in_thread(self._read_last)
        is_kept = since == LAST or (last is not None and last.is_kept)
        if since != LAST:
            last = None
            after = None if since is None else resolve(since, datetime.now(UTC))
        elif last is not None:
            after = last.watermark
            await self._in_steps(_files.check_earlier(self._options.file("messages"), last.digest))
            await self._in_thread(self._store.add_known, self._options.directory / STATE)
        watermark: datetime | None = None
        async for page in self._client.conversations.list(concurrency=self._options.concurrency).pages():
            if watermark is None:
                watermark = _watermark(page)
            listed = [_listed(item, after) for item in page]
            if last is None:
                listed = [item for item in listed if not item.is_complete]
            await self._in_thread(self._store.add_listed, listed)
            self._report(conversations_total=self._progress.conversations_total + len(listed))
        watermark = watermark or _watermark(())
        notes = {
            "after": _to_text(after),
            "earlier_messages": "0" if last is None else str(last.messages),
            "earlier_digest": "" if last is None else last.digest,
            "is_kept": "yes" if is_kept else "",
            # Never move the watermark back: this run did not check earlier messages.
            "watermark": _to_text(max(watermark, after) if after else watermark),
        }
        await self._in_thread(self._store.finish_listing, notes)

    def _read_last(self) -> LastExport | None:
        """Read the state of the last export into this directory, and check that this one may continue or replace it.

        Returns:
            The state; None if there is none.
        """
        options, path = self._options, self._options.directory / STATE
        try:
            last = self._store.read_last(path)
        except ConfigurationError:
            if options.since is None:
                return None  # a full export replaces it
            raise
        if last is None:
            return None
        directory = repr(str(options.directory))
        if options.since == LAST:
            difference = self._fingerprint().difference(last.fingerprint)
            if difference is not None:
                raise ConfigurationError(
                    f"The last export into {directory} was made with {difference}, so it cannot be continued. Use"
                    f" another directory, or delete {str(path)!r} and export without since."
                )
        elif last.is_kept and (options.since is not None or last.fingerprint.get("format") != options.format):
            kept_format = last.fingerprint.get("format")
            change = (
                f"in format {options.format!r} would end that"
                if options.since is None
                else f"with since {_to_text(options.since)!r} would replace it by less"
            )
            raise ConfigurationError(
                f"{directory} is kept up to date with since 'last' in format {kept_format!r}, and an export {change}."
                f" Use another directory, or delete {str(path)!r} first."
            )
        return last

    async def _read(self) -> None:
        after = await self._in_thread(self._store.get, "after")
        failures: list[Exception] = []

        async def read_conversations() -> None:
            try:
                while (found := await self._in_thread(self._store.next_conversation)) is not None:
                    await self._read_conversation(*found, after or None)
            except Exception as error:  # noqa: BLE001  # raised below: a task group would wrap it in a group
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(self._options.concurrency):
                group.start_soon(read_conversations)
        if failures:
            raise failures[0]

    async def _read_conversation(self, conversation_id: str, oldest: MessageKey | None, after: str | None) -> None:
        """Read a conversation's messages, newest first, from where an earlier run stopped."""
        before = None
        if oldest is not None:
            before = Cursor(oldest.received_at, oldest.id)
        try:
            async for page in self._client.conversations.messages(conversation_id, before=before, after=after).pages():
                new = await self._in_thread(self._add, conversation_id, page)
                self._report(messages_done=self._progress.messages_done + new)
        except NotFoundError:
            if not await self._is_gone(conversation_id):
                raise
            lost = await self._in_thread(self._store.skip, conversation_id)
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
        """Check that the conversation was deleted. A 404 for it and for the list as well has another cause."""
        try:
            await self._client.conversations.get(conversation_id, message_limit=1)
        except NotFoundError:
            await self._client.conversations.list(limit=1)
            return True
        return False

    async def _write(self) -> None:
        counts = await self._in_thread(self._store.counts)
        self._report(phase="writing", messages_done=0, messages_total=counts.messages)
        earlier = await self._in_thread(self._store.get, "earlier_digest")
        if earlier:
            await self._in_steps(_files.check_earlier(self._options.file("messages"), earlier))
        digest = await self._write_file("messages", is_appended=bool(earlier))
        await self._write_file("conversations", is_appended=False)
        await self._in_thread(self._save_last, digest)
        await self._in_thread(self._store.finish_writing)

    async def _write_file(self, table: str, *, is_appended: bool) -> str:
        """Write the file of a table, after the rows of the earlier one if `is_appended`; return its digest."""
        file = self._options.file(table)

        def report(written: int) -> None:
            if table == "messages" and written:
                self._report(messages_done=self._progress.messages_done + written)

        rows = self._store.rows(table, _files.CHUNK)
        steps = _files.write(
            self._partial / file.name,
            table,
            rows,
            format_=self._options.format,
            append_to=file if is_appended else None,
        )
        return await self._in_steps(steps, report)

    async def _in_steps(self, steps: Generator[int, None, T], on_step: Callable[[int], object] = lambda _: None) -> T:
        """Run a generator in the worker thread, one step at a time, and return what it returns."""
        result: list[T] = []

        def run() -> Generator[int]:
            result.append((yield from steps))

        running = run()
        try:
            while (written := await self._in_thread(lambda: next(running, None))) is not None:
                on_step(written)
        finally:
            # Close it now, not at garbage collection: buffered rows would be written into the next run's file.
            with anyio.CancelScope(shield=True):
                await self._in_thread(running.close)
        return result[0]

    def _save_last(self, digest: str) -> None:
        notes = {
            name: self._store.get(name) for name in ("version", "base_url", "format", "key", "watermark", "is_kept")
        }
        notes |= {"messages": str(self._messages_total()), "digest": digest}
        self._store.save_last(self._partial / STATE, notes, datetime.fromisoformat(notes["watermark"]))

    def _messages_total(self) -> int:
        return int(self._store.get("earlier_messages", "0")) + self._store.counts().messages

    def _finish(self) -> Result:
        """Move the files into place, those that an earlier run has not moved yet."""
        counts, messages_total = self._store.counts(), self._messages_total()
        skipped = int(self._store.get("skipped", "0"))
        for path in (*map(self._options.file, TABLES), self._options.directory / STATE):
            with suppress(FileNotFoundError):
                (self._partial / path.name).replace(path)
        _sync_directory(self._options.directory)
        self._store.remove()
        with suppress(OSError):  # it holds a file of someone else, or the next export
            self._partial.rmdir()
        return Result(
            conversations=counts.conversations,
            messages=counts.messages,
            messages_total=messages_total,
            skipped=skipped,
            conversations_path=self._options.file("conversations"),
            messages_path=self._options.file("messages"),
        )


def _watermark(front: Iterable[Conversation]) -> datetime:
    """Return the time until which all messages were published, from the first page of the list.

    The newest message shows the server's clock; a message dated in the future does not, so ours is the upper bound.
    """
    now = datetime.now(UTC)
    latest = max((item.last_message_at for item in front if item.last_message_at is not None), default=now)
    return min(now, latest) - OVERLAP


def _listed(item: Conversation, after: datetime | None) -> Listed:
    is_old = after is not None and item.last_message_at is not None and item.last_message_at <= after
    return Listed(item.id, _files.conversation_row(item), item.message_count, is_old)


def _to_text(since: datetime | str | None) -> str:
    return format_timestamp(since) if isinstance(since, datetime) else since or ""


def _sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk, where the system supports it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
