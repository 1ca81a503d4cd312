"""The progress that an export reports: whole numbers, which a program can print."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import asdict

from agentphone import Client
from agentphone.export import Progress, export
from agentphone.sandbox import Sandbox
from tests.support.accounts import failing_in, fill


@pytest.mark.parametrize("conversations", [0, 3])
def test_progress_counts_are_integers(box: Sandbox, directory: Path, conversations: int) -> None:
    fill(box, conversations, 2)
    seen: list[Progress] = []
    with Client("key", transport=box.transport()) as client:
        with pytest.raises(ZeroDivisionError):
            export(client, directory, on_progress=failing_in("writing"))
        export(client, directory, on_progress=seen.append)  # resumes
    for progress in seen:
        counts = asdict(progress)
        assert (counts.pop("phase"), {*map(type, counts.values())}) == (progress.phase, {int})
    assert [progress.messages_total for progress in seen[:2]] == [2 * conversations] * 2
