"""`agentphone mcp`: serve the Model Context Protocol, or print what a client's configuration needs."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from agentphone.cli._base import Command, describe
from agentphone.cli._settings import Settings, client_options, settings_of
from agentphone.errors import ConfigurationError

EXAMPLES = """\
examples:
  agentphone mcp --print-config claude    what to paste into its configuration
  agentphone mcp --base-url sandbox:      try it without a key
  agentphone mcp --http 8000              for clients that connect to a URL
"""
CONFIG_FILES = {
    "claude": "claude_desktop_config.json (Settings > Developer > Edit Config)",
    "cursor": "~/.cursor/mcp.json, or .cursor/mcp.json of a project",
    "vscode": ".vscode/mcp.json of a project, or the user's (MCP: Open User Configuration)",
}
DEADLINE = 45.0
"""Seconds for a call with its retries: clients give up after a minute, and a model waits."""


def parse_address(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Parse `PORT`, `HOST:PORT` or `[ADDRESS]:PORT`."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isdecimal() or len(port) > 5 or int(port) > 65535:
        raise click.UsageError(f"{param.opts[0]} must be PORT or HOST:PORT, got {value!r}", ctx)
    return host, int(port)


@click.command(cls=Command, examples=EXAMPLES)
@click.option(
    "--http",
    "address",
    metavar="[HOST:]PORT",
    callback=parse_address,
    help="Serve streamable HTTP on this address instead of stdin and stdout; 0 picks a free port.",
)
@click.option("--read-only", is_flag=True, help="Leave out the tools that write: set_state, reply and react.")
@click.option(
    "--print-config",
    type=click.Choice([*CONFIG_FILES]),
    help="Print the configuration for this client, and serve nothing.",
)
@client_options
@click.pass_context
def mcp(ctx: click.Context, address: tuple[str, int] | None, read_only: bool, print_config: str | None) -> None:
    """Serve conversations to a model as tools (MCP).

    This is a server of the Model Context Protocol. A client such as Claude, Cursor or VS Code starts it and talks to it
    over stdin and stdout. The tools list, read and search conversations, keep their state, and reply. Without a key it
    starts, and each tool says what is missing.
    """
    settings = settings_of(ctx)
    if print_config:
        import json

        sys.stdout.write(json.dumps(_config(print_config, settings, address, read_only=read_only), indent=2) + "\n")
        sys.stderr.write(f"Paste this into {CONFIG_FILES[print_config]}.\n")
        return
    from agentphone import AsyncClient
    from agentphone.mcp import create_server
    from agentphone.mcp._serve import LOCAL, serve_http, serve_stdio

    made: AsyncClient | ConfigurationError
    try:
        made = settings.async_client(deadline=DEADLINE)
    except ConfigurationError as error:
        made = error
        sys.stderr.write(f"{ctx.command_path}: {describe(error)}\n")

    def connect() -> AsyncClient:
        if isinstance(made, ConfigurationError):
            raise made.with_traceback(None)
        return made

    async def close() -> None:
        if isinstance(made, AsyncClient):
            await made.aclose()

    server = create_server(connect, read_only=read_only)
    if address is None:
        if sys.stdin.isatty():
            sys.stderr.write("Serving the Model Context Protocol on stdin and stdout; --print-config helps a client.\n")
        serve_stdio(server, close)
        return
    host, port = address
    if host not in LOCAL:
        sys.stderr.write(
            f"{ctx.command_path}: whoever reaches {host} can use the account; put a proxy that asks for a password"
            " before it.\n"
        )
    try:
        serve_http(server, close, host, port)
    except OSError as error:
        raise click.ClickException(
            f"{ctx.command_path}: cannot listen on {host} port {port}: {error.strerror or error}"
        ) from error


def _config(client: str, settings: Settings, address: tuple[str, int] | None, *, read_only: bool) -> dict[str, Any]:
    """Return a client's configuration. It has a placeholder for the key, never the key."""
    from pathlib import Path

    group = "servers" if client == "vscode" else "mcpServers"
    if address is not None:
        host, port = address
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/mcp"
        return {group: {"agentphone": {"url": url} if client == "cursor" else {"type": "http", "url": url}}}
    base_url = settings.base_url or os.environ.get("AGENTPHONE_BASE_URL")
    environment = {} if (base_url or "").startswith("sandbox:") else {"AGENTPHONE_API_KEY": "YOUR_API_KEY"}
    if base_url:
        path = base_url.removeprefix("sandbox:")
        is_file = base_url.startswith("sandbox:") and path
        environment["AGENTPHONE_BASE_URL"] = f"sandbox:{Path(path).absolute()}" if is_file else base_url
    server: dict[str, Any] = {
        "command": sys.executable,
        "args": ["-m", "agentphone", "mcp", *(["--read-only"] if read_only else [])],
        "env": environment,
    }
    if client != "vscode":
        return {group: {"agentphone": server}}
    config: dict[str, Any] = {group: {"agentphone": {"type": "stdio", **server}}}
    if "AGENTPHONE_API_KEY" in environment:  # it asks for the key once, and stores it encrypted
        environment["AGENTPHONE_API_KEY"] = "${input:agentphone-api-key}"
        question = {"type": "promptString", "id": "agentphone-api-key", "description": "AgentPhone API key"}
        config["inputs"] = [question | {"password": True}]
    return config
