"""The memory and time of an export, by the number of messages.

    python -m benchmarks.export_memory 10000 1000000 [--trace] [--conversations 1] [--format csv]

The answers come from inside the process, so that the figures are the export's own. It prints for each size the most
memory that the process had (`VmHWM`), and with `--trace` the most that Python's objects took, which is slower.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

from agentphone import Client
from agentphone.export import export
from tests.support.canned import CannedTransport


def main() -> int:
    """Measure one size after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("messages", type=int, nargs="+")
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--format", choices=("jsonl", "csv", "parquet"), default="jsonl")
    parser.add_argument("--trace", action="store_true", help="measure Python's objects; several times slower")
    options = parser.parse_args()
    for messages in options.messages:
        directory = Path(tempfile.mkdtemp())
        try:
            transport = CannedTransport(options.conversations, messages // options.conversations)
            if options.trace:
                tracemalloc.start()
            began = time.perf_counter()
            with Client("key", transport=transport) as client:
                result = export(client, directory, format=options.format)
            took = time.perf_counter() - began
            peak = f"{tracemalloc.get_traced_memory()[1] / 1e6:.1f} MB of objects  " if options.trace else ""
            tracemalloc.stop()
            [resident] = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
            sys.stdout.write(
                f"{result.messages:>9,} messages  {took:6.1f} s  {peak}{' '.join(resident.split())}"
                f"  file {result.messages_path.stat().st_size / 1e6:.1f} MB\n"
            )
        finally:
            shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
