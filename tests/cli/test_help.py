"""Help pages and tab completion of all commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agentphone.__main__ import main
from agentphone.cli.commands import agentphone
from tests.support.processes import ENVIRONMENT, SECONDS, read_terminal, run, run_agentphone, widest


def commands(command: click.Command = agentphone, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of each command."""
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, *path, name)


@pytest.mark.parametrize("path", [*commands()], ids=" ".join)
def test_help_fits_eighty_columns_and_its_examples_parse(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit_:
        main([*path, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {' '.join(['agentphone', *path])} ")
    assert widest(text) <= 80
    for example in re.findall(r"^  agentphone ((?:[a-z].*?)?)(?: {3}| [|>]|$)", text, re.MULTILINE):
        parse(shlex.split(example))


def parse(arguments: list[str], command: click.Command = agentphone) -> None:
    """Parse a command line without running it; a wrong one raises `UsageError`."""
    if isinstance(command, click.Group) and arguments[0] in command.commands:
        parse(arguments[1:], command.commands[arguments[0]])
    elif not isinstance(command, click.Group) or command.invoke_without_command:
        command.make_context("agentphone", arguments)


def test_main_help_lists_every_command() -> None:
    listed = {name for names in agentphone.headings.values() for name in names}
    assert listed == {" ".join(path) for path in commands() if path} - {"conversations", "inbox", "messages"}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install `agentphone` as pip would, and return its folder."""
    folder = tmp_path_factory.mktemp("bin")
    file = folder / "agentphone"
    code = "import sys\nfrom agentphone.__main__ import main\nsys.exit(main())\n"
    file.write_text(f"#!{sys.executable}\n{code}", encoding="utf-8")
    file.chmod(0o755)
    return folder


SESSION = [
    # What is typed, with tabs, and the line that this makes.
    ("agentphone --base-url sandbox: conversations li\t", "agentphone --base-url sandbox: conversations list "),
    ("agentphone --base-url=sandbox: export x --fo\t", "agentphone --base-url=sandbox: export x --format "),
    (
        "agentphone conversations --base-url http://127.0.0.1:80 messages x --order=de\t",
        "agentphone conversations --base-url http://127.0.0.1:80 messages x --order=desc ",
    ),
    ("agentphone conversations update x --file state.js\t", "agentphone conversations update x --file state.json "),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_what_is_typed(script: Path, tmp_path: Path) -> None:
    """An interactive bash with the line of the help page; Ctrl-A and `#` turn each completed line into a comment."""
    pty = pytest.importorskip("pty")
    (line,) = re.findall(r"^  bash  (.*)$", run_agentphone("--help").stdout, re.MULTILINE)
    (tmp_path / "state.json").touch()
    settings = {
        "PATH": f"{script}{os.pathsep}{os.environ['PATH']}",
        "TERM": "dumb",
        "HISTFILE": str(tmp_path / "typed"),
    }
    master, slave = pty.openpty()
    with subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=tmp_path,
        env=ENVIRONMENT | settings,
        start_new_session=True,
    ) as process:
        try:
            os.close(slave)
            typed = "".join(f"{typed}\x01#\n" for typed, _ in SESSION)
            os.write(master, f"{line}\n{typed}exit\n".encode())
            while read_terminal(master):
                pass
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()
    os.close(master)
    history = (tmp_path / "typed").read_text().splitlines()
    assert history[1:-1] == [f"#{completed}" for _, completed in SESSION]


def test_script_that_click_wrote_earlier_still_completes(script: Path) -> None:
    words = {"COMP_WORDS": "agentphone conversations li", "COMP_CWORD": "2", "_AGENTPHONE_COMPLETE": "bash_complete"}
    done = run("agentphone", PATH=f"{script}{os.pathsep}{os.environ['PATH']}", cwd=None, **words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "plain,list\n", "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_in_other_shells(shell: str, script: Path) -> None:
    path = f"{script}{os.pathsep}{os.environ['PATH']}"
    source = run("agentphone", PATH=path, _AGENTPHONE_COMPLETE=f"{shell}_source")
    assert (source.returncode, source.stderr) == (0, "")
    assert f"_AGENTPHONE_COMPLETE={shell}_complete" in source.stdout
    words = {
        "COMP_WORDS": "agentphone --base-url sandbox: conversations me",
        "COMP_CWORD": "me" if shell == "fish" else "4",
    }
    done = run("agentphone", PATH=path, _AGENTPHONE_COMPLETE=f"{shell}_complete", cwd=None, **words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "messages" in done.stdout
