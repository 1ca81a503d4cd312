"""`agentphone export`: write a whole account to files, with a progress bar."""

from __future__ import annotations

import sys
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
    " (in UTC). 'last' adds new messages to the files of the last export.",
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
    messages also have the conversationId. The files appear when they are complete. To resume an export that was
    interrupted in any way, run the same command again.
    """
    if not directory:  # probably an unset shell variable; Python would use the working directory
        raise click.UsageError("DIR must not be empty.", ctx)
    output = settings_of(ctx).output()
    from agentphone.cli._progress import ExportProgress
    from agentphone.export import export as export_account

    with settings_of(ctx).client() as client:
        try:
            with ExportProgress() as progress:
                result = export_account(
                    client, directory, format=format_, concurrency=concurrency, since=since, on_progress=progress.show
                )
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                sys.stderr.write(f"{RESUMES}\n")
            raise
        except AgentPhoneError as error:
            if not isinstance(error, ConfigurationError):
                error.add_note(RESUMES)
            raise
        except OSError as error:
            reason = ": ".join(filter(None, (error.strerror or str(error), error.filename2 or error.filename)))
            raise click.ClickException(f"{ctx.command_path}: {reason}. {RESUMES}") from error
        output.exported(result, is_update=since == "last")
