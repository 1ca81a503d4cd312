"""What is recorded and logged of a failure. The log says what was raised and where, without what people wrote.

`inbox list` shows errors as they are, as it shows texts; a log is kept for longer, and read by more people.
"""

from __future__ import annotations

import logging
import re
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from attrs import frozen

import agentphone
from agentphone import (
    APIConnectionError,
    AsyncClient,
    AuthenticationError,
    Client,
    ClientClosedError,
    RateLimitError,
    ServerError,
)
from agentphone.errors import escape_control_characters
from agentphone.webhooks import Event, MessageEvent

TEMPORARY = (APIConnectionError, RateLimitError, ServerError, AuthenticationError, ClientClosedError)
"""Failures that are not the text's: they last until the API, the network or the key is right again, or until the worker
is restarted. Every text would fail meanwhile, so none is given up for them."""
MAX_REASON = 300
"""How many characters of an exception's message are logged."""
HIDDEN = "***"
PACKAGE = str(Path(agentphone.__file__).parent)

logger = logging.getLogger("agentphone.inbox")


@frozen
class Failures:
    """Turn exceptions into results of steps.

    Attributes:
        client: The client, whose key is logged nowhere.
    """

    client: AsyncClient | Client

    def of_api(self, error: Exception, event: Event) -> dict[str, Any]:
        """Return the result for a call to the API that has failed; nothing was done."""
        name = type(error).__name__
        status = getattr(error, "status_code", None)
        is_temporary = isinstance(error, TEMPORARY)
        reason = f"the API cannot be used ({name}{f' {status}' if status else ''})"
        return {
            "outcome": "unavailable" if is_temporary else "failed",
            "reason": reason if is_temporary else self._describe(error, event),
            "error": f"{name}: {error}",
            "retry_after": getattr(error, "retry_after", None),
        }

    def of_handler(self, error: BaseException, event: Event) -> dict[str, Any]:
        """Return the result for a handler that has raised; the traceback is logged for those who debug."""
        # Without our own frames before the handler's.
        frames = error.__traceback__
        while frames is not None and str(Path(__file__).parent) in frames.tb_frame.f_code.co_filename:
            frames = frames.tb_next
        found = traceback.TracebackException(type(error), error, frames or error.__traceback__)
        text = "".join(found.format())
        logger.debug("%s", self._redact(text, event).rstrip())
        return {"outcome": "raised", "reason": f"{self._describe(error, event)}{_place(found)}", "error": text}

    def _describe(self, error: BaseException, event: Event) -> str:
        """Return the class and the first line of the message."""
        lines = self._redact(str(error), event).strip().splitlines()
        if not lines:
            return type(error).__name__
        line = lines[0] if len(lines[0]) <= MAX_REASON else f"{lines[0][:MAX_REASON]}..."
        return f"{type(error).__name__}: {escape_control_characters(line)}"

    def _redact(self, text: str, event: Event) -> str:
        """Hide the key, the text and its history, the numbers, and what is quoted of the text."""
        owner: Any = getattr(self.client, "_async", self.client)
        text = owner._config.api_key.redact(text)  # noqa: SLF001  # nothing public shows the key
        if not isinstance(event, MessageEvent):
            return text
        words = {event.text, event.from_number, event.to_number, *(item.content for item in event.recent_history)}
        forms = {form for word in words if word for form in (word, repr(word)[1:-1])}
        if forms:
            longest_first = sorted(forms, key=len, reverse=True)
            text = re.sub(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", HIDDEN, text)
        said = event.text or ""
        return re.sub(
            r"""(['"])([^'"\n]+)\1""",
            lambda quoted: f"{quoted[1]}{HIDDEN}{quoted[1]}" if quoted[2] in said else quoted[0],
            text,
        )


def _place(found: traceback.TracebackException) -> str:
    """Return the last line of the user's own code; of an installed package's, if there is no other."""
    installed = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    frames = [frame for frame in found.stack if not frame.filename.startswith((PACKAGE, "<"))]
    own = [frame for frame in frames if not frame.filename.startswith(installed)] or frames
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
