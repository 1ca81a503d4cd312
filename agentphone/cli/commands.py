"""`agentphone`: its commands and their options. The code of a command is imported when it runs."""

from __future__ import annotations

import click

from agentphone._version import __version__
from agentphone.cli._base import Group
from agentphone.cli._settings import account_options, settings_of
from agentphone.cli.conversations import conversations
from agentphone.cli.export import export
from agentphone.cli.inbox import dev, inbox, run, work
from agentphone.cli.mcp import mcp
from agentphone.cli.sandbox import sandbox
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
HEADINGS = {
    "your account": [f"conversations {name}" for names in conversations.headings.values() for name in names]
    + ["messages send", "export", "mcp"],
    "the inbox of an agent": ["dev", "run", "work", "inbox list", "inbox retry"],
    "without an account": ["demo", "sandbox", "sandbox text"],
}


@click.group(cls=Group, headings=HEADINGS, examples=EXAMPLES)
@click.version_option(__version__, prog_name="agentphone", message="%(prog)s %(version)s")
@account_options
@click.pass_context
def agentphone(ctx: click.Context) -> None:
    """AgentPhone conversations on the command line, and a local AgentPhone to try.

    Output is tables in a terminal, and JSON lines in a pipe or a file.
    """
    if ctx.invoked_subcommand in ("demo", "dev", "sandbox") and (given := settings_of(ctx).given()):
        # Else it would be confused with the sandbox's own --api-key, the key to accept, which comes after its name.
        raise click.UsageError(f"{ctx.invoked_subcommand} takes no {given[0]} before its name.", ctx)


conversations.add_command(reply)
agentphone.add_command(conversations)
for _command in (messages, export, mcp, dev, run, work, inbox):
    agentphone.add_command(_command)


@agentphone.command()
def demo() -> int:
    """Show what the SDK does.

    Starts a local AgentPhone on a free port and uses the SDK against it over HTTP: lists conversations, streams a long
    history, stores, reads and clears metadata, receives texts as webhooks with the stored state, and shows two errors.
    It takes a few seconds, needs no network and no key, and leaves nothing on disk.
    """
    from agentphone.cli.demo import demo

    return demo()


agentphone.add_command(sandbox)
