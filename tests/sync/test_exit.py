"""A program with a blocking client exits: at once, with its own exit code, also if calls are running."""

from __future__ import annotations

import textwrap
from typing import IO, cast

import pytest

from tests.support.forked import Forked
from tests.support.listener import Listener
from tests.sync.programs import EXIT_SECONDS, end, noise, start, start_interpreter


def start_to_exit(program: str, url: str, *options: str) -> Forked:
    """Start a program whose interpreter frees all objects at its end, as one that was not forked."""
    return start(f"gc.unfreeze()\n{textwrap.dedent(program)}", url, *options)


UNCLOSED = {
    "used": "get('a')",
    "never used": "",
    "unfinished iterator": "items = iter(client.conversations.list()); next(items)",
    "unfinished iterator over pages": "items = client.conversations.list().pages(); next(items)",
    "call in flight": "threading.Thread(target=get, args=('hold',), daemon=True).start(); wait_for_the_server()",
    "many calls in flight": """
        for number in range(30):
            threading.Thread(target=get, args=('hold',), daemon=True).start()
        wait_for_the_server()""",
    "repeated calls": """
        def forever():
            while True: get('a')
        for _ in range(4): threading.Thread(target=forever, daemon=True).start()
        wait_for_the_server()""",
    "resolving a name": """
        import socket
        asked = threading.Event()
        def lookup(*_, **__): asked.set(); time.sleep(600)
        socket.getaddrinfo = lookup
        slow = Client("key", base_url="https://api.example")
        threading.Thread(target=slow.conversations.get, args=('a',), daemon=True).start()
        asked.wait()""",
    "waiting for a retry": """
        import httpx
        asked = threading.Event()
        limited = httpx.MockTransport(lambda _: httpx.Response(429, headers={"Retry-After": "500"}))
        waiting = Client("key", transport=limited, max_retry_after=600, on_retry=lambda *_: asked.set())
        threading.Thread(target=waiting.conversations.get, args=('a',), daemon=True).start()
        asked.wait()""",
    "sandbox": "box = Client(base_url='sandbox:'); box.conversations.list().page()",
    "reference cycle": "client.me = client; get('a'); del client, get",
}


ENDS = {"runs out": ("", 0), "sys.exit": ("sys.exit(3)", 3), "an error": ("1 / 0", 1)}


@pytest.mark.parametrize("options", [(), ("-X", "dev")], ids=["plain", "dev"])
@pytest.mark.parametrize("state", UNCLOSED)
def test_program_with_an_open_client_exits_at_once(state: str, options: tuple[str, ...], listener: Listener) -> None:
    program = "def wait_for_the_server(): sys.stdin.readline()\n" + textwrap.dedent(UNCLOSED[state])
    program += "\nprint('leaving', flush=True); sys.exit(3)"
    with start_to_exit(program, listener.url, *options) as process:
        try:
            if "wait_for_the_server" in UNCLOSED[state]:
                assert listener.wait_for(lambda: len(listener.requests) > 0)
                cast("IO[str]", process.stdin).write("\n")
                cast("IO[str]", process.stdin).flush()
            assert cast("IO[str]", process.stdout).readline() == "leaving\n"
            _, err = process.communicate(timeout=EXIT_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, noise(err)) == (3, [])


@pytest.mark.parametrize("end_by", ENDS)
def test_exit_code_is_the_programs_own(end_by: str, listener: Listener) -> None:
    last, expected = ENDS[end_by]
    code, _, err = end(start_interpreter(f"get('a')\n{last}", listener.url))
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
# By name: resolving one needs another thread, and Python may not start any more.
local = Client("key", base_url=URL.replace("127.0.0.1", "localhost"))
atexit.register(late, "registered_before")
{first}
atexit.register(late, "registered_after")
"""


@pytest.mark.parametrize(
    "first", ["local.conversations.get('a')", "get('a')", "", "local.conversations.get('a'); local.close()"]
)
def test_call_in_an_exit_handler_works_or_raises(first: str, listener: Listener) -> None:
    code, out, err = end(start_to_exit(LATE.format(first=first), listener.url))
    assert (code, noise(err)) == (0, [])
    names = ["registered_after", "registered_before"]
    closed, works = (
        [f"{name} {found}" for name, found in zip(names, (a, b), strict=True)] for a, b in [("closed",) * 2, names]
    )
    assert out.splitlines() in ([closed] if "close" in first else [works, closed])


@pytest.mark.parametrize("first", ["get('a')", ""])
@pytest.mark.parametrize("call", ["get('b')", "client.close()", "next(items)"])
def test_call_in_a_finalizer_never_hangs(call: str, first: str, listener: Listener) -> None:
    program = f"""
        class Last:
            def __del__(self, call=lambda: {call}, print=print, closed=ClientClosedError):
                try: call(); print("works")
                except closed: print("closed")
        items = iter(client.conversations.list())
        {first}
        last = Last()
        last.me = last
        """
    code, out, _ = end(start_to_exit(program, listener.url))
    assert code == 0
    assert out.strip() in ("works", "closed")


def test_sys_exit_in_a_hook_ends_the_program(listener: Listener) -> None:
    code, out, err = end(
        start_to_exit(
            "Client('key', base_url=URL, on_request=lambda _: sys.exit(7)).conversations.get('a')", listener.url
        )
    )
    assert (code, out, noise(err), listener.requests) == (7, "", [], [])
