"""`agentphone`: its commands and their options. The code of a command is imported when it runs."""

from __future__ import annotations

import math

import click

from agentphone._version import __version__
from agentphone.cli._base import Group
from agentphone.cli._settings import account_options, settings_of
from agentphone.cli.conversations import conversations
from agentphone.cli.export import export
from agentphone.cli.mcp import mcp
from agentphone.cli.sending import messages, reply

EXAMPLES = """\
getting started:
  agentphone demo                     see the SDK work; no network, no key
  agentphone conversations list --base-url sandbox:
                                      try the commands, also without a key
  export AGENTPHONE_API_KEY=...       then with your account:
  agentphone conversations list
  agentphone export backup            export everything to files
  agentphone COMMAND --help           details of a command

environment:
  AGENTPHONE_API_KEY                  the API key
  AGENTPHONE_BASE_URL                 the API's URL, if not AgentPhone's
  AGENTPHONE_LOG                      a log on stderr: debug, info or warning
  NO_COLOR                            if set, plain text without colors

exit codes: 0 success; 1 failure, explained on stderr; 2 wrong command line or
setting; 3 a message may have been sent; 130 Ctrl-C

tab completion, with this line in your shell's startup file:
  bash  eval "$(_AGENTPHONE_COMPLETE=bash_source agentphone)"
  zsh   eval "$(_AGENTPHONE_COMPLETE=zsh_source agentphone)"
  fish  _AGENTPHONE_COMPLETE=fish_source agentphone | source
"""
SANDBOX_EXAMPLES = """\
examples:
  agentphone sandbox --demo           in memory, with 36 conversations
  agentphone sandbox --db box.db      in a file that outlives the process

then, in the program under test:
  AGENTPHONE_BASE_URL=http://127.0.0.1:8765 AGENTPHONE_API_KEY=any-key
"""
HEADINGS = {
    "your account": [f"conversations {name}" for names in conversations.headings.values() for name in names]
    + ["messages send", "export", "mcp"],
    "without an account": ["demo", "sandbox"],
}


@click.group(cls=Group, headings=HEADINGS, examples=EXAMPLES)
@click.version_option(__version__, prog_name="agentphone", message="%(prog)s %(version)s")
@account_options
@click.pass_context
def agentphone(ctx: click.Context) -> None:
    """AgentPhone conversations on the command line, and a local AgentPhone to try.

    Output is tables in a terminal, and JSON lines in a pipe or a file.
    """
    if ctx.invoked_subcommand in ("demo", "sandbox") and (given := settings_of(ctx).given()):
        # Else it would be confused with the sandbox's own --api-key, the key to accept, which comes after its name.
        raise click.UsageError(f"{ctx.invoked_subcommand} takes no {given[0]} before its name.", ctx)


conversations.add_command(reply)
agentphone.add_command(conversations)
agentphone.add_command(messages)
agentphone.add_command(export)
agentphone.add_command(mcp)


@agentphone.command()
def demo() -> int:
    """Show what the SDK does.

    Starts a local AgentPhone on a free port and uses the SDK against it over HTTP: lists conversations, streams a long
    history, stores, reads and clears metadata, receives texts as webhooks with the stored state, and shows two errors.
    It takes a few seconds, needs no network and no key, and leaves nothing on disk.
    """
    from agentphone.cli.demo import demo

    return demo()


@agentphone.command(examples=SANDBOX_EXAMPLES)
@click.option("--host", metavar="HOST", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="The port; 0 picks a free one.",
)
@click.option("--db", metavar="FILE", help="Keep the data in this SQLite file (default: in memory).")
@click.option("--api-key", metavar="KEY", help="The only key to accept (default: any key).")
@click.option("--demo", is_flag=True, help="Load the demo's conversations, unless there is data.")
@click.option(
    "--retry-scale",
    metavar="FACTOR",
    type=click.FloatRange(min=0, max=math.inf, max_open=True),
    default=1.0,
    show_default=True,
    help="Scale the delays of 1, 2, 4, 8 and 16 seconds between the attempts to deliver a webhook.",
)
@click.pass_context
def sandbox(
    ctx: click.Context, host: str, port: int, db: str | None, api_key: str | None, demo: bool, retry_scale: float
) -> int:
    """Serve a local AgentPhone over HTTP until Ctrl-C.

    It has AgentPhone's conversations API, and POST /sandbox/messages to act as the person who texts. The first line
    of output is its URL, printed when it is ready.
    """
    if api_key is not None and not api_key.strip():
        raise click.UsageError("--api-key must not be empty.", ctx)
    if math.isnan(retry_scale):  # which click's range accepts
        raise click.UsageError("--retry-scale must be a number, got nan.", ctx)
    if db == ":memory:":
        raise click.UsageError("--db must be a file. Leave it out to keep the data in memory.", ctx)
    from agentphone.sandbox.server import serve

    return serve(host=host, port=port, db=db, api_key=api_key, demo=demo, retry_scale=retry_scale)
