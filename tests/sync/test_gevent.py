"""A blocking client in programs that gevent has patched: a clear error, and a workaround that works."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.listener import Listener
from tests.support.processes import ENVIRONMENT, SECONDS
from tests.sync.programs import START, noise

PATCHED = "import gevent.monkey; gevent.monkey.patch_all({}); import gevent\n" + START


ADVISED = "thread=False, os=False, signal=False, subprocess=False"


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


def test_error_under_gevent_names_the_workarounds(listener: Listener) -> None:
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


def test_gevent_workaround_runs_other_greenlets_meanwhile(listener: Listener) -> None:
    program = """
        ticks = []
        def tick():
            while True: ticks.append(1); gevent.sleep(0.001)
        gevent.spawn(tick)
        pool = gevent.get_hub().threadpool
        def call(number): return pool.apply(get, (f"conv_{number}",)).id
        jobs = [gevent.spawn(call, number) for number in range(50)]
        gevent.joinall(jobs, timeout=120)
        print([job.value for job in jobs] == [f"conv_{number}" for number in range(50)], len(ticks) > 5)
        """
    assert run_patched(ADVISED, program, listener.url) == ["True True"]


def test_calls_stay_out_of_the_hub(listener: Listener) -> None:
    # Python ends the loop thread at exit. Inside gevent's hub, a greenlet, that corrupted the heap.
    program = """
        def show_whether_hub_runs(response): print(bool(gevent.get_hub()))
        client = Client("key", base_url=URL, on_response=show_whether_hub_runs)
        def get(name): return gevent.get_hub().threadpool.apply(client.conversations.get, (name,)).id
        print(get("conv_1"), get("conv_2"))
        """
    assert run_patched(ADVISED, program, listener.url) == ["False", "False", "conv_1 conv_2"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="file descriptors are counted in /proc")
def test_lookups_close_their_file_descriptors(listener: Listener) -> None:
    program = """
        def get_by_name():
            with Client("key", base_url=URL.replace("127.0.0.1", "localhost")) as client:
                client.conversations.get("conv_1")
        def count(): return len(os.listdir("/proc/self/fd"))
        get_by_name()
        before = count()
        for _ in range(10): get_by_name()
        print(count() - before)
        """
    assert run_patched(ADVISED, program, listener.url) == ["0"]
