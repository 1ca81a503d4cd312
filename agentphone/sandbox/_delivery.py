"""Webhooks on their way out: one thread that sends what the store says is due, signed, until it is taken or given up.

It decides when to attempt and what an answer means; what is to be sent, and what became of it, is in the store alone,
so that a process may end at any moment. It knows nothing of SQL, nor of where messages come from.

Each attempt stands for itself. Up to 16 are under way at once and one that failed waits while others go on, so that
deliveries may overtake each other, as the vendor's may.
"""

import asyncio
import functools
import hashlib
import hmac
import importlib
import logging
import os
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

import httpx

from agentphone.sandbox._store import Delivery, Store

P = ParamSpec("P")
T = TypeVar("T")

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)
AT_ONCE = 16
ANSWER_SECONDS = 10.0
CLAIM_SECONDS = 15.0  # More than an attempt can take: after a crash somebody else goes on when it has run out.
POLL_SECONDS = 1.0  # How soon it is seen what another process has stored, or done wrong to the file.
STOP_SECONDS = 10.0
PAUSE_SECONDS = 1.0
ANSWER_BYTES = 64 * 1024

# What the thread would import while it works: a fork in that moment would leave the child with import locks that nobody
# releases.
PRELOADED_MODULES = ("anyio._backends._asyncio", "anyio.streams.tls", "encodings.idna", "httpcore._backends.anyio")

logger = logging.getLogger("agentphone.sandbox")


class WebhookDispatcher:
    """Deliver what a store holds, from a thread that is started when there is first something to do.

    Args:
        store: Where the deliveries are.
        retry_scale: The factor on the pauses between attempts.
        polls: Whether others may put deliveries into the store without calling `wake`.
    """

    def __init__(self, store: Store, *, retry_scale: float, polls: bool) -> None:
        self._store = store
        self._retry_scale = retry_scale
        self._polls = polls
        self._lock = threading.Lock()
        self._is_closed = False
        self._worker: WebhookWorker | None = None
        with _forking:
            _deliverers.add(self)

    def wake(self) -> None:
        """Look for something to deliver, now."""
        with self._lock:
            if self._is_closed:
                return
            if self._worker is None:
                for module in PRELOADED_MODULES:
                    importlib.import_module(module)
                self._worker = WebhookWorker(self._store, self._retry_scale, polls=self._polls)
            self._worker.wake()

    def close(self) -> None:
        """End the thread, whatever it is waiting for; what is not delivered stays pending. May be called twice."""
        with self._lock:
            self._is_closed = True
            courier, self._worker = self._worker, None
        if courier is not None:
            courier.stop()

    # A fork. The thread is held between two steps, so that no lock is taken for good in the child, not even one inside
    # OpenSSL. The child leaves its copy of the event loop alone, which shares sockets with the parent's.

    def before_fork(self) -> None:
        """Hold the thread, and let no other start."""
        self._lock.acquire()
        if self._worker is not None and not sys.is_finalizing():
            self._worker.pause()

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        if self._worker is not None:
            self._worker.resume()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Go on without a thread, until there is something to deliver."""
        if self._worker is not None:
            _inherited.append(self._worker)
            self._worker = None
        self._lock = threading.Lock()


class WebhookWorker:
    """The thread and its event loop."""

    def __init__(self, store: Store, retry_scale: float, *, polls: bool) -> None:
        self._store = store
        self._retry_scale = retry_scale
        self._polls = polls
        self._woken = asyncio.Event()
        self._under_way: set[Delivery] = set()
        self._task: asyncio.Task[None]
        self._is_paused = threading.Event()
        self._may_resume = threading.Event()
        started: Future[asyncio.AbstractEventLoop] = Future()
        # A daemon: it must not keep the interpreter from its exit.
        self._thread = threading.Thread(target=self._run, args=(started,), name="agentphone webhooks", daemon=True)
        self._thread.start()
        self._loop = started.result()

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._woken.set)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(STOP_SECONDS)

    def pause(self) -> None:
        self._may_resume.clear()
        self._is_paused.clear()
        self._loop.call_soon_threadsafe(self._block)
        self._is_paused.wait(PAUSE_SECONDS)

    def resume(self) -> None:
        self._may_resume.set()

    def _block(self) -> None:
        self._is_paused.set()
        self._may_resume.wait()

    def _run(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        try:
            with suppress(asyncio.CancelledError):  # The way to end.
                asyncio.run(self._serve(started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(DaemonThreadExecutor())
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # for the type checker: this is a coroutine
        self._task = task
        started.set_result(loop)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        pause = self._send_out(group)
                    except Exception:  # The file may be locked, full or gone: that passes, or it is said again.
                        logger.exception("cannot read the webhook deliveries; trying again")
                        pause = POLL_SECONDS
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._woken.wait()
        finally:
            # Not attempts that failed: whoever opens the file next makes them again, at once.
            for delivery in self._under_way:
                self._record(delivery, "pending", delivery.attempts)

    def _send_out(self, group: asyncio.TaskGroup) -> float | None:
        """Start the attempts that are due; tell for how many seconds there is nothing to do, unless woken."""
        self._woken.clear()
        pause = POLL_SECONDS if self._polls else None
        if len(self._under_way) == AT_ONCE:
            return None  # The end of an attempt wakes.
        due = self._store.next_due()
        now = time.time()
        if due is None:
            return pause
        if due > now:
            return due - now if pause is None else min(pause, due - now)
        for delivery in self._store.claim(now=now, seconds=CLAIM_SECONDS, limit=AT_ONCE - len(self._under_way)):
            self._under_way.add(delivery)
            group.create_task(self._deliver(delivery))
        return 0.0

    async def _deliver(self, delivery: Delivery) -> None:
        outcome = await _attempt(delivery, self._store)
        attempts = [*delivery.attempts, outcome]
        if outcome["error"] is None:
            self._record(delivery, "delivered", attempts)
        elif len(attempts) <= len(PAUSES):
            self._record(delivery, "pending", attempts, pause=PAUSES[len(attempts) - 1] * self._retry_scale)
        else:
            logger.warning("webhook delivery %s given up after %d attempts", delivery.id, len(attempts))
            self._record(delivery, "failed", attempts)
        self._under_way.discard(delivery)
        self._woken.set()

    def _record(self, delivery: Delivery, status: str, attempts: list[dict[str, Any]], *, pause: float = 0.0) -> None:
        """Tell the store what became of a delivery."""
        try:
            self._store.finish(delivery, status=status, attempts=attempts, due=time.time() + pause)
        except Exception:  # The others go on; this one is attempted again when its claim has run out.
            logger.exception("cannot store what became of webhook delivery %s", delivery.id)


async def _attempt(delivery: Delivery, store: Store) -> dict[str, Any]:
    """Send a delivery once, and tell what came of it: the status decides, whatever becomes of the answer's body."""
    at = store.behavior.print(round(time.time() * 1_000_000))
    started = time.monotonic()
    status: int | None = None
    error: str | None = None
    try:
        now = store.now()  # In here: the clock is a function of the user's, and may tell what no calendar has.
        at = store.behavior.print(now)
        async with asyncio.timeout(ANSWER_SECONDS):
            # A connection for each attempt: one kept alive may be closed by the receiver just when it is used again,
            # and keeps a receiver that has only one thread from everybody else. No proxy: this is a local tool, and
            # what HTTP_PROXY names could not reach this machine.
            async with (
                httpx.AsyncClient(verify=_ssl_context(), trust_env=False, timeout=ANSWER_SECONDS) as client,
                client.stream(
                    "POST", delivery.webhook.url, content=delivery.payload, headers=_headers(delivery, now // 1_000_000)
                ) as response,
            ):
                status = response.status_code
                await _drain(response)
    except TimeoutError:
        error = f"no answer within {ANSWER_SECONDS:g} seconds"
    except Exception as failure:  # noqa: BLE001  # whatever a receiver sends or a URL holds: one attempt that failed
        error = f"{type(failure).__name__}: {failure}"[:500]
    if status is not None:
        error = None if 200 <= status <= 299 else f"answered {status}"
    return {
        "at": at,
        "status": status,
        "error": error,
        "seconds": round(time.monotonic() - started, 3),
    }


def _headers(delivery: Delivery, timestamp: int) -> dict[str, str]:
    signed = f"{timestamp}.".encode() + delivery.payload
    signature = hmac.new(delivery.webhook.secret.encode(), signed, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "Connection": "close",
        "User-Agent": "agentphone-sandbox",
        "X-Webhook-ID": delivery.id,
        "X-Webhook-Timestamp": str(timestamp),
        "X-Webhook-Signature": f"sha256={signature}",
    }


async def _drain(response: httpx.Response) -> None:
    """Read a body of ordinary size, so that the receiver may finish writing it, as it came: not decompressed."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > ANSWER_BYTES:
            return


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # With SSL_CERT_FILE and SSL_CERT_DIR, for a receiver of one's own making.


class DaemonThreadExecutor(ThreadPoolExecutor):
    """Look up names, each on a daemon thread: Python waits for an executor's own threads before it exits."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  # whoever waits for the future gets it
                future.set_exception(error)

        threading.Thread(target=work, name="agentphone webhooks lookup", daemon=True).start()
        return future


_deliverers: weakref.WeakSet[WebhookDispatcher] = weakref.WeakSet()
_inherited: list[WebhookWorker] = []  # Never closed: see above.
_forking = threading.Lock()  # Held through a fork, and to add a deliverer.
_held: list[WebhookDispatcher] = []


def _before_fork() -> None:
    _forking.acquire()
    _held.extend(_deliverers)
    for deliverer in _held:
        deliverer.before_fork()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().after_fork_in_parent()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking
    _forking = threading.Lock()
    while _held:
        _held.pop().after_fork_in_child()


if hasattr(os, "register_at_fork"):  # Not on Windows, which does not fork.
    # After the store's own, which is imported above: so this one's `before` comes first, while the thread can still get
    # the locks that it needs to come to a stand.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
