"""Export a whole account: every conversation and message, as JSON lines, CSV or Parquet.

`export` is the only function. It collects rows in a database under `DIR/.partial/` until the files are complete, so an
export that was killed at any moment resumes where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, overload

from agentphone import _portal
from agentphone._checks import check_callback, check_integer
from agentphone._client import AsyncClient
from agentphone._sync import Client
from agentphone.export import _exporter
from agentphone.export._exporter import Progress, Result
from agentphone.export._files import check_format
from agentphone.export._since import parse_since

__all__ = ["Progress", "Result", "export"]


@overload
def export(
    client: AsyncClient,
    directory: str | os.PathLike[str],
    *,
    format: Literal["jsonl", "csv", "parquet"] = "jsonl",
    concurrency: int = 4,
    since: datetime | str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Coroutine[Any, Any, Result]: ...
@overload
def export(
    client: Client,
    directory: str | os.PathLike[str],
    *,
    format: Literal["jsonl", "csv", "parquet"] = "jsonl",
    concurrency: int = 4,
    since: datetime | str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Result: ...
def export(
    client: AsyncClient | Client,
    directory: str | os.PathLike[str],
    *,
    format: Literal["jsonl", "csv", "parquet"] = "jsonl",  # noqa: A002  # the usual name
    concurrency: int = 4,
    since: datetime | str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Coroutine[Any, Any, Result] | Result:
    """Export every conversation and every message into two files, `conversations.FORMAT` and `messages.FORMAT`.

    The files appear complete, and replace those of an earlier export. If the process is killed, the same call resumes:
    it loses no row, repeats none, and does not request again what it already has. Until then its rows are kept in
    `DIRECTORY/.partial/`.

    **Contents.** Every conversation that exists from the first listing to the end, once, as it was listed; and every
    message of each that existed when its reading began, once. A conversation that is deleted before it was read is
    skipped, with its messages. Conversations are ordered by id, messages by conversation id and then by
    `(receivedAt, id)`. Two exports of an unchanged account are equal byte for byte, interrupted or not.

    **Rows.** The API's fields under the API's names; messages begin with `conversationId`. Timestamps are in UTC with
    six digits and `Z`; in `parquet` they have the type `timestamp[us, UTC]`. In `jsonl`, fields that this SDK does not
    know follow the others; the other formats have a column `extra` for them, which is JSON, as are other objects. In
    `csv` every text is quoted, null is empty and not quoted, and no text is changed: a spreadsheet may read one that
    begins with `=` as a formula. In `parquet` a row group has at most 100,000 rows.

    **Incremental exports.** With a time as `since`, the files hold the messages received later than it, and their
    conversations. An age, such as `"90m"`, `"24h"` or `"7d"`, counts back from the call, and `"yesterday"` is its
    midnight in UTC; an export that resumes keeps the time that it began with. With `since="last"`, the export continues
    the last one in this directory, in the same format: conversations are listed again, and new messages are appended to
    the file, each once. Messages that the API publishes up to an hour after their timestamp are found; for later ones,
    make a full export. Without an earlier export it is a full one. Its state is in `DIRECTORY/.last-export.db`.

    Args:
        client: An `AsyncClient`, with which the call is awaited; or a `Client`, with which it blocks.
        directory: Where to write the files; created if it does not exist.
        format: `"jsonl"`, `"csv"`, or `"parquet"`, which needs the extra `parquet`.
        concurrency: How many conversations to read at a time, from 1.
        since: Export only what is newer: an aware `datetime`, an ISO 8601 string with an offset, an age such as
            `"24h"`, `"yesterday"` or `"last"`.
        on_progress: Called with a `Progress` at each step, on the event loop's thread. An exception that it raises ends
            the export.

    Returns:
        How much was exported, and where the files are.

    Raises:
        ConfigurationError: Another export is running in the directory, or an unfinished one there was begun with
            another format, `since`, base URL or API key, or pyarrow is not installed. The text says what to do.
        PaginationError: More messages of a conversation share one timestamp than fit in a page, so they cannot be read.
        AgentPhoneError: The API could not be read. The same call resumes.
        OSError: The directory cannot be written, or the disk is full. The same call resumes.
        ValueError: An argument is out of its range.
        TypeError: An argument has the wrong type.
    """
    check_format(format)
    check_integer("concurrency", concurrency, minimum=1)
    check_callback("on_progress", on_progress)
    options = _exporter.ExportOptions(
        directory=Path(directory),
        format=format,
        concurrency=concurrency,
        since=parse_since(since, "since"),
        on_progress=on_progress,
    )
    if isinstance(client, AsyncClient):
        return _exporter.export(client, options)
    if isinstance(client, Client):
        return _portal.run(_exporter.export, client._async, options)  # noqa: SLF001  # the async client of the facade
    raise TypeError(f"client must be an AsyncClient or a Client, got {type(client).__name__}")
