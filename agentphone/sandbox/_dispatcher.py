"""Webhook sending: an event loop on one thread signs and sends the deliveries that are due, and decides when to retry.

The queue holds everything that must survive, so a process may end at any time. This module knows no SQL and does not
know where messages come from.

Each delivery stands alone. Up to 16 attempts run at once, and a failed one waits while others continue, so deliveries
may overtake each other, as the vendor's may.
"""

import asyncio
import functools
import hashlib
import hmac
import logging
import ssl
import threading
import time
from contextlib import suppress
from typing import Any

import httpx

from agentphone._logging import logger as package_logger
from agentphone._loop_thread import LoopThread, pause_thread_at_fork
from agentphone.sandbox._behavior import Settings
from agentphone.sandbox._deliveries import Delivery, DeliveryQueue

RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)
MAX_CONCURRENCY = 16
CLAIM_MARGIN = 5.0
"""How many seconds longer than an attempt can take a claim lasts. After a crash, another process may attempt the
delivery when the claim expires."""
POLL_SECONDS = 1.0
"""How soon deliveries that another process enqueued are noticed, and a file that could not be read is read again."""
STOP_SECONDS = 10.0
MAX_RESPONSE_BODY = 64 * 1024
PRELOADED_MODULES = ("anyio._backends._asyncio", "anyio.streams.tls", "encodings.idna", "httpcore._backends.anyio")

logger: logging.Logger = package_logger.getChild("sandbox")


class WebhookDispatcher:
    """Deliver what is in the queue, from a thread that starts when there is first something to do.

    Args:
        queue: The deliveries.
        settings: The clock that signs, and the format of the attempts' timestamps.
        retry_scale: The factor on the delays between attempts.
        polls: Whether other processes may enqueue deliveries, which do not call `wake` here.
    """

    def __init__(self, queue: DeliveryQueue, settings: Settings, *, retry_scale: float, polls: bool) -> None:
        self._queue = queue
        self._settings = settings
        self._retry_scale = retry_scale
        self._polls = polls
        self._lock = threading.RLock()
        self._is_closed = False
        self._worker: WebhookWorker | None = None
        pause_thread_at_fork(self)

    def wake(self) -> None:
        """Look for deliveries that are due now."""
        with self._lock:
            if self._is_closed:
                return
            if self._worker is None:
                self._worker = WebhookWorker(self._queue, self._settings, self._retry_scale, polls=self._polls)
            self._worker.wake()

    def close(self) -> None:
        """Stop the thread, cancelling attempts in progress; their deliveries stay pending. May be called twice."""
        with self._lock:
            self._is_closed = True
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.thread.stop(STOP_SECONDS)

    # Forks. The thread is paused between two steps, so that no lock stays locked in the child, such as one inside
    # OpenSSL. The child never touches its copy of the event loop, which shares sockets with the parent's.

    def before_fork(self) -> None:
        """Pause the thread, and let no other one start."""
        self._lock.acquire()
        if self._worker is not None:
            self._worker.thread.pause()

    def after_fork_in_parent(self) -> None:
        """Resume the thread."""
        if self._worker is not None:
            self._worker.thread.resume()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Continue without a thread, until there is something to deliver."""
        if self._worker is not None:
            _inherited.append(self._worker)
            self._worker = None
        self._lock = threading.RLock()


class WebhookWorker:
    """Claim and send deliveries on an event loop in a thread.

    Args:
        queue: The deliveries.
        settings: The clock that signs, and the format of the attempts' timestamps.
        retry_scale: The factor on the delays between attempts.
        polls: Whether to look into the queue every `POLL_SECONDS` without being woken.

    Attributes:
        thread: The thread, which is running.
    """

    def __init__(self, queue: DeliveryQueue, settings: Settings, retry_scale: float, *, polls: bool) -> None:
        self._queue = queue
        self._settings = settings
        self._retry_scale = retry_scale
        self._polls = polls
        self._woken = asyncio.Event()
        self._in_progress: set[Delivery] = set()
        self.thread = LoopThread("agentphone webhooks", self._serve, preload=PRELOADED_MODULES)
        self.thread.start()

    def wake(self) -> None:
        """Look for deliveries that are due now; called from any thread."""
        self.thread.loop.call_soon_threadsafe(self._woken.set)

    async def _serve(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        delay = self._start_attempts(group)
                    except Exception:  # The file may be locked, full or deleted. Retry until it can be read.
                        logger.exception("cannot read the webhook deliveries; trying again")
                        delay = POLL_SECONDS
                    with suppress(TimeoutError):
                        async with asyncio.timeout(delay):
                            await self._woken.wait()
        finally:
            # Cancelled attempts do not count: the next process to open the file repeats them at once.
            for delivery in self._in_progress:
                self._record(delivery, "pending", delivery.attempts)

    def _start_attempts(self, group: asyncio.TaskGroup) -> float | None:
        """Start the attempts that are due and return the seconds to wait; None to wait until woken."""
        self._woken.clear()
        longest = POLL_SECONDS if self._polls else None
        if len(self._in_progress) == MAX_CONCURRENCY:
            return None  # The end of an attempt sets `_woken`.
        due = self._queue.next_due()
        now = time.time()
        if due is None:
            return longest
        if due > now:
            return due - now if longest is None else min(longest, due - now)
        limit = MAX_CONCURRENCY - len(self._in_progress)
        for delivery in self._queue.claim(now=now, margin=CLAIM_MARGIN, limit=limit):
            self._in_progress.add(delivery)
            group.create_task(self._deliver(delivery))
        return 0.0

    async def _deliver(self, delivery: Delivery) -> None:
        attempt = await _attempt(delivery, self._settings)
        attempts = [*delivery.attempts, attempt]
        if attempt["error"] is None:
            self._record(delivery, "delivered", attempts)
        elif len(attempts) <= len(RETRY_DELAYS) and self._is_retried(attempt["status"]):
            delay = RETRY_DELAYS[len(attempts) - 1] * self._retry_scale
            self._record(delivery, "pending", attempts, delay=delay)
        else:
            plural = "" if len(attempts) == 1 else "s"
            logger.warning("webhook delivery %s failed after %d attempt%s", delivery.id, len(attempts), plural)
            self._record(delivery, "failed", attempts)
        self._in_progress.discard(delivery)
        self._woken.set()

    def _is_retried(self, status: int | None) -> bool:
        """Return whether a failed attempt is repeated, by the status of its response."""
        return status is None or status >= 500 or self._settings.behavior.webhook_retries == "any"

    def _record(self, delivery: Delivery, status: str, attempts: list[dict[str, Any]], *, delay: float = 0.0) -> None:
        """Store the outcome of a delivery."""
        try:
            self._queue.finish(delivery, status=status, attempts=attempts, due=time.time() + delay)
        except Exception:  # Other deliveries continue; this one is attempted again when its claim expires.
            logger.exception("cannot store the outcome of webhook delivery %s", delivery.id)


_inherited: list[WebhookWorker] = []
"""Workers of a parent process, kept so that their event loops are never closed."""


async def _attempt(delivery: Delivery, settings: Settings) -> dict[str, Any]:
    """Send a delivery once and return the attempt; the status decides, however the response body ends."""
    timeout = delivery.webhook.timeout
    at = settings.format(round(time.time() * 1_000_000))
    started_at = time.monotonic()
    status: int | None = None
    error: str | None = None
    try:
        now = settings.now()  # Inside the try: a user-supplied clock may raise or return a time out of range.
        at = settings.format(now)
        async with asyncio.timeout(timeout):
            # One connection per attempt: the receiver may close an idle one just as it is reused, and an idle one
            # blocks a single-threaded receiver. No proxy: what HTTP_PROXY names could not reach this machine.
            async with (
                httpx.AsyncClient(verify=_ssl_context(), trust_env=False, timeout=timeout) as client,
                client.stream(
                    "POST", delivery.webhook.url, content=delivery.payload, headers=_headers(delivery, now // 1_000_000)
                ) as response,
            ):
                status = response.status_code
                await _drain(response)
    except TimeoutError:
        error = f"no response within {timeout:g} seconds"
    except Exception as failure:  # noqa: BLE001  # whatever the receiver sends or the URL holds, the attempt failed
        error = f"{type(failure).__name__}: {failure}"[:500]
    if status is not None:
        error = None if 200 <= status <= 299 else f"response status {status}"
    return {
        "at": at,
        "status": status,
        "error": error,
        "seconds": round(time.monotonic() - started_at, 3),
    }


def _headers(delivery: Delivery, timestamp: int) -> dict[str, str]:
    signed = f"{timestamp}.".encode() + delivery.payload
    signature = hmac.new(delivery.webhook.secret.encode(), signed, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "Connection": "close",
        "User-Agent": "agentphone-sandbox",
        "X-Webhook-ID": delivery.id,
        "X-Webhook-Event": delivery.event,
        "X-Webhook-Timestamp": str(timestamp),
        "X-Webhook-Signature": f"sha256={signature}",
    }


async def _drain(response: httpx.Response) -> None:
    """Read a body of ordinary size without decompressing it, so that the receiver can finish writing."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > MAX_RESPONSE_BODY:
            return


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    # It reads SSL_CERT_FILE and SSL_CERT_DIR, for a receiver with a certificate of the user's own authority.
    return httpx.create_ssl_context()
