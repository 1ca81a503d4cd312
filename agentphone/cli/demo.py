"""The demo: a local AgentPhone over HTTP, and the SDK's job done against it, for a person to read.

It uses what `agentphone` exports and nothing else, and writes plain text: no colours, and a carriage return only where
a terminal will act on it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
import textwrap
import threading
import unicodedata
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

from agentphone import AgentPhoneError, AsyncClient, Client, Conversation, Message
from agentphone.sandbox import Sandbox
from agentphone.sandbox.server import running
from agentphone.webhooks import Event, MessageEvent, Webhook

ROWS = 12
INDENT = "  "
STATE: dict[str, Any] = {"customerName": "Ada", "topic": "order_tracking", "step": 3, "resolved": False}
TEXTS = ("Where is my order ORD-5?", "Will it come today?")
ARRIVAL_SECONDS = 30.0


def demo() -> int:
    """Show the SDK do its job, and give the exit code.

    Raises:
        AgentPhoneError: The SDK failed against its own sandbox.
        OSError: There is no free port.
    """
    # The messages hold emoji; a terminal or a pipe that cannot carry them shows question marks.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    api_key = secrets.token_hex(8)
    with _serving(api_key) as (sandbox, url):
        asyncio.run(_show(sandbox, url, api_key))
    return 0


async def _show(sandbox: Sandbox, url: str, api_key: str) -> None:
    _say(f"A local AgentPhone answers at {url}.")
    async with AsyncClient(api_key, base_url=url) as client:
        conversation = await _show_conversations(client)
        await _show_history(client, conversation)
        await _show_metadata(client, conversation)
        await asyncio.to_thread(_show_loop, sandbox, url, api_key)  # a backend that blocks, as a Django view would
        await _show_errors(client, url)
    _say()
    _say("Done. To keep such a local AgentPhone running: agentphone sandbox --demo")


async def _show_conversations(client: AsyncClient) -> Conversation:
    """Show the first conversations as a table, and give the one with the longest history."""
    _head("1. Conversations, most recent activity first", "async for conversation in client.conversations.list()")
    conversations = [conversation async for conversation in client.conversations.list()]
    rows = [("PARTICIPANT", "LATEST (UTC)", "MESSAGES", "PREVIEW")]
    rows += [
        (
            conversation.participant,
            f"{conversation.last_message_at:%Y-%m-%d %H:%M}" if conversation.last_message_at else "",
            str(conversation.message_count),
            conversation.last_message_preview or "",
        )
        for conversation in conversations[:ROWS]
    ]
    for participant, last, count, preview in rows:
        _say(_cut(f"{INDENT}{participant:<13}  {last:<16}  {count:>8}  {_printable(preview)}", _width()))
    _say(f"{INDENT}{min(ROWS, len(conversations))} of {len(conversations)} conversations shown.")
    return max(conversations, key=lambda conversation: conversation.message_count or 0)


async def _show_history(client: AsyncClient, conversation: Conversation) -> None:
    """Stream a whole history with a progress line, and show how it began and ended."""
    _head(
        f"2. The whole history with {conversation.participant}, newest first",
        "async for message in client.conversations.messages(conversation.id)",
    )
    progress = _Progress(conversation.message_count or 0, "messages")
    newest: list[Message] = []
    oldest: list[Message] = []
    count = 0
    async for message in client.conversations.messages(conversation.id):
        if len(newest) < 3:
            newest.append(message)
        oldest = [message]
        count += 1
        progress.show(count)
    for shown in newest:
        _say_message(shown)
    _say(f"{INDENT}...")
    for shown in oldest:
        _say_message(shown)
    _say(f"{INDENT}{count} messages came, one at a time.")


async def _show_metadata(client: AsyncClient, conversation: Conversation) -> None:
    """Store state in a conversation's metadata, read it back, and clear it."""
    _head("3. State, kept in the conversation's metadata", "await client.conversations.update(id, metadata={...})")
    _say_json("before", conversation.metadata)
    await client.conversations.update(conversation.id, metadata=STATE)
    _say_json("stored", STATE)
    _say_json("read back", (await client.conversations.get(conversation.id)).metadata)
    await client.conversations.update(conversation.id, metadata=None)
    _say_json("cleared", (await client.conversations.get(conversation.id)).metadata)


def _show_loop(sandbox: Sandbox, url: str, api_key: str) -> None:
    """Show the agent's loop: texts arrive as webhooks, and what the handler stores comes with the next one."""
    _head(
        "4. The agent's loop: a text arrives, state is stored, the next text brings it",
        "with client.conversations.state(event.conversation_id) as state: ...",
    )
    with _receiving(url, api_key) as (address, secret, handled):
        sandbox.set_webhook(address, secret)
        for text in TEXTS:
            sandbox.receive_sms(from_number="+15555550199", to_number="+15555550100", body=text)
            event, stored = handled.get(timeout=ARRIVAL_SECONDS)
            _say_json("text", text)
            _say_json("brings", event.conversation_state)
            _say_json("stored", stored)


@contextmanager
def _receiving(url: str, api_key: str) -> Generator[tuple[str, str, Queue[tuple[Event, dict[str, Any]]]]]:
    """Receive webhooks, as an agent's backend would; give its address, its secret and what it has handled."""
    secret = f"whsec_{secrets.token_hex(8)}"
    webhook = Webhook(secret)
    handled: Queue[tuple[Event, dict[str, Any]]] = Queue()

    with Client(api_key, base_url=url) as client:

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                event = webhook.parse(self.rfile.read(int(self.headers["Content-Length"])), self.headers)
                if isinstance(event, MessageEvent):
                    with client.conversations.state(event.conversation_id) as state:
                        state["texts"] = state.get("texts", 0) + 1
                        for word in (event.text or "").split():
                            if word.startswith("ORD-"):
                                state["orderId"] = word.rstrip("?")
                    handled.put((event, state))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # the name in the base class
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, name="agentphone demo webhook", daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/", secret, handled
            finally:
                server.shutdown()


async def _show_errors(client: AsyncClient, url: str) -> None:
    """Show what the SDK says to a wrong key and to a wrong id."""
    _head("5. Errors say whose fault it is, and what to do next", "except AgentPhoneError as error: print(error)")
    async with AsyncClient("a-wrong-key", base_url=url) as stranger:
        try:
            await stranger.conversations.list(limit=1)
        except AgentPhoneError as error:
            _say_error("a wrong key", error)
    try:
        await client.conversations.get("conv_nobody")
    except AgentPhoneError as error:
        _say_error("a wrong id", error)


@contextmanager
def _serving(api_key: str) -> Generator[tuple[Sandbox, str]]:
    """Serve a sandbox with the demonstration data on a free port, give it and its URL, and stop it at the end.

    In a thread and not in a process of its own: however this process ends, the server ends with it.
    """
    with Sandbox(api_key=api_key) as sandbox:
        sandbox.load_demonstration()
        with running(sandbox) as url:
            yield sandbox, url


class _Progress:
    """How far a stream has come: one line that moves on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._moves = sys.stdout.isatty()
        self._step = max(1, total // (32 if self._moves else 4))

    def show(self, count: int) -> None:
        """Say that `count` have come."""
        if count % self._step and count != self._total:
            return
        told = f"{count:>{len(str(self._total))}} of {self._total} {self._what}"
        if self._moves:
            bar = "#" * (32 * count // max(1, self._total))
            told = f"\r{INDENT}[{bar:<32}] {told}" + ("\n" if count == self._total else "")
            sys.stdout.write(told)
            sys.stdout.flush()
        else:
            _say(INDENT + told)


def _say(line: str = "") -> None:
    sys.stdout.write(line + "\n")


def _head(title: str, code: str) -> None:
    _say()
    _say(title)
    _say(f"{INDENT}>>> {code}")
    _say()


def _say_message(message: Message) -> None:
    who = "person" if message.direction == "inbound" else "agent"
    line = f"{INDENT}{message.received_at:%Y-%m-%d %H:%M}  {who:<6}  {_printable(message.body or '')}"
    _say(_cut(line, _width()))


def _say_json(label: str, value: Any) -> None:
    _say_wrapped(f"{label:<9}  ", json.dumps(value, ensure_ascii=False))


def _say_error(label: str, error: AgentPhoneError) -> None:
    _say_wrapped(f"{label:<11}  ", f"{type(error).__name__}: {error}")


def _say_wrapped(label: str, text: str) -> None:
    lines = textwrap.wrap(
        _printable(text),
        _width(),
        initial_indent=INDENT + label,
        subsequent_indent=INDENT + " " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        _say(line)


def _width() -> int:
    return max(60, min(100, shutil.get_terminal_size().columns))


def _printable(text: str) -> str:
    """Give a text on one line, without what would move the cursor or start an escape sequence."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _cut(text: str, width: int) -> str:
    """Cut a line to a terminal's width, in which an emoji takes two columns."""
    if _columns(text) <= width:
        return text
    while _columns(text) > width - 3:
        text = text[:-1]
    return text.rstrip() + "..."


def _columns(letters: Iterable[str]) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in letters)
