"""The options that every command on an account has, and what is made from them: a client and an output format.

They may be given before or after the command's name; the last one wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
from attrs import define, field

from agentphone.errors import ConfigurationError

if TYPE_CHECKING:
    from agentphone import AsyncClient, Client
    from agentphone.cli._output import Output

F = TypeVar("F", bound=Callable[..., Any])


@define
class Settings:
    """The options given so far, at any level of the command line."""

    api_key: str | None = field(default=None, repr=False)
    base_url: str | None = None
    json: bool | None = None

    def given(self) -> list[str]:
        """Return the names of the options that were given."""
        values = {"--api-key": self.api_key, "--base-url": self.base_url, "--json": self.json}
        return [option for option, value in values.items() if value is not None]

    def client(self, on_retry: Callable[[Exception, float], object] | None = None) -> Client:
        """Create the client.

        Args:
            on_retry: Called with the error and the delay in seconds before each retry.

        Raises:
            ConfigurationError: There is no key, or a setting cannot be used.
        """
        from agentphone import Client

        with self._explained():
            return Client(self.api_key, base_url=self.base_url, on_retry=on_retry)

    def async_client(self, deadline: float | None = None) -> AsyncClient:
        """Create an async client.

        Args:
            deadline: Seconds for a whole call with its retries.

        Raises:
            ConfigurationError: There is no key, or a setting cannot be used.
        """
        from agentphone import AsyncClient

        with self._explained():
            return AsyncClient(self.api_key, base_url=self.base_url, deadline=deadline)

    @contextmanager
    def _explained(self) -> Generator[None]:
        """Name the options in errors about settings."""
        base_url = os.environ.get("AGENTPHONE_BASE_URL") if self.base_url is None else self.base_url
        has_key = self.api_key or os.environ.get("AGENTPHONE_API_KEY")
        if not has_key and not (base_url or "").startswith("sandbox:"):
            raise ConfigurationError(
                "No API key. Pass --api-key KEY or set AGENTPHONE_API_KEY;"
                " --base-url sandbox: tries the SDK without one."
            )
        try:
            yield
        except ConfigurationError as error:
            error.add_note("(Set by --base-url or AGENTPHONE_BASE_URL, and --api-key or AGENTPHONE_API_KEY.)")
            raise

    def output(self) -> Output:
        """Choose the output format: tables in a terminal, JSON lines elsewhere."""
        # Imported for both: a command that fails only in a terminal, where rich is missing, would be hard to explain.
        from agentphone.cli._output import JsonLines
        from agentphone.cli._tables import Tables

        return Tables() if sys.stdout.isatty() and not self.json else JsonLines()


def settings_of(ctx: click.Context) -> Settings:
    """Return the settings of a run."""
    return ctx.ensure_object(Settings)


def _remember(ctx: click.Context, param: click.Parameter, value: str | bool | None) -> None:
    settings = settings_of(ctx)  # called at every level, so that the outermost one creates it
    if value is not None:
        setattr(settings, str(param.name), value)


def client_options(command: F) -> F:
    """Add the options for a client to a command; their values go into its settings."""
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
        help="The API's URL (default: AGENTPHONE_BASE_URL, else AgentPhone's); 'sandbox:' is a local one to try.",
        callback=_remember,
        expose_value=False,
    )
    return add_api_key(add_base_url(command))


def account_options(command: F) -> F:
    """Add the options for a client and for output to a command; their values go into its settings."""
    add_json = click.option(
        "--json",
        is_flag=True,
        default=None,
        help="Print JSON lines in a terminal too.",
        callback=_remember,
        expose_value=False,
    )
    return client_options(add_json(command))
