"""The demo: the SDK against a local AgentPhone over HTTP, with output for people.

It uses only the public API of `agentphone`, and writes plain text: no colors, and carriage returns only to a terminal.
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
from agentphone.webhooks import MessageEvent, Webhook

ROWS = 12
INDENT = "  "
STATE: dict[str, Any] = {"customerName": "Ada", "topic": "order_tracking", "step": 3, "resolved": False}
TEXTS = ("Where is my order ORD-5?", "Will it come today?")
ARRIVAL_SECONDS = 30.0


def demo() -> int:
    """Run the demo and return the exit code.

    Raises:
        AgentPhoneError: The SDK failed against its own sandbox.
        OSError: There is no free port.
    """
    # The messages contain emoji; an output whose encoding lacks them shows question marks.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    api_key = secrets.token_hex(8)
    with _serving(api_key) as (sandbox, url):
        asyncio.run(_show(sandbox, url, api_key))
    return 0


async def _show(sandbox: Sandbox, url: str, api_key: str) -> None:
    _print(f"A local AgentPhone is running at {url}.")
    async with AsyncClient(api_key, base_url=url) as client:
        conversation = await _show_conversations(client)
        await _show_history(client, conversation)
        await _show_metadata(client, conversation)
        await asyncio.to_thread(_show_loop, sandbox, url, api_key)  # blocking code, as in a Django view
        await _show_errors(client, url)
    _print()
    _print("Done. To keep a local AgentPhone like this running: agentphone sandbox --demo")


async def _show_conversations(client: AsyncClient) -> Conversation:
    """Show the first conversations as a table, and return the one with the longest history."""
    _print_heading(
        "1. Conversations, most recent activity first", "async for conversation in client.conversations.list()"
    )
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
        _print(_truncate(f"{INDENT}{participant:<13}  {last:<16}  {count:>8}  {_printable(preview)}", _width()))
    _print(f"{INDENT}{min(ROWS, len(conversations))} of {len(conversations)} conversations shown.")
    return max(conversations, key=lambda conversation: conversation.message_count or 0)


async def _show_history(client: AsyncClient, conversation: Conversation) -> None:
    """Stream a whole history with a progress line, and show its ends."""
    _print_heading(
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
        _print_message(shown)
    _print(f"{INDENT}...")
    for shown in oldest:
        _print_message(shown)
    _print(f"{INDENT}{count} messages received, one at a time.")


async def _show_metadata(client: AsyncClient, conversation: Conversation) -> None:
    """Store state in a conversation's metadata, read it back, and clear it."""
    _print_heading("3. State in the conversation's metadata", "await client.conversations.update(id, metadata={...})")
    _print_json("before", conversation.metadata)
    await client.conversations.update(conversation.id, metadata=STATE)
    _print_json("stored", STATE)
    _print_json("read back", (await client.conversations.get(conversation.id)).metadata)
    await client.conversations.update(conversation.id, metadata=None)
    _print_json("cleared", (await client.conversations.get(conversation.id)).metadata)


def _show_loop(sandbox: Sandbox, url: str, api_key: str) -> None:
    """Show an agent's loop: texts arrive as webhooks, with the state that the handler stored, and are answered."""
    _print_heading(
        "4. An agent's loop: a text with its state, a reply, new state",
        "client.conversations.reply(event, text)",
    )
    with _receiving(url, api_key) as (address, secret, handled):
        sandbox.set_webhook(address, secret)
        conversation_id = ""
        for text in TEXTS:
            held = sandbox.receive_sms(from_number="+15555550199", to_number="+15555550100", body=text)
            conversation_id = held["conversationId"]
            event, stored = handled.get(timeout=ARRIVAL_SECONDS)
            _print_json("text", text)
            _print_json("state", event.conversation_state)
            _print_json("stored", stored)
        _print(f"{INDENT}The conversation now:")
        with Client(api_key, base_url=url) as client:
            for message in client.conversations.messages(conversation_id, order="asc"):
                _print_message(message)


@contextmanager
def _receiving(url: str, api_key: str) -> Generator[tuple[str, str, Queue[tuple[MessageEvent, dict[str, Any]]]]]:
    """Receive webhooks like an agent's backend; yield its URL, its secret and the handled events."""
    secret = f"whsec_{secrets.token_hex(8)}"
    webhook = Webhook(secret)
    handled: Queue[tuple[MessageEvent, dict[str, Any]]] = Queue()

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
                    client.conversations.reply(event, f"{state['orderId']} arrives today.")
                    handled.put((event, state))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # the name in the base class
                """Log nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, name="agentphone demo webhook", daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/", secret, handled
            finally:
                server.shutdown()


async def _show_errors(client: AsyncClient, url: str) -> None:
    """Show the errors for a wrong key and a wrong id."""
    _print_heading("5. Errors say what happened, and what to do next", "except AgentPhoneError as error: print(error)")
    async with AsyncClient("a-wrong-key", base_url=url) as stranger:
        try:
            await stranger.conversations.list(limit=1)
        except AgentPhoneError as error:
            _print_error("a wrong key", error)
    try:
        await client.conversations.get("conv_nobody")
    except AgentPhoneError as error:
        _print_error("a wrong id", error)


@contextmanager
def _serving(api_key: str) -> Generator[tuple[Sandbox, str]]:
    """Serve a sandbox with the demo data on a free port while the block runs; yield it and its URL.

    It runs in a thread, not in a process, so that it cannot outlive this process.
    """
    with Sandbox(api_key=api_key) as sandbox:
        sandbox.load_demo_data()
        with running(sandbox) as url:
            yield sandbox, url


class _Progress:
    """The progress of a stream: one line that is redrawn in a terminal, four lines elsewhere."""

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._what = what
        self._is_terminal = sys.stdout.isatty()
        self._step = max(1, total // (32 if self._is_terminal else 4))

    def show(self, count: int) -> None:
        """Show that `count` items were received."""
        if count % self._step and count != self._total:
            return
        text = f"{count:>{len(str(self._total))}} of {self._total} {self._what}"
        if self._is_terminal:
            bar = "#" * (32 * count // max(1, self._total))
            text = f"\r{INDENT}[{bar:<32}] {text}" + ("\n" if count == self._total else "")
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            _print(INDENT + text)


def _print(line: str = "") -> None:
    sys.stdout.write(line + "\n")


def _print_heading(title: str, code: str) -> None:
    _print()
    _print(title)
    _print(f"{INDENT}>>> {code}")
    _print()


def _print_message(message: Message) -> None:
    who = "person" if message.direction == "inbound" else "agent"
    line = f"{INDENT}{message.received_at:%Y-%m-%d %H:%M}  {who:<6}  {_printable(message.body or '')}"
    _print(_truncate(line, _width()))


def _print_json(label: str, value: Any) -> None:
    _print_wrapped(f"{label:<9}  ", json.dumps(value, ensure_ascii=False))


def _print_error(label: str, error: AgentPhoneError) -> None:
    _print_wrapped(f"{label:<11}  ", f"{type(error).__name__}: {error}")


def _print_wrapped(label: str, text: str) -> None:
    lines = textwrap.wrap(
        _printable(text),
        _width(),
        initial_indent=INDENT + label,
        subsequent_indent=INDENT + " " * len(label),
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        _print(line)


def _width() -> int:
    return max(60, min(100, shutil.get_terminal_size().columns))


def _printable(text: str) -> str:
    """Return a text on one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _truncate(text: str, width: int) -> str:
    """Truncate a line to the terminal's width, in which an emoji takes two columns."""
    if _width_of(text) <= width:
        return text
    while _width_of(text) > width - 3:
        text = text[:-1]
    return text.rstrip() + "..."


def _width_of(text: Iterable[str]) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
