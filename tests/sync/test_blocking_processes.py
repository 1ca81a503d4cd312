"""The blocking face where the process is the subject: exit, fork, signals, threads, imports, gevent. From outside.

Each test runs a program of its own and looks at what it prints, how it ends, and what a server saw of it. Limits on
time only tell a hang from an end; the promise (an exit within a second, a child's call within five) is well within.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pytest

from tests.conftest import Server
from tests.support.listener import Listener, listening
from tests.support.processes import ENVIRONMENT, SECONDS

EXIT_SECONDS = 5.0
"""What ends within one second gets this long on a busy machine; what hangs, hangs for longer."""

NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
NEEDS_SIGNALS = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

START = """\
import os, sys, threading, time, gc, signal
from agentphone import Client, ClientClosedError
URL = sys.argv[1]
client = Client("key", base_url=URL)
get = client.conversations.get
"""


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as listener:
        yield listener


def start(program: str, url: str, *options: str) -> subprocess.Popen[str]:
    """Start a program that has a client, and the URL as its argument."""
    return subprocess.Popen(
        [sys.executable, *options, "-c", START + textwrap.dedent(program), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def end(process: subprocess.Popen[str], seconds: float = SECONDS) -> tuple[int, str, str]:
    """Wait for a program's end, and give its exit code and what it said."""
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"it hangs; it said {out!r} and {err!r}")
        return process.returncode, out, err


def run(program: str, url: str, *options: str) -> list[str]:
    """Run a program that ends well and complains of nothing; give the lines that it printed."""
    code, out, err = end(start(program, url, *options))
    assert (code, noise(err)) == (0, []), out + err
    return out.splitlines()


def noise(err: str) -> list[str]:
    """Give what stands on stderr besides resource warnings and the source lines that they quote."""
    # From Python 3.12 on each fork beside a thread is warned of, whoever's thread it is.
    # Under -X dev asyncio tells of steps that take long, on a machine that is busy.
    harmless = re.compile(
        r".*ResourceWarning|  \S|.*DeprecationWarning: This process .* is multi-threaded"
        r"|Executing .* took [\d.]+ seconds"
    )
    return [line for line in err.splitlines() if not harmless.match(line)]


# ---- Exit

UNCLOSED = {
    "used": "get('a')",
    "never used": "",
    "half-read iterator": "walk = iter(client.conversations.list()); next(walk)",
    "half-read iterator over pages": "walk = client.conversations.list().pages(); next(walk)",
    "call in flight": "threading.Thread(target=get, args=('hold',), daemon=True).start(); wait_for_the_server()",
    "many calls in flight": """
        for number in range(30):
            threading.Thread(target=get, args=('hold',), daemon=True).start()
        wait_for_the_server()""",
    "calls going on": """
        def forever():
            while True: get('a')
        for _ in range(4): threading.Thread(target=forever, daemon=True).start()
        wait_for_the_server()""",
    "looking up a name": """
        import socket
        asked = threading.Event()
        def lookup(*_, **__): asked.set(); time.sleep(600)
        socket.getaddrinfo = lookup
        slow = Client("key", base_url="https://api.example")
        threading.Thread(target=slow.conversations.get, args=('a',), daemon=True).start()
        asked.wait()""",
    "waiting to try again": """
        failing = Client("key", base_url="http://127.0.0.1:9", max_retry_after=600)
        import agentphone._http.retry
        agentphone._http.retry.RetryPolicy.pause = lambda *_: asked.set() or 600.0
        asked = threading.Event()
        threading.Thread(target=failing.conversations.get, args=('a',), daemon=True).start()
        asked.wait()""",
    "with a sandbox": "box = Client(base_url='sandbox:'); box.conversations.list().page()",
    "made a cycle": "client.me = client; get('a'); del client, get",
}
ENDS = {"runs out": ("", 0), "sys.exit": ("sys.exit(3)", 3), "an error": ("1 / 0", 1)}


@pytest.mark.parametrize("options", [(), ("-X", "dev")], ids=["plain", "dev"])
@pytest.mark.parametrize("state", UNCLOSED)
def test_a_program_that_never_closes_its_client_ends_at_once(
    state: str, options: tuple[str, ...], listener: Listener
) -> None:
    program = "def wait_for_the_server(): sys.stdin.readline()\n" + textwrap.dedent(UNCLOSED[state])
    program += "\nprint('leaving', flush=True); sys.exit(3)"
    with subprocess.Popen(
        [sys.executable, *options, "-c", START + program, listener.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        try:
            if "wait_for_the_server" in UNCLOSED[state]:
                assert listener.wait_for(lambda: len(listener.requests) > 0)
                cast("IO[str]", process.stdin).write("\n")
                cast("IO[str]", process.stdin).flush()
            assert cast("IO[str]", process.stdout).readline() == "leaving\n"
            _, err = process.communicate(timeout=EXIT_SECONDS)
        finally:
            process.kill()
    said = [line for line in noise(err) if "trying again" not in line]  # which the SDK logs, if it still comes to it
    assert (process.returncode, said) == (3, [])


@pytest.mark.parametrize("end_by", ENDS)
def test_a_program_keeps_its_own_exit_code(end_by: str, listener: Listener) -> None:
    last, expected = ENDS[end_by]
    code, _, err = end(start(f"get('a')\n{last}", listener.url))
    assert code == expected
    assert ("ZeroDivisionError" in err) == (end_by == "an error")


LATE = """
import atexit
def late(name):
    try:
        found = local.conversations.get(name).id
    except ClientClosedError:
        found = "closed"
    print(name, found, flush=True)
# By a name: looking one up takes another thread, which Python may refuse by then.
local = Client("key", base_url=URL.replace("127.0.0.1", "localhost"))
atexit.register(late, "registered_before")
{first}
atexit.register(late, "registered_after")
"""


@pytest.mark.parametrize(
    "first", ["local.conversations.get('a')", "get('a')", "", "local.conversations.get('a'); local.close()"]
)
def test_a_call_at_exit_works_or_says_that_it_is_too_late(first: str, listener: Listener) -> None:
    code, out, err = end(start(LATE.format(first=first), listener.url))
    assert (code, noise(err)) == (0, [])
    names = ["registered_after", "registered_before"]
    closed, works = (
        [f"{name} {found}" for name, found in zip(names, (a, b), strict=True)] for a, b in [("closed",) * 2, names]
    )
    assert out.splitlines() in ([closed] if "close" in first else [works, closed])


@pytest.mark.parametrize("first", ["get('a')", ""])
@pytest.mark.parametrize("call", ["get('b')", "client.close()", "next(walk)"])
def test_a_call_from_a_finalizer_at_the_very_end_never_hangs(call: str, first: str, listener: Listener) -> None:
    program = f"""
        class Last:
            def __del__(self, call=lambda: {call}, print=print, closed=ClientClosedError):
                try: call(); print("works")
                except closed: print("closed")
        walk = iter(client.conversations.list())
        {first}
        last = Last()
        last.me = last
        """
    code, out, _ = end(start(program, listener.url))
    assert code == 0
    assert out.strip() in ("works", "closed")


def test_sys_exit_in_a_hook_ends_the_program_with_its_code(listener: Listener) -> None:
    code, out, err = end(
        start("Client('key', base_url=URL, on_request=lambda _: sys.exit(7)).conversations.get('a')", listener.url)
    )
    assert (code, out, noise(err), listener.requests) == (7, "", [], [])


# ---- Fork

FORKED = """
def in_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a hang ends with its signal's number
        began = time.monotonic()
        try:
            work()
        except Exception:
            sys.excepthook(*sys.exc_info())
            sys.exit(1)
        print("child", time.monotonic() - began < 5, flush=True)
        sys.exit(0)
    return pid

def join(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code: sys.exit(f"the child ended with {code}")
"""


@NEEDS_FORK
@pytest.mark.parametrize(
    "leave", ["client.close()", "pass", "globals().pop('client'), globals().pop('get'), gc.collect()"]
)
def test_after_a_fork_child_and_parent_have_connections_of_their_own(leave: str, listener: Listener) -> None:
    program = f"""
        get("parent")
        def work(get=get):
            get("child")
            {leave}
        join(in_child(work))
        get("parent")
        join(in_child(work))
        get("parent")
        """
    assert run(FORKED + textwrap.dedent(program), listener.url) == ["child True"] * 2
    parents, children = listener.ports("parent"), listener.ports("child")
    assert len(parents) == 3
    assert len(set(parents)) == 1
    assert len(set(children)) == 2
    assert not set(parents) & set(children)


@NEEDS_FORK
def test_a_childs_first_call_may_come_from_another_thread_than_the_one_that_forked(listener: Listener) -> None:
    program = """
        get("parent")
        def work():
            thread = threading.Thread(target=get, args=("child",), daemon=True)
            thread.start()
            thread.join(20)
            assert not thread.is_alive(), "it waits for a lock that its parent held"
        join(in_child(work))
        get("parent")
        """
    assert run(FORKED + textwrap.dedent(program), listener.url) == ["child True"]
    assert len(listener.ports("child")) == 1


@NEEDS_FORK
def test_a_child_that_only_drops_or_closes_what_it_inherited_harms_no_one(listener: Listener) -> None:
    program = """
        get("parent")
        walk = iter(client.conversations.list())
        next(walk)
        def drop():
            global client, get, walk
            del client, get, walk
            gc.collect()
            Client("key", base_url=URL).conversations.get("child")
        def close():
            client.close()
            try: get("never")
            except ClientClosedError: pass
        def closed_alone():
            client.close()
        for work in (drop, close, closed_alone):
            join(in_child(work))
            get("parent")
            next(walk)
        """
    assert run(FORKED + textwrap.dedent(program), listener.url, "-X", "dev") == ["child True"] * 3
    assert len(set(listener.ports("parent") + listener.ports(""))) == 1
    assert listener.ports("never") == []


@NEEDS_FORK
def test_grandchildren_and_an_iterator_go_on_after_a_fork(listener: Listener) -> None:
    program = """
        walk = iter(client.conversations.list())
        next(walk)
        def grandchild(): get("grandchild"); next(walk)
        def child():
            next(walk)
            get("child")
            join(in_child(grandchild))
            get("child")
        join(in_child(child))
        get("parent"); next(walk)
        """
    assert run(FORKED + textwrap.dedent(program), listener.url) == ["child True"] * 2
    ports = [set(listener.ports(who)) for who in ("parent", "child", "grandchild")]
    assert [len(found) for found in ports] == [1, 1, 1]
    assert len(set.union(*ports)) == 3


@NEEDS_FORK
def test_forks_while_other_threads_are_calling(listener: Listener) -> None:
    program = """
        stop, failed = threading.Event(), []
        def forever():
            while not stop.is_set():
                try: get("parent")
                except BaseException as error: failed.append(error)
        threads = [threading.Thread(target=forever) for _ in range(3)]
        for thread in threads: thread.start()
        for _ in range(50):
            def work(): get("child"); client.close()
            join(in_child(work))
        stop.set()
        for thread in threads: thread.join()
        get("parent")
        print(failed)
        """
    assert run(FORKED + textwrap.dedent(program), listener.url) == ["child True"] * 50 + ["[]"]
    assert len(set(listener.ports("child"))) == 50
    assert not set(listener.ports("parent")) & set(listener.ports("child"))


@NEEDS_FORK
def test_a_fork_in_the_middle_of_another_threads_first_call(listener: Listener) -> None:
    program = """
        importing, forked = threading.Event(), threading.Event()
        class Slowly:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name == "httpcore._async":
                    importing.set()
                    time.sleep(0.5)
        sys.meta_path.insert(0, Slowly)
        thread = threading.Thread(target=get, args=("parent",))
        thread.start()
        importing.wait()
        join(in_child(lambda: get("child")))
        thread.join()
        get("parent")
        """
    assert run(FORKED + textwrap.dedent(program), listener.url) == ["child True"]
    assert [len(set(listener.ports(who))) for who in ("parent", "child")] == [1, 1]


@NEEDS_FORK
def test_a_fork_waits_until_the_other_thread_holds_no_lock() -> None:
    # As OpenSSL holds some of its own while it makes a context; the child would wait for them for ever.
    program = """
        import httpx, json
        from tests.support.helpers import ok
        lock, inside = threading.Lock(), threading.Event()
        class Locking(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request):
                with lock:
                    inside.set()
                    time.sleep(0.3)
                return ok()
        client = Client("key", transport=Locking())
        thread = threading.Thread(target=client.conversations.list().page)
        thread.start()
        inside.wait()
        join(in_child(lambda: print(lock.acquire(timeout=10), flush=True)))
        thread.join()
        print(len(client.conversations.list().page()))
        """
    assert run(FORKED + textwrap.dedent(program), "http://127.0.0.1:9") == ["True", "child True", "1"]


@NEEDS_FORK
def test_multiprocessing_by_fork(listener: Listener) -> None:
    program = """
        import multiprocessing
        def work(number): return get(f"conv_{number}").id
        work(0)
        context = multiprocessing.get_context("fork")
        with context.Pool(3) as pool:
            print(pool.map(work, range(30)) == [f"conv_{number}" for number in range(30)])
        process = context.Process(target=work, args=(1,))
        process.start()
        process.join()
        print(process.exitcode)
        work(0)
        """
    assert run(program, listener.url) == ["True", "0"]
    assert len(set(listener.ports("conv_0"))) >= 1
    assert listener.requests[0][0] == listener.requests[-1][0]


@NEEDS_FORK
def test_an_error_raised_by_the_api_comes_back_from_a_worker_process(server: Server) -> None:
    program = """
        import multiprocessing
        from agentphone import NotFoundError
        def work(): get("conv_nobody")
        with multiprocessing.get_context("fork").Pool(1) as pool:
            try: pool.apply(work)
            except NotFoundError as error: print(error.status_code, error.attempts[0].outcome)
        """
    assert run(program, server.url) == ["404 404"]


@NEEDS_FORK
@pytest.mark.parametrize("base_url", ["sandbox:", "sandbox:box.db"])
def test_a_sandbox_of_the_client_after_a_fork(base_url: str, tmp_path: Path) -> None:
    program = f"""
        os.chdir({str(tmp_path)!r})
        box = Client(base_url={base_url!r})
        count = box.conversations.list().page().total
        if count == 0:
            from agentphone.sandbox import Sandbox
            with Sandbox("box.db") as file: file.load_demonstration()
        found = box.conversations.list(limit=1).page()[0].id
        box.conversations.update(found, metadata={{"by": "parent"}})
        def work():
            print(box.conversations.list().page().total, (box.conversations.get(found).metadata or {{}}).get("by"))
            box.conversations.update(found, metadata={{"by": "child"}})
            box.close()
        stop = threading.Event()
        def forever():
            while not stop.is_set(): box.conversations.list().page()
        thread = threading.Thread(target=forever)
        thread.start()
        for _ in range(3): join(in_child(work))
        stop.set()
        thread.join()
        print(box.conversations.get(found).metadata["by"])
        """
    said = run(FORKED + textwrap.dedent(program), "http://127.0.0.1:9")
    if base_url == "sandbox:":  # the child's is a fresh one
        first = said[0].split()[1]
        assert first not in ("parent", "child")
        assert said == [f"36 {first}", "child True"] * 3 + ["parent"]
    else:
        assert said == ["36 parent", "child True", *["36 child", "child True"] * 2, "child"]


# ---- Signals

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
def test_an_exception_by_a_signal_ends_the_call_at_once(number: str, error: str, call: str, listener: Listener) -> None:
    program = f"""
        get("before")
        try: {call}
        except BaseException as error: print(type(error).__name__, flush=True)
        get("after")
        """
    process = start(CAUGHT + textwrap.dedent(program), listener.url)
    assert listener.wait_for(lambda: len(listener.ports("hold")) == 1)
    process.send_signal(getattr(signal, number))
    said = cast("IO[str]", process.stdout).readline()
    assert listener.wait_for(lambda: listener.ended == listener.ports("hold"))  # the server sees the call end
    code, _, err = end(process, EXIT_SECONDS)
    assert (said, code, noise(err)) == (f"{error}\n", 0, [])
    assert [name for _, _, name in listener.requests] == ["before", "hold", "after"]


@NEEDS_SIGNALS
def test_ctrl_c_ends_a_program_in_the_middle_of_a_call(listener: Listener) -> None:
    process = start("get('hold'); get('never')", listener.url)
    assert listener.wait_for(lambda: len(listener.requests) == 1)
    process.send_signal(signal.SIGINT)
    code, _, err = end(process, EXIT_SECONDS)
    assert code in (-signal.SIGINT, 130)
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert [name for _, _, name in listener.requests] == ["hold"]


@NEEDS_SIGNALS
def test_a_signal_handler_may_make_a_call_in_the_middle_of_a_call(listener: Listener) -> None:
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
from agentphone import _portal
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
    '''Make a call that a signal may interrupt at a random moment; say whether it did.'''
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

def tasks(): return len(asyncio.all_tasks(_portal._portal.loop))
source = random.Random(1)
"""


def run_stress(program: str, url: str) -> str:
    """Run a program under random exceptions; give what it printed.

    Python itself complains on stderr of those that come where it can raise none: in a callback of a weak reference, in
    the start of a thread.
    """
    code, out, err = end(start(STRESS + textwrap.dedent(program), url))
    assert code == 0, err
    return out


@NEEDS_SIGNALS
def test_an_exception_at_any_moment_of_a_call_leaves_nothing_behind() -> None:
    program = """
        import json
        from tests.support.helpers import conversation
        BODY = json.dumps(conversation(messages=[]))
        client = Client("key", base_url=URL, transport=Counting())
        call = lambda: client.conversations.get("conv_1")
        longest = duration(call) * 1.5
        hit, latest = 0, time.monotonic() + 40
        while hit < 250 and time.monotonic() < latest:
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
def test_an_exception_at_any_moment_over_sockets_leaves_no_connection_behind(listener: Listener) -> None:
    program = """
        call = lambda: get("conv_1")
        longest = duration(call) * 1.5
        def descriptors(): return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
        hit = sum(interrupted(call, longest) and call().id == "conv_1" for _ in range(300))
        for _ in range(30): interrupted(lambda: client.with_options(timeout=1).conversations.get("conv_1"), longest)
        before = descriptors()
        for _ in range(300): interrupted(call, longest)
        assert call().id == "conv_1"
        for _ in range(200):  # a connection that was cut off takes a moment to close
            if descriptors() - before <= 2: break
            time.sleep(0.05)
        print(tasks(), descriptors() - before <= 2, hit > 5, threading.active_count())
        """
    assert run_stress(program, listener.url) == "1 True True 2\n"


@NEEDS_SIGNALS
def test_an_exception_at_any_moment_of_an_iteration_loses_no_page() -> None:
    program = """
        import json
        from tests.support.helpers import conversation, page
        class Pages(Counting):
            async def handle_async_request(self, request):
                await anyio.sleep(0.0001)
                offset = int(request.url.params["offset"])
                items = [conversation(id=f"conv_{offset + number}") for number in range(3)]
                return httpx.Response(200, content=json.dumps(page(*items, has_more=offset < 597)))
        client = Client("key", base_url=URL, transport=Pages())
        longest = duration(lambda: client.conversations.list(limit=3).page()) * 1.5
        walk = iter(client.conversations.list(page_size=3))
        got, hits = [], 0
        def step():
            # One C call from the iterator's return to the list: no signal can come between.
            got.extend(itertools.islice(walk, 1))
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


@NEEDS_SIGNALS
def test_an_exception_at_any_moment_of_the_first_call_leaves_a_client_that_works(listener: Listener) -> None:
    program = """
        get("conv_1")
        hit = 0
        for _ in range(100):
            _portal._portal = None
            hit += interrupted(lambda: get("conv_1"), 0.004)
            assert get("conv_1").id == "conv_1"
        print(hit > 0)
        """
    assert run_stress(program, listener.url) == "True\n"


# ---- Threads, descriptors, imports


def test_the_first_calls_of_many_threads_start_one_event_loop(listener: Listener) -> None:
    program = """
        import asyncio
        from concurrent.futures import ThreadPoolExecutor
        from agentphone import _portal
        counts = []
        for _ in range(20):
            _portal._portal = None
            loops = set()
            client = Client("key", base_url=URL, on_request=lambda _: loops.add(asyncio.get_running_loop()))
            meet = threading.Barrier(8)
            def first(_): meet.wait(); return client.conversations.get("conv_1").id
            with ThreadPoolExecutor(8) as pool: assert set(pool.map(first, range(8))) == {"conv_1"}
            counts.append(len(loops))
        print(set(counts))
        """
    assert run(program, listener.url) == ["{1}"]


def test_making_a_client_starts_no_thread_and_opens_no_socket() -> None:
    program = """
        import socket
        from agentphone import AsyncClient
        real = socket.socket.__init__
        opened = []
        def recording(self, *args, **kwargs): opened.append(self); real(self, *args, **kwargs)
        socket.socket.__init__ = recording
        clients = [Client("key"), Client("key", base_url=URL), AsyncClient("key"), client.with_options(timeout=1)]
        pagers = [client.conversations.messages("conv_1").pages(), iter(client.conversations.list())]
        print(threading.active_count(), len(opened))
        get("conv_1")
        print(threading.active_count(), len(opened) > 0)
        """
    with listening() as listener:
        assert run(program, listener.url) == ["1 0", "2 True"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
@pytest.mark.parametrize("close", ["client.close()", "pass"])
def test_a_thousand_clients_leave_no_descriptor_and_no_thread(close: str, listener: Listener) -> None:
    program = f"""
        def descriptors(): return len(os.listdir("/proc/self/fd"))
        def use():
            client = Client("key", base_url=URL)
            client.conversations.get("conv_1")
            {close}
        for _ in range(10): use()
        time.sleep(0.1)
        before, most = descriptors(), 0
        gc.disable()
        for _ in range(1000):
            use()
            most = max(most, descriptors())
        end = time.monotonic() + 20
        while descriptors() > before and time.monotonic() < end: time.sleep(0.01)
        print(descriptors() <= before, most <= before + 20, threading.active_count(), most, before)
        """
    assert [line.split()[:3] for line in run(program, listener.url)] == [["True", "True", "2"]]


IMPORTS = """
seen = []
class Watching:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            seen.append(name)
sys.meta_path.insert(0, Watching)
"""


@pytest.mark.parametrize(
    "call",
    [
        "client.conversations.list().page()",
        "client.conversations.update(client.conversations.list().page()[0].id, metadata={'a': 1})",
        "list(client.conversations.messages(client.conversations.list().page()[0].id))",
        "Client('key', base_url=URL.replace('127.0.0.1', 'localhost')).conversations.list().page()",
        "fails(Client('key', base_url=URL.replace('http', 'https'), max_retries=1).conversations.list().page)",
        "fails(Client('key', base_url='https://localhost:9', max_retries=0).conversations.list().page)",
        "fails(get, 'conv_nobody')",
        "fails(Client('key', base_url=URL, timeout=1e-9, max_retries=1).conversations.list().page)",
        "Client(base_url='sandbox:').conversations.list().page()",
        "client.close()",
    ],
)
def test_the_thread_of_the_portal_imports_nothing(call: str, server: Server) -> None:
    # A fork in such a moment would leave the child with a lock on the module that nobody releases.
    server.box.receive_sms(from_number="+15555550177", to_number="+15555550100", body="hello")
    program = f"""
        from agentphone import AgentPhoneError
        def fails(call, *args):
            try: call(*args)
            except AgentPhoneError: return
            raise AssertionError
        before = threading.active_count()
        {call}
        print(seen)
        """
    code, out, _ = end(start(IMPORTS + textwrap.dedent(program), server.url))
    assert (code, out) == (0, "[]\n")


# ---- gevent

PATCHED = "import gevent.monkey; gevent.monkey.patch_all({}); import gevent\n" + START


def run_patched(patched: str, program: str, url: str) -> list[str]:
    done: Any = subprocess.run(
        [sys.executable, "-c", PATCHED.format(patched) + textwrap.dedent(program), url],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, noise(done.stderr)) == (0, [])
    return cast("str", done.stdout).splitlines()


def test_among_threads_that_gevent_has_patched_the_error_names_the_way_out(listener: Listener) -> None:
    program = """
        from agentphone import ConfigurationError
        for _ in range(2):
            try: get("conv_1")
            except ConfigurationError as error: print(error)
        """
    first, second = run_patched("", program, listener.url)
    assert first == second
    assert "gthread" in first
    assert f"gevent.monkey.patch_all({ADVISED})" in first
    assert "gevent.get_hub().threadpool.apply()" in first
    assert listener.requests == []


ADVISED = "thread=False, os=False, signal=False, subprocess=False"


def test_the_way_out_for_gevent_works_while_other_greenlets_go_on(listener: Listener) -> None:
    program = """
        ticks = []
        def tick():
            while True: ticks.append(1); gevent.sleep(0.001)
        gevent.spawn(tick)
        pool = gevent.get_hub().threadpool
        def call(number):
            count = len(ticks)
            found = pool.apply(get, (f"conv_{number}",)).id
            return found
        jobs = [gevent.spawn(call, number) for number in range(50)]
        gevent.joinall(jobs, timeout=30)
        print([job.value for job in jobs] == [f"conv_{number}" for number in range(50)], len(ticks) > 5)
        """
    assert run_patched(ADVISED, program, listener.url) == ["True True"]
