"""`agentphone dev`, `run`, `work` and `inbox`: the commands of the inbox. Its code is imported when one runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agentphone.cli._base import Command, Group
from agentphone.cli._settings import account_options, settings_of

if TYPE_CHECKING:
    from agentphone.inbox import Inbox
    from agentphone.inbox._database import Database

F = TypeVar("F", bound=Callable[..., Any])

DEV_EXAMPLES = """\
examples:
  agentphone dev bot:inbox            the object `inbox` of bot.py
  agentphone dev bot:inbox --port 9000
"""
RUN_EXAMPLES = """\
examples:
  agentphone run bot:inbox            polls; needs no public address
  agentphone run bot:inbox --webhook 0.0.0.0:8000
"""
WORK_EXAMPLES = """\
examples:
  agentphone work bot:inbox --name worker-1
"""
LIST_EXAMPLES = """\
examples:
  agentphone inbox list --failed
  agentphone inbox list --unconfirmed --json | jq -r .id
"""
RETRY_EXAMPLES = """\
examples:
  agentphone inbox retry msg_1
"""
DEFAULT_LIMIT = 20
DEV_SANDBOX, DEV_DATABASE = "agentphone-dev.db", "agentphone-dev-inbox.db"

_target = click.argument("target", metavar="MODULE:INBOX")
_name = click.option(
    "--name",
    metavar="NAME",
    default="main",
    show_default=True,
    help="The worker's name, its own and the same each time.",
)


@click.command(cls=Command, examples=DEV_EXAMPLES)
@_target
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="The port of the local AgentPhone; 0 picks a free one.",
)
@click.pass_context
def dev(ctx: click.Context, target: str, port: int) -> None:
    """Run an inbox with a local AgentPhone: no key, no account.

    Texts reach it by webhook, and a line is printed for each; the traceback, too, of a handler that raises. The
    conversations are kept in agentphone-dev.db and the inbox in agentphone-dev-inbox.db, so that a restart continues;
    delete both to begin anew.
    """
    import secrets
    from pathlib import Path

    from agentphone.cli._loading import load_inbox
    from agentphone.inbox._worker_lock import NameTakenError
    from agentphone.sandbox import Sandbox
    from agentphone.sandbox.server import running

    secret, database = f"whsec_{secrets.token_hex(16)}", f"sqlite:///{Path(DEV_DATABASE).absolute()}"
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(DEV_SANDBOX))
        try:
            url = stack.enter_context(running(sandbox, port=port))
        except OSError as error:
            raise click.UsageError(f"Port {port} cannot be used ({error.strerror}); --port N takes another.") from None
        # Before the module is imported: clients of its own are to use the local AgentPhone too, without a proxy.
        direct = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"]))
        os.environ |= {
            "NO_PROXY": direct,
            "no_proxy": direct,
            "AGENTPHONE_API_KEY": "dev",
            "AGENTPHONE_BASE_URL": url,
            "AGENTPHONE_WEBHOOK_SECRET": secret,
            "AGENTPHONE_INBOX_DATABASE": database,
        }
        inbox = load_inbox(target)
        _log_to_stderr("DEBUG")  # with the tracebacks of handlers

        def when_ready(webhook: str) -> None:
            sandbox.set_webhook(webhook, secret)
            _introduce(url)

        try:
            inbox._develop(secret=secret, database=database, when_ready=when_ready)  # noqa: SLF001  # not for others
        except NameTakenError:
            raise click.UsageError(
                "It is running in this folder already. Stop it, or run another one in another folder."
            ) from None


@click.command(cls=Command, examples=RUN_EXAMPLES)
@_target
@click.option(
    "--webhook", metavar="HOST:PORT", help="Serve the webhook on this address, at any path, instead of polling."
)
@click.option(
    "--poll-interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=3600),
    default=5.0,
    show_default=True,
    help="How often to poll while texts arrive.",
)
@_name
@account_options
@click.pass_context
def run(ctx: click.Context, target: str, webhook: str | None, poll_interval: float, name: str) -> None:
    """Receive and handle the texts of your account, in one process, until Ctrl-C.

    Without --webhook it polls, from where it was stopped. AGENTPHONE_INBOX_DATABASE is the database (default:
    agentphone-inbox.db in the current directory).
    """
    inbox = _load(ctx, target)
    with _database_errors():
        inbox.run(webhook, name=name, poll_interval=poll_interval)


@click.command(cls=Command, examples=WORK_EXAMPLES)
@_target
@_name
@account_options
@click.pass_context
def work(ctx: click.Context, target: str, name: str) -> None:
    """Handle the texts that web processes receive: one worker of several, until Ctrl-C.

    Under its name a worker continues what it was doing when it was stopped, so each needs a name of its own.
    """
    inbox = _load(ctx, target)
    with _database_errors():
        inbox.work(name)


@click.group(cls=Group, headings={"commands": ["list", "retry"]})
def inbox() -> None:
    """See what an inbox has handled, and retry what failed."""


def _database_options(command: F) -> F:
    add_database = click.option(
        "--database", metavar="URL", help="sqlite:///FILE or postgresql://... (default: AGENTPHONE_INBOX_DATABASE)."
    )
    add_inbox = click.option(
        "--inbox", "inbox_name", metavar="NAME", default="agentphone-inbox", help="The inbox's name, if it has one."
    )
    return add_database(add_inbox(command))


@inbox.command("list", examples=LIST_EXAMPLES)
@click.option("--failed", is_flag=True, help="Those that were given up.")
@click.option("--unconfirmed", is_flag=True, help="Those whose reply may have been sent, or not.")
@click.option("--pending", is_flag=True, help="Those that are not done yet.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help=f"How many to list (default: {DEFAULT_LIMIT}).")
@click.option("--all", "everything", is_flag=True, help="List every text.")
@_database_options
@account_options
@click.pass_context
def list_(
    ctx: click.Context,
    failed: bool,
    unconfirmed: bool,
    pending: bool,
    limit: int | None,
    everything: bool,
    database: str | None,
    inbox_name: str,
) -> None:
    """List the texts, newest first: all, or those of some statuses."""
    if everything and limit is not None:
        raise click.UsageError("--limit and --all contradict each other.", ctx)
    from agentphone.inbox._listing import list_items

    output = settings_of(ctx).output()
    chosen = {"failed": failed, "unconfirmed": unconfirmed, "pending": pending, "running": pending}
    statuses = tuple(status for status, is_chosen in chosen.items() if is_chosen)
    with _opened(database, inbox_name) as opened:
        output.items(list_items(opened, statuses=statuses, limit=None if everything else limit or DEFAULT_LIMIT))


@inbox.command(examples=RETRY_EXAMPLES)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@_database_options
@click.pass_context
def retry(ctx: click.Context, ids: tuple[str, ...], database: str | None, inbox_name: str) -> None:
    """Handle texts again that failed, or send a reply again that is unconfirmed.

    A handler that raised runs again. A reply that was refused, or is unconfirmed, is sent again, without running the
    handler; look at the conversation before you repeat an unconfirmed one. A worker does it, once one is running.
    """
    from agentphone.inbox._listing import retry_item

    with _opened(database, inbox_name) as opened:
        for item_id in ids:
            try:
                done = retry_item(opened, item_id)
            except (LookupError, ValueError) as error:
                raise click.ClickException(f"{ctx.command_path}: {error.args[0]}") from None
            click.echo(done)


@contextmanager
def _opened(database: str | None, inbox_name: str) -> Generator[Database]:
    """Open an inbox's database for a command that looks at it."""
    from agentphone.inbox._inbox import open_database

    opened = open_database(database or _dev_database(), inbox_name)
    if opened.path is not None and not opened.path.exists():
        raise click.ClickException(
            f"There is no database {opened.path}. --database or AGENTPHONE_INBOX_DATABASE names the inbox's."
        )
    try:
        with _database_errors():
            yield opened
    finally:
        opened.close()


def _dev_database() -> str | None:
    """Return the database of `agentphone dev` if it is the only one here, and say so."""
    from pathlib import Path

    from agentphone.inbox._database import DATABASE_VARIABLE, DEFAULT_DATABASE

    if os.environ.get(DATABASE_VARIABLE) or Path(DEFAULT_DATABASE.removeprefix("sqlite:///")).exists():
        return None
    if not Path(DEV_DATABASE).exists():
        return None
    click.echo(f"This is {DEV_DATABASE}, the inbox of agentphone dev.", err=True)
    return f"sqlite:///{DEV_DATABASE}"


@contextmanager
def _database_errors() -> Generator[None]:
    """Report as one line that the inbox's database cannot be used."""
    from agentphone.inbox._database import DatabaseError

    try:
        yield
    except DatabaseError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        command = click.get_current_context().command_path
        raise click.ClickException(f"{command}: The inbox's database cannot be used: {reason}") from error


def _load(ctx: click.Context, target: str) -> Inbox:
    """Return the inbox to run, with the account of the options and the log on stderr."""
    from agentphone.cli._loading import load_inbox

    settings = settings_of(ctx)
    # In the environment, where the clients of the user's own module find them too.
    if settings.api_key is not None:
        os.environ["AGENTPHONE_API_KEY"] = settings.api_key
    if settings.base_url is not None:
        os.environ["AGENTPHONE_BASE_URL"] = settings.base_url
    inbox = load_inbox(target)
    _log_to_stderr()
    return inbox


def _log_to_stderr(level: str = "INFO") -> None:
    """Print the log, unless the user's module has set up logging, from a level on or from that of AGENTPHONE_LOG."""
    import logging

    if logging.root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    is_set = logging.getLogger("agentphone").level != logging.NOTSET
    for name, shown in (("agentphone.inbox", level), ("agentphone", "WARNING"), ("dbos", "WARNING")):
        log = logging.getLogger(name)
        if name == "dbos" or not is_set:
            log.setLevel(shown)
        if name != "agentphone.inbox":  # whose records reach the handler of "agentphone"
            log.addHandler(handler)


def _introduce(url: str) -> None:
    """Print what to do next."""
    sys.stdout.write(f"Text your agent: open {url} in a browser, or run\n  agentphone sandbox text Hi --url {url}\n")
    sys.stdout.write("Ctrl-C stops it.\n")
    sys.stdout.flush()
