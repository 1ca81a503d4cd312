"""Fixtures: a sandbox, and a directory to export into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentphone.sandbox import Sandbox


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "out"
