"""Processes for the tests to look at from outside: the package as `python -m agentphone` runs it, and its sandbox."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import agentphone

SECONDS = 60
"""For what takes one: a limit that turns a hang into a failure, not a measure."""

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("AGENTPHONE_")},
    "PYTHONPATH": str(Path(agentphone.__file__).parents[1]),
    "PYTHONIOENCODING": "utf-8",
    "COLUMNS": "80",
}
PYTHON = (sys.executable, "-W", "error")
AGENTPHONE = (*PYTHON, "-m", "agentphone")


def run(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with these environment variables besides."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=ENVIRONMENT | environment,
        cwd=cwd,
        timeout=SECONDS,
        check=False,
    )


@contextmanager
def sandbox(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `agentphone sandbox` on a free port and give it with the URL of its first line."""
    with subprocess.Popen(
        [*AGENTPHONE, "sandbox", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT | environment,
    ) as process:
        try:
            assert process.stdout is not None
            first_line = process.stdout.readline()
            url = re.search(r"http://127\.0\.0\.1:[1-9]\d*", first_line)
            assert url, first_line
            yield process, url[0]
        finally:
            process.kill()
