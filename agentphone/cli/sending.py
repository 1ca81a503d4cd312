"""`agentphone conversations reply` and `agentphone messages send`: send a text, after a question on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from agentphone.cli._base import Command, Group, usage_errors
from agentphone.cli._settings import account_options, settings_of
from agentphone.errors import escape_control_characters

F = TypeVar("F", bound=Callable[..., Any])

EXAMPLES = """\
examples:
  agentphone messages send 'On its way.' --to +15555550110 --from +15555550100
"""
REPLY_EXAMPLES = """\
examples:
  agentphone conversations reply conv_1 'On its way.'
  agentphone conversations reply conv_1 --media https://example.com/1.png --yes
"""
SEND_EXAMPLES = """\
examples:
  agentphone messages send 'On its way.' --to +15555550110 --from +15555550100
  agentphone messages send 'Hello both' --to +1... --to +1... --agent-id agt_1
"""


def _sending_options(command: F) -> F:
    add_text = click.argument("text", metavar="[TEXT]", default="")
    add_media = click.option(
        "--media", metavar="URL", multiple=True, help="An https:// URL of media; up to 20 of them."
    )
    add_reply_to = click.option("--reply-to", metavar="ID", help="The id of the message that this one answers.")
    add_style = click.option("--style", metavar="NAME", help="An effect of iMessage, such as confetti.")
    add_yes = click.option("--yes", "-y", is_flag=True, help="Send without asking.")
    return add_text(add_media(add_reply_to(add_style(add_yes(account_options(command))))))


@click.command(cls=Command, examples=REPLY_EXAMPLES)
@click.argument("conversation_id", metavar="ID")
@click.option(
    "--confirm",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="How long to look for the message if it is unclear whether it was sent.",
)
@_sending_options
@click.pass_context
def reply(
    ctx: click.Context,
    conversation_id: str,
    confirm: float,
    text: str,
    media: tuple[str, ...],
    reply_to: str | None,
    style: str | None,
    yes: bool,
) -> None:
    """Send a text in a conversation, from its own number to its person or group.

    It is never sent twice. Exit code 3: it may have been sent, look before you send it again.
    """
    _check_content(ctx, text, media)
    output = settings_of(ctx).output()
    with settings_of(ctx).client() as client, usage_errors(ctx):
        conversation = client.conversations.get(conversation_id)
        _ask(ctx, yes, text, media, conversation.participant)
        sent = client.conversations.reply(
            conversation, text, media_urls=media, reply_to=reply_to, send_style=style, confirm=confirm
        )
        output.sent(sent)


@click.group(cls=Group, headings={"commands": ["send"]}, examples=EXAMPLES)
@account_options
def messages() -> None:
    """Send texts to numbers. To answer in a conversation, use `conversations reply`."""


@messages.command(examples=SEND_EXAMPLES)
@click.option(
    "--to",
    metavar="NUMBER",
    multiple=True,
    required=True,
    help="The receiver: a number, an e-mail address or a group's id. Several of them are a new group.",
)
@click.option("--from", "from_number", metavar="NUMBER", help="The agent's number to send from.")
@click.option("--number-id", metavar="ID", help="Or the id of that number.")
@click.option("--agent-id", metavar="ID", help="Or the id of an agent, whose first number is used.")
@click.option("--channel", metavar="NAME", help="whatsapp, or leave it out to let AgentPhone choose.")
@_sending_options
@click.pass_context
def send(
    ctx: click.Context,
    to: tuple[str, ...],
    from_number: str | None,
    number_id: str | None,
    agent_id: str | None,
    channel: str | None,
    text: str,
    media: tuple[str, ...],
    reply_to: str | None,
    style: str | None,
    yes: bool,
) -> None:
    """Send a text to a number, an e-mail address or a group.

    It is never sent twice. Exit code 3: it may have been sent, look before you send it again.
    """
    if from_number is None and number_id is None and agent_id is None:
        raise click.UsageError("Pass --from, --number-id or --agent-id.", ctx)
    _check_content(ctx, text, media)
    output = settings_of(ctx).output()
    with settings_of(ctx).client() as client, usage_errors(ctx):
        _ask(ctx, yes, text, media, ", ".join(to))
        sent = client.messages.send(
            text,
            to=to[0] if len(to) == 1 else None,
            recipients=to if len(to) > 1 else None,
            from_number=from_number,
            number_id=number_id,
            agent_id=agent_id,
            media_urls=media,
            reply_to=reply_to,
            send_style=style,
            channel=channel,
        )
        output.sent(sent)


def _check_content(ctx: click.Context, text: str, media: tuple[str, ...]) -> None:
    if not text and not media:
        raise click.UsageError("Pass a TEXT or --media: there is nothing to send.", ctx)


def _ask(ctx: click.Context, yes: bool, text: str, media: tuple[str, ...], receiver: str) -> None:
    """Ask a person at a terminal before anything is sent."""
    if yes or not sys.stdin.isatty():
        return
    shown = " and ".join(filter(None, [repr(text) if text else "", f"{len(media)} media" if media else ""]))
    if not click.confirm(escape_control_characters(f"Send {shown} to {receiver}?"), err=True):
        raise click.ClickException(f"{ctx.command_path}: nothing was sent.")
