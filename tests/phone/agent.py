"""An agent as a user would write one with nothing but HTTP: it answers texts and keeps a state."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

HEADERS = {"Authorization": "Bearer agent"}


Answer = tuple[str, dict[str, Any]]
"""The text to send, and the state to store before it."""


def repeat(event: dict[str, Any]) -> Answer:
    """Answer with the text itself, and count the texts."""
    state = event["conversationState"] or {}
    text = event["data"]["message"]
    return f"You said: {text}", {**state, "texts": state.get("texts", 0) + 1, "last": text}


class Agent:
    """The deliveries so far, and how to answer the next ones.

    Attributes:
        url: The URL of its webhook.
        statuses: The HTTP statuses to answer the next deliveries with, 202 once there are none left.
        received: The deliveries that were accepted.
    """

    def __init__(self, sandbox_url: str, compose: Callable[[dict[str, Any]], Answer]) -> None:
        self.url: str = ""
        self.statuses: list[int] = []
        self.received: list[dict[str, Any]] = []
        self._sandbox_url = sandbox_url
        self._compose = compose

    def answer(self, event: dict[str, Any]) -> None:
        """Store the state of a conversation, and send the answer to a text."""
        data = event["data"]
        body, state = self._compose(event)
        sent = {"from_number": data["to"], "to_number": data["from"], "body": body}
        with httpx.Client(base_url=self._sandbox_url, headers=HEADERS, timeout=30) as client:
            path = f"/v1/conversations/{data['conversationId']}"
            assert client.patch(path, json={"metadata": state}).is_success
            assert client.post("/v1/messages", json=sent).is_success


@contextmanager
def answering(sandbox_url: str, compose: Callable[[dict[str, Any]], Answer] = repeat) -> Iterator[Agent]:
    """Serve an agent's webhook on a free port."""
    agent = Agent(sandbox_url, compose)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = agent.statuses.pop(0) if agent.statuses else 202
            self.send_response(status)
            self.end_headers()
            if status == 202:
                event = json.loads(body)
                agent.received.append(event)
                agent.answer(event)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        agent.url = f"http://127.0.0.1:{server.server_port}/webhook"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield agent
        finally:
            server.shutdown()
            thread.join()
