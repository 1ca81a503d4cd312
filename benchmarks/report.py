"""The results as people read them: a table. It measures nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from benchmarks.measure import Result

HEADINGS = ("work", "against", "ours", "theirs", "ratio", "quartiles", "goal", "")


def table(results: Sequence[Result]) -> str:
    """Print the results in columns, one line for each peer."""
    lines = [HEADINGS, *(_line(result, results[:number]) for number, result in enumerate(results))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _line(result: Result, above: Sequence[Result]) -> tuple[str, ...]:
    is_first = all(other.row != result.row for other in above)
    met = {None: "", True: "met", False: "NOT MET"}[result.is_met]
    unit = "" if result.compares == "ratio" else f" {result.unit}"
    low, high = result.quartiles
    return (
        result.work if is_first else "",
        result.peer,
        f"{_figure(result.ours)} {result.unit}",
        f"{_figure(result.theirs)} {result.unit}",
        f"{result.compared:.2f}{unit}",
        f"{low:.2f} to {high:.2f}",
        "" if result.goal is None else f"≤ {result.goal:g}{unit}",
        met,
    )


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def describe_machine() -> str:
    """Say what the figures were measured with."""
    libraries = []
    for name in ("httpx", "httpcore", "anyio", "attrs", "cattrs", "aiohttp"):
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python} on {platform.system()}, {os.cpu_count()} cores; {', '.join(libraries)}"
