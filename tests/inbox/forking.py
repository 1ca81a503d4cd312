"""A process that has imported everything and forks workers, so that one that was killed is running again at once.

`python -m tests.inbox.forking` reads a line for each worker from stdin, `{"name", "environment", "folder"}`, and prints
its process id. A worker is the program of `killed_worker`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback

import agentphone.inbox  # noqa: F401  # what takes the time


def main() -> None:
    """Fork a worker for each line."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no dead child has to be waited for
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            work(**order)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


def work(name: str, environment: dict[str, str], folder: str) -> None:
    """Run a worker in the child; it never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(f"{folder}/{name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.chdir(folder)
    os.environ.update(environment)
    try:
        from tests.inbox import killed_worker

        killed_worker.main(name)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
