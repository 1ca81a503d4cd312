"""Run Python programs that use a blocking client, and look at their output, exit code and requests from outside.

Time limits only detect hangs, so they are generous: a program that should exit within a second gets twenty.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import pytest

from tests.support.forked import PIPE, Forked
from tests.support.processes import ENVIRONMENT, SECONDS

EXIT_SECONDS = 20.0
"""How long a program that exits within a second gets on a busy machine."""


NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")


NEEDS_SIGNALS = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")


START = """\
import os, sys, threading, time, gc, signal
from agentphone import Client, ClientClosedError
URL = sys.argv[1]
client = Client("key", base_url=URL)
get = client.conversations.get
"""


FORKED = """
def in_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)  # a hang ends with its signal's number
        began = time.monotonic()
        try:
            work()
        except Exception:
            sys.excepthook(*sys.exc_info())
            sys.exit(1)
        print("child", time.monotonic() - began < 20, flush=True)
        sys.exit(0)
    return pid

def join(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code: sys.exit(f"the child ended with {code}")
"""


def start(program: str, url: str, *options: str) -> Forked:
    """Start a program that begins with `START`, with the URL as its argument."""
    return Forked(
        START + textwrap.dedent(program),
        url,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=ENVIRONMENT,
        warning_action=None,
        options=options,
    )


def start_interpreter(program: str, url: str) -> subprocess.Popen[str]:
    """Start a program like that in a new interpreter, which imports what it needs."""
    return subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(program), url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def end(process: Forked | subprocess.Popen[str], seconds: float = SECONDS) -> tuple[int, str, str]:
    """Wait for a program to exit; return its exit code, stdout and stderr."""
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"the program hangs; stdout {out!r}, stderr {err!r}")
        return process.wait(), out, err


def run(program: str, url: str, *options: str) -> list[str]:
    """Run a program that must succeed and write nothing to stderr; return the lines that it printed."""
    return lines(start(program, url, *options))


def lines(process: Forked | subprocess.Popen[str]) -> list[str]:
    """Wait for a program that must succeed and write nothing to stderr; return the lines that it printed."""
    code, out, err = end(process)
    assert (code, noise(err)) == (0, []), out + err
    return out.splitlines()


def noise(err: str) -> list[str]:
    """Return the lines of stderr, without resource warnings and the source lines that they quote."""
    # Since 3.12 Python warns of every fork in a process with threads. With -X dev asyncio logs slow steps, which a busy
    # machine causes.
    harmless = re.compile(
        r".*ResourceWarning|  \S|.*DeprecationWarning: This process .* is multi-threaded"
        r"|Executing .* took [\d.]+ seconds"
    )
    return [line for line in err.splitlines() if not harmless.match(line)]
