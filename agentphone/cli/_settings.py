"""The options that every command on an account takes, and what comes of them: a client, and a way to print.

They may stand before or behind the command's name; the last word counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from attrs import define, field

from agentphone import Client
from agentphone.cli._output import JsonLines, Output

F = TypeVar("F", bound=Callable[..., Any])


@define
class Settings:
    """What was given so far, at whichever level of the command line."""

    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    json: bool | None = None

    def given(self) -> list[str]:
        """Name the options that were given."""
        values = {"--api-key": self.api_key, "--base-url": self.base_url, "--json": self.json}
        return [option for option, value in values.items() if value is not None]

    def client(self, on_retry: Callable[[Exception, float], object] | None = None) -> Client:
        """Make the client.

        Args:
            on_retry: Called with the error and the pause in seconds before each further attempt.

        Raises:
            ConfigurationError: There is no key, or a setting cannot be used.
        """
        return Client(self.api_key, base_url=self.base_url, on_retry=on_retry)

    def output(self) -> Output:
        """Choose how to print: tables for people, JSON lines for programs."""
        # Imported before the choice: what works in a pipe and fails in a terminal would be a riddle.
        from agentphone.cli._tables import Tables

        return Tables() if sys.stdout.isatty() and not self.json else JsonLines()


def settings_of(ctx: click.Context) -> Settings:
    """Give the settings of a run."""
    return ctx.ensure_object(Settings)


def _remember(ctx: click.Context, param: click.Parameter, value: str | bool | None) -> None:
    settings = settings_of(ctx)  # at every level, so that the outermost one makes it
    if value is not None:
        setattr(settings, str(param.name), value)


def account_options(command: F) -> F:
    """Add the options to a command; what they say goes into its settings."""
    add_api_key = click.option(
        "--api-key",
        metavar="KEY",
        help="The API key (default: AGENTPHONE_API_KEY).",
        callback=_remember,
        expose_value=False,
    )
    add_base_url = click.option(
        "--base-url",
        metavar="URL",
        help="Where the API is (default: AGENTPHONE_BASE_URL, else AgentPhone); 'sandbox:' is a local one to try.",
        callback=_remember,
        expose_value=False,
    )
    add_json = click.option(
        "--json",
        is_flag=True,
        default=None,
        help="Print JSON lines in a terminal too.",
        callback=_remember,
        expose_value=False,
    )
    return add_api_key(add_base_url(add_json(command)))
