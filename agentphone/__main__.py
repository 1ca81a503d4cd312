"""The command line: which command was asked for, and how it ends. What a command does lives elsewhere.

An exit code is 0 for done, 1 for a failure that stderr explains in one line, 2 for a command line that makes no sense,
130 for Ctrl-C and 141 for an output that nobody reads any more. None of them comes with a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from agentphone._version import __version__

SANDBOX_PACKAGES = ("starlette", "uvicorn")
"""What the `sandbox` extra installs: without these no command here can run."""

DESCRIPTION = "AgentPhone conversations from the command line, and a local AgentPhone to try."
EPILOG = """\
to begin with:
  agentphone demo                     see the SDK at work; no network, no key
  agentphone sandbox --demo           keep such a local AgentPhone running
  agentphone COMMAND --help           what a command can do
"""
DEMO = """\
Start a local AgentPhone on a free port of this machine, and show the SDK do
its job against it over HTTP: conversations listed, a long history streamed,
metadata stored, read back and cleared, and what two errors look like. It takes
a few seconds, needs no network and no key, and leaves nothing behind.
"""
SANDBOX = """\
Serve a local AgentPhone over HTTP until Ctrl-C: AgentPhone's conversations
API, and beside it POST /sandbox/messages to act as the person who texts. The
first line printed names its URL; it comes when the sandbox is ready.
"""
SANDBOX_EPILOG = """\
examples:
  agentphone sandbox --demo           in memory, with 36 conversations in it
  agentphone sandbox --db box.db      kept in a file from one start to the next

then, in the program under test:
  AGENTPHONE_BASE_URL=http://127.0.0.1:8765 AGENTPHONE_API_KEY=any-key
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line behind the program's name; that of the process if None.

    Returns:
        The exit code.

    Raises:
        SystemExit: The command line makes no sense, or asked for help or the version, which is printed.
    """
    if getattr(sys, "stdout", None) is None:  # closed by whoever started this: `>&-`, pythonw
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False)
    try:
        try:
            return _run(_parser().parse_args(arguments))
        finally:
            sys.stdout.flush()  # here, where a reader who went away can still be told from a failure
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its exit
        if isinstance(error, BrokenPipeError):
            return 141
        sys.stderr.write(f"agentphone: {error.strerror or error}\n")
        return 1


def _run(options: argparse.Namespace) -> int:
    try:
        if options.command == "demo":
            from agentphone.cli.demo import demo

            return demo()
        from agentphone.sandbox.server import serve

        return serve(host=options.host, port=options.port, db=options.db, api_key=options.api_key, demo=options.demo)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in SANDBOX_PACKAGES:
            raise
        sys.stderr.write(
            f"agentphone {options.command}: {missing} is not installed;"
            " in the project's folder: pip install '.[sandbox]'\n"
        )
        return 1


def _parser() -> argparse.ArgumentParser:
    # prog: otherwise it reads "__main__.py" under `python -m`. No abbreviations: a script must not break when an option
    # with the same beginning comes along.
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="agentphone", description=DESCRIPTION, epilog=EPILOG, formatter_class=as_written, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser(
        "demo", help="show the SDK do its job", description=DEMO, formatter_class=as_written, allow_abbrev=False
    )
    sandbox = commands.add_parser(
        "sandbox",
        help="serve a local AgentPhone over HTTP",
        description=SANDBOX,
        epilog=SANDBOX_EPILOG,
        formatter_class=as_written,
        allow_abbrev=False,
    )
    sandbox.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    sandbox.add_argument("--port", type=_port, default=8765, help="the port; 0 takes a free one (default: %(default)s)")
    sandbox.add_argument("--db", metavar="FILE", help="keep the data in this SQLite file (default: in memory)")
    sandbox.add_argument(
        "--api-key", type=_key, metavar="KEY", help="the only key to accept (default: any that is not empty)"
    )
    sandbox.add_argument("--demo", action="store_true", help="load the demo's conversations, if there are none yet")
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")
    return int(text)


def _key(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a key is not empty")  # and what it is, is never printed
    return text


if __name__ == "__main__":
    sys.exit(main())
