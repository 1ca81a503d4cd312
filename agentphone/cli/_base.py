"""What the commands ask of click beyond what it does by itself. It knows no command.

Help that keeps examples as they are written, values that are refused in words, and the SDK's errors as click's own: a
setting that cannot be used is a wrong command line, every other failure is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from agentphone.errors import AgentPhoneError, ConfigurationError

EXTRAS = {"rich": "cli", "starlette": "sandbox", "uvicorn": "sandbox"}
"""Which extra installs the packages that a command may miss."""

OUR_WORDS = {
    "api_key=...": "--api-key KEY",
    "`api_key=`": "--api-key",
    "base_url='sandbox:'": "--base-url sandbox:",
    "base_url=": "--base-url ",
    "base_url": "--base-url",
    ", or allow_http=True if meant": "",
    " Try api_key.strip().": "",
    "wait `retry_after` seconds, or share one client, whose limits then hold for all callers": "wait, and try again",
}
"""What the SDK's errors call the arguments of a client, and what they are called here, if they are there at all."""


class Command(click.Command):
    """A command whose failures are told in one line, and whose help ends with examples."""

    def __init__(self, *arguments: Any, examples: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.context_settings["help_option_names"] = ["-h", "--help"]
        self._examples = examples

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write how the command is called."""
        formatter.write_usage(ctx.command_path, " ".join(self.collect_usage_pieces(ctx)), "usage: ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, under a heading that looks like the others."""
        with formatter.section("options"):
            options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
            formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they stand; click would make paragraphs of them."""
        if self._examples:
            formatter.write(f"\n{self._examples}")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command's arguments."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click forgets it where an option lacks its value
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except AgentPhoneError as error:
            failure = _WrongSettingError if isinstance(error, ConfigurationError) else click.ClickException
            raise failure(f"{ctx.command_path}: {_in_our_words(error)}") from error
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing not in EXTRAS:
                raise
            raise click.ClickException(
                f"{ctx.command_path}: {missing} is not installed;"
                f" in the project's folder: pip install '.[{EXTRAS[missing]}]'"
            ) from error


class Group(Command, click.Group):
    """A command made of commands, which its help lists under headings: also those of the groups below it."""

    command_class: type[click.Command] | None = Command

    def __init__(self, *arguments: Any, headings: Mapping[str, Sequence[str]], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.headings = headings
        """The names of the commands to list under each heading."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, and then the options."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each with what it does."""
        for heading, paths in self.headings.items():
            with formatter.section(heading):
                formatter.write_dl([(path, self._find(path).get_short_help_str(60)) for path in paths])

    def _find(self, path: str) -> click.Command:
        command: click.Command = self
        for name in path.split():
            assert isinstance(command, click.Group)  # noqa: S101  # the headings are ours, and each help is tested
            command = command.commands[name]
        return command


def whole(
    what: str, least: int, most: int | None = None
) -> Callable[[click.Context, click.Parameter, Any], int | None]:
    """Make a callback that reads an option's value as a whole number in plain digits."""

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
        if value is None:
            return None
        number = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else -1
        if number < least or (most is not None and number > most):
            upto = f"from {least}" if most is None else f"from {least} to {most}"
            raise click.BadParameter(f"{what} is a number {upto}, not {value!r}", ctx, param)
        return number

    return read


@contextmanager
def refusals(ctx: click.Context) -> Generator[None]:
    """Make a wrong argument, as the SDK refuses it before anything is sent, a wrong command line."""
    try:
        yield
    except ConfigurationError:
        raise
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from error


class _WrongSettingError(click.ClickException):
    exit_code = 2


def _in_our_words(error: AgentPhoneError) -> str:
    text = " ".join([str(error), *getattr(error, "__notes__", ())])
    for theirs, ours in OUR_WORDS.items():
        text = text.replace(theirs, ours)
    return text
