"""The lines that `agentphone sandbox` prints while it serves: one per request and per webhook attempt.

They are written by a thread. A program that reads only the first line of the output must not block the server once the
pipe is full: lines are dropped then. No line contains a header or a body, so none contains the key.
"""

import queue
import threading
from contextlib import suppress
from typing import Any, TextIO
from urllib.parse import quote, urlencode

from agentphone.sandbox._deliveries import Delivery
from agentphone.sandbox._request_log import LoggedRequest

MAX_WAITING = 1000
FLUSH_SECONDS = 0.5
MAX_TARGET = 100
TARGET_WIDTH = 52
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


def request_line(entry: LoggedRequest) -> str:
    """Return the line for a request that has been answered."""
    query = urlencode(dict(entry.request.query))
    target = quote(entry.request.path, safe=PRINTABLE) + (f"?{query}" if query else "")
    note = "scripted fault" if entry.is_fault else ""
    return _line(entry.at, f"{entry.request.method:<6} {target}", entry.status, entry.seconds or 0.0, note)


def delivery_line(delivery: Delivery, status: str, attempts: list[dict[str, Any]]) -> str:
    """Return the line for an attempt to deliver a webhook, the last of `attempts`."""
    attempt = attempts[-1]
    note = ""
    if status != "delivered":
        outcome = "will be retried" if status == "pending" else "gave up"
        error = "" if attempt["status"] is not None else f", {attempt['error']}"
        note = f"attempt {len(attempts)}{error}; {outcome}"
    target = f"→      {delivery.webhook.url}"
    return _line(attempt["at"], target, attempt["status"], attempt["seconds"], note)


def _line(at: str, target: str, status: int | None, seconds: float, note: str) -> str:
    time_of_day = at.partition("T")[2][:8]
    shown = target if len(target) <= MAX_TARGET else f"{target[: MAX_TARGET - 1]}…"
    outcome = f"{'no answer' if status is None else status!s:<9}  {seconds * 1000:5.0f} ms"
    text = f"{time_of_day}  {shown:<{TARGET_WIDTH}}  {outcome}{note and '  '}{note}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class LineWriter:
    """Write lines to a stream from a thread, without ever waiting for the stream.

    Args:
        stream: The stream; an error while writing to it ends the writing, silently.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="agentphone sandbox output", daemon=True)
        self._thread.start()

    def write(self, line: str | None) -> None:
        """Write a line, or end the thread with None; drop it if too many are waiting already."""
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self) -> None:
        """Write the waiting lines, unless that takes longer than half a second."""
        self.write(None)
        self._thread.join(FLUSH_SECONDS)

    def _run(self) -> None:
        encoding = self._stream.encoding or "utf-8"
        with suppress(OSError, ValueError):  # closed by the program that reads it
            while (line := self._lines.get()) is not None:
                self._stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
                self._stream.flush()
