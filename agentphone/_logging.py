"""The package's logger, and its setup by the environment: `AGENTPHONE_LOG=debug` prints the log to stderr.

That is for programs that have not set up logging. Where one has, also later, its own handlers get the records.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

HANDLER = "agentphone stderr"
"""The name of the handler. Not its class: a module that is reloaded has another one."""

logger = logging.getLogger("agentphone")


class _StderrHandler(logging.Handler):
    """Prints records that no other handler gets."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None or _has_other_handler(record.name):
            return
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001  # as every handler does: a full disk must not fail the call
            self.handleError(record)


def _has_other_handler(name: str) -> bool:
    """Return whether a logger passes its records to a handler of the program."""
    found: logging.Logger | None = logging.getLogger(name)
    while found is not None:
        if any(handler.name != HANDLER and not isinstance(handler, logging.NullHandler) for handler in found.handlers):
            return True
        found = found.parent if found.propagate else None
    return False


def _set_up(level: str) -> None:
    level = level.strip().lower()
    if not level:
        return
    if level not in LEVELS:
        warnings.warn(
            f"AGENTPHONE_LOG must be one of {', '.join(LEVELS)}, got {level!r}; it is ignored.",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    handler = _StderrHandler()
    handler.name = HANDLER
    handler.setFormatter(logging.Formatter(FORMAT))
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:  # the program may have set it
        logger.setLevel(level.upper())


if not any(handler.name == HANDLER for handler in logger.handlers):  # IPython may reload the module
    logger.addHandler(logging.NullHandler())  # otherwise Python prints warnings of programs that set up no logging
    _set_up(os.environ.get("AGENTPHONE_LOG", ""))
