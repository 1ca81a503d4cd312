"""How a run of the command line ends: its exit code, and the one line that stderr gets. The commands live in `cli`.

An exit code is 0 for done, 1 for a failure that stderr explains in one line, 2 for a command line that makes no sense,
130 for Ctrl-C and 141 for an output that nobody reads any more. None of them comes with a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

PROGRAM = "agentphone"
COMPLETION = "_AGENTPHONE_COMPLETE"
"""The variable through which a shell asks what could follow on the command line; click's own name for it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line behind the program's name; that of the process if None.

    Returns:
        The exit code.

    Raises:
        SystemExit: The command line makes no sense, or asked for help or the version, which is printed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this: `>&-`, pythonw
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False))
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()  # here, where a reader who went away can still be told from a failure
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its exit
        if isinstance(error, BrokenPipeError):
            return 141
        return _fail(f"{PROGRAM}: {error.strerror or error}")


def _run(arguments: list[str]) -> int:
    try:
        import click
        from click.shell_completion import shell_complete
    except ModuleNotFoundError:
        return _fail(
            f"{PROGRAM}: click is not installed; in the project's folder (PyPI has another package of this name):"
            " pip install '.[cli]' for conversations and export, '.[sandbox]' for demo and sandbox"
        )
    from agentphone.cli.commands import agentphone

    if instruction := os.environ.get(COMPLETION):
        return shell_complete(agentphone, {}, PROGRAM, COMPLETION, instruction)
    try:
        # Not click's main(): it would keep Ctrl-C and broken pipes to itself, and end them in its own way.
        with agentphone.make_context(PROGRAM, arguments) as context:
            return int(agentphone.invoke(context) or 0)
    except click.exceptions.Exit as ended:  # after --help and --version
        raise SystemExit(ended.exit_code) from None
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
    """Say in one line why, though a file's name may have two; give the exit code."""
    sys.stderr.write(" ".join(text.splitlines()) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
