"""A sandbox that fails about every fifth request: `python -m tests.support.flaky_sandbox FILE PORT`."""

from __future__ import annotations

import random
import sys
import threading
import time

import uvicorn

from agentphone.sandbox import Sandbox


def main(path: str, port: int) -> None:
    """Serve the file's conversations, and respond to about every fifth request with an error."""
    with Sandbox(path) as sandbox:

        def fail() -> None:
            source = random.Random(port)
            while True:
                while len(sandbox.requests) < 5:
                    time.sleep(0.01)
                sandbox.requests.clear()
                status = source.choice([429, 500, 502, 503])
                sandbox.faults.add(status=status, retry_after=0 if status == 429 else None)

        threading.Thread(target=fail, daemon=True).start()
        uvicorn.run(sandbox.app, port=port, log_level="critical", lifespan="off", ws="none")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
