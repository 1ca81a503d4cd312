"""The server for all contenders: canned responses over real HTTP/1.1, each in one `send`.

    python benchmarks/server.py [--conversations 10000] [--messages 1000000] [--delay 0.05]

It listens on a free port of this machine, which is the first line on stdout, until stdin ends. It knows the two lists
with `limit`, `offset` and `before`, accepts any message that is sent, and knows nothing else of the API: its time is
part of everybody's. It answers 20,000 requests a second and one alone within 50 µs, where the fastest contender asks
for 6,000 and waits 350 µs. Imports nothing of `benchmarks` or `agentphone`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

BEGIN = datetime(2015, 1, 1)  # UTC, as all instants here; naive ones print without an offset
REQUEST = re.compile(rb"(GET|POST) (\S+) HTTP/1\.1\r\n")
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
HEAD = (
    "HTTP/1.1 {status}\r\n"
    "Date: Mon, 30 Jun 2025 12:00:00 GMT\r\n"
    "Server: canned\r\n"
    "Content-Type: application/json\r\n"
    "Content-Length: {length}\r\n"
    "X-Request-Id: req_1\r\n"
    "\r\n"
)

SENT = b"""{
    "id": "msg_sent", "status": "sent", "channel": "sms", "from_number": "+15555550100", "to_number": "+15555550099",
    "conversation_id": "conv_1", "media_urls": [], "reply_to_message_id": null, "reply_parent_unresolved": false
}"""


class Project:
    """What the server shows: conversations and one history that all of them share, with an instant for each item."""

    def __init__(self, conversations: int, messages: int) -> None:
        self._conversations = [_conversation(number) for number in reversed(range(conversations))]
        self._messages = messages
        self._canned = lru_cache(maxsize=256)(self._make)
        self._history = lru_cache(maxsize=256)(self._make_history)

    def answer(self, method: str, target: str) -> bytes:
        """Answer a request for a path with its query."""
        return self._canned(method, target)

    def _make(self, method: str, target: str) -> bytes:
        if method == "POST":
            return _http("200 OK", SENT) if target == "/v1/messages" else NOT_FOUND
        path, query = urlsplit(target)[2:4]
        given = dict(parse_qsl(query))
        if path == "/v1/conversations":
            return _http("200 OK", self._list(int(given.get("limit", 20)), int(given.get("offset", 0))))
        if path.startswith("/v1/conversations/") and path.endswith("/messages") and "after" not in given:
            return _http("200 OK", self._history(int(given.get("limit", 50)), given.get("before")))
        return NOT_FOUND

    def _list(self, limit: int, offset: int) -> bytes:
        total = len(self._conversations)
        has_more = b"true" if offset + limit < total else b"false"
        shown = b",".join(self._conversations[offset : offset + limit])
        return b'{"data":[%b],"hasMore":%b,"total":%d}' % (shown, has_more, total)

    def _make_history(self, limit: int, before: str | None) -> bytes:
        """Return the newest messages before a timestamp; one arrived each second."""
        end = self._messages
        if before is not None:
            seconds = (datetime.fromisoformat(before).replace(tzinfo=None) - BEGIN) / timedelta(seconds=1)
            end = max(0, min(end, -int(-seconds // 1)))  # rounded up: a message just before a fraction counts
        numbers = range(end - 1, max(0, end - limit) - 1, -1)
        shown = b",".join(_message(number) for number in numbers)
        return b'{"data":[%b],"hasMore":%b}' % (shown, b"true" if end > limit else b"false")


def _instant(number: int) -> str:
    return (BEGIN + timedelta(seconds=number)).isoformat() + "Z"


def _conversation(number: int) -> bytes:
    return json.dumps(
        {
            "id": f"conv_{number:012x}",
            "agentId": "agt_abc123",
            "phoneNumberId": "num_xyz789",
            "phoneNumber": "+15555550100",
            "participant": f"+1555555{number % 10000:04}",
            "lastMessageAt": _instant(number),
            "lastMessagePreview": "Thank you! Does that include shipping?",
            "messageCount": 8,
            "metadata": {"topic": "order_tracking", "orderId": f"ORD-{number}", "resolved": False},
            "createdAt": _instant(number - 1800),
        },
        separators=(",", ":"),
    ).encode()


def _message(number: int) -> bytes:
    sender, receiver, direction = (
        ("+15555550100", "+15555550177", "outbound") if number % 2 else ("+15555550177", "+15555550100", "inbound")
    )
    return (
        f'{{"id":"msg_{number:012x}","body":"Where is my order? It was to come on Monday, as you wrote.",'
        f'"fromNumber":"{sender}","toNumber":"{receiver}","direction":"{direction}",'
        f'"receivedAt":"{_instant(number)}"}}'
    ).encode()


def _http(status: str, body: bytes) -> bytes:
    return HEAD.format(status=status, length=len(body)).encode() + body


NOT_FOUND = _http("404 Not Found", b'{"detail":"Not Found"}')


class Conversing(asyncio.Protocol):
    """One connection. The next request comes when the last was answered; its body is not looked at."""

    def __init__(self, answer: Callable[[str, str], bytes], delay: float) -> None:
        self._answer = answer
        self._delay = delay
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back; asyncio has set TCP_NODELAY."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request when it has ended."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, rest = self._received.partition(b"\r\n\r\n")
            request = REQUEST.match(head + b"\r\n")
            if request is None:
                self._transport.write(_http("400 Bad Request", b'{"detail":"GET, POST and HTTP/1.1 only"}'))
                self._transport.close()
                return
            length = LENGTH.search(head) if request[1] == b"POST" else None
            body = int(length[1]) if length is not None else 0
            if len(rest) < body:
                return
            self._received = rest[body:]
            answer = self._answer(request[1].decode("ascii"), request[2].decode("ascii"))
            if self._delay:
                asyncio.get_running_loop().call_later(self._delay, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def serve(project: Project, delay: float) -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Conversing(project.answer, delay), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=100, help="how many the list has")
    parser.add_argument("--messages", type=int, default=200, help="how many each conversation has")
    parser.add_argument("--delay", type=float, default=0, help="seconds before each answer")
    given = parser.parse_args()
    asyncio.run(serve(Project(given.conversations, given.messages), given.delay))


if __name__ == "__main__":
    main()
