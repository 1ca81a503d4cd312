"""What type checkers see of both clients: mypy, strict, reads the samples in `typing/`, and pyright does in `.ci/run`.

The samples are the test: whatever they say of a type, a checker holds to be exactly so, and what they say is wrong is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentphone import (
    AsyncClient,
    AsyncConversations,
    AsyncMessages,
    AsyncPager,
    Client,
    Conversations,
    Messages,
    Pager,
)

ROOT = Path(__file__).parents[2]
SAMPLES = Path(__file__).parent
ASYNCHRONOUS = SAMPLES / "asynchronous.py"
BLOCKING = SAMPLES / "blocking.py"


FOLLOWED = """
[[tool.mypy.overrides]]
module = ["agentphone.*", "anyio.*", "attr.*", "attrs.*", "httpx.*", "pydantic.*"]
follow_imports = "silent"
"""
"""What the samples use. The extras import 1,500 modules more, which take mypy ten seconds; `.ci/run` reads them too."""


def mypy(folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy with the settings of the project on these files alone; a copy of the settings goes to the folder."""
    settings = folder / "pyproject.toml"
    settings.write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8") + FOLLOWED, encoding="utf-8")
    options = [f"--config-file={settings}", "--follow-imports=skip", f"--cache-dir={os.devnull}"]
    command = [sys.executable, "-m", "mypy", *options, *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_mypy_agrees_with_the_samples_and_with_nothing_else(tmp_path: Path) -> None:
    """Errors are where a copy was changed, and nowhere in the samples. One run, because each takes seconds."""
    text = BLOCKING.read_text(encoding="utf-8")
    changes = [
        ("assert_type(conversation, Conversation)", "assert_type(conversation, Message)", "[assert-type]"),
        ('    client.conversations.list(limit="3")', "    client.conversations.list(limit=3)", "[unused-ignore]"),
        ('    client.conversations.messages("conv_1", order="up")  #', '    client.missing("up")  #', "[attr-defined]"),
    ]
    for old, new, _ in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "changed.py").write_text(text, encoding="utf-8")

    run = mypy(tmp_path, ASYNCHRONOUS, BLOCKING, tmp_path / "changed.py")

    assert run.returncode == 1, run.stderr
    assert run.stdout.endswith(" in 1 file (checked 3 source files)\n"), run.stdout
    for _, new, code in changes:
        line = text[: text.index(new)].count("\n") + 1
        assert any(f"changed.py:{line}: error:" in found and code in found for found in run.stdout.splitlines()), new


@pytest.mark.parametrize(
    ("sample", "classes"),
    [
        (ASYNCHRONOUS, (AsyncClient, AsyncConversations, AsyncMessages, AsyncPager)),
        (BLOCKING, (Client, Conversations, Messages, Pager)),
    ],
    ids=["asynchronous", "blocking"],
)
def test_each_sample_uses_every_public_method(sample: Path, classes: tuple[type, ...]) -> None:
    text = sample.read_text(encoding="utf-8")
    names = [name for cls in classes for name in vars(cls) if not name.startswith("_")]
    assert "conversations" in names
    assert [name for name in names if f".{name}" not in text] == []
