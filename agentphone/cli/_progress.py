"""The progress bar of an export, on stderr with rate and time left. Nothing is printed if stderr is not a terminal."""

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


class ExportProgress:
    """One bar for each phase of an export: a context manager whose `show` is the callback for progress."""

    def __init__(self) -> None:
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            _Completed(table_column=Column(no_wrap=True)),  # in a narrow terminal only the bar shrinks
            _Rate(table_column=Column(no_wrap=True)),
            progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto"),
            disable=not sys.stderr.isatty(),  # rich would print the final state of each bar
            expand=True,
        )
        self._tasks: dict[str, progress.TaskID] = {}

    def __enter__(self) -> ExportProgress:
        self._bars.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, state: Progress) -> None:
        """Show the progress of the export. Called on the client's thread."""
        done, total = state.messages_done, state.messages_total
        unit = "messages"
        if state.phase == "listing":
            done, total, unit = state.conversations_total, None, "conversations"
        elif total is None:  # with --since the number of messages is unknown
            done, total, unit = state.conversations_done, state.conversations_total, "conversations"
        if state.phase not in self._tasks:
            self._finish_earlier()
            # The bar starts at what an earlier run has done, which does not count for the rate.
            self._tasks[state.phase] = self._bars.add_task(f"{LABELS[state.phase]} {unit}", completed=done, total=total)
        self._bars.update(self._tasks[state.phase], completed=done, total=total)

    def _finish_earlier(self) -> None:
        for task in self._bars.tasks:
            self._bars.update(task.id, total=task.completed)


class _Completed(progress.ProgressColumn):
    """A column with the number done, and the total if known."""

    def render(self, task: progress.Task) -> Text:
        """Return the text of the column."""
        of = "" if task.total is None else f"/{int(task.total):,}"
        return Text(f"{int(task.completed):,}{of}")


class _Rate(progress.ProgressColumn):
    """A column with the number done per second."""

    def render(self, task: progress.Task) -> Text:
        """Return the text of the column."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.0f}/s")
