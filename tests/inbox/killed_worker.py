"""A worker that tests kill, in a process of its own. Its handler counts, fails and keeps a record.

Every event is a line of `record.jsonl`, written at once, so that a kill loses none. A text may name moments, such as
`after send`: the process kills itself at each, once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from attrs import define

from agentphone import AsyncClient
from agentphone.inbox import Inbox, _steps, _worker, _workflow
from agentphone.inbox._steps import Steps
from agentphone.webhooks import MessageEvent


@define
class State:
    texts: int = 0


def work(folder: Path, api: str, database: str, name: str, confirm: float) -> None:
    """Work until a signal.

    Args:
        folder: Where the record is.
        api: The URL of the sandbox.
        database: The URL of the database.
        name: The worker's name.
        confirm: Seconds for which a reply is looked for.
    """
    _workflow.INITIAL_BACKOFF = 0.05
    _steps.CONFIRM_SECONDS = confirm
    _worker.CARE_SECONDS = 0.2
    for step in ("handle", "write_state", "send", "look_up"):
        _die_around(step, folder)
    inbox = Inbox(AsyncClient("any-key", base_url=api), database=database)
    calls = 0

    @inbox.on_message
    async def answer(text: MessageEvent, state: State) -> str:
        nonlocal calls
        calls += 1
        fails = calls % 5 == 0
        record(folder, "start", conversation=text.conversation_id, text=text.text)
        await asyncio.sleep(random.uniform(0, 0.02))
        record(folder, "raise" if fails else "end", conversation=text.conversation_id, text=text.text)
        if fails:
            raise RuntimeError("every fifth time")
        state.texts += 1
        return f"{text.text} is number {state.texts}"

    inbox.work(name)


def record(folder: Path, event: str, **details: Any) -> None:
    line = json.dumps({"event": event, "at": time.time(), "pid": os.getpid(), **details}) + "\n"
    file = os.open(folder / "record.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def _die_around(name: str, folder: Path) -> None:
    """Make a step die before its work, and after it but before its result is recorded, where the text says so."""
    work: Callable[..., Awaitable[Any]] = getattr(Steps, name)

    async def step(self: Steps, *arguments: Any) -> Any:
        [event] = [each for each in arguments if isinstance(each, MessageEvent)]
        _die(f"before {name}", event, folder)
        result = await work(self, *arguments)
        _die(f"after {name}", event, folder)
        return result

    setattr(Steps, name, step)


def _die(moment: str, event: MessageEvent, folder: Path) -> None:
    if moment not in str(event.text):
        return
    try:
        os.close(os.open(folder / f"{event.message_id} {moment}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    record(folder, "death", moment=moment)
    os.kill(os.getpid(), signal.SIGKILL)
