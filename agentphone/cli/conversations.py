"""`agentphone conversations`: the API's endpoints, each as a command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import click

from agentphone._decoding import DecodeError, parse_json
from agentphone.cli._base import Group, refusals, whole
from agentphone.cli._settings import account_options, settings_of

EXAMPLES = """\
examples:
  agentphone conversations list --base-url sandbox:
  agentphone conversations get conv_1 --messages 5
  agentphone conversations update conv_1 --set topic=order --set step=3
  agentphone conversations messages conv_1 --order asc > history.jsonl
"""
LIST_EXAMPLES = """\
examples:
  agentphone conversations list --limit 100
  agentphone conversations list --all --json | jq -r .participant
"""
GET_EXAMPLES = """\
examples:
  agentphone conversations get conv_1
  agentphone conversations get conv_1 --json | jq .metadata
"""
UPDATE_EXAMPLES = """\
examples:
  agentphone conversations update conv_1 --set topic=order --set step=3
  agentphone conversations update conv_1 --set 'tags=["vip", "new"]'
  agentphone conversations update conv_1 --file state.json
  agentphone conversations update conv_1 --clear
"""
MESSAGES_EXAMPLES = """\
examples:
  agentphone conversations messages conv_1 --limit 50
  agentphone conversations messages conv_1 --after 2025-01-15T12:00:00Z
  agentphone conversations messages conv_1 --order asc --json > history.jsonl
"""
FOLLOW_EXAMPLES = """\
examples:
  agentphone conversations follow conv_1
  agentphone conversations follow conv_1 --json >> log.jsonl
"""
WATCH_EXAMPLES = """\
examples:
  agentphone conversations watch
  agentphone conversations watch --json | jq -r .body
"""
DEFAULT_LIMIT = 20
RECENT_MESSAGES = 10

_conversation_id = click.argument("conversation_id", metavar="ID")


@click.group(
    cls=Group, headings={"commands": ["list", "get", "messages", "follow", "watch", "update"]}, examples=EXAMPLES
)
@account_options
def conversations() -> None:
    """Read conversations and their messages, and keep state in them.

    What goes to a terminal is printed as tables, what goes into a pipe or a file as JSON lines.
    """


@conversations.command("list", examples=LIST_EXAMPLES)
@click.option("--limit", metavar="N", callback=whole("a limit", 1), help=f"How many (default: {DEFAULT_LIMIT}).")
@click.option("--all", "everything", is_flag=True, help="Every conversation.")
@click.option("--offset", metavar="N", default="0", callback=whole("an offset", 0), help="How many to skip.")
@account_options
@click.pass_context
def list_(ctx: click.Context, limit: int | None, everything: bool, offset: int) -> None:
    """List conversations, most recent activity first."""
    if everything and limit is not None:
        raise click.UsageError("--limit and --all contradict each other.", ctx)
    output = settings_of(ctx).output()
    with settings_of(ctx).client() as client:
        pager = client.conversations.list(limit=None if everything else limit or DEFAULT_LIMIT, offset=offset)
        output.conversations(pager.pages())


@conversations.command(examples=GET_EXAMPLES)
@_conversation_id
@click.option(
    "--messages",
    metavar="N",
    default=str(RECENT_MESSAGES),
    callback=whole("a number of messages", 1, 100),
    help="How many of the recent messages, 1 to 100.",
    show_default=True,
)
@account_options
@click.pass_context
def get(ctx: click.Context, conversation_id: str, messages: int) -> None:
    """Show a conversation with its recent messages."""
    output = settings_of(ctx).output()
    with settings_of(ctx).client() as client:
        with refusals(ctx):
            conversation = client.conversations.get(conversation_id, message_limit=messages)
        output.conversation(conversation, with_messages=True)


@conversations.command(examples=UPDATE_EXAMPLES)
@_conversation_id
@click.option(
    "--set",
    "facts",
    metavar="KEY=VALUE",
    multiple=True,
    help="Store this, and keep the rest. VALUE is JSON if it reads as JSON, else a text. May be given several times.",
)
@click.option(
    "--file",
    type=click.Path(),
    metavar="FILE",
    help="Store the JSON object in this file instead of all that is there; - is stdin.",
)
@click.option("--clear", is_flag=True, help="Store nothing: remove all that is there.")
@account_options
@click.pass_context
def update(ctx: click.Context, conversation_id: str, facts: tuple[str, ...], file: str | None, clear: bool) -> None:
    """Change the metadata of a conversation.

    It is a JSON object: the state that every webhook of the conversation brings along. The API replaces it whole, so
    --set reads it, changes it and writes it back; what somebody else writes in between is lost.
    """
    if [bool(facts), file is not None, clear].count(True) != 1:
        raise click.UsageError("Give --set, --file or --clear, and only one of them.", ctx)
    changes = dict(_fact(ctx, fact) for fact in facts)
    metadata = None if file is None else _object(ctx, file)
    output = settings_of(ctx).output()
    with settings_of(ctx).client() as client:
        with refusals(ctx):
            if changes:
                known = client.conversations.get(conversation_id, message_limit=1).metadata
                metadata = {**(known or {}), **changes}
            conversation = client.conversations.update(conversation_id, metadata=metadata)
        output.conversation(conversation, with_messages=False)


@conversations.command(examples=MESSAGES_EXAMPLES)
@_conversation_id
@click.option(
    "--before", metavar="INSTANT", help="Only what was received earlier than this, such as 2025-01-15T12:00:00Z."
)
@click.option("--after", metavar="INSTANT", help="Only what was received later than this.")
@click.option(
    "--order",
    type=click.Choice(["asc", "desc"]),
    default="desc",
    show_default=True,
    help="asc: oldest first; desc: newest first.",
)
@click.option("--limit", metavar="N", callback=whole("a limit", 1), help="How many (default: every one).")
@account_options
@click.pass_context
def messages(
    ctx: click.Context,
    conversation_id: str,
    before: str | None,
    after: str | None,
    order: Literal["asc", "desc"],
    limit: int | None,
) -> None:
    """Read the messages of a conversation, newest first."""
    output = settings_of(ctx).output()
    with settings_of(ctx).client() as client:
        with refusals(ctx):
            pager = client.conversations.messages(conversation_id, before=before, after=after, order=order, limit=limit)
        output.messages(pager.pages())


_after = click.option(
    "--after", metavar="INSTANT", help="Begin with what was received later than this (default: with what comes now)."
)


@conversations.command(examples=FOLLOW_EXAMPLES)
@_conversation_id
@_after
@account_options
@click.pass_context
def follow(ctx: click.Context, conversation_id: str, after: str | None) -> None:
    """Show the messages of a conversation as they arrive.

    It goes on until Ctrl-C, and outlasts what passes: no network, an API that is away for minutes; stderr tells of it.
    """
    output = settings_of(ctx).output()
    with settings_of(ctx).client(on_retry=_trouble(ctx)) as client:
        with refusals(ctx):
            messages = client.conversations.follow(conversation_id, after=after)
        output.arrivals((None, message) for message in messages)


@conversations.command(examples=WATCH_EXAMPLES)
@_after
@account_options
@click.pass_context
def watch(ctx: click.Context, after: str | None) -> None:
    """Show the messages of all conversations as they arrive.

    It goes on until Ctrl-C, and outlasts what passes, as follow does. JSON lines have the conversationId besides.
    """
    output = settings_of(ctx).output()
    with settings_of(ctx).client(on_retry=_trouble(ctx)) as client:
        with refusals(ctx):
            arrivals = client.conversations.watch(after=after)
        output.arrivals(arrivals)


def _trouble(ctx: click.Context) -> Callable[[Exception, float], None]:
    """Make what tells of an attempt that failed: for a command that goes on for hours, silence would be a riddle."""

    def tell(error: Exception, pause: float) -> None:
        sys.stderr.write(f"{ctx.command_path}: {error} Trying again in {pause:.1f} s.\n")

    return tell


def _fact(ctx: click.Context, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.UsageError(f"--set is KEY=VALUE, not {text!r}.", ctx)
    try:
        return key, json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return key, value


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN and the infinities: Python reads them, JSON does not have them


def _object(ctx: click.Context, file: str) -> Mapping[str, Any]:
    try:
        if file != "-":
            content = Path(file).read_bytes()
        elif sys.stdin is None:
            raise click.UsageError("--file -: stdin is closed.", ctx)
        else:
            content = sys.stdin.buffer.read()
        value = parse_json(content.removeprefix(b"\xef\xbb\xbf"))  # a mark that some editors put there
    except OSError as error:
        raise click.UsageError(f"--file {file}: {error.strerror}.", ctx) from error
    except DecodeError as error:
        raise click.UsageError(f"--file {file}: {error.what}.", ctx) from error
    if not isinstance(value, dict):
        raise click.UsageError(f"--file {file}: metadata is a JSON object; to remove it all, use --clear.", ctx)
    return value
