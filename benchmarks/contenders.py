"""One contender at one job, in a process of its own: read how many units to do, do them, print figures.

    python benchmarks/contenders.py MODULE.FUNCTION LIBRARY URL SIZE

The numbers come in lines on stdin. The first figure is in seconds for one unit, or in bytes; the second is the CPU time
of the turn, child processes included. PYTHONPATH says whose `agentphone` is imported. The jobs are in `jobs/`; imports
nothing else of `benchmarks`, and only what every interpreter has loaded: what a library loads is part of what is
measured.
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:
    """Run the turns that arrive on stdin."""
    job, library, url, size = sys.argv[1:]
    module, _, name = job.partition(".")
    sys.path.append(__file__.rpartition(os.sep)[0])
    turn = getattr(__import__(f"jobs.{module}", fromlist=[name]), name)(library, url, int(size))
    for line in sys.stdin:
        began = _cpu_time()
        figure = turn(int(line))
        print(figure, _cpu_time() - began, flush=True)


def _cpu_time() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


if __name__ == "__main__":
    main()
