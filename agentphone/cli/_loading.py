"""Find the object that a command line names: `MODULE:ATTRIBUTE`, in the current directory, as uvicorn does."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from agentphone.inbox import Inbox

EXAMPLE = "such as bot:inbox for `inbox = Inbox()` in bot.py"


def load_inbox(target: str) -> Inbox:
    """Import an inbox.

    Args:
        target: `MODULE:ATTRIBUTE`.

    Raises:
        click.UsageError: It is not that, or is not found, or is no inbox; one line says which.
    """
    from agentphone.inbox import Inbox

    found = load(target)
    if not isinstance(found, Inbox):
        raise click.UsageError(f"{target} is not an Inbox, but {type(found).__name__}.")
    return found


def load(target: str) -> Any:
    """Import an object.

    Args:
        target: `MODULE:ATTRIBUTE`; both may have dots.

    Raises:
        click.UsageError: It is not that, or is not found; one line says which.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise click.UsageError(f"{target!r} must be MODULE:ATTRIBUTE, {EXAMPLE}.")
    folder = os.getcwd()  # noqa: PTH109  # sys.path has strings
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise click.UsageError(f"There is no module {error.name} in {folder}, nor is one installed.") from None
        raise _import_failure(module_name, error) from error
    except click.ClickException:
        raise
    except Exception as error:
        raise _import_failure(module_name, error) from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise click.UsageError(f"The module {module_name} has no {path}.") from None
    return found


def _import_failure(module_name: str, error: Exception) -> click.UsageError:
    """Return the error for a module that raises: where in it, as far as that is known."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "importlib" not in each.filename]
    outside = [each for each in frames if each.filename != __file__]
    where = f" ({os.path.basename(outside[-1].filename)}, line {outside[-1].lineno})" if outside else ""  # noqa: PTH119
    text = str(error) if isinstance(error, SyntaxError) else f"{error}{where}"
    return click.UsageError(f"The module {module_name} cannot be imported: {type(error).__name__}: {text}")
