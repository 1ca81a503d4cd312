"""The bridge under the sync facade: run async code on one event loop, which a daemon thread of the process runs.

The thread starts at the first call and serves all clients of the process. `run` is the only way to it. A forked child
leaves its copy of the parent's event loop alone, and starts a thread of its own at its first call.

This is not anyio's `BlockingPortal`. That one changes threads twice for each call, and Ctrl-C at
the wrong moment can lose its future, so that the request is sent anyway.
"""

from __future__ import annotations

import operator
import os
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from agentphone._loop_thread import LoopThread, pause_thread_at_fork
from agentphone._streams import STREAM_NO_COPY, AsyncStream
from agentphone.errors import ClientClosedError, ConfigurationError

if TYPE_CHECKING:
    import asyncio

P = ParamSpec("P")
T = TypeVar("T")

PRELOADED_MODULES = (
    "agentphone._http.connection",
    "anyio.streams.tls",
    "encodings.idna",
    "httpcore",
    "httpcore._backends.anyio",
)
"""What calls import on the thread, imported before it starts."""

ASYNC_EQUIVALENTS = {
    "Client.close": ("client.close()", "await client.aclose()"),
    "Client.__exit__": ("with Client()", "async with AsyncClient()"),
    "Pager.page": ("client.conversations.{}().page()", "await client.conversations.{}().page()"),
    "State.__enter__": ("with client.conversations.state()", "async with client.conversations.state()"),
    "State.__exit__": ("with client.conversations.state()", "async with client.conversations.state()"),
    "Stream.__next__": ("for ... in client.conversations.{}()", "async for ... in client.conversations.{}()"),
    "Stream.close": ("client.conversations.{}().close()", "await client.conversations.{}().aclose()"),
}
"""A blocking call as it is written in a program, and what to write with an `AsyncClient`, by the method's qualified
name; with `{}` for the method that created the pager or stream."""

CANCELLATION_SECONDS = 1.0
"""How long an interrupted call may take to end."""

_PACKAGE = str(Path(__file__).parent) + os.sep
_TOO_LATE = "The interpreter is exiting, and it is too late for a call. Make it before the program ends."


class Portal:
    """The loop thread of this process, started at its first call."""

    def __init__(self) -> None:
        # Reentrant, because a signal handler may make the first call while its own thread is making it.
        self._lock = threading.RLock()
        self._thread: LoopThread | None = None
        self._parents: list[LoopThread] = []
        """Kept, so that no finalizer closes an event loop that shares its sockets with the parent's."""
        pause_thread_at_fork(self)

    def thread(self) -> LoopThread:
        """Return the thread, started if necessary.

        Raises:
            ClientClosedError: The interpreter is exiting.
            ConfigurationError: gevent has patched the threads.
        """
        return self._thread or self._start()

    def _start(self) -> LoopThread:
        with self._lock:
            if self._thread is None:
                _check_gevent()
                thread = LoopThread("agentphone", preload=PRELOADED_MODULES)
                try:
                    thread.start()
                except RuntimeError as error:
                    if "shutdown" not in str(error):  # "can't start new thread at interpreter shutdown"
                        raise
                    raise ClientClosedError(_TOO_LATE) from None
                self._thread = thread
            return self._thread

    def before_fork(self) -> None:
        """Wait until the thread is not about to start, and pause it.

        The child would inherit locks that stay locked forever, such as those of half-done imports and those inside
        OpenSSL, which hung one child in a few hundred.
        """
        self._lock.acquire()
        if self._thread is not None:
            self._thread.pause()

    def after_fork_in_parent(self) -> None:
        """Resume the thread."""
        if self._thread is not None:
            self._thread.resume()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Forget the parent's thread."""
        self._lock = threading.RLock()
        if self._thread is not None:
            self._parents.append(self._thread)
            self._thread = None


_portal = Portal()


def _check_gevent() -> None:
    """Raise where gevent has patched the threads: the event loop would block every greenlet of the process."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ConfigurationError(
            "gevent has patched the threads, and the blocking Client needs real ones. Run the server with real threads"
            " (gunicorn --worker-class gthread), or call gevent.monkey.patch_all(thread=False, os=False, signal=False,"
            " subprocess=False) and make the calls by gevent.get_hub().threadpool.apply(), or use AsyncClient in an"
            " asyncio server."
        )


class _BlockingCall(Generic[T]):
    """One call: started and awaited by the caller's thread, run by the portal's."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        # A bare lock, acquired now and released with the outcome: the condition of a Future costs more.
        self.is_done = threading.Lock()
        self.is_done.acquire()
        self.result: T
        self.error: BaseException | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Create the task. Runs as a callback of the loop, in the caller's context."""
        self._task = loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            if not self._is_cancelled:
                self.result = await self._function()
        except BaseException as error:  # noqa: BLE001  # raised in the caller's thread
            self.error = error
        finally:
            self.is_done.release()

    def cancel(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the call from the caller's thread, and wait until its task has ended."""
        self._is_cancelled = True
        has_ended = threading.Event()
        loop.call_soon_threadsafe(self._cancel, has_ended)
        has_ended.wait(CANCELLATION_SECONDS)

    def _cancel(self, has_ended: threading.Event) -> None:
        if self._task is None or self._task.done():
            has_ended.set()
        else:
            self._task.cancel()
            self._task.add_done_callback(lambda _: has_ended.set())


def run(function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call an async function on the portal's event loop, in the caller's context, and return its result.

    An exception raised while it waits (by Ctrl-C or another signal handler) cancels the call and propagates at once.

    Raises:
        ClientClosedError: The interpreter is exiting.
        ConfigurationError: gevent has patched the threads.
        RuntimeError: It was called on the portal's own thread, by a hook or a transport.
    """
    if sys.is_finalizing():  # in a `__del__` at the very end, when daemon threads no longer run
        raise ClientClosedError(_TOO_LATE)
    thread = _portal.thread()
    _check_loops(thread, function)
    call = _BlockingCall(lambda: function(*args, **kwargs))
    try:
        thread.loop.call_soon_threadsafe(call.start, thread.loop)
        call.is_done.acquire()
    except BaseException:
        call.cancel(thread.loop)
        raise
    error, call.error = call.error, None  # the traceback refers to the call
    if error is None:
        return call.result
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next  # the frames of this module on the other thread say nothing about the error
    try:
        raise error.with_traceback(traceback)
    finally:
        del call, error, traceback  # or the traceback would hold this frame, and the frame the traceback


def _check_loops(thread: LoopThread, function: Callable[..., object]) -> None:
    """Raise on the portal's own thread; warn where the call blocks another event loop, unless that is a notebook's."""
    if not _is_loop_running() or (_is_in_kernel() and not thread.is_current()):
        return
    level, frame = 1, sys._getframe()  # noqa: SLF001  # as `warnings` itself does
    name = ""
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, name, frame = level + 1, frame.f_code.co_qualname, frame.f_back
    owner = getattr(function, "__self__", None)
    call, instead = (text.format(getattr(owner, "_origin", "")) for text in equivalents(name))
    if thread.is_current():
        raise RuntimeError(
            f"`{call}` was called inside the SDK's own event loop (from a hook or a transport), where it would wait for"
            f" itself. With an AsyncClient, write `{instead}` there."
        )
    warnings.warn(
        f"`{call}` blocks the event loop that runs in this thread. With an AsyncClient, write `{instead}`.",
        RuntimeWarning,
        stacklevel=level,
    )


def equivalents(name: str) -> tuple[str, str]:
    """Return a blocking call as it is written in a program, and what to write with an `AsyncClient`.

    Args:
        name: The qualified name of the method or function that the user called.
    """
    owner, dot, method = name.rpartition(".")
    call = f"client.{owner.lower()}.{method}()" if dot else f"{method}()"
    return ASYNC_EQUIVALENTS.get(name, (call, f"await {call}"))


def _is_in_kernel() -> bool:
    """Return whether this process is an IPython kernel (Jupyter).

    Its cells run on an event loop that has nothing else to do, and a blocking client is the natural one there.
    """
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None


def _is_loop_running() -> bool:
    """Return whether this thread runs an event loop, also inside a callback of asyncio, where anyio finds no task."""
    # A library that was not imported runs no loop.
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
    """An iterator that can be closed. It need not be: nothing runs between two steps."""

    def __init__(self, source: AsyncStream[T]) -> None:
        self._source = source
        self._origin = source.origin
        self._items: Iterator[T] = iter(())

    def __next__(self) -> T:
        """Return the next item.

        Raises:
            AgentPhoneError: It could not be read.
            ClientClosedError: The client was closed, or the interpreter is exiting.
            RuntimeError: Another thread is stepping the iterator, an exception interrupted an earlier step, or a hook
                or a transport called this.
        """
        while True:
            for item in self._items:
                return item
            try:
                run(self._advance)
            except StopAsyncIteration:
                raise StopIteration from None

    async def _advance(self) -> None:
        """Store the next batch, on the portal's thread: a signal in the caller's thread must not lose its items."""
        if not operator.length_hint(self._items):  # another thread may have stored some meanwhile
            await self._source.next_batch(self._store)

    def _store(self, items: Iterable[T]) -> None:
        self._items = iter(items)

    def __reduce__(self) -> str:
        raise TypeError(STREAM_NO_COPY)

    def close(self) -> None:
        """End the iteration, also for a thread that is waiting for its next item. Closing again does nothing."""
        self._items = iter(())
        run(self._close)

    async def _close(self) -> None:
        await self._source.aclose()


def iterate(source: AsyncIterator[T]) -> Stream[T]:
    """Return a blocking iterator over an async stream."""
    if not isinstance(source, AsyncStream):
        raise TypeError(f"{type(source).__name__} has no batches")
    return Stream(source)
