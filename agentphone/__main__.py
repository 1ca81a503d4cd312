"""The entry point of the command line: exit codes, and errors as one line on stderr. The commands are in `cli`.

The exit code is 0 for success, 1 for a failure, 2 for a wrong command line, 3 for a message that may have been sent,
130 for Ctrl-C and 141 for a closed output pipe. No exit prints a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

PROGRAM = "agentphone"
COMPLETION = "_AGENTPHONE_COMPLETE"
"""The variable through which a shell asks for completions; click defines its name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line after the program's name; by default that of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: The command line is wrong, or asks for help or the version, which is printed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process: `>&-`, pythonw
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False))
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()  # here, where a closed pipe can still be distinguished from other failures
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at exit
        if isinstance(error, BrokenPipeError):
            return 141
        return _fail(f"{PROGRAM}: {error.strerror or error}")


def _run(arguments: list[str]) -> int:
    try:
        import click
        from click.shell_completion import add_completion_class, shell_complete
    except ModuleNotFoundError:
        return _fail(
            f"{PROGRAM}: click is not installed; in the project's folder (PyPI has another package of this name):"
            " pip install '.[cli]' for conversations and export, '.[sandbox]' for demo and sandbox, '.[mcp]' for mcp"
        )
    from agentphone.cli.commands import agentphone

    if instruction := os.environ.get(COMPLETION):
        from agentphone.cli._completion import BashComplete

        add_completion_class(BashComplete)
        return shell_complete(agentphone, {}, PROGRAM, COMPLETION, instruction)
    try:
        # Not click's main(), which handles Ctrl-C and broken pipes with other exit codes.
        with agentphone.make_context(PROGRAM, arguments) as context:
            return int(agentphone.invoke(context) or 0)
    except click.exceptions.Exit as error:  # after --help and --version
        raise SystemExit(error.exit_code) from None
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(f"{error.format_message()}\n")
        raise SystemExit(2) from None
    except click.UsageError as error:
        context = error.ctx or click.Context(agentphone, info_name=PROGRAM)
        usage = " ".join([context.command_path, *context.command.collect_usage_pieces(context)])
        text = f"{context.command_path}: {error.format_message()} (usage: {usage}; --help has more)"
        raise SystemExit(_fail(text, 2)) from None
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)


def _fail(text: str, code: int = 1) -> int:
    """Write an error as one line, even if a file name in it has several; return the exit code."""
    sys.stderr.write(" ".join(text.splitlines()) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
