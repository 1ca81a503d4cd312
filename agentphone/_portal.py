"""One event loop on one thread, for the blocking face: `run` is the only way in, and knows nothing of what it runs.

The thread starts at the first call and is shared by all clients of the process. It is a daemon, so that it never keeps
the interpreter from exiting; a forked child, which has no such thread, starts one of its own at its first call.

Not anyio's `BlockingPortal`: its call takes two hops between the threads where one will do, and makes its future where
an exception raised by a signal handler can lose it, so that the request goes out after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
import os
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future

# Now and not with asyncio: it registers with fork, and one that is under way would end in a complaint.
from concurrent.futures.thread import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import anyio

from agentphone.errors import ClientClosedError, ConfigurationError

if TYPE_CHECKING:
    import asyncio  # at run time with the first call: it takes as long to import as half of this package
from agentphone._streams import _NO_COPY, AsyncStream

P = ParamSpec("P")


T = TypeVar("T")


_PACKAGE = str(Path(__file__).parent) + os.sep


_CANCELLATION_SECONDS = 1.0


_PAUSE_SECONDS = 1.0


ASYNC_EQUIVALENTS = {
    "_advance": "iterate with `async for`",
    "__aenter__": "use `async with`",
    "__aexit__": "use `async with`",
}


_TOO_LATE = "The interpreter is exiting, and it is too late for a call. Make it before the program ends."


PRELOADED_MODULES = (
    "agentphone._http.connection",
    "anyio._backends._asyncio",
    "anyio.streams.tls",
    "encodings.idna",
    "httpcore",
    "httpcore._backends.anyio",
)
"""What the thread would import while it works. A fork in that moment would leave the child with import locks that
nobody releases, so it is imported before the thread starts."""


class DaemonThreadExecutor(ThreadPoolExecutor):
    """Look up names, each on a daemon thread: Python waits for an executor's own threads before it exits.

    At exit an executor takes no more work and threads may no longer start; then the event loop itself waits for the
    answer, which nothing else needs by then.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  # whoever waits for the future gets it
                future.set_exception(error)

        future.set_running_or_notify_cancel()
        try:
            threading.Thread(target=work, name="agentphone lookup", daemon=True).start()
        except RuntimeError:
            work()
        return future


class Portal:
    """The thread and its event loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._work, name="agentphone", daemon=True)
        self._is_paused = threading.Event()
        self._may_resume = threading.Event()

    def start(self) -> None:
        """Start the thread, and wait until its event loop runs."""
        self._thread.start()
        self.loop = self._started.result()

    def is_current(self) -> bool:
        """Say whether this is the thread of the portal itself."""
        return threading.get_ident() == self._thread.ident

    def pause(self) -> None:
        """Hold the thread between two steps of its event loop, if it comes there in time."""
        self._may_resume.clear()
        self._is_paused.clear()
        self.loop.call_soon_threadsafe(self._block)
        self._is_paused.wait(_PAUSE_SECONDS)

    def resume(self) -> None:
        """Let the thread go on."""
        self._may_resume.set()

    def _block(self) -> None:
        self._is_paused.set()
        self._may_resume.wait()

    def _work(self) -> None:
        try:
            anyio.run(self._serve, backend="asyncio")
        except BaseException as error:  # noqa: BLE001  # whoever waits for the start gets it
            self._started.set_exception(error)

    async def _serve(self) -> None:
        with contextlib.suppress(ImportError):
            # Calls come with their caller's context, which may say that trio runs there; the thread's own word wins.
            importlib.import_module("sniffio").thread_local.name = "asyncio"
        import asyncio

        loop = asyncio.get_running_loop()
        loop.set_default_executor(DaemonThreadExecutor())
        self._started.set_result(loop)
        await anyio.sleep_forever()


_portal: Portal | None = None


_lock = threading.RLock()


_is_fork_watched = False


_inherited: list[Portal | None] = []


def _before_fork() -> None:
    """Let no fork happen while the portal starts or its thread is at work.

    The child would inherit locks that nobody releases: of half-done imports, and those inside OpenSSL, which hung one
    child in a few hundred. The first of our hooks to run is the one that was registered last; see `_start`.
    """
    _lock.acquire()
    if _portal is not None and not _portal.is_current() and not sys.is_finalizing():
        _portal.pause()


def _after_fork_in_parent() -> None:
    if _portal is not None:
        _portal.resume()
    with contextlib.suppress(RuntimeError):  # this was registered in the middle of the fork
        _lock.release()


def _after_fork_in_child() -> None:
    """Leave the parent's portal alone: its loop shares sockets with the parent's."""
    global _portal, _lock
    _inherited.append(_portal)
    _portal = None
    _lock = threading.RLock()


def _start() -> Portal:
    global _portal, _is_fork_watched
    with _lock:
        if _portal is None:
            _refuse_gevent()
            if not _is_fork_watched and hasattr(os, "register_at_fork"):
                # Not before the first call: a sandbox is made by then, and its hook, which takes locks that the
                # portal's thread may wait for, is to run after the one that pauses that thread.
                os.register_at_fork(
                    before=_before_fork,
                    after_in_parent=_after_fork_in_parent,
                    after_in_child=_after_fork_in_child,
                )
                _is_fork_watched = True
            for module in PRELOADED_MODULES:
                importlib.import_module(module)
            portal = Portal()
            try:
                portal.start()
            except RuntimeError as error:
                if "shutdown" not in str(error):  # "can't start new thread at interpreter shutdown"
                    raise
                raise ClientClosedError(_TOO_LATE) from None
            _portal = portal
        return _portal


def _refuse_gevent() -> None:
    """Refuse to start among patched threads, where the event loop would stop every greenlet of the process."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ConfigurationError(
            "gevent has patched the threads, which the blocking Client cannot work among. Run the server with real"
            " threads (gunicorn --worker-class gthread), or call gevent.monkey.patch_all(thread=False, os=False,"
            " signal=False, subprocess=False) and make the calls by gevent.get_hub().threadpool.apply(), or use"
            " AsyncClient in an asyncio server."
        )


class _Call(Generic[T]):
    """One call on its way: begun and waited for by the caller's thread, run by the portal's."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        # The barest lock there is, taken now and released with the outcome: a Future's condition costs more than that.
        self.is_done = threading.Lock()
        self.is_done.acquire()
        self.result: T
        self.error: BaseException | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the task; the caller's context came with the callback that this is."""
        self._task = loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            if not self._is_cancelled:
                self.result = await self._make()
        except BaseException as error:  # noqa: BLE001  # all of it belongs to the caller, who raises it
            self.error = error
        finally:
            self.is_done.release()

    def cancel(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the call, and wait until nothing of it runs any more. For the caller's thread."""
        self._is_cancelled = True
        is_cancelled = threading.Event()
        loop.call_soon_threadsafe(self._cancel, is_cancelled)
        is_cancelled.wait(_CANCELLATION_SECONDS)

    def _cancel(self, is_cancelled: threading.Event) -> None:
        if self._task is None or self._task.done():
            is_cancelled.set()
        else:
            self._task.cancel()
            self._task.add_done_callback(lambda _: is_cancelled.set())


def run(function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call an async function on the portal's event loop, with the caller's context, and wait for what it gives.

    An exception that ends the waiting (Ctrl-C, or whatever a signal handler raises) cancels the call and goes on at
    once.

    Raises:
        ClientClosedError: The interpreter is exiting, and it is too late to start.
        ConfigurationError: gevent has patched the threads.
        RuntimeError: It was called from inside the portal's own loop, by a hook or a transport.
    """
    if sys.is_finalizing():  # a `__del__` at the very end: the portal's thread does not run any more
        raise ClientClosedError(_TOO_LATE)
    portal = _portal or _start()
    _check_loops(portal, function)
    call = _Call(lambda: function(*args, **kwargs))
    try:
        portal.loop.call_soon_threadsafe(call.begin, portal.loop)
        call.is_done.acquire()
    except BaseException:
        call.cancel(portal.loop)
        raise
    error, call.error = call.error, None  # which the traceback leads back to
    if error is None:
        return call.result
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next  # how the call came to the other thread says nothing of what went wrong
    try:
        raise error.with_traceback(traceback)
    finally:
        del call, error, traceback  # the traceback holds this frame, and would hold itself


def _check_loops(portal: Portal, function: Callable[..., Any]) -> None:
    """Refuse a call from the portal's own thread, and warn of one that blocks an event loop."""
    if not _is_loop_running():
        return
    name = getattr(function, "__qualname__", repr(function))
    instead = ASYNC_EQUIVALENTS.get(name.rpartition(".")[2], f"await {name}")
    if portal.is_current():
        raise RuntimeError(
            "A blocking call was made inside the SDK's own event loop (from a hook or a transport), where it would wait"
            f" for itself. With an AsyncClient, {instead} there."
        )
    level, frame = 2, sys._getframe(1)  # noqa: SLF001  # the way to a frame that CPython, PyPy and `warnings` itself go
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"A blocking call stops the event loop that runs in this thread; with an AsyncClient, {instead} instead.",
        RuntimeWarning,
        stacklevel=level,
    )


def _is_loop_running() -> bool:
    """Say whether this thread runs an event loop; also inside a callback of asyncio's, where anyio sees no task."""
    # What was not imported has no loop that runs.
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio.lowlevel")
    if trio is not None and trio.in_trio_run():
        return True
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Stream(Iterator[T]):
    """An iterator that can be closed, and need not be: the blocking face of an `AsyncStream`."""

    def __init__(self, source: AsyncStream[T]) -> None:
        self._source = source
        self._items: Iterator[T] = iter(())

    def __next__(self) -> T:
        while True:
            for item in self._items:
                return item
            try:
                run(self._advance)
            except StopAsyncIteration:
                raise StopIteration from None

    async def _advance(self) -> None:
        """Take the next batch: in the portal's thread, so that no signal in the caller's loses what the walk gave."""
        if not operator.length_hint(self._items):  # another thread may have brought some meanwhile
            self._items = iter(await self._source.next_batch())

    def __reduce__(self) -> str:
        raise TypeError(_NO_COPY)

    def close(self) -> None:
        """End the iteration, also for a thread that waits for its next item. Closing again does nothing."""
        self._items = iter(())
        run(self._source.aclose)


def iterate(source: AsyncIterator[T]) -> Stream[T]:
    """Iterate over an async stream from blocking code."""
    if not isinstance(source, AsyncStream):
        raise TypeError(f"{type(source).__name__} gives no batches")
    return Stream(source)
