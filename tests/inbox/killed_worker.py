"""A worker that tests kill; `forking` starts it. Its handler counts, fails and keeps a record.

The settings come from the environment. Every event is a line of `record.jsonl`, written at once, so that a kill loses
none. `DIE_AT` names moments, such as `after send`: the process kills itself at each, `DEATHS` times.
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

from agentphone.inbox import Inbox, _steps, _worker, _workflow
from agentphone.inbox._steps import Steps
from agentphone.webhooks import MessageEvent

FOLDER = Path(os.environ["FOLDER"])
DIE_AT = os.environ.get("DIE_AT", "").split(", ")
DEATHS = int(os.environ.get("DEATHS", "1"))

inbox = Inbox()
calls = 0


@define
class State:
    texts: int = 0


def record(event: str, **details: Any) -> None:
    line = json.dumps({"event": event, "at": time.time(), "pid": os.getpid(), **details}) + "\n"
    file = os.open(FOLDER / "record.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def die(moment: str) -> None:
    if moment not in DIE_AT:
        return
    for number in range(DEATHS):
        try:
            os.close(os.open(FOLDER / f"{moment} {number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        record("death", moment=moment)
        os.kill(os.getpid(), signal.SIGKILL)


@inbox.on_message
async def answer(text: MessageEvent, state: State) -> str:
    global calls
    calls += 1
    record("start", conversation=text.conversation_id, text=text.text)
    fails = calls % 5 == 0
    await asyncio.sleep(random.uniform(0, 0.02))
    record("raise" if fails else "end", conversation=text.conversation_id, text=text.text)
    if fails:
        raise RuntimeError("every fifth time")
    state.texts += 1
    return f"{text.text} is number {state.texts}"


def with_deaths(name: str) -> None:
    """Make a step die before its work, and after it but before its result is recorded."""
    work: Callable[..., Awaitable[Any]] = getattr(Steps, name)

    async def step(self: Steps, *arguments: Any) -> Any:
        die(f"before {name}")
        result = await work(self, *arguments)
        die(f"after {name}")
        return result

    setattr(Steps, name, step)


def main(name: str) -> None:
    """Work until a signal."""
    _workflow.INITIAL_BACKOFF = 0.05
    _steps.CONFIRM_SECONDS = 0.5
    _worker.CARE_SECONDS = 0.2
    for step in ("handle", "write_state", "send", "look_up"):
        with_deaths(step)
    inbox.work(name)
