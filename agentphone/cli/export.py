"""`agentphone export`: write a whole account to files, with a progress bar."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

import click

from agentphone.cli._base import Command, usage_errors
from agentphone.cli._settings import account_options, settings_of
from agentphone.errors import AgentPhoneError, ConfigurationError

EXAMPLES = """\
examples:
  agentphone export backup --base-url sandbox:
  agentphone export backup --format csv --concurrency 8
  agentphone export backup --since last
  agentphone export recent --since 24h
  agentphone export june --since 2025-06-01T00:00:00Z
"""
RESUMES = "Run the same command again to resume."


def check_since(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Check `--since`. The export itself gets the text, so that the same text resumes it."""
    from agentphone.export._since import parse_since

    with usage_errors(ctx):
        parse_since(value, param.opts[0])
    return value


class _TerminatedError(BaseException):
    """SIGTERM has arrived."""


@contextmanager
def _raise_at_sigterm() -> Generator[None]:
    """Raise in the block when SIGTERM arrives; after the block, let the signal end the process as it usually does."""

    def terminate(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except _TerminatedError:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv", "parquet"]),
    default="jsonl",
    show_default=True,
    help="The file format; parquet needs the extra of that name.",
)
@click.option(
    "--concurrency",
    metavar="N",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="How many conversations to read at a time.",
)
@click.option(
    "--since",
    metavar="TIME",
    callback=check_since,
    help="Only messages received after this time: 2025-06-01T00:00:00Z, an age such as 90m, 24h or 7d, or 'yesterday'"
    " (in UTC). 'last' continues the last export in DIR.",
)
@account_options
@click.pass_context
def export(
    ctx: click.Context,
    directory: str,
    format_: Literal["jsonl", "csv", "parquet"],
    concurrency: int,
    since: str | None,
) -> None:
    """Write every conversation and message to files.

    The files are DIR/conversations.FORMAT and DIR/messages.FORMAT. They have the API's fields under the API's names;
    messages also have the conversationId. The files appear when they are complete, and replace those of an earlier
    export, also if they hold less. To resume an export that was interrupted in any way, run the same command again.

    With --since last, a new file of messages has those of the last export and then the new ones. Earlier messages are
    not read again: later reactions and statuses are missing, and messages of deleted conversations stay, until a full
    export. DIR then accepts no export from a time or in another format; use one directory for each.
    """
    if not directory:  # probably an unset shell variable; Python would use the working directory
        raise click.UsageError("DIR must not be empty.", ctx)
    from pathlib import Path

    from agentphone.cli._progress import ExportProgress
    from agentphone.export import export as export_account
    from agentphone.export._exporter import PARTIAL

    output = settings_of(ctx).output()
    with _raise_at_sigterm(), settings_of(ctx).client() as client:
        try:
            with ExportProgress() as progress:
                result = export_account(
                    client, directory, format=format_, concurrency=concurrency, since=since, on_progress=progress.show
                )
        except (KeyboardInterrupt, _TerminatedError):
            if (Path(directory) / PARTIAL).exists():
                sys.stderr.write(f"{RESUMES}\n")
                sys.stderr.flush()
            raise
        except ConfigurationError as error:
            error.args = (re.sub(r"\b(with|without) since\b", r"\1 --since", str(error)),)
            raise
        except AgentPhoneError as error:
            error.add_note(RESUMES)
            raise
        except OSError as error:
            reason = ": ".join(filter(None, (error.strerror or str(error), error.filename2 or error.filename)))
            raise click.ClickException(f"{ctx.command_path}: {reason}. {RESUMES}") from error
        output.exported(result, is_update=since == "last")
