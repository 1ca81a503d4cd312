"""`agentphone sandbox`: serve a local AgentPhone, and text a running one.

The server's code is imported when the command runs.
"""

from __future__ import annotations

import math
import os
import re

import click

from agentphone.cli._base import Group, usage_errors

EXAMPLES = """\
examples:
  agentphone sandbox --demo           in memory, with 36 conversations
  agentphone sandbox --db box.db      in a file that outlives the process

  agentphone sandbox --webhook http://127.0.0.1:8000/hook --secret whsec_local
                                      with a webhook
  agentphone sandbox text "Hi"        text the agent of a running sandbox

then, in the program under test:
  AGENTPHONE_BASE_URL=http://127.0.0.1:8765 AGENTPHONE_API_KEY=any-key
"""
TEXT_EXAMPLES = """\
examples:
  agentphone sandbox text "Where is my order?"
  agentphone sandbox text "Hi" --from +15555550111 --url http://127.0.0.1:9000
"""


@click.group(cls=Group, headings={"beside it": ["text"]}, examples=EXAMPLES, invoke_without_command=True)
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
@click.option("--webhook", metavar="URL", help="Deliver incoming texts to this URL (default: as set before).")
@click.option(
    "--secret",
    metavar="SECRET",
    envvar="AGENTPHONE_WEBHOOK_SECRET",
    show_envvar=True,
    help="The secret that signs the webhook's deliveries.",
)
@click.option(
    "--retry-scale",
    metavar="FACTOR",
    type=click.FloatRange(min=0, max=math.inf, max_open=True),
    default=1.0,
    show_default=True,
    help="Scale the delays of 1, 2, 4, 8 and 16 seconds between the attempts to deliver a webhook.",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    metavar="NAME",
    multiple=True,
    help="A public name under which requests may come; may be repeated.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the URL only, and no line per request and delivery.")
@click.pass_context
def sandbox(
    ctx: click.Context,
    host: str,
    port: int,
    db: str | None,
    api_key: str | None,
    demo: bool,
    webhook: str | None,
    secret: str | None,
    retry_scale: float,
    allowed_hosts: tuple[str, ...],
    quiet: bool,
) -> int | None:
    """Serve a local AgentPhone over HTTP until Ctrl-C.

    It has AgentPhone's conversations API, and POST /sandbox/messages to act as the person who texts. Its URL, opened in
    a browser, is a phone to text with your agent. The first line of output is the URL, printed when it is ready; then
    comes a line per request and per attempt to deliver a webhook.
    """
    if ctx.invoked_subcommand is not None:
        given = [
            name for name in ctx.params if ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        ]
        if given:
            option = next(param.opts[-1] for param in ctx.command.params if param.name == given[0])
            raise click.UsageError(f"{ctx.invoked_subcommand} takes no {option} before its name.", ctx)
        return None
    if api_key is not None and not api_key.strip():
        raise click.UsageError("--api-key must not be empty.", ctx)
    if math.isnan(retry_scale):  # which click's range accepts
        raise click.UsageError("--retry-scale must be a number, got nan.", ctx)
    if db == ":memory:":
        raise click.UsageError("--db must be a file. Leave it out to keep the data in memory.", ctx)
    for name in allowed_hosts:
        if re.search(r"[:/\s]", name):
            raise click.UsageError(f"--allow-host must be a name without a scheme and port, got {name!r}.", ctx)
    if webhook is not None and not secret:
        raise click.UsageError("--webhook needs --secret, which signs its deliveries.", ctx)
    from agentphone.sandbox._inputs import parse_webhook
    from agentphone.sandbox.server import serve

    if webhook is not None:
        with usage_errors(ctx):
            parse_webhook(webhook, secret, 0, 30.0)
    return serve(
        host=host,
        port=port,
        db=db,
        api_key=api_key,
        demo=demo,
        retry_scale=retry_scale,
        webhook=None if webhook is None or secret is None else (webhook, secret),
        allowed_hosts=allowed_hosts,
        quiet=quiet,
    )


@sandbox.command(examples=TEXT_EXAMPLES)
@click.argument("body", metavar="TEXT")
@click.option("--from", "from_number", metavar="NUMBER", default="+15555550110", show_default=True, help="The person.")
@click.option("--to", "to_number", metavar="NUMBER", default="+15555550100", show_default=True, help="The agent.")
@click.option("--url", metavar="URL", default="http://127.0.0.1:8765", show_default=True, help="The running sandbox.")
@click.option("--api-key", metavar="KEY", help="Its key (default: AGENTPHONE_API_KEY, else any).")
def text(body: str, from_number: str, to_number: str, url: str, api_key: str | None) -> int:
    """Text the agent of a running sandbox, as a person.

    Prints the message as a line of JSON.
    """
    from agentphone.sandbox._texting import TextingError, send_text

    key = api_key or os.environ.get("AGENTPHONE_API_KEY") or "any"
    try:
        message = send_text(url, key, from_number=from_number, to_number=to_number, body=body)
    except TextingError as error:
        raise click.ClickException(f"agentphone sandbox text: {error}") from error
    click.echo(message)
    return 0
