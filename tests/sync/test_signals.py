"""Signals during blocking calls: an exception of a handler ends the call at once, and leaves nothing behind."""

from __future__ import annotations

import signal
import textwrap
import time
from typing import IO, cast

import pytest

from tests.support.listener import Listener
from tests.support.long import count
from tests.sync.programs import EXIT_SECONDS, FORKED, NEEDS_FORK, NEEDS_SIGNALS, end, noise, start

CAUGHT = """
class Stop(Exception): pass
def raise_stop(*_): raise Stop
signal.signal(signal.SIGUSR1, raise_stop)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
"""


@NEEDS_SIGNALS
@pytest.mark.parametrize(
    ("number", "error"),
    [("SIGINT", "KeyboardInterrupt"), ("SIGUSR1", "Stop"), ("SIGTERM", "SystemExit")],
)
@pytest.mark.parametrize("call", ["get('hold')", "client.conversations.update('hold', metadata={'a': 1})"])
def test_exception_from_a_signal_handler_ends_the_call(number: str, error: str, call: str, listener: Listener) -> None:
    program = f"""
        get("before")
        try: {call}
        except BaseException as error: print(type(error).__name__, flush=True)
        get("after")
        """
    process = start(CAUGHT + textwrap.dedent(program), listener.url)
    assert listener.wait_for(lambda: len(listener.ports("hold")) == 1)
    process.send_signal(getattr(signal, number))
    printed = cast("IO[str]", process.stdout).readline()
    assert listener.wait_for(lambda: listener.ended == listener.ports("hold"))  # the server sees the call end
    code, _, err = end(process, EXIT_SECONDS)
    assert (printed, code, noise(err)) == (f"{error}\n", 0, [])
    assert [name for _, _, name in listener.requests] == ["before", "hold", "after"]


@NEEDS_SIGNALS
def test_ctrl_c_ends_a_program_during_a_call(listener: Listener) -> None:
    process = start("get('hold'); get('never')", listener.url)
    assert listener.wait_for(lambda: len(listener.requests) == 1)
    process.send_signal(signal.SIGINT)
    code, _, err = end(process, EXIT_SECONDS)
    assert code in (-signal.SIGINT, 130)
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert [name for _, _, name in listener.requests] == ["hold"]


@NEEDS_SIGNALS
def test_signal_handler_may_make_a_call(listener: Listener) -> None:
    program = """
        def handler(*_): print(get("by_the_handler").id, flush=True); signal.signal(signal.SIGUSR1, raise_stop)
        signal.signal(signal.SIGUSR1, handler)
        try: get("hold")
        except Stop: print(get("after").id)
        """
    process = start(CAUGHT + textwrap.dedent(program), listener.url)
    assert listener.wait_for(lambda: len(listener.ports("hold")) == 1)
    process.send_signal(signal.SIGUSR1)
    assert cast("IO[str]", process.stdout).readline() == "by_the_handler\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    code, out, err = end(process, EXIT_SECONDS)
    assert (code, out, noise(err)) == (0, "after\n", [])


STRESS = """
import asyncio, random, anyio, httpx
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGALRM, stop)
sent = []

class Counting(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        await anyio.sleep(0)
        sent.append(request)
        await anyio.sleep(0.0002)
        return httpx.Response(200, content=BODY)

def interrupted(call, longest):
    '''Make a call that a signal may interrupt at a random moment; return whether it did.'''
    try:
        signal.setitimer(signal.ITIMER_REAL, source.uniform(1e-6, longest))
        call()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return False
    except Stop:
        return True

def duration(call):
    began = time.perf_counter()
    for _ in range(50): call()
    return (time.perf_counter() - began) / 50

def tasks():
    '''Return the number of tasks on the event loop, without the one that counts.'''
    counts = []
    probe = httpx.MockTransport(lambda _: httpx.Response(200, content='{"data": [], "hasMore": false}'))
    hook = lambda _: counts.append(len(asyncio.all_tasks()))
    Client("key", transport=probe, on_request=hook).conversations.list().page()
    return counts[0] - 1
source = random.Random(1)
"""


def run_stress(program: str, url: str) -> str:
    """Run a program with exceptions at random moments; return what it printed.

    Stderr is not checked: Python reports there what it cannot raise, for example in a callback of a weak reference.
    """
    code, out, err = end(start(STRESS + textwrap.dedent(program), url))
    assert code == 0, err
    return out


@NEEDS_SIGNALS
def test_interrupted_calls_leave_no_request_and_no_task() -> None:
    program = f"""
        import json
        from tests.support.helpers import conversation
        BODY = json.dumps(conversation(messages=[]))
        client = Client("key", base_url=URL, transport=Counting())
        call = lambda: client.conversations.get("conv_1")
        longest = duration(call) * 1.5
        hit, latest = 0, time.monotonic() + 40
        while hit < {count(50, 250)} and time.monotonic() < latest:
            if interrupted(call, longest):
                hit += 1
                count = len(sent)
                time.sleep(0.001)
                assert len(sent) == count, "a request went out after the exception"
            assert call().id == "conv_1"
        print(tasks(), hit > 20)
        """
    assert run_stress(program, "http://127.0.0.1:9") == "1 True\n"


@NEEDS_SIGNALS
def test_interrupted_calls_leave_no_connection(listener: Listener) -> None:
    calls = count(100, 300)
    program = f"""
        call = lambda: get("conv_1")
        longest = duration(call) * 1.5
        def descriptors(): return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
        hit = sum(interrupted(call, longest) and call().id == "conv_1" for _ in range({calls}))
        for _ in range(30): interrupted(lambda: client.with_options(timeout=1).conversations.get("conv_1"), longest)
        before = descriptors()
        for _ in range({calls}): interrupted(call, longest)
        assert call().id == "conv_1"
        for _ in range(200):  # an interrupted connection takes a moment to close
            if descriptors() - before <= 2: break
            time.sleep(0.05)
        print(tasks(), descriptors() - before <= 2, hit > 5, threading.active_count())
        """
    assert run_stress(program, listener.url) == "1 True True 2\n"


@NEEDS_SIGNALS
def test_interrupted_iteration_loses_no_page() -> None:
    program = """
        import json
        from tests.support.helpers import conversation, page
        class Pages(Counting):
            async def handle_async_request(self, request):
                await anyio.sleep(0.0001)
                offset = int(request.url.params["offset"])
                found = [conversation(id=f"conv_{offset + number}") for number in range(3)]
                return httpx.Response(200, content=json.dumps(page(*found, has_more=offset < 597)))
        client = Client("key", base_url=URL, transport=Pages())
        longest = duration(lambda: client.conversations.list(limit=3).page()) * 1.5
        items = iter(client.conversations.list(page_size=3))
        got, hits = [], 0
        def step():
            # One C call from the iterator's return to the list: no signal can come between.
            got.extend(itertools.islice(items, 1))
        import itertools
        while len(got) < 600 and hits < 10_000:
            size = len(got)
            hits += interrupted(step, longest)
            if len(got) == size and not hits: break
        ids = [int(item.id[5:]) for item in got]
        lost = sorted(set(range(600)) - set(ids))
        pages_lost = [n for n in lost if n % 3 == 0 and {n, n + 1, n + 2} <= set(lost)]
        print(pages_lost, len(ids) == len(set(ids)), hits > 5, tasks())
        """
    assert run_stress(program, "http://127.0.0.1:9") == "[] True True 1\n"


@NEEDS_FORK
@NEEDS_SIGNALS
def test_interrupted_first_call_leaves_a_working_client(listener: Listener) -> None:
    children = count(25, 100)
    program = f"""
        get("conv_1")  # the children need not import anything
        def work():
            try: hit = interrupted(lambda: get("conv_1"), 0.004)
            except (KeyError, RuntimeError) as error:  # what threading makes of an exception inside Thread.start
                assert isinstance(error.__context__, Stop)
                hit = True
            assert get("conv_1").id == "conv_1"
            print("interrupted" if hit else "completed", flush=True)
            os._exit(0)  # at once: ordinary exits take a while
        for _ in range({children}): join(in_child(work))
        """
    lines = run_stress(FORKED + textwrap.dedent(program), listener.url).splitlines()
    assert len(lines) == children
    assert set(lines) <= {"interrupted", "completed"}
    assert "interrupted" in lines
