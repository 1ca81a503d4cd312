"""The results for people: a table and a picture. It measures nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import SCALE, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[Sequence[str]]
FIGURES_FROM = 2
"""The first column that holds figures, which stand at its right."""

OURS, THEIRS, BETTER, MISSED = "#0b6e4f", "#5b6770", "#e6f2ee", "#b3261e"


def describe_machine() -> str:
    """Return the versions and the machine of a measurement."""
    libraries = []
    for name in ("httpx", "httpcore", "anyio", "attrs", "cattrs", "aiohttp"):
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    python = f"{platform.python_implementation()} {platform.python_version()}"
    load = f", load {os.getloadavg()[1]:.1f}" if hasattr(os, "getloadavg") else ""  # of the last five minutes
    return f"{python} on {platform.system()}, {os.cpu_count()} cores{load}; {', '.join(libraries)}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one run has measured."""

    machine: str = field(default_factory=describe_machine)
    took: int
    """How long the run was, in seconds."""
    results: list[Result]

    def text(self, *, markdown: bool = False) -> str:
        """Return the table, in columns or in Markdown."""
        lines = _lines(self.results)
        table = _in_markdown(lines) if markdown else _in_columns(lines)
        return f"{table}\n\n{self.machine}; {self.took} s"

    def draw(self, path: Path, *, rows: Collection[str]) -> None:
        """Draw the ratios of some rows: SVG or PNG, as the name ends."""
        import matplotlib as mpl

        # Text stays text, and two runs with the same figures give the same bytes.
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "agentphone", "font.size": 9}):
            figure = _figure([each for each in self.results if each.row in rows and each.compares == "ratio"])
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, metadata=metadata, bbox_inches="tight", facecolor="white")


def _lines(results: Sequence[Result]) -> Lines:
    lines = [["work", "against", "ours", "theirs", "ours ÷ theirs", "quartiles", "CPU", "goal", ""]]
    for number, result in enumerate(results):
        is_first = number == 0 or results[number - 1].row != result.row
        unit = "" if result.compares == "ratio" else f" {result.unit}"
        low, high = result.quartiles
        lines.append(
            [
                result.work if is_first else "",
                result.peer,
                _amount(result.ours, result),
                _amount(result.theirs, result),
                _ratio(result.compared) if result.compares == "ratio" else f"{result.compared:+.2f}{unit}",
                f"{_ratio(low)} to {_ratio(high)}",
                "" if result.cpu is None else _ratio(result.cpu),
                "" if result.goal is None else f"≤ {result.goal:g}{unit}",
                {None: "", True: "met", False: "missed"}[result.is_met],
            ]
        )
    return lines


def _ratio(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _amount(value: float, result: Result) -> str:
    amount = f"{value:,.0f} {result.unit}" if value >= 100 else f"{value:.3g} {result.unit}"
    return f"{amount}, {SCALE[result.unit] / value:,.0f}/s" if result.per_second else amount


def _in_columns(lines: Lines) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pads = [str.rjust if number >= FIGURES_FROM else str.ljust for number in range(len(widths))]
    return "\n".join(
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, line, widths, strict=True)).rstrip()
        for line in lines
    )


def _in_markdown(lines: Lines) -> str:
    rule = ["---:" if number >= FIGURES_FROM else "---" for number in range(len(lines[0]))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def _figure(shown: Sequence[Result]) -> Figure:
    """Draw a dot for each ratio, its quartiles as a bar, and the goal as a tick."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(9, 0.8 + 0.27 * len(shown)))
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlim(0.004, 12)
    axes.axvspan(0.004, 1, color=BETTER, zorder=0, linewidth=0)
    axes.axvline(1, color=THEIRS, linewidth=0.8, zorder=1)
    for height, result in enumerate(shown):
        color = MISSED if result.is_met is False else OURS if result.is_met else THEIRS
        axes.plot(result.quartiles, (height, height), color=color, linewidth=4, alpha=0.4, solid_capstyle="butt")
        axes.plot(result.compared, height, "o", color=color, markersize=5)
        if result.goal is not None:
            axes.plot(result.goal, height, "|", color="black", markersize=11, markeredgewidth=1.4)
        axes.text(13, height, _ratio(result.compared), va="center", color=color)
        if height and shown[height - 1].row != result.row:
            axes.axhline(height - 0.5, color="#d5d9dc", linewidth=0.6)
    axes.set_yticks(range(len(shown)), [f"{result.work}   ÷ {result.peer}" for result in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(FixedLocator([0.01, 0.1, 0.25, 0.5, 1, 2, 4, 8]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("time, ours ÷ theirs: left of 1 this SDK is faster; bar: quartiles, black tick: goal")
    for side in axes.spines.values():
        side.set_visible(False)
    return figure
