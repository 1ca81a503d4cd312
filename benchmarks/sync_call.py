"""What one blocking call costs beside `httpx.Client` and the vendor's SDK: same server, same page, taken in turn.

    python benchmarks/sync_call.py [--rounds 30] [--calls 50] [--page 20] [--vendor FOLDER]

The vendor's SDK has our import name: without `--vendor`, pip installs it from PyPI into a temporary folder. Each of
the three runs in a process of its own and the server in a fourth; it sends the same canned page with one `send` and
TCP_NODELAY. Rounds are interleaved, so that whatever else the machine does falls on all of them alike; read the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

VENDOR = "agentphone==0.20.3"
ROOT = Path(__file__).parents[1]


def page(size: int) -> bytes:
    """Make the page that every caller gets."""
    items = [
        {
            "id": f"conv_{number}",
            "agentId": "agt_1",
            "phoneNumberId": "num_1",
            "phoneNumber": "+15555550100",
            "participant": f"+1555555{number:04}",
            "lastMessageAt": "2025-06-30T12:00:00Z",
            "lastMessagePreview": "On its way",
            "messageCount": 3,
            "metadata": {"topic": "order"},
            "createdAt": "2025-06-30T11:30:00Z",
        }
        for number in range(size)
    ]
    return json.dumps({"data": items, "hasMore": False, "total": size}).encode()


def serve(size: int) -> None:
    """Answer every request with the page, for ever; the port is the first line on stdout."""
    body = page(size)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = head.encode() + body

    def converse(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
            while b"\r\n\r\n" in received:  # the calls measured have no body
                received = received.partition(b"\r\n\r\n")[2]
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=converse, args=(connection,), daemon=True).start()


def ours(url: str, size: int) -> Callable[[], int]:
    """Give a call of this SDK: a page of models with its instants parsed."""
    from agentphone import Client

    client = Client("key", base_url=url)
    return lambda: len(client.conversations.list(limit=size).page())


def bare(url: str, size: int) -> Callable[[], int]:
    """Give a call of httpx alone: a page of dicts."""
    import httpx

    client = httpx.Client(headers={"Authorization": "Bearer key"})
    address = f"{url}/v1/conversations?limit={size}&offset=0"
    return lambda: len(client.get(address).json()["data"])


def vendors(url: str, size: int) -> Callable[[], int]:
    """Give a call of the vendor's SDK: a page of models with instants left as strings."""
    import agentphone

    client = agentphone.AgentPhone("key", base_url=url)  # type: ignore[attr-defined]
    return lambda: len(client.conversations.list(limit=size).data)


CALLERS = {"agentphone (this)": ours, "httpx.Client": bare, "vendor's SDK": vendors}


def work(name: str, url: str, size: int) -> None:
    """Time as many calls as each line on stdin says, and print the microseconds that one took."""
    call = CALLERS[name](url, size)
    assert call() == size
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            call()
        print((time.perf_counter() - began) / int(line) * 1e6, flush=True)


def measure(rounds: int, calls: int, size: int, vendor: Path) -> dict[str, list[float]]:
    """Let all callers take turns, and give the microseconds per call of each round."""
    server = subprocess.Popen([sys.executable, __file__, "--serve", str(size)], stdout=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{cast('IO[str]', server.stdout).readline().strip()}"
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--work", name, url, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(vendor if caller is vendors else ROOT), "PYTHONSAFEPATH": "1"},
        )
        for name, caller in CALLERS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in workers}
    try:
        for turn in range(rounds + 1):
            for name, worker in workers.items():
                cast("IO[str]", worker.stdin).write(f"{calls}\n")
                cast("IO[str]", worker.stdin).flush()
                took = float(cast("IO[str]", worker.stdout).readline())
                if turn:  # the first one warms up
                    times[name].append(took)
    finally:
        for process in (*workers.values(), server):
            process.kill()
            process.communicate()
    return times


def report(times: dict[str, list[float]]) -> None:
    """Print medians, quartiles, and each caller's time as a multiple of bare httpx in the same round."""
    print(f"{'':20}{'median':>10}{'quartiles':>20}{'of httpx':>12}")
    for name, rounds in times.items():
        low, middle, high = statistics.quantiles(rounds, n=4)
        ratio = statistics.median(mine / httpx for mine, httpx in zip(rounds, times["httpx.Client"], strict=True))
        print(f"{name:20}{middle:>7.0f} µs{f'{low:.0f} to {high:.0f} µs':>20}{ratio:>11.2f}x")


def main() -> None:
    """Install the vendor's SDK if need be, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=50, help="calls in each round")
    parser.add_argument("--page", type=int, default=20, help="conversations in a page")
    parser.add_argument("--vendor", type=Path, help=f"where {VENDOR} was installed with pip install --target")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
    elif given.work:
        name, url, size = given.work
        work(name, url, int(size))
    else:
        with tempfile.TemporaryDirectory() as folder:
            vendor = given.vendor or Path(folder)
            if given.vendor is None:
                install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, VENDOR]
                subprocess.run(install, check=True)
            report(measure(given.rounds, given.calls, given.page, vendor.resolve()))


if __name__ == "__main__":
    main()
