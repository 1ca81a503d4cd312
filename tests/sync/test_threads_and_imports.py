"""What a blocking client starts, opens and imports: one thread, no descriptor too many, no import on the thread."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.conftest import Server
from tests.support.listener import Listener, listening
from tests.support.long import count
from tests.sync.programs import FORKED, NEEDS_FORK, lines, run, start_interpreter


@NEEDS_FORK
def test_first_calls_of_many_threads_start_one_event_loop(listener: Listener) -> None:
    children = count(3, 20)
    program = f"""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor
        def work():
            loops = set()
            client = Client("key", base_url=URL, on_request=lambda _: loops.add(asyncio.get_running_loop()))
            meet = threading.Barrier(8)
            def first(_): meet.wait(); return client.conversations.get("conv_1").id
            with ThreadPoolExecutor(8) as pool: assert set(pool.map(first, range(8))) == {{"conv_1"}}
            print(len(loops), threading.active_count())
        for _ in range({children}): join(in_child(work))
        """
    process = start_interpreter(FORKED + textwrap.dedent(program), listener.url)  # each child imports what it needs
    assert lines(process) == ["1 2", "child True"] * children


def test_creating_clients_starts_no_thread_and_opens_no_socket() -> None:
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
def test_many_clients_leave_no_descriptor_and_no_thread(close: str, listener: Listener) -> None:
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
        for _ in range({count(150, 1000)}):
            use()
            most = max(most, descriptors())
        end = time.monotonic() + 60
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


CALLS = [
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
]


@NEEDS_FORK
def test_loop_thread_imports_nothing(server: Server) -> None:
    """A fork during an import would leave its lock held in the child."""
    server.box.receive_sms(from_number="+15555550177", to_number="+15555550100", body="hello")
    program = f"""
        from agentphone import AgentPhoneError
        def fails(call, *args):
            try: call(*args)
            except AgentPhoneError: return
            raise AssertionError
        def work():
            exec(call, globals())
            print(call, seen, flush=True)
            os._exit(0)  # at once: ordinary exits take a while
        for call in {CALLS}:  # each in a child, where it is the first call
            join(in_child(work))
        """
    process = start_interpreter(FORKED + IMPORTS + textwrap.dedent(program), server.url)
    assert lines(process) == [f"{call} []" for call in CALLS]
