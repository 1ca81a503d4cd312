"""How much the random tests and the stress tests do: by default enough to find known faults, much in a long run."""

from __future__ import annotations

import os

LONG = bool(os.environ.get("AGENTPHONE_LONG"))
"""True in a long run: `AGENTPHONE_LONG=1 pytest`."""


def count(usual: int, long: int) -> int:
    """Return how many examples, calls or kills a test makes: `usual`, or `long` in a long run."""
    return long if LONG else usual
