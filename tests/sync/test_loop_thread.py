"""The loop thread and the fork hooks on their own, without a client."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import threading
from pathlib import Path

import anyio
import pytest

from agentphone._loop_thread import LoopThread
from tests.support.forked import PIPE, Forked
from tests.support.processes import ENVIRONMENT, SECONDS, run
from tests.sync.programs import NEEDS_FORK


def run_program(program: str, *arguments: Path) -> str:
    """Run a Python program that must succeed and write nothing to stderr; return what it printed."""
    code = textwrap.dedent(program)
    with Forked(code, *arguments, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT, warning_action="ignore") as process:
        output, errors = process.communicate(timeout=SECONDS)
        assert (process.wait(), errors) == (0, "")
    return output


def test_stop_cancels_main_and_may_be_repeated() -> None:
    outcomes: list[str] = []

    async def main() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            outcomes.append("cancelled")

    thread = LoopThread("test", main)
    thread.start()
    for _ in range(2):
        thread.stop(SECONDS)
        assert outcomes == ["cancelled"]
    thread.pause()  # a thread that has ended needs no pause
    thread.resume()
    assert "test" not in [running.name for running in threading.enumerate()]


def test_paused_thread_runs_nothing_until_it_is_resumed() -> None:
    thread = LoopThread("test")
    thread.start()
    has_run = threading.Event()
    thread.pause()
    thread.loop.call_soon_threadsafe(has_run.set)
    assert not has_run.wait(0.1)
    thread.resume()
    assert has_run.wait(SECONDS)
    thread.stop(SECONDS)


def test_functions_run_on_daemon_threads() -> None:
    async def daemon_of_a_function() -> tuple[bool, bool]:
        loop = asyncio.get_running_loop()
        thread = await loop.run_in_executor(None, threading.current_thread)
        try:
            await loop.run_in_executor(None, int, "x")
        except ValueError:
            return thread.daemon, True
        return thread.daemon, False

    thread = LoopThread("test")
    thread.start()
    future = asyncio.run_coroutine_threadsafe(daemon_of_a_function(), thread.loop)
    assert future.result(SECONDS) == (True, True)
    thread.stop(SECONDS)


@NEEDS_FORK
def test_fork_pauses_threads_before_it_takes_locks() -> None:
    program = """
        import os
        from agentphone._loop_thread import hold_lock_at_fork, pause_thread_at_fork
        seen = []
        class Participant:
            def __init__(self, name): self.name = name
            def before_fork(self): seen.append("before " + self.name)
            def after_fork_in_parent(self): seen.append("parent " + self.name)
            def after_fork_in_child(self): seen.append("child " + self.name)
        kept = [Participant("lock"), Participant("thread"), Participant("dropped")]
        hold_lock_at_fork(kept[0])
        pause_thread_at_fork(kept[1])
        pause_thread_at_fork(kept.pop())
        for _ in range(2):
            seen.clear()
            pid = os.fork()
            if pid == 0: print(*seen, sep=", ", flush=True); os._exit(0)
            os.waitpid(pid, 0)
            print(*seen, sep=", ", flush=True)
        """
    child = "before thread, before lock, child lock, child thread\n"
    assert run_program(program) == (child + child.replace("child", "parent")) * 2


@NEEDS_FORK
def test_import_in_the_middle_of_a_fork() -> None:
    """The hooks after the fork run without the one before it."""
    program = """
        import concurrent.futures.thread, importlib, logging, os, random  # these have hooks that fail in this situation
        os.register_at_fork(before=lambda: importlib.import_module("agentphone"))
        for _ in range(2):
            pid = os.fork()
            from agentphone import Client
            page = Client(base_url="sandbox:").conversations.list(limit=1).page()
            if pid == 0: print("child", len(page), flush=True); os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            print("parent", len(page), flush=True)
        """
    done = run(sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["child", "1", "parent", "1"] * 2


INTERRUPTED_AT_A_LOCK = """
    import os, signal, sys, threading, time
    from agentphone import Client, _delivery_log
    from agentphone.sandbox import Sandbox
    from agentphone.webhooks import SQLiteDeliveryLog

    def handler(*_): raise ZeroDivisionError
    signal.signal(signal.SIGALRM, handler)
    sys.unraisablehook = lambda unraisable: print(unraisable.exc_type.__name__, flush=True)
    log = SQLiteDeliveryLog(sys.argv[1])
    box = Sandbox(sys.argv[2])
    client = Client("key", base_url="sandbox:")
    client.conversations.list(limit=1).page()
    held, outcomes = threading.Event(), []

    def hold():
        try:
            with HELD: held.set(); time.sleep(1)
        except BaseException as error: outcomes.append(repr(error))
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(120)  # a hang ends with its signal's number
        Client("key", base_url="sandbox:").conversations.list(limit=1).page()
        log.mark("child")
        os._exit(0)
    box.receive_sms(from_number="+15555550110", to_number="+15555550100", body="Hi")
    thread.join()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), outcomes, log.seen("child"), flush=True)
    client.close()
    box.close()
"""


@NEEDS_FORK
@pytest.mark.parametrize(
    "held", ["_delivery_log._sqlite_lock.lock", "box._store._database.transaction('BEGIN IMMEDIATE')"]
)
def test_fork_interrupted_while_it_waits_for_a_lock(held: str, tmp_path: Path) -> None:
    """A signal handler raises there. The child gets new locks, and the parent's holder keeps its own."""
    program = textwrap.dedent(INTERRUPTED_AT_A_LOCK).replace("HELD", held)
    assert run_program(program, tmp_path / "log.db", tmp_path / "box.db") == "ZeroDivisionError\n0 [] True\n"
