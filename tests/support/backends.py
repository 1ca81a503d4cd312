"""Run a test on one event loop, where the loop makes no difference to what it shows."""

from __future__ import annotations

import pytest

ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
