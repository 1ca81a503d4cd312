"""Forks: parent and child go on with event loops and connections of their own, and no lock stays held."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.conftest import Server
from tests.support.listener import Listener
from tests.support.long import count
from tests.sync.programs import FORKED, NEEDS_FORK, NEEDS_SIGNALS, lines, run, start_interpreter


def run_forking(program: str, url: str, *options: str) -> list[str]:
    """Run a program that forks by `in_child` and `join`; return the lines that it and its children printed."""
    return run(FORKED + textwrap.dedent(program), url, *options)


@NEEDS_FORK
@pytest.mark.parametrize(
    "leave", ["client.close()", "pass", "globals().pop('client'), globals().pop('get'), gc.collect()"]
)
def test_parent_and_child_have_separate_connections(leave: str, listener: Listener) -> None:
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
    assert run_forking(program, listener.url) == ["child True"] * 2
    parents, children = listener.ports("parent"), listener.ports("child")
    assert len(parents) == 3
    assert len(set(parents)) == 1
    assert len(set(children)) == 2
    assert not set(parents) & set(children)


@NEEDS_FORK
def test_first_call_of_a_child_in_a_new_thread(listener: Listener) -> None:
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
    assert run_forking(program, listener.url) == ["child True"]
    assert len(listener.ports("child")) == 1


@NEEDS_FORK
def test_child_may_drop_or_close_an_inherited_client(listener: Listener) -> None:
    program = """
        get("parent")
        items = iter(client.conversations.list())
        next(items)
        def drop():
            global client, get, items
            del client, get, items
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
            next(items)
        """
    assert run_forking(program, listener.url, "-X", "dev") == ["child True"] * 3
    assert len(set(listener.ports("parent") + listener.ports(""))) == 1
    assert listener.ports("never") == []


@NEEDS_FORK
def test_inherited_iterator_continues_in_child_and_grandchild(listener: Listener) -> None:
    program = """
        items = iter(client.conversations.list())
        next(items)
        def grandchild(): get("grandchild"); next(items)
        def child():
            next(items)
            get("child")
            join(in_child(grandchild))
            get("child")
        join(in_child(child))
        get("parent"); next(items)
        """
    assert run_forking(program, listener.url) == ["child True"] * 2
    ports = [set(listener.ports(who)) for who in ("parent", "child", "grandchild")]
    assert [len(found) for found in ports] == [1, 1, 1]
    assert len(set.union(*ports)) == 3


@NEEDS_FORK
def test_forks_during_calls_of_other_threads(listener: Listener) -> None:
    forks = count(12, 50)
    program = f"""
        stop, failed = threading.Event(), []
        def forever():
            while not stop.is_set():
                try: get("parent")
                except BaseException as error: failed.append(error)
        threads = [threading.Thread(target=forever) for _ in range(3)]
        for thread in threads: thread.start()
        for _ in range({forks}):
            def work(): get("child"); client.close()
            join(in_child(work))
        stop.set()
        for thread in threads: thread.join()
        get("parent")
        print(failed)
        """
    assert run_forking(program, listener.url) == ["child True"] * forks + ["[]"]
    assert len(set(listener.ports("child"))) == forks
    assert not set(listener.ports("parent")) & set(listener.ports("child"))


@NEEDS_FORK
def test_fork_during_the_first_call_of_another_thread(listener: Listener) -> None:
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
    assert lines(start_interpreter(FORKED + textwrap.dedent(program), listener.url)) == ["child True"]
    assert [len(set(listener.ports(who))) for who in ("parent", "child")] == [1, 1]


@NEEDS_FORK
def test_fork_waits_until_the_loop_thread_holds_no_lock() -> None:
    # OpenSSL for example holds locks while it creates a context. The child would wait for them forever.
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
    assert run_forking(program, "http://127.0.0.1:9") == ["True", "child True", "1"]


@NEEDS_FORK
def test_multiprocessing_with_fork(listener: Listener) -> None:
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
def test_api_error_returns_from_a_worker_process(server: Server) -> None:
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
def test_sandbox_client_after_a_fork(base_url: str, tmp_path: Path) -> None:
    program = f"""
        os.chdir({str(tmp_path)!r})
        box = Client(base_url={base_url!r})
        count = box.conversations.list().page().total
        if count == 0:
            from agentphone.sandbox import Sandbox
            with Sandbox("box.db") as file: file.load_demo_data()
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
        for _ in range(2): join(in_child(work))
        stop.set()
        thread.join()
        print(box.conversations.get(found).metadata["by"])
        """
    printed = run_forking(program, "http://127.0.0.1:9")
    if base_url == "sandbox:":  # the child gets a new one
        first = printed[0].split()[1]
        assert first not in ("parent", "child")
        assert printed == [f"36 {first}", "child True"] * 2 + ["parent"]
    else:
        assert printed == ["36 parent", "child True", "36 child", "child True", "child"]


@NEEDS_FORK
@NEEDS_SIGNALS
def test_interrupted_fork_resumes_the_loop_thread(listener: Listener) -> None:
    """A signal handler raises while the fork waits for the loop thread. Python ignores that and forks."""
    program = """
        def handler(*_): raise ZeroDivisionError
        signal.signal(signal.SIGALRM, handler)
        sys.unraisablehook = lambda unraisable: print(unraisable.exc_type.__name__, flush=True)
        busy = threading.Event()
        def block(_): busy.set(); time.sleep(0.5)
        slow = Client("key", base_url=URL, on_request=block)
        thread = threading.Thread(target=slow.conversations.get, args=("slow",))
        thread.start()
        busy.wait()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        pid = os.fork()
        if pid == 0: os._exit(0)
        join(pid)
        thread.join(20)
        print(thread.is_alive(), get("after").id, flush=True)
        join(in_child(lambda: get("child")))
        """
    assert run_forking(program, listener.url) == ["ZeroDivisionError", "False after", "child True"]
