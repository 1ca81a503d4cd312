"""Export a whole account: every conversation and message, as JSON lines, CSV or Parquet.

`export` writes two files, `conversations.FORMAT` and `messages.FORMAT`, with either client. `agentphone export DIR`
does the same from a shell.

```python
import asyncio

from agentphone import AsyncClient
from agentphone.export import Progress, export


def show(progress: Progress) -> None:
    if progress.phase == "reading":
        print("read", progress.messages_done, "of", progress.messages_total)


async def main() -> None:
    async with AsyncClient() as client:
        result = await export(client, "backup", concurrency=8, on_progress=show)
        print(result.messages, "messages in", result.messages_path)

        result = await export(client, "backup", since="last")  # later, and again and again
        print(result.messages, "new messages")  # 0 new messages


asyncio.run(main())
```

- **Nothing is lost or repeated.** Stopped at any moment (`kill -9`, Ctrl-C, a full disk, an API that fails), the same
  call continues where it was and requests nothing twice. Its rows are kept in `DIR/.partial/` until the files appear,
  complete. They replace those of an earlier export, also if they hold less.
- **The same account, the same bytes.** Conversations are ordered by id, messages by conversation and
  `(receivedAt, id)`; only `since="last"` puts new messages after all others.
- **Little memory**, however many messages there are; on disk, two and a half times the size of the files while it runs.

| | `jsonl` | `csv` | `parquet` (needs the extra `parquet`) |
|---|---|---|---|
| a timestamp | `"2025-06-30T12:00:00.000000Z"` | the same | `timestamp[us, UTC]` |
| `metadata` | an object | JSON | JSON |
| `mediaUrls` | an array | JSON | a list |
| `reactions`, `replyTo`, `participants` | as the API has them | JSON | JSON |
| an optional field without a value | left out | null | null |
| fields that this SDK does not know | at the end of the line | JSON in the column `extra` | JSON in the column `extra` |
| null | `null` | empty; an empty text is `""` | null |

## Incremental exports

With `since="last"` an export continues the one before it in the same directory. It lists the conversations again, and
writes a new file of messages: those of the last export first, then the new ones. A scheduled job needs no other
command: the first run exports everything, and a full export that was interrupted is finished.

- It finds messages that the API publishes up to an hour after their timestamp, not later ones.
- It does not read again what it has: reactions and statuses that change later are missing, and messages of deleted
  conversations stay. A full export now and then, in the same directory, has everything as it is.
- It continues the file of the last export byte for byte. If that was edited, cut or replaced by an older one, the
  export stops and says so; work on a copy.
- A directory that it keeps up to date accepts no export from a time or in another format, which would replace it or
  leave it behind. Use a second directory for a second format. In other directories each export replaces the last one:
  `export(client, "recent", since="24h")` does so every day.

## With pandas, DuckDB and Spark

Parquet needs no settings: timestamps are timestamps, and phone numbers stay text.

```python
import json

import duckdb
import pandas as pd

from agentphone import Client
from agentphone.export import export

with Client() as client:
    export(client, "backup", format="parquet")

messages = pd.read_parquet("backup/messages.parquet")
per_day = messages.resample("D", on="receivedAt").size()  # in UTC
print(per_day["2025-06-30"])  # 34

# The metadata as columns, each with its type; in JSON lines it needs no json.loads.
conversations = pd.read_parquet("backup/conversations.parquet")
metadata = [json.loads(text) for text in conversations["metadata"].fillna("{}")]
columns = pd.DataFrame(metadata, index=conversations.index, dtype=object).convert_dtypes()
conversations = conversations.join(columns.add_prefix("metadata."))
print(conversations.groupby("metadata.topic")["messageCount"].sum()["returns"])  # 152

duckdb.sql("SET TimeZone = 'UTC'")  # for days, and for what is shown
print(duckdb.sql("FROM 'backup/messages.parquet' SELECT direction, max(receivedAt) GROUP BY ALL"))
```

The other formats need a few, or short codes such as `22395`, and in pandas all phone numbers, become integers:

| | pandas | DuckDB |
|---|---|---|
| `parquet` | `pd.read_parquet("messages.parquet")` | `FROM 'messages.parquet'` |
| `jsonl` | `pd.read_json("messages.jsonl", lines=True, dtype=False)`, and `pd.to_datetime` for timestamps | `FROM 'messages.jsonl'` |
| `csv` | `pd.read_csv("messages.csv", dtype=str, keep_default_na=False, parse_dates=["receivedAt", "deliveredAt", "readAt"])` | `FROM read_csv('messages.csv', types = {'body': 'VARCHAR', 'fromNumber': 'VARCHAR', 'toNumber': 'VARCHAR', 'senderIdentifier': 'VARCHAR', 'errorCode': 'VARCHAR'}, allow_quoted_nulls = false)` |

In CSV every text is quoted, and none is changed: import it into a spreadsheet as text, or one that begins with `=` is
taken for a formula. In Spark, `spark.read.parquet("backup/messages.parquet")` reads timestamps as `TimestampType` (the
tests do not run Spark). A row group has at most 100,000 rows, so that Spark and DuckDB can read a large file in
parallel.

Without an export, pages and models make DataFrames too:

```python
import pandas as pd

from agentphone import Client

with Client() as client:
    frame = pd.DataFrame(conversation.to_dict() for conversation in client.conversations.list())
frame["lastMessageAt"] = pd.to_datetime(frame["lastMessageAt"], format="ISO8601")
print(frame.nlargest(3, "messageCount")[["participant", "messageCount", "lastMessageAt"]])
```
"""  # noqa: E501  # tables

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

    The files appear complete, and replace those of an earlier export, also if they hold less. If the process is killed,
    the same call resumes: it loses no row, repeats none, and does not request again what it already has. Until then its
    rows are kept in `DIRECTORY/.partial/`.

    **Contents.** Every conversation that exists from the first listing to the end, once, as it was listed; and every
    message of each that existed when its reading began, once. A conversation that is deleted before it was read is
    skipped, with its messages. Conversations are ordered by id, messages by conversation id and then by
    `(receivedAt, id)`. Two exports of an unchanged account are equal byte for byte, interrupted or not (but not those
    with `since="last"`).

    **Rows.** The API's fields under the API's names; messages begin with `conversationId`. Timestamps are in UTC with
    six digits and `Z`; in `parquet` they have the type `timestamp[us, UTC]`. In `csv` and `parquet` every field of
    `Conversation` and `Message` is a column, null where the API has none; objects in it are JSON. Fields that this SDK
    does not know, and values of unexpected types, are JSON in the column `extra`; in `jsonl` they follow the others. In
    `csv` every text is quoted, null is empty and not quoted, and no text is changed: a spreadsheet may read one that
    begins with `=` as a formula. In `parquet` a row group has at most 100,000 rows.

    **Incremental exports.** With a time as `since`, the files hold the messages received later than it, and their
    conversations. An age, such as `"90m"`, `"24h"` or `"7d"`, counts back from the call, and `"yesterday"` is its
    midnight in UTC; an export that resumes keeps the time that it began with. With `since="last"`, the export continues
    the last one in this directory, in the same format: conversations are listed again, and a new file has the earlier
    messages first and the new ones, each once, at the end. Messages that the API publishes up to an hour after their
    timestamp are found. Messages exported before stay as they were, also those of conversations that were deleted
    since: for later changes, make a full export. Without an earlier export it is a full one, and an unfinished full
    export is finished. A directory kept up to date so accepts no export from a time, nor in another format. The state
    is in `DIRECTORY/.last-export.db`.

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
        ConfigurationError: Another export is running in the directory; an unfinished one there was begun with another
            format, `since`, base URL or API key; `since="last"` cannot continue the last one, because of these or
            because its file has changed; the export would replace what `since="last"` keeps; or pyarrow is not
            installed. The text says what to do.
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
