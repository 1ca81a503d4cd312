"""The base classes of all commands: what they need beyond click. It knows no command.

Help pages keep their examples as written. Errors of the SDK become click's errors of one line: exit code 2 for a
setting or an argument that cannot be used, 3 for a message that may have been sent, 1 for every other failure.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from agentphone.errors import (
    AgentPhoneError,
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    DeadlineExceededError,
    NotFoundError,
    RateLimitError,
    SendUnconfirmedError,
)

if TYPE_CHECKING:
    from agentphone.models import Cursor

EXTRAS = {
    "dbos": "inbox",
    "mcp": "mcp",
    "mcp_types": "mcp",
    "pdoc": "docs",
    "pydantic": "mcp",
    "rich": "cli",
    "sqlalchemy": "inbox",
    "starlette": "sandbox",
    "uvicorn": "sandbox",
}
"""The extra that installs each package that a command may need."""

ADVICE: Mapping[str, str] = {
    AuthenticationError.advice: (
        "Check the API key (--api-key or AGENTPHONE_API_KEY) and that it belongs to this base URL (--base-url or"
        " AGENTPHONE_BASE_URL)."
    ),
    NotFoundError.advice_for_lists: (
        "There is no such list at this base URL, so it is probably wrong: check --base-url and AGENTPHONE_BASE_URL (it"
        " stops before /v1); a retry cannot help."
    ),
    RateLimitError.advice: "Too many requests: wait, and try again.",
    APITimeoutError.advice: "The API was too slow; try again.",
    DeadlineExceededError.advice: "The API was too slow; try again later.",
    APIConnectionError.advice_for_certificates: (
        "This is not temporary: the certificate is not trusted, not valid now, or not for this host, and nothing was"
        " sent. Check the base URL and this machine's clock; if the authority is your own or your company's, set"
        " SSL_CERT_FILE to its certificate."
    ),
}
"""The SDK's advice about arguments that only Python code can pass, and what to do on a command line instead."""


class _SettingError(click.ClickException):
    exit_code = 2


class _UnconfirmedError(click.ClickException):
    exit_code = 3


_FAILURES: Mapping[type[AgentPhoneError], type[click.ClickException]] = {
    ConfigurationError: _SettingError,
    SendUnconfirmedError: _UnconfirmedError,
}


class Command(click.Command):
    """A command whose failures are one line, and whose help page ends with examples."""

    def __init__(self, *arguments: Any, examples: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.context_settings["help_option_names"] = ["-h", "--help"]
        self._examples = examples

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the usage line."""
        formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)), "usage: ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under a heading in lower case, like the others."""
        with formatter.section("options"):
            options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
            formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are; click would join their lines into paragraphs."""
        if self._examples:
            formatter.write(f"\n{self._examples}")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command's arguments."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click leaves it out where an option has no value
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except AgentPhoneError as error:
            failures = (failure for cls, failure in _FAILURES.items() if isinstance(error, cls))
            failure = next(failures, click.ClickException)
            raise failure(f"{ctx.command_path}: {describe(error)}") from error
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in EXTRAS:
                raise
            raise click.ClickException(
                f"{ctx.command_path}: {missing} is not installed;"
                f" in the project's folder: pip install '.[{EXTRAS[missing]}]'"
            ) from error


class Group(Command, click.Group):
    """A group of commands. Its help page lists them under headings, also those of nested groups."""

    command_class: type[click.Command] | None = Command

    def __init__(self, *arguments: Any, headings: Mapping[str, Sequence[str]], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.headings = headings
        """The commands to list under each heading, each as its path: `conversations list`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with its summary."""
        for heading, paths in self.headings.items():
            with formatter.section(heading):
                formatter.write_dl([(path, self._find(path).get_short_help_str(60)) for path in paths])

    def _find(self, path: str) -> click.Command:
        command: click.Command = self
        for name in path.split():
            assert isinstance(command, click.Group)  # noqa: S101  # HEADINGS are constants, and each help page is tested
            command = command.commands[name]
        return command


def timestamp_or_cursor(ctx: click.Context, param: click.Parameter, value: str | None) -> str | Cursor | None:
    """Check an option for a timestamp with an offset, or for a cursor, which contains a slash."""
    from agentphone._paging.bounds import parse_bound
    from agentphone.models import Cursor

    if value is not None and "/" in value:
        try:
            return Cursor.parse(value)
        except ValueError as error:
            raise click.UsageError(f"{param.opts[0]}: {error}", ctx) from error
    with usage_errors(ctx):
        parse_bound(value, param.opts[0])
    return value


@contextmanager
def usage_errors(ctx: click.Context) -> Generator[None]:
    """Turn the ValueError that the SDK raises for a wrong argument into a usage error."""
    try:
        yield
    except ConfigurationError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from error


def describe(error: Exception) -> str:
    """Return the text of an error with its notes, and with advice that fits the command line."""
    if isinstance(error, APIConnectionError | APIStatusError):
        error.advice = ADVICE.get(error.advice, error.advice)
    return " ".join([str(error), *getattr(error, "__notes__", ())])
