"""Help pages and tab completion of all commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agentphone.__main__ import main
from agentphone.cli.commands import agentphone
from agentphone.cli.conversations import conversations
from tests.support.processes import AGENTPHONE, run, widest


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
    assert listed == {" ".join(path) for path in commands() if path} - {"conversations"}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install `agentphone` as pip would, and return its folder."""
    folder = tmp_path_factory.mktemp("bin")
    file = folder / "agentphone"
    code = "import sys\nfrom agentphone.__main__ import main\nsys.exit(main())\n"
    file.write_text(f"#!{sys.executable}\n{code}", encoding="utf-8")
    file.chmod(0o755)
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completion_from_the_help_page(script: Path) -> None:
    (line,) = re.findall(r"^  bash  (.*)$", run(*AGENTPHONE, "--help").stdout, re.MULTILINE)
    script_text = f"""\
{line}
for typed in 'agentphone conv' 'agentphone conversations ' 'agentphone conversations list --al'; do
    COMP_WORDS=($typed); [[ $typed == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)) COMPREPLY=()
    _agentphone_completion agentphone
    echo "${{COMPREPLY[@]}}"
done
"""
    done = run("bash", "-c", script_text, PATH=f"{script}{os.pathsep}{os.environ['PATH']}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["conversations", " ".join(sorted(conversations.commands)), "--all"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_in_other_shells(shell: str, script: Path) -> None:
    path = f"{script}{os.pathsep}{os.environ['PATH']}"
    source = run("agentphone", PATH=path, _AGENTPHONE_COMPLETE=f"{shell}_source")
    assert (source.returncode, source.stderr) == (0, "")
    assert f"_AGENTPHONE_COMPLETE={shell}_complete" in source.stdout
    words = {"COMP_WORDS": "agentphone conversations me", "COMP_CWORD": "me" if shell == "fish" else "2"}
    done = run("agentphone", PATH=path, _AGENTPHONE_COMPLETE=f"{shell}_complete", cwd=None, **words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "messages" in done.stdout
