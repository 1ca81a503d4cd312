"""Take a whole account out: every conversation and message, as JSON lines, CSV or Parquet.

`export` is all there is. What it takes lies in a database under `DIR/.partial/` until the files appear whole, so that
an export that was killed at any moment goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from datetime import datetime
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, Literal, overload

from agentphone import _portal
from agentphone._client import AsyncClient
from agentphone._paging.bounds import parse_bound
from agentphone._sync import Client
from agentphone.export import _exporter
from agentphone.export._exporter import Progress, Result
from agentphone.export._files import check_format

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
    format: Literal["jsonl", "csv", "parquet"] = "jsonl",  # noqa: A002  # the word that everybody has for it
    concurrency: int = 4,
    since: datetime | str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Coroutine[Any, Any, Result] | Result:
    """Export every conversation and every message into two files, `conversations.FORMAT` and `messages.FORMAT`.

    The files appear whole, and replace those of an earlier export. Killed at any moment, the same call goes on where it
    was: it loses no row, repeats none, and asks for nothing again that it has. Until then what it has lies in
    `DIRECTORY/.partial/`.

    **What is in it.** Every conversation that is there from the first listing to the end, once, as it was listed; and
    of each, every message that was there when its reading began, once. One that is gone before it was read is left out,
    with its messages. Conversations are ordered by id, messages by conversation id and then by `(receivedAt, id)`; so
    two exports of an account that stands still are the same to the byte, interrupted or not.

    **Rows.** The API's fields under the API's names, in messages with `conversationId` in front. Instants are printed
    in UTC with a `Z`. Fields that this SDK does not know come at the end of a line of `jsonl`; the other formats have
    a column `extra` for them, which is JSON, as is `metadata`. In `csv` every text is quoted, null is empty and not
    quoted, and no text is changed: a spreadsheet may take one that begins with `=` for a formula.

    **What is new.** With an instant as `since`, the files have what was received later than it, and the conversations
    in which something was. With `since="last"`, the export goes on from the last one into this directory, in the same
    format: conversations are listed anew, and the messages that it did not have are added at the end of the file, each
    once. It finds what came to light up to an hour after its instant; what the API shows later still, a whole export
    finds. Without an earlier export it is a whole one. What it needs to know stands in `DIRECTORY/.last-export.db`.

    Args:
        client: An `AsyncClient`, with which this is to be awaited; or a `Client`, with which it blocks.
        directory: Where the files are to be; made if it is missing.
        format: `"jsonl"`, `"csv"`, or `"parquet"`, which needs the extra `parquet`.
        concurrency: How many conversations are read at a time, from 1.
        since: Take only what is newer: an aware `datetime`, an ISO 8601 string with an offset, or `"last"`.
        on_progress: Called with a `Progress` at each step, on the event loop's thread; what it raises ends the export.

    Returns:
        How much was exported, and where it is.

    Raises:
        ConfigurationError: Another export is at work in the directory; or what lies there was begun with another
            format, `since`, base URL or API key; or pyarrow is missing. The text says what to do.
        PaginationError: One instant of a conversation holds more messages than a page can, so that it cannot be read.
        AgentPhoneError: The API could not be read. The same call goes on from there.
        OSError: The directory cannot be written, or the disk is full. The same call goes on from there.
        ValueError: An argument is out of its range.
        TypeError: An argument is of another type.
    """
    order = _exporter.ExportOptions(
        directory=Path(directory),
        format=_checked_format(format),
        concurrency=_checked_concurrency(concurrency),
        since=_checked_since(since),
        on_progress=_checked_hook(on_progress),
    )
    if isinstance(client, AsyncClient):
        return _exporter.export(client, order)
    if isinstance(client, Client):
        return _portal.run(_exporter.export, client._async, order)  # noqa: SLF001  # the other face of the same house
    raise TypeError(f"client is an AsyncClient or a Client, not {type(client).__name__}")


def _checked_format(value: Any) -> str:
    check_format(value)
    return str(value)


def _checked_concurrency(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"concurrency is an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"concurrency is 1 or more, not {value}")
    return value


def _checked_since(value: Any) -> datetime | Literal["last"] | None:
    if value is None:
        return None
    if value == _exporter.LAST:
        return _exporter.LAST
    if not isinstance(value, str | datetime):
        raise TypeError(f'since is an aware datetime, an ISO 8601 string or "last", not {type(value).__name__}')
    bound = parse_bound(value, "since")
    return None if bound is None else bound.timestamp


def _checked_hook(value: Any) -> Any:
    if value is not None and (not callable(value) or iscoroutinefunction(value)):
        raise TypeError(f"on_progress is a function that is called and not awaited, or None, not {value!r}")
    return value
