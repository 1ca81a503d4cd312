"""How far an export has come, on a terminal: a bar on stderr with rate and time left. Elsewhere nothing is said."""

from __future__ import annotations

import os
import sys
from types import TracebackType

from rich import progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

from agentphone.export import Progress

LABELS = {"listing": "Listing", "reading": "Reading", "writing": "Writing"}


class Bars:
    """A bar for each phase of an export; to be entered, and told of each step."""

    def __init__(self) -> None:
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            _Done(table_column=Column(no_wrap=True)),  # where it is narrow, the bar is what gets short
            _Rate(table_column=Column(no_wrap=True)),
            progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto"),
            disable=not sys.stderr.isatty(),  # or rich would print how each bar ended
            expand=True,
        )
        self._tasks: dict[str, progress.TaskID] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, told: Progress) -> None:
        """Show how far the export has come. Called on the thread of the client."""
        done, total = told.messages_done, told.messages_total
        unit = "messages"
        if told.phase == "listing":
            done, total, unit = told.conversations_total, None, "conversations"
        elif total is None:  # with --since nobody knows how many there will be
            done, total, unit = told.conversations_done, told.conversations_total, "conversations"
        if told.phase not in self._tasks:
            self._finish_earlier()
            # What an earlier run has done is where the bar begins, and says nothing of the rate.
            self._tasks[told.phase] = self._bars.add_task(f"{LABELS[told.phase]} {unit}", completed=done, total=total)
        self._bars.update(self._tasks[told.phase], completed=done, total=total)

    def _finish_earlier(self) -> None:
        for task in self._bars.tasks:
            self._bars.update(task.id, total=task.completed)


class _Done(progress.ProgressColumn):
    """How much is done, and of how much."""

    def render(self, task: progress.Task) -> Text:
        """Give the text."""
        of = "" if task.total is None else f"/{int(task.total):,}"
        return Text(f"{int(task.completed):,}{of}")


class _Rate(progress.ProgressColumn):
    """How much is done in a second."""

    def render(self, task: progress.Task) -> Text:
        """Give the text."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.0f}/s")
