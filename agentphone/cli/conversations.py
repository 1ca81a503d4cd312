"""`agentphone conversations`: one command for each endpoint of the API."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from agentphone.cli._base import Group, timestamp_or_cursor, usage_errors
from agentphone.cli._settings import account_options, settings_of
from agentphone.errors import APIConnectionError, APIStatusError

if TYPE_CHECKING:
    from agentphone.models import Cursor

F = TypeVar("F", bound=Callable[..., Any])

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
COUNT = click.IntRange(min=1)
REPORT_SECONDS = 60.0
"""The shortest time between two reports of failed attempts."""

_conversation_id = click.argument("conversation_id", metavar="ID")


@click.group(
    cls=Group,
    headings={"commands": ["list", "get", "messages", "follow", "watch", "reply", "update"]},
    examples=EXAMPLES,
)
@account_options
def conversations() -> None:
    """Read conversations and their messages, and store state in them.

    Output is tables in a terminal, and JSON lines in a pipe or a file.
    """


@conversations.command("list", examples=LIST_EXAMPLES)
@click.option("--limit", metavar="N", type=COUNT, help=f"How many to list (default: {DEFAULT_LIMIT}).")
@click.option("--all", "everything", is_flag=True, help="List every conversation.")
@click.option("--offset", metavar="N", type=click.IntRange(min=0), default=0, help="How many to skip.")
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
    type=click.IntRange(1, 100),
    default=RECENT_MESSAGES,
    show_default=True,
    help="How many recent messages to show.",
)
@account_options
@click.pass_context
def get(ctx: click.Context, conversation_id: str, messages: int) -> None:
    """Show a conversation with its recent messages."""
    output = settings_of(ctx).output()
    with settings_of(ctx).client() as client:
        with usage_errors(ctx):
            conversation = client.conversations.get(conversation_id, message_limit=messages)
        output.conversation(conversation, with_messages=True)


@conversations.command(examples=UPDATE_EXAMPLES)
@_conversation_id
@click.option(
    "--set",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set one key and keep the others. VALUE is JSON if it parses as JSON, else text. Can be repeated.",
)
@click.option(
    "--file",
    type=click.Path(),
    metavar="FILE",
    help="Replace all metadata with the JSON object in this file; - is stdin.",
)
@click.option("--clear", is_flag=True, help="Remove all metadata.")
@account_options
@click.pass_context
def update(ctx: click.Context, conversation_id: str, pairs: tuple[str, ...], file: str | None, clear: bool) -> None:
    """Change the metadata of a conversation.

    Metadata is a JSON object: the state that comes with every webhook of the conversation. The API can only replace
    it as a whole, so --set reads it, changes it and writes it back; a write by someone else in between is lost.
    """
    if [bool(pairs), file is not None, clear].count(True) != 1:
        raise click.UsageError("Pass exactly one of --set, --file and --clear.", ctx)
    changes = dict(_parse_pair(ctx, pair) for pair in pairs)
    metadata = None if file is None else _read_object(ctx, file)
    output = settings_of(ctx).output()
    with settings_of(ctx).client() as client:
        with usage_errors(ctx):
            if changes:
                known = client.conversations.get(conversation_id, message_limit=1).metadata
                metadata = {**(known or {}), **changes}
            conversation = client.conversations.update(conversation_id, metadata=metadata)
        output.conversation(conversation, with_messages=False)


@conversations.command(examples=MESSAGES_EXAMPLES)
@_conversation_id
@click.option(
    "--before",
    metavar="TIMESTAMP|CURSOR",
    callback=timestamp_or_cursor,
    help="Only messages received before this time, such as 2025-01-15T12:00:00Z.",
)
@click.option(
    "--after", metavar="TIMESTAMP|CURSOR", callback=timestamp_or_cursor, help="Only messages received after this time."
)
@click.option(
    "--order",
    type=click.Choice(["asc", "desc"]),
    default="desc",
    show_default=True,
    help="asc: oldest first; desc: newest first.",
)
@click.option("--limit", metavar="N", type=COUNT, help="How many to read (default: all).")
@account_options
@click.pass_context
def messages(
    ctx: click.Context,
    conversation_id: str,
    before: str | Cursor | None,
    after: str | Cursor | None,
    order: Literal["asc", "desc"],
    limit: int | None,
) -> None:
    """Read the messages of a conversation, newest first."""
    output = settings_of(ctx).output()
    with settings_of(ctx).client() as client:
        with usage_errors(ctx):
            pager = client.conversations.messages(conversation_id, before=before, after=after, order=order, limit=limit)
        output.messages(pager.pages())


_after = click.option(
    "--after",
    metavar="TIMESTAMP|CURSOR",
    callback=timestamp_or_cursor,
    help="Start with messages received after this time (default: now).",
)


def _poll_interval(default: float, idle: int) -> Callable[[F], F]:
    """Create the option for the interval between polls, which grows up to `idle` seconds."""
    return click.option(
        "--poll-interval",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        default=default,
        show_default=True,
        help=f"The time between polls while messages arrive; it grows up to {idle} seconds while none do.",
    )


@conversations.command(examples=FOLLOW_EXAMPLES)
@_conversation_id
@_after
@_poll_interval(2, idle=30)
@account_options
@click.pass_context
def follow(ctx: click.Context, conversation_id: str, after: str | Cursor | None, poll_interval: float) -> None:
    """Show the messages of a conversation as they arrive.

    Runs until Ctrl-C. Connection failures, 429s and 5xx responses are retried until they clear, and reported on stderr,
    at most once a minute.
    """
    output = settings_of(ctx).output()
    with settings_of(ctx).client(on_retry=_report_retries(ctx)) as client:
        with usage_errors(ctx):
            messages = client.conversations.follow(conversation_id, after=after, poll_interval=poll_interval)
        output.arrivals((None, message) for message in messages)


@conversations.command(examples=WATCH_EXAMPLES)
@_after
@_poll_interval(5, idle=60)
@account_options
@click.pass_context
def watch(ctx: click.Context, after: str | Cursor | None, poll_interval: float) -> None:
    """Show the messages of all conversations as they arrive.

    Runs until Ctrl-C, and retries as follow does. JSON lines also have the conversationId.
    """
    output = settings_of(ctx).output()
    with settings_of(ctx).client(on_retry=_report_retries(ctx)) as client:
        with usage_errors(ctx):
            arrivals = client.conversations.watch(after=after, poll_interval=poll_interval)
        output.arrivals(arrivals)


def _report_retries(
    ctx: click.Context, clock: Callable[[], float] = time.monotonic
) -> Callable[[Exception, float], None]:
    """Return a callback that reports failed attempts: a command that runs for hours must not hang silently.

    It reports the first one, and then at most one a minute.
    """
    reported_at = -math.inf

    def report(error: Exception, _: float) -> None:
        nonlocal reported_at
        if clock() < reported_at + REPORT_SECONDS:
            return
        reported_at = clock()
        if isinstance(error, APIConnectionError | APIStatusError):
            error.advice = "Trying again until it works."
        if isinstance(error, APIConnectionError):
            error.advice += " Check the network and the base URL (--base-url or AGENTPHONE_BASE_URL)."
        sys.stderr.write(f"{ctx.command_path}: {error}\n")

    return report


def _parse_pair(ctx: click.Context, text: str) -> tuple[str, Any]:
    import json

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.UsageError(f"--set must be KEY=VALUE, got {text!r}.", ctx)
    try:
        return key, json.loads(value, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return key, value


def _reject_constant(name: str) -> None:
    raise ValueError(name)  # NaN and the infinities, which Python parses and JSON does not have


def _read_object(ctx: click.Context, file: str) -> Mapping[str, Any]:
    from pathlib import Path

    from agentphone._json import DecodeError, parse_json

    try:
        if file != "-":
            content = Path(file).read_bytes()
        elif sys.stdin is None:
            raise click.UsageError("--file -: stdin is closed.", ctx)
        else:
            content = sys.stdin.buffer.read()
        value = parse_json(content.removeprefix(b"\xef\xbb\xbf"))  # a byte order mark, which some editors write
    except OSError as error:
        raise click.UsageError(f"--file {file}: {error.strerror}.", ctx) from error
    except DecodeError as error:
        raise click.UsageError(f"--file {file}: {error.reason}.", ctx) from error
    if not isinstance(value, dict):
        raise click.UsageError(f"--file {file}: metadata must be a JSON object; to remove it, use --clear.", ctx)
    return value
