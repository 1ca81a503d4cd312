"""One event loop on one thread, for the blocking face: `run` is the only way in, and knows nothing of what it runs.

The thread starts at the first call and is shared by all clients of the process. It is a daemon, so that it never keeps
the interpreter from exiting; a forked child, which has no such thread, starts one of its own at its first call.

Not anyio's `BlockingPortal`: its call takes two hops between the threads where one will do, and makes its future where
an exception raised by a signal handler can lose it, so that the request goes out after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sys
import threading
import warnings
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import anyio
import anyio.lowlevel

from agentphone.errors import ClientClosedError, ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")

_PACKAGE = str(Path(__file__).parent)
_CANCELLATION_SECONDS = 1.0

_USED_BY_THE_THREAD = (
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "concurrent.futures.thread",
    "encodings.idna",
    "httpcore",
    "httpcore._backends.anyio",
)
"""What the thread would import while it works. A fork in that moment would leave the child with import locks that
nobody releases, so it is imported before the thread starts."""


class Portal:
    """The thread and its event loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._work, name="agentphone", daemon=True)

    def start(self) -> None:
        """Start the thread, and wait until its event loop runs."""
        self._thread.start()
        self.loop = self._started.result()

    def is_current(self) -> bool:
        """Say whether this is the thread of the portal itself."""
        return threading.get_ident() == self._thread.ident

    def _work(self) -> None:
        try:
            anyio.run(self._serve, backend="asyncio")
        except BaseException as error:  # noqa: BLE001  # whoever waits for the start gets it
            self._started.set_exception(error)

    async def _serve(self) -> None:
        with contextlib.suppress(ImportError):
            # Calls come with their caller's context, which may say that trio runs there; the thread's own word wins.
            importlib.import_module("sniffio").thread_local.name = "asyncio"
        self._started.set_result(asyncio.get_running_loop())
        await anyio.sleep_forever()


_portal: Portal | None = None
_lock = threading.RLock()
_inherited: list[Portal | None] = []


def _forget_after_fork() -> None:
    """Leave the parent's portal alone in a forked child: its loop shares sockets with the parent's."""
    global _portal, _lock
    _inherited.append(_portal)
    _portal = None
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _start() -> Portal:
    global _portal
    with _lock:
        if _portal is None:
            _refuse_gevent()
            for module in _USED_BY_THE_THREAD:
                importlib.import_module(module)
            portal = Portal()
            try:
                portal.start()
            except RuntimeError as error:  # "can't start new thread at interpreter shutdown"
                raise ClientClosedError(f"The interpreter is exiting: {error}.") from None
            _portal = portal
        return _portal


def _refuse_gevent() -> None:
    """Refuse to start among patched threads, where the event loop would stop every greenlet of the process."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ConfigurationError(
            "gevent has patched the threads, which the blocking Client cannot work among. Run the server with real"
            " threads (gunicorn --worker-class gthread), or call gevent.monkey.patch_all(thread=False, ...) and make"
            " the calls in gevent.get_hub().threadpool, or use AsyncClient in an asyncio server."
        )


class _Call(Generic[T]):
    """One call on its way: begun and waited for by the caller's thread, run by the portal's."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._is_abandoned = False
        self._is_cancelled = threading.Event()
        # The barest lock there is, taken now and released with the outcome: a Future's condition costs more than that.
        self.is_done = threading.Lock()
        self.is_done.acquire()
        self.result: T
        self.error: BaseException | None = None

    def begin(self) -> None:
        """Start the task; the caller's context came with the callback that this is."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            if not self._is_abandoned:
                self.result = await self._make()
        except BaseException as error:  # noqa: BLE001  # all of it belongs to the caller, who raises it
            self.error = error
        finally:
            self.is_done.release()

    def abandon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the call, and wait until nothing of it runs any more. For the caller's thread."""
        self._is_abandoned = True
        loop.call_soon_threadsafe(self._cancel)
        self._is_cancelled.wait(_CANCELLATION_SECONDS)

    def _cancel(self) -> None:
        if self._task is None or self._task.done():
            self._is_cancelled.set()
        else:
            self._task.cancel()
            self._task.add_done_callback(lambda _: self._is_cancelled.set())


def run(function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call an async function on the portal's event loop, with the caller's context, and wait for what it gives.

    An exception that ends the waiting (Ctrl-C, or whatever a signal handler raises) cancels the call and goes on at
    once.

    Raises:
        ClientClosedError: The interpreter is exiting, and it is too late to start.
        ConfigurationError: gevent has patched the threads.
        RuntimeError: It was called from inside the portal's own loop, by a hook or a transport.
    """
    portal = _portal or _start()
    _check_loops(portal, function)
    call = _Call(lambda: function(*args, **kwargs))
    try:
        portal.loop.call_soon_threadsafe(call.begin)
        call.is_done.acquire()
    except BaseException:
        call.abandon(portal.loop)
        raise
    error = call.error
    if error is None:
        return call.result
    try:
        raise error
    finally:
        del call, error  # the traceback holds this frame, and would hold itself


def _check_loops(portal: Portal, function: Callable[..., Any]) -> None:
    """Refuse a call from the portal's own thread, and warn of one that blocks an event loop."""
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:
        return
    name = getattr(function, "__qualname__", repr(function))
    if portal.is_current():
        raise RuntimeError(
            "A blocking call was made inside the SDK's own event loop (from a hook or a transport), where it would wait"
            f" for itself. Await {name} there instead."
        )
    level, frame = 2, sys._getframe(1)  # noqa: SLF001  # the way to a frame that CPython, PyPy and `warnings` itself go
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"A blocking call stops the event loop that runs in this thread; await {name} of the AsyncClient instead.",
        RuntimeWarning,
        stacklevel=level,
    )


class Batched(AsyncIterator[T]):
    """An async iterator whose items come in batches, so that the blocking face changes threads once a batch.

    A class and not a generator: a generator that is dropped half-way would need closing.
    """

    def __init__(self) -> None:
        self._items: Iterator[T] = iter(())

    @abstractmethod
    async def next_batch(self) -> Iterable[T]:
        """Give the next items, which may be none; raise StopAsyncIteration at the end."""

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            for item in self._items:
                return item
            self._items = iter(await self.next_batch())


class _Iterator(Iterator[T]):
    """The blocking face of a batched iterator."""

    def __init__(self, source: Batched[T]) -> None:
        self._source = source
        self._items: Iterator[T] = iter(())

    def __next__(self) -> T:
        while True:
            for item in self._items:
                return item
            try:
                self._items = iter(run(self._source.next_batch))
            except StopAsyncIteration:
                raise StopIteration from None


def iterate(source: AsyncIterator[T]) -> Iterator[T]:
    """Iterate over a batched async iterator from blocking code."""
    if not isinstance(source, Batched):
        raise TypeError(f"{type(source).__name__} gives no batches")
    return _Iterator(source)
