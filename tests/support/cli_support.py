"""What the tests of the command line share: the key of their sandbox, and the outcome of a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

KEY = "sk-unlikely-text"


def parse(response: httpx.Response) -> Any:
    """Parse a response, with its timestamps as the SDK prints them: without a fraction of zeros."""
    return json.loads(response.text.replace(".000000Z", "Z"))


class Outcome:
    """The exit code and the output of a command."""

    def __init__(self, code: int, output: str, errors: str) -> None:
        self.code = code
        self.output = output
        self.errors = errors

    @property
    def rows(self) -> list[Any]:
        """The JSON lines of a command that succeeded."""
        assert (self.code, self.errors) == (0, "")
        return [json.loads(line) for line in self.output.splitlines()]


RunCommand = Callable[..., Outcome]
