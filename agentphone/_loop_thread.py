"""An event loop on a daemon thread, and the one place that registers fork hooks.

The sync facade runs its calls on such a thread, and the sandbox sends its webhooks from one. A daemon thread never
keeps the interpreter from exiting. Under gevent, its code uses the standard library without gevent's patches. Nothing
here knows the API.

A fork copies only the thread that forks. Locks that another thread holds at that moment (inside OpenSSL, SQLite or the
import system) stay locked in the child forever. So before a fork, every loop thread is paused between two of its steps.
Only then are the locks around SQLite taken: a thread may need one to finish its step. Other modules say what to do at a
fork; only this one registers it and fixes the order.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future

# Imported now, and not with asyncio: it registers fork hooks of its own, and one registered during a fork fails.
from concurrent.futures.thread import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio

if TYPE_CHECKING:
    import asyncio  # At run time it is imported with the first thread: it takes as long as half of this package.

T = TypeVar("T")

PAUSE_SECONDS = 1.0
"""How long a fork waits for a loop thread to finish its current step."""


class DaemonThreadExecutor(ThreadPoolExecutor):
    """Run each function, such as a name lookup, on a daemon thread of its own.

    Python waits for the threads of an ordinary executor before it exits. At exit no thread can start any more; then
    the event loop runs the function itself.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001  # raised where the future is awaited
                future.set_exception(error)

        future.set_running_or_notify_cancel()
        try:
            threading.Thread(target=work, name="agentphone lookup", daemon=True).start()
        except RuntimeError:
            work()
        return future


class LoopThread:
    """A daemon thread that runs one asyncio event loop.

    Args:
        name: The thread's name.
        main: What the loop runs; the thread ends when it returns. By default it runs until `stop`.
        preload: Modules that the thread would import while it works. A fork at that moment would leave their import
            locks held in the child, so `start` imports them first.
    """

    def __init__(
        self, name: str, main: Callable[[], Awaitable[None]] = anyio.sleep_forever, *, preload: Sequence[str] = ()
    ) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._main = main
        self._preload = preload
        self._scope: anyio.CancelScope
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_paused = threading.Event()
        self._may_resume = threading.Event()

    def start(self) -> None:
        """Start the thread and wait until its event loop runs.

        Raises:
            RuntimeError: The interpreter is exiting, so no thread can start.
        """
        for module in ("anyio._backends._asyncio", *self._preload):
            importlib.import_module(module)
        self._thread.start()
        self.loop = self._started.result()

    def is_current(self) -> bool:
        """Return whether the caller runs on this thread."""
        return threading.get_ident() == self._thread.ident

    def stop(self, timeout: float) -> None:
        """Cancel `main` and wait up to `timeout` seconds for the thread to end. Stopping it again does nothing."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._scope.cancel)
        self._thread.join(timeout)

    def pause(self) -> None:
        """Block the thread between two steps of its loop, if it gets there within `PAUSE_SECONDS`.

        Does nothing on the thread itself, and when the interpreter is exiting and daemon threads no longer run.
        """
        if self.is_current() or sys.is_finalizing():
            return
        self._may_resume.clear()
        self._is_paused.clear()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._block)
            self._is_paused.wait(PAUSE_SECONDS)

    def resume(self) -> None:
        """Let a paused thread continue."""
        self._may_resume.set()

    def _block(self) -> None:
        self._is_paused.set()
        self._may_resume.wait()

    def _run(self) -> None:
        try:
            anyio.run(self._serve, backend="asyncio", backend_options={"loop_factory": _loop_factory()})
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        with contextlib.suppress(ImportError):
            # Callbacks bring their caller's context, which may name trio as the running library. This wins over it.
            importlib.import_module("sniffio").thread_local.name = "asyncio"
        import asyncio

        loop = asyncio.get_running_loop()
        loop.set_default_executor(DaemonThreadExecutor())
        with anyio.CancelScope() as self._scope:
            self._started.set_result(loop)
            await self._main()


def unpatched(module: str, name: str) -> Any:
    """Return an attribute of a standard module as it is without gevent's patches."""
    monkey = sys.modules.get("gevent.monkey")
    return getattr(importlib.import_module(module), name) if monkey is None else monkey.get_original(module, name)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what creates an event loop that stays out of gevent's hub; None without gevent, for asyncio's default.

    The hub is a greenlet. At exit, Python up to 3.13 ends a daemon thread by unwinding its stack, and greenlet then
    releases an object that it does not own: one process in a hundred aborted. The patched `getaddrinfo` gives each
    lookup's thread a hub of its own, and never closes its file descriptors.
    """
    if "gevent.monkey" not in sys.modules:
        return None
    import asyncio

    class UnpatchedEventLoop(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> Any:
            lookup = unpatched("socket", "getaddrinfo")
            return await self.run_in_executor(None, functools.partial(lookup, host, port, **hints))

    return lambda: UnpatchedEventLoop(unpatched("selectors", "DefaultSelector")())


class ForkParticipant(Protocol):
    """Something that must be at rest while the process forks.

    A signal handler may raise in the middle of `before_fork`. Python then forks all the same, and the other hooks run.
    So a participant uses an RLock, which only its holder can release, and the child gets a new one.
    """

    def before_fork(self) -> None:
        """Pause, and take the locks that the child must find free."""

    def after_fork_in_parent(self) -> None:
        """Continue in the parent."""

    def after_fork_in_child(self) -> None:
        """Continue in the child, which has none of the parent's other threads."""


_fork_lock = threading.RLock()
"""Held through a fork, and while a participant is added."""
_forking_thread: int | None = None
"""The thread that holds the lock for a fork."""
_threads: weakref.WeakSet[ForkParticipant] = weakref.WeakSet()
_locks: weakref.WeakSet[ForkParticipant] = weakref.WeakSet()
_resting: list[ForkParticipant] = []


def pause_thread_at_fork(owner: ForkParticipant) -> None:
    """Call the owner's hooks at each fork, before any lock is taken that its thread may still need."""
    with _fork_lock:
        _threads.add(owner)


def hold_lock_at_fork(owner: ForkParticipant) -> None:
    """Call the owner's hooks at each fork, after every thread was paused."""
    with _fork_lock:
        _locks.add(owner)


def _before_fork() -> None:
    global _forking_thread
    _fork_lock.acquire()
    _forking_thread = threading.get_ident()
    for participant in [*_threads, *_locks]:
        _resting.append(participant)  # first, because the hook may be interrupted after it has paused a thread
        participant.before_fork()


def _after_fork_in_parent() -> None:
    global _forking_thread
    if _forking_thread != threading.get_ident():  # imported in the middle of a fork, or interrupted at the lock
        return
    while _resting:
        with contextlib.suppress(RuntimeError):  # its hook was interrupted before it took its lock
            _resting.pop().after_fork_in_parent()
    _forking_thread = None
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _fork_lock, _forking_thread
    _fork_lock = threading.RLock()
    _forking_thread = None
    _resting.clear()
    # All of them, not only those at rest: the hooks may have been interrupted before they came to all.
    for participant in [*_locks, *_threads]:
        participant.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # Windows does not fork.
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
