"""Starts: an import, a first client, a command. Imports at the top only what every interpreter has loaded."""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Turn = Callable[[int], float]

CLICK = """
import click

@click.group()
def program():
    "Say hello."

@program.command()
def hello():
    "Say it."

program()
"""
IMPORTS = {
    "ours": "from agentphone import AsyncClient",
    "dependencies": "import httpx, attrs, cattrs, anyio",
    "vendor": "import agentphone, httpx",  # it imports httpx itself when an asyncio client is made
}
PROGRAMS = {"ours": ("-m", "agentphone", "--help"), "click": ("-c", CLICK, "--help"), "python": ("-c", "pass")}


def load(library: str, _url: str, _size: int) -> Turn:
    """Import a library for asyncio, once."""

    def turn(_: int) -> float:
        began = time.perf_counter()
        exec(IMPORTS[library])
        return time.perf_counter() - began

    return turn


def create(_library: str, url: str, size: int) -> Turn:
    """Create the last of `size` clients, up to where it can send."""
    import asyncio

    from agentphone import APIConnectionError, AsyncClient

    runner = asyncio.Runner()

    async def create_one() -> float:
        began = time.perf_counter()
        # A client opens nothing and loads no certificates before its first call. Nobody listens there, so that the call
        # ends at the socket and nothing but the client's own work is in it.
        client = AsyncClient("key", base_url=url, max_retries=0)
        try:
            await client.conversations.get("conv_1")
        except APIConnectionError:
            return time.perf_counter() - began
        raise AssertionError("nobody should listen there")

    for _ in range(size - 1):
        runner.run(create_one())
    return lambda _: runner.run(create_one())


def command(library: str, _url: str, _size: int) -> Turn:
    """Run a program from its start to its end."""
    import subprocess

    program = [sys.executable, *PROGRAMS[library]]

    def turn(units: int) -> float:
        began = time.perf_counter()
        for _ in range(units):
            subprocess.run(program, stdout=subprocess.DEVNULL, check=True)
        return (time.perf_counter() - began) / units

    return turn
