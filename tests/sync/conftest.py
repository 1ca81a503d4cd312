"""Fixtures of the tests of the sync facade."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.listener import Listener, listening


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Serve conversations on a real socket, and record the connection of each request."""
    with listening() as listener:
        yield listener
