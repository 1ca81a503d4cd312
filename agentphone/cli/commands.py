"""`agentphone`: its commands and their options. What a command does is imported when it runs."""

from __future__ import annotations

import math

import click

from agentphone._version import __version__
from agentphone.cli._base import Group, whole
from agentphone.cli._settings import account_options, settings_of
from agentphone.cli.conversations import conversations
from agentphone.cli.export import export

EXAMPLES = """\
to begin with:
  agentphone demo                     see the SDK at work; no network, no key
  agentphone conversations list --base-url sandbox:
                                      try the commands, without a key as well
  export AGENTPHONE_API_KEY=...       and then with your account:
  agentphone conversations list
  agentphone export backup            take all of it out, into files
  agentphone COMMAND --help           what a command can do

environment:
  AGENTPHONE_API_KEY                  the API key
  AGENTPHONE_BASE_URL                 where the API is, if not at AgentPhone
  NO_COLOR                            if set, plain text without colours

exit codes: 0 done; 1 failed, as stderr says; 2 a wrong command line or setting;
130 Ctrl-C

completion by the tab key, once this is in the start file of your shell:
  bash  eval "$(_AGENTPHONE_COMPLETE=bash_source agentphone)"
  zsh   eval "$(_AGENTPHONE_COMPLETE=zsh_source agentphone)"
  fish  _AGENTPHONE_COMPLETE=fish_source agentphone | source
"""
SANDBOX_EXAMPLES = """\
examples:
  agentphone sandbox --demo           in memory, with 36 conversations in it
  agentphone sandbox --db box.db      kept in a file from one start to the next

then, in the program under test:
  AGENTPHONE_BASE_URL=http://127.0.0.1:8765 AGENTPHONE_API_KEY=any-key
"""
HEADINGS = {
    "your account": [f"conversations {name}" for names in conversations.headings.values() for name in names]
    + ["export"],
    "without an account": ["demo", "sandbox"],
}


@click.group(cls=Group, headings=HEADINGS, examples=EXAMPLES)
@click.version_option(__version__, prog_name="agentphone", message="%(prog)s %(version)s")
@account_options
@click.pass_context
def agentphone(ctx: click.Context) -> None:
    """AgentPhone conversations on the command line, and a local AgentPhone to try.

    What goes to a terminal is printed as tables, what goes into a pipe or a file as JSON lines.
    """
    if ctx.invoked_subcommand in ("demo", "sandbox") and (given := settings_of(ctx).given()):
        # In silence it would be taken for the sandbox's own --api-key, the key to accept, which stands behind.
        raise click.UsageError(f"{ctx.invoked_subcommand} takes no {given[0]} before its name.", ctx)


agentphone.add_command(conversations)
agentphone.add_command(export)


@agentphone.command()
def demo() -> int:
    """Show the SDK do its job.

    Start a local AgentPhone on a free port of this machine, and show the SDK do its job against it over HTTP:
    conversations listed, a long history streamed, metadata stored, read back and cleared, texts that arrive as
    webhooks and bring the state that was stored before, and what two errors look like. It takes a few seconds, needs
    no network and no key, and leaves nothing behind.
    """
    from agentphone.cli.demo import demo

    return demo()


def _factor(ctx: click.Context, param: click.Parameter, value: str) -> float:
    try:
        factor = float(value)
    except ValueError:
        factor = math.nan
    if not 0 <= factor < math.inf:
        raise click.BadParameter(f"a factor is a number from 0, not {value!r}", ctx, param)
    return factor


@agentphone.command(examples=SANDBOX_EXAMPLES)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    metavar="N",
    default="8765",
    show_default=True,
    callback=whole("a port", 0, 65535),
    help="The port; 0 takes a free one.",
)
@click.option("--db", metavar="FILE", help="Keep the data in this SQLite file (default: in memory).")
@click.option("--api-key", metavar="KEY", help="The only key to accept (default: any that is not empty).")
@click.option("--demo", is_flag=True, help="Load the demo's conversations, if there are none yet.")
@click.option(
    "--retry-scale",
    metavar="FACTOR",
    default="1.0",
    show_default=True,
    callback=_factor,
    help="The factor on the pauses of 1, 2, 4, 8 and 16 seconds between the attempts to deliver a webhook.",
)
@click.pass_context
def sandbox(
    ctx: click.Context, host: str, port: int, db: str | None, api_key: str | None, demo: bool, retry_scale: float
) -> int:
    """Serve a local AgentPhone over HTTP until Ctrl-C.

    It has AgentPhone's conversations API, and beside it POST /sandbox/messages to act as the person who texts. The
    first line printed names its URL; it comes when the sandbox is ready.
    """
    if api_key is not None and not api_key.strip():
        raise click.UsageError("--api-key: a key is not empty.", ctx)
    from agentphone.sandbox.server import serve

    return serve(host=host, port=port, db=db, api_key=api_key, demo=demo, retry_scale=retry_scale)
