"""Fixtures: a sandbox, a directory to export into, and a hash of the API key that takes no time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentphone.export import _fingerprint
from agentphone.sandbox import Sandbox

ROUNDS = _fingerprint.ROUNDS
"""PBKDF2 iterations of a real export."""


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fingerprint, "ROUNDS", 1)


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "out"
