"""`agentphone export`: a whole account into files, with a bar that says how far it is."""

from __future__ import annotations

import sys
from typing import Literal

import click

from agentphone._pagination import read_bound
from agentphone.cli._base import Command, refusals, whole
from agentphone.cli._settings import account_options, settings_of
from agentphone.errors import AgentPhoneError, ConfigurationError

EXAMPLES = """\
examples:
  agentphone export backup --base-url sandbox:
  agentphone export backup --format csv --concurrency 8
  agentphone export backup --since last
  agentphone export june --since 2025-06-01T00:00:00Z
"""
GOES_ON = "The same command goes on from where it was."


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv", "parquet"]),
    default="jsonl",
    show_default=True,
    help="What the files are; parquet needs the extra of that name.",
)
@click.option(
    "--concurrency",
    metavar="N",
    default="4",
    show_default=True,
    callback=whole("a concurrency", 1),
    help="How many conversations to read at a time.",
)
@click.option(
    "--since",
    metavar="INSTANT",
    help="Only what was received later than this, such as 2025-06-01T00:00:00Z; 'last' adds what is new to the files of"
    " the last export.",
)
@account_options
@click.pass_context
def export(
    ctx: click.Context,
    directory: str,
    form: Literal["jsonl", "csv", "parquet"],
    concurrency: int,
    since: str | None,
) -> None:
    """Write every conversation and message into files.

    They are DIR/conversations.FORMAT and DIR/messages.FORMAT: the API's fields under the API's names, in messages with
    the conversationId besides. The files appear whole at the end. An export that was stopped, by whatever it was, goes
    on from where it was when the same command is given again.
    """
    if not directory:  # a shell's variable that is not set; Python would take the working directory
        raise click.UsageError("DIR is empty.", ctx)
    if since is not None and since != "last":
        with refusals(ctx):
            read_bound(since, "since")
    output = settings_of(ctx).output()
    from agentphone.cli._progress import Bars
    from agentphone.export import export as export_account

    with settings_of(ctx).client() as client:
        try:
            with Bars() as bars:
                result = export_account(
                    client, directory, format=form, concurrency=concurrency, since=since, on_progress=bars.show
                )
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                sys.stderr.write(f"{GOES_ON}\n")
            raise
        except AgentPhoneError as error:
            if not isinstance(error, ConfigurationError):
                error.add_note(GOES_ON)
            raise
        except OSError as error:
            reason = ": ".join(filter(None, (error.strerror or str(error), error.filename2 or error.filename)))
            raise click.ClickException(f"{ctx.command_path}: {reason}. {GOES_ON}") from error
        output.exported(result)
